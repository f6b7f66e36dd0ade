//! The JSON files beside a weight file: `config.json` of timm and Hugging Face, and
//! `preprocessor_config.json`. They tell what tensors cannot: heads, eps, pooling, preprocessing.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::Pooling;
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

    /// What makes the model another function of the same tensors than a plain ViT, as the problem
    /// with it.
    pub fn unlike_plain(&self) -> Option<String> {
        let named = self
            .config
            .as_ref()
            .and_then(|config| config.get("hidden_act"))
            .or_else(|| self.model_arg("act_layer"))
            .and_then(Value::as_str)
            .filter(|name| *name != "gelu");
        if let Some(name) = named {
            return Some(format!(
                "its MLP uses `{name}`, and this version has the exact GELU only; use a model that says \
                 `gelu`"
            ));
        }
        if self
            .model_arg("pool_include_prefix")
            .and_then(Value::as_bool)
            == Some(true)
        {
            return Some(
                "its pooling includes class token and registers; use another model".into(),
            );
        }
        let architecture = self.architecture()?;
        let (_, what) = UNLIKE_PLAIN
            .iter()
            .find(|(words, _)| words.iter().all(|word| architecture.contains(word)))?;
        Some(format!(
            "`{architecture}` has {what}, which this version does not have; use another model"
        ))
    }
}

/// Words of timm's architectures (1.0.31) whose tensors are those of a plain ViT and whose function
/// is not, with what they have instead.
const UNLIKE_PLAIN: &[(&[&str], &str)] = &[
    (&["quickgelu"], "an approximate GELU"),
    (&["so400m"], "an approximate GELU"),
    (&["giantopt"], "an approximate GELU"),
    (&["patch32_siglip"], "an approximate GELU"),
    (&["siglip", "512"], "an approximate GELU"),
    (&["_rope"], "rotary positions"),
    (&["_rpn_"], "its norms behind attention and MLP"),
];

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
            problem: format!("it is not JSON ({e}); mend it or move it away"),
        })
}
