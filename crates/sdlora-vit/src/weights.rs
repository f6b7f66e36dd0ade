//! Weight files: safetensors with timm's names and PyTorch's layouts.
//!
//! PyTorch keeps a linear weight as `[d_output, d_input]` and the patch projection as a
//! convolution `[d_model, n_channels, patch, patch]`; both are transposed on the way in and out.
//! A file written here carries the shape of its model as JSON in the metadata key
//! [`CONFIG_KEY`], so it can be read back without a preset.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::Write;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use half::{bf16, f16};
use rand::SeedableRng;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::config::VitConfig;
use crate::error::VitError;
use crate::layers::Linear;
use crate::model::Vit;

/// Metadata key under which a file keeps the [`VitConfig`] of its model.
pub const CONFIG_KEY: &str = "sdlora.vit";

/// Number format of the weights in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32 bits, exact.
    F32,
    /// 16 bits (11 of mantissa): half the size.
    F16,
}

/// What fitted and what did not, by name, when a file met a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightReport {
    /// Tensors that were loaded.
    pub applied: Vec<String>,
    /// Tensors the model needs and the file lacks.
    pub missing: Vec<String>,
    /// Tensors of the file the model has no place for (a classifier head, for instance).
    pub unused: Vec<String>,
    /// Tensors whose shape or number format does not fit, with both.
    pub misfit: Vec<String>,
}

impl WeightReport {
    /// Whether every tensor of the model was loaded.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.misfit.is_empty()
    }
}

impl fmt::Display for WeightReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors applied", self.applied.len())?;
        for (what, names) in [
            ("missing", &self.missing),
            ("wrong shape or type", &self.misfit),
            ("unused", &self.unused),
        ] {
            if !names.is_empty() {
                write!(f, ", {} {what} ({})", names.len(), names.join(", "))?;
            }
        }
        Ok(())
    }
}

/// A parameter and how a weight file lays it out.
enum Slot<'a> {
    /// `[d_input, d_output]` here, `[d_output, d_input]` in the file.
    Linear(&'a mut Param<Tensor<2>>),
    /// `[n_channels · patch², d_model]` here, `[d_model, n_channels, patch, patch]` in the file.
    Conv(&'a mut Param<Tensor<2>>, [usize; 4]),
    /// The same in both.
    Vector(&'a mut Param<Tensor<1>>),
    /// The same in both.
    Tokens(&'a mut Param<Tensor<3>>),
}

impl Slot<'_> {
    fn file_shape(&self) -> Vec<usize> {
        match self {
            Self::Linear(p) => {
                let [d_input, d_output] = p.lazy_shape().dims();
                vec![d_output, d_input]
            }
            Self::Conv(_, shape) => shape.to_vec(),
            Self::Vector(p) => p.lazy_shape().to_vec(),
            Self::Tokens(p) => p.lazy_shape().to_vec(),
        }
    }

    fn set(self, values: Vec<f32>, device: &Device) {
        match self {
            Self::Linear(p) | Self::Conv(p, _) => {
                let [d_input, d_output] = p.lazy_shape().dims();
                replace(p, transpose(&values, d_output, d_input), device);
            }
            Self::Vector(p) => replace(p, values, device),
            Self::Tokens(p) => replace(p, values, device),
        }
    }

    fn get(&self) -> Vec<f32> {
        let read = |data: TensorData| data.iter::<f32>().collect::<Vec<_>>();
        match self {
            Self::Linear(p) | Self::Conv(p, _) => {
                let [d_input, d_output] = p.lazy_shape().dims();
                transpose(&read(p.val().into_data()), d_input, d_output)
            }
            Self::Vector(p) => read(p.val().into_data()),
            Self::Tokens(p) => read(p.val().into_data()),
        }
    }
}

fn replace<const D: usize>(param: &mut Param<Tensor<D>>, values: Vec<f32>, device: &Device) {
    let data = TensorData::new(values, param.lazy_shape());
    let tensor = Tensor::from_data(data, device);
    *param = Param::initialized(param.id, tensor.set_require_grad(param.is_require_grad()));
}

/// Row-major `[n_rows, n_columns]` to `[n_columns, n_rows]`.
fn transpose(values: &[f32], n_rows: usize, n_columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (i, row) in values.chunks_exact(n_columns).enumerate() {
        for (j, &value) in row.iter().enumerate() {
            out[j * n_rows + i] = value;
        }
    }
    out
}

impl Vit {
    /// Calls `f` for every parameter with its timm name: the one list of names there is.
    fn each_weight(&mut self, f: &mut dyn FnMut(String, Slot<'_>)) {
        let config = self.config().clone();
        let linear = |f: &mut dyn FnMut(String, Slot<'_>), name: String, layer| {
            let layer: &mut Linear = layer;
            f(format!("{name}.weight"), Slot::Linear(&mut layer.weight));
            f(format!("{name}.bias"), Slot::Vector(&mut layer.bias));
        };
        let conv = [
            config.d_model,
            config.n_channels,
            config.patch_size,
            config.patch_size,
        ];
        let proj = &mut self.patch_embed.proj;
        f(
            "patch_embed.proj.weight".into(),
            Slot::Conv(&mut proj.weight, conv),
        );
        f("patch_embed.proj.bias".into(), Slot::Vector(&mut proj.bias));
        if let Some(cls_token) = &mut self.cls_token {
            f("cls_token".into(), Slot::Tokens(cls_token));
        }
        f("pos_embed".into(), Slot::Tokens(&mut self.pos_embed));
        for (i, block) in self.blocks.iter_mut().enumerate() {
            for (name, norm) in [("norm1", &mut block.norm1), ("norm2", &mut block.norm2)] {
                f(
                    format!("blocks.{i}.{name}.weight"),
                    Slot::Vector(&mut norm.weight),
                );
                f(
                    format!("blocks.{i}.{name}.bias"),
                    Slot::Vector(&mut norm.bias),
                );
            }
            linear(f, format!("blocks.{i}.attn.qkv"), &mut block.attn.qkv);
            linear(f, format!("blocks.{i}.attn.proj"), &mut block.attn.proj);
            linear(f, format!("blocks.{i}.mlp.fc1"), &mut block.mlp.fc1);
            linear(f, format!("blocks.{i}.mlp.fc2"), &mut block.mlp.fc2);
        }
        f("norm.weight".into(), Slot::Vector(&mut self.norm.weight));
        f("norm.bias".into(), Slot::Vector(&mut self.norm.bias));
    }

    /// Reads a model from a safetensors file with timm's names, all parameters trainable.
    ///
    /// The shape comes from `config`, or from the file's own metadata when `config` is `None`.
    /// Tensors the model has no place for are named in the report.
    ///
    /// # Errors
    ///
    /// [`VitError::Io`] and [`VitError::Format`] for a file that cannot be read or is cut off,
    /// [`VitError::NotAVit`] when neither `config` nor the file gives the shape,
    /// [`VitError::Mismatch`] with the whole report when tensors are missing or do not fit.
    pub fn load(
        path: &Path,
        config: Option<&VitConfig>,
        device: &Device,
    ) -> Result<(Self, WeightReport), VitError> {
        let bytes = std::fs::read(path).map_err(|source| VitError::Io {
            action: "read",
            path: path.into(),
            source,
        })?;
        let format = |source| VitError::Format {
            path: path.into(),
            source,
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(format)?;
        let file = SafeTensors::deserialize(&bytes).map_err(format)?;
        let config = match config {
            Some(config) => config.clone(),
            None => config_of(path, header.metadata().as_ref())?,
        };

        // The drawn weights are all replaced, so the seed does not matter.
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        let mut vit = Self::init(&config, &mut rng, device)?;
        let mut report = WeightReport::default();
        let mut unused: BTreeSet<String> = file.names().into_iter().map(String::from).collect();
        vit.each_weight(&mut |name, slot| {
            unused.remove(&name);
            let Ok(view) = file.tensor(&name) else {
                report.missing.push(name);
                return;
            };
            let expected = slot.file_shape();
            match (view.shape() == expected, to_f32(&view)) {
                (true, Some(values)) => {
                    slot.set(values, device);
                    report.applied.push(name);
                }
                (fits, values) => report.misfit.push(format!(
                    "{name}: {:?}{} where {expected:?} is needed",
                    view.shape(),
                    if fits && values.is_none() {
                        format!(" of {:?}", view.dtype())
                    } else {
                        String::new()
                    },
                )),
            }
        });
        report.unused = unused.into_iter().collect();
        if report.is_complete() {
            Ok((vit, report))
        } else {
            Err(VitError::Mismatch {
                path: path.into(),
                report,
            })
        }
    }

    /// Writes the model as safetensors with timm's names; an existing file is replaced only by a
    /// whole new one. `metadata` is stored beside the shape of the model.
    ///
    /// # Errors
    ///
    /// [`VitError::Io`] when the file cannot be written.
    pub fn save(
        &self,
        path: &Path,
        dtype: WeightDtype,
        metadata: &BTreeMap<String, String>,
    ) -> Result<(), VitError> {
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        self.clone().each_weight(&mut |name, slot| {
            let values = slot.get();
            let (kind, bytes) = match dtype {
                WeightDtype::F32 => (
                    Dtype::F32,
                    values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                ),
                WeightDtype::F16 => (
                    Dtype::F16,
                    values
                        .iter()
                        .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                        .collect(),
                ),
            };
            tensors.push((name, kind, slot.file_shape(), bytes));
        });
        let format = |source| VitError::Format {
            path: path.into(),
            source,
        };
        let mut views = Vec::with_capacity(tensors.len());
        for (name, kind, shape, bytes) in &tensors {
            let view = TensorView::new(*kind, shape.clone(), bytes).map_err(format)?;
            views.push((name.as_str(), view));
        }
        let mut header: HashMap<String, String> = metadata
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let shape = serde_json::to_string(self.config()).map_err(|e| VitError::NotAVit {
            path: path.into(),
            problem: format!("its shape cannot be written as JSON: {e}"),
        })?;
        header.insert(CONFIG_KEY.into(), shape);
        header.insert("format".into(), "pt".into());
        let bytes = safetensors::serialize(views, Some(header)).map_err(format)?;
        let bytes = with_sorted_header(bytes);
        write_atomically(path, &bytes).map_err(|source| VitError::Io {
            action: "write",
            path: path.into(),
            source,
        })
    }
}

/// The same file with the keys of its JSON header sorted, so that equal models give equal bytes;
/// the writer's own order is that of a hash map.
fn with_sorted_header(bytes: Vec<u8>) -> Vec<u8> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return bytes;
    };
    let length = u64::from_le_bytes(*length) as usize;
    let (header, body) = rest.split_at(length);
    let Ok(header) = serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(header) else {
        return bytes;
    };
    let Ok(mut header) = serde_json::to_vec(&header) else {
        return bytes;
    };
    // The body starts at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(body);
    out
}

/// Writes to a temporary file in the same folder, syncs, renames.
fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        // Temporary files are private by default; a weight file is as readable as any other.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

fn config_of(
    path: &Path,
    metadata: Option<&HashMap<String, String>>,
) -> Result<VitConfig, VitError> {
    let not_a_vit = |problem: String| VitError::NotAVit {
        path: path.into(),
        problem,
    };
    let text = metadata.and_then(|m| m.get(CONFIG_KEY)).ok_or_else(|| {
        not_a_vit(format!(
            "its metadata has no `{CONFIG_KEY}`; name the preset the weights belong to"
        ))
    })?;
    let config: VitConfig = serde_json::from_str(text)
        .map_err(|e| not_a_vit(format!("its metadata `{CONFIG_KEY}` is unreadable: {e}")))?;
    config.check()?;
    Ok(config)
}

/// The values of a float tensor, or `None` for other number formats.
fn to_f32(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    Some(match view.dtype() {
        Dtype::F32 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|&c| f32::from_le_bytes(c))
            .collect(),
        Dtype::F16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|&c| f16::from_le_bytes(c).to_f32())
            .collect(),
        Dtype::BF16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|&c| bf16::from_le_bytes(c).to_f32())
            .collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_core::Updates;
    use sdlora_testkit::test_device;

    fn small() -> Vit {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut config = VitConfig::standard(8, 4, 12, 2, 3);
        config.n_channels = 1;
        Vit::init(&config, &mut rng, &test_device()).unwrap()
    }

    fn features(vit: &Vit) -> Vec<f32> {
        let images = Tensor::<4>::ones([1, 1, 8, 8], &test_device());
        vit.forward(images, &Updates::default())
            .into_data()
            .iter()
            .collect()
    }

    #[test]
    fn save_then_load_then_save_is_the_identity() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        let vit = small();
        vit.save(&first, WeightDtype::F32, &BTreeMap::new())
            .unwrap();
        let (loaded, report) = Vit::load(&first, None, &test_device()).unwrap();
        assert_eq!(report.applied.len(), 6 + 2 * 12);
        assert_eq!(features(&loaded), features(&vit));
        loaded
            .save(&second, WeightDtype::F32, &BTreeMap::new())
            .unwrap();
        assert_eq!(
            std::fs::read(first).unwrap(),
            std::fs::read(second).unwrap()
        );
    }

    #[test]
    fn a_truncated_file_a_missing_one_and_a_wrong_shape_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vit.safetensors");
        small()
            .save(&path, WeightDtype::F16, &BTreeMap::new())
            .unwrap();

        let mut other = small().config().clone();
        other.d_mlp = 20;
        let error = Vit::load(&path, Some(&other), &test_device()).unwrap_err();
        assert!(
            error.to_string().contains("blocks.1.mlp.fc2.weight"),
            "{error}"
        );

        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        let error = Vit::load(&path, None, &test_device()).unwrap_err();
        assert!(matches!(error, VitError::Format { .. }), "{error}");

        let error = Vit::load(&folder.path().join("none"), None, &test_device()).unwrap_err();
        assert!(matches!(error, VitError::Io { .. }), "{error}");
    }
}
