//! The bytes of weight files: safetensors with timm's names and PyTorch's layouts.
//!
//! PyTorch keeps a linear weight as `[d_output, d_input]` and the patch projection as a
//! convolution `[d_model, n_channels, patch, patch]`; both are transposed on the way in and out.
//! A file written here carries the shape of its model as JSON in the metadata key
//! [`CONFIG_KEY`], so it can be read back without a preset. What is read is in `checkpoint.rs`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::Device;
use half::f16;
use safetensors::tensor::{Dtype, TensorView};

use crate::checkpoint::Checkpoint;
use crate::config::{CONFIG_KEY, VitConfig};
use crate::error::VitError;
use crate::hints::Hints;
use crate::model::Vit;
use crate::report::WeightReport;

/// Number format of the weights in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32 bits, exact.
    F32,
    /// 16 bits (11 of mantissa): half the size.
    F16,
}

impl Vit {
    /// Reads a model from any file or folder that [`Checkpoint::open`] understands, all parameters
    /// trainable.
    ///
    /// The shape is `config`, or what the file tells when `config` is `None`. Tensors the model
    /// has no place for, such as a classifier, are named in the report.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::open`] and [`Checkpoint::load`].
    pub fn load(
        path: &Path,
        config: Option<&VitConfig>,
        device: &Device,
    ) -> Result<(Self, WeightReport), VitError> {
        let hints = Hints {
            config: config.cloned(),
            ..Hints::default()
        };
        Checkpoint::open(path, &hints)?.load(device)
    }

    /// Hands out every parameter under timm's name, its values in PyTorch's layout, in the order of the model.
    pub fn each_tensor(&self, see: &mut dyn FnMut(&str, &[f32])) {
        self.clone()
            .each_weight(&mut |name, slot| see(&name, &slot.get()));
    }

    /// The bytes of a safetensors file of the model with timm's names. `metadata` is stored beside the shape of
    /// the model.
    ///
    /// Who writes them takes care that a file is replaced only by a whole new one.
    ///
    /// # Errors
    ///
    /// [`VitError::Format`] when safetensors cannot express it.
    pub fn to_bytes(
        &self,
        dtype: WeightDtype,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Vec<u8>, VitError> {
        let path = Path::new("a new weight file");
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
            untold: None,
        })?;
        header.insert(CONFIG_KEY.into(), shape);
        header.insert("format".into(), "pt".into());
        let bytes = safetensors::serialize(views, Some(header)).map_err(format)?;
        Ok(with_sorted_header(bytes))
    }
}

/// The same file with the keys of its JSON header sorted, so that equal models give equal bytes;
/// the writer's own order is that of a hash map.
pub fn with_sorted_header(bytes: Vec<u8>) -> Vec<u8> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tensor;
    use rand::SeedableRng;
    use sdlora_core::Updates;
    use sdlora_testkit::test_device;

    fn small() -> Vit {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut config = VitConfig::standard(8, 4, 12, 2, 3);
        config.n_channels = 1;
        Vit::init(&config, &mut rng, &test_device()).unwrap()
    }

    fn save(vit: &Vit, path: &Path, dtype: WeightDtype) {
        std::fs::write(path, vit.to_bytes(dtype, &BTreeMap::new()).unwrap()).unwrap();
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
        save(&vit, &first, WeightDtype::F32);
        let (loaded, report) = Vit::load(&first, None, &test_device()).unwrap();
        assert_eq!(report.applied.len(), 6 + 2 * 12);
        assert_eq!(features(&loaded), features(&vit));
        save(&loaded, &second, WeightDtype::F32);
        assert_eq!(
            std::fs::read(first).unwrap(),
            std::fs::read(second).unwrap()
        );
    }

    #[test]
    fn a_truncated_file_a_missing_one_and_a_wrong_shape_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vit.safetensors");
        save(&small(), &path, WeightDtype::F16);

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
        assert!(matches!(error, VitError::Weights(_)), "{error}");

        let error = Vit::load(&folder.path().join("none"), None, &test_device()).unwrap_err();
        assert!(matches!(error, VitError::Weights(_)), "{error}");
    }

    #[test]
    fn a_weight_that_is_no_number_is_refused_by_name_when_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vit.safetensors");
        for (value, dtype, says) in [
            (f32::NAN, WeightDtype::F32, "NaN"),
            (f32::INFINITY, WeightDtype::F16, "inf"),
            // Beyond the range of the file's own format.
            (-1e6, WeightDtype::F16, "-inf"),
        ] {
            let mut vit = small();
            let mut bias = vec![0.0f32; 12];
            bias[7] = value;
            let bias = Tensor::<1>::from_data(bias.as_slice(), &test_device());
            vit.blocks[1].norm2.bias = burn::module::Param::from_tensor(bias);
            save(&vit, &path, dtype);
            let error = Vit::load(&path, None, &test_device()).unwrap_err();
            assert!(
                matches!(error, VitError::NotFinite { place: 7, .. }),
                "{error}"
            );
            let text = error.to_string();
            assert!(
                text.contains("blocks.1.norm2.bias") && text.contains(says),
                "{text}"
            );
        }
        // Large ones are numbers.
        let mut vit = small();
        let bias = Tensor::<1>::from_data([3e38f32; 12], &test_device());
        vit.norm.bias = burn::module::Param::from_tensor(bias);
        save(&vit, &path, WeightDtype::F32);
        Vit::load(&path, None, &test_device()).unwrap();
    }
}
