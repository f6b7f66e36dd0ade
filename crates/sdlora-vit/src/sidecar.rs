//! The JSON files beside a weight file: `config.json` of timm and Hugging Face, and
//! `preprocessor_config.json`. They tell what tensors cannot: heads, eps, pooling, preprocessing.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::activation::Activation;
use crate::config::{Pooling, PosEmbed};
use crate::error::VitError;

/// Largest file that is read: real ones have a few kilobytes, with the labels of ImageNet-21k two
/// megabytes.
const MAX_BYTES: u64 = 16 << 20;

/// What lies beside a weight file; empty when nothing does.
#[derive(Debug, Default)]
pub(crate) struct Sidecar {
    config: Option<Value>,
    pub preprocessor: Option<Value>,
}

impl Sidecar {
    /// Reads the files beside `path`, or in it if it is a folder. A `config.json` that describes
    /// no network of timm or Hugging Face belongs to something else and is passed over.
    pub fn read(path: &Path) -> Result<Self, VitError> {
        let folder = if path.is_dir() {
            path
        } else {
            path.parent().unwrap_or(Path::new(""))
        };
        let config = read_json(folder.join("config.json"))?.filter(|config| {
            let names = ["architecture", "model_type"];
            names.iter().any(|key| config.get(key).is_some())
        });
        Ok(Self {
            config,
            preprocessor: read_json(folder.join("preprocessor_config.json"))?,
        })
    }

    /// Forgets what describes a model of another width, as a `config.json` does that was left in a
    /// folder of several models. Returns that width.
    pub fn keep_for(&mut self, d_model: usize) -> Option<u64> {
        let config = self.config.as_ref()?;
        let width = ["hidden_size", "num_features"]
            .iter()
            .find_map(|key| config.get(*key)?.as_u64())
            .filter(|width| *width != d_model as u64)?;
        *self = Self::default();
        Some(width)
    }

    /// timm's name of the architecture.
    pub fn architecture(&self) -> Option<&str> {
        self.config.as_ref()?.get("architecture")?.as_str()
    }

    /// The kind of model: timm's architecture or Hugging Face's model type.
    pub fn kind(&self) -> Option<&str> {
        self.architecture()
            .or_else(|| self.config.as_ref()?.get("model_type")?.as_str())
    }

    /// timm's description of the input, which older files have in the outermost object.
    pub fn pretrained_cfg(&self) -> Option<&Value> {
        let config = self.config.as_ref()?;
        config
            .get("pretrained_cfg")
            .or_else(|| config.get("mean").map(|_| config))
    }

    /// A setting of timm's `model_args`.
    fn model_arg(&self, key: &str) -> Option<&Value> {
        self.config.as_ref()?.get("model_args")?.get(key)
    }

    /// Heads per block.
    pub fn n_heads(&self) -> Option<usize> {
        let found = self
            .config
            .as_ref()?
            .get("num_attention_heads")
            .or_else(|| self.model_arg("num_heads"))?;
        usize::try_from(found.as_u64()?).ok()
    }

    /// Added to the variance inside a layer norm.
    pub fn norm_eps(&self) -> Option<f64> {
        self.config.as_ref()?.get("layer_norm_eps")?.as_f64()
    }

    /// The pooling timm names, or its name where this crate does not have it.
    pub fn pooling(&self) -> Option<Result<Pooling, String>> {
        let name = self
            .model_arg("global_pool")
            .or_else(|| self.config.as_ref()?.get("global_pool"))?
            .as_str()?;
        Some(match name {
            "token" => Ok(Pooling::ClassToken),
            "avg" => Ok(Pooling::Average),
            "" => return None,
            other => Err(other.into()),
        })
    }

    /// Blocks of the model.
    pub fn depth(&self) -> Option<usize> {
        let found = self
            .config
            .as_ref()?
            .get("num_hidden_layers")
            .or_else(|| self.model_arg("depth"))?;
        usize::try_from(found.as_u64()?).ok()
    }

    /// Height and width of the input, in pixels.
    pub fn input_size(&self) -> Option<(u64, u64)> {
        let pair = |found: &Value| match found.as_array().map(Vec::as_slice) {
            Some([.., height, width]) => Some((height.as_u64()?, width.as_u64()?)),
            _ => found.as_u64().map(|side| (side, side)),
        };
        let config = self.config.as_ref()?;
        [
            self.model_arg("img_size"),
            config.get("image_size"),
            config
                .get("pretrained_cfg")
                .and_then(|cfg| cfg.get("input_size")),
            config.get("input_size"),
        ]
        .into_iter()
        .flatten()
        .find_map(pair)
    }

    /// The tokens with a position of their own.
    pub fn pos_embed(&self) -> Option<PosEmbed> {
        Some(match self.model_arg("no_embed_class")?.as_bool()? {
            true => PosEmbed::Patches,
            false => PosEmbed::All,
        })
    }

    /// The function in the MLP, or its name where this crate does not have it.
    pub fn activation(&self) -> Option<Result<Activation, String>> {
        let config = self.config.as_ref()?;
        let name = config
            .get("hidden_act")
            .or_else(|| self.model_arg("act_layer"))
            .and_then(Value::as_str);
        match name {
            Some(name) => Some(Activation::of_config(name).ok_or_else(|| name.to_owned())),
            // The default of every ViT of transformers.
            None if config.get("model_type").is_some() => Some(Ok(Activation::Gelu)),
            None => None,
        }
    }

    /// Whether the pooling includes class token and registers.
    pub fn pools_prefix(&self) -> bool {
        let found = self.model_arg("pool_include_prefix");
        found.and_then(Value::as_bool) == Some(true)
    }
}

fn read_json(path: PathBuf) -> Result<Option<Value>, VitError> {
    let io = |source| VitError::Io {
        action: "read",
        path: path.clone(),
        source,
    };
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.len() <= MAX_BYTES && metadata.is_file() => {}
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    }
    let bytes = std::fs::read(&path).map_err(io)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| VitError::NotAVit {
            path: path.clone(),
            problem: format!("it is not JSON ({e}): fetch it again, or move it away"),
            untold: None,
        })
}
