//! Golden files: reference values computed outside this workspace, described in `golden/README.md`.
//!
//! Tests find their files by what those hold, see [`discover`](crate::discover), so that a folder given by
//! `SDLORA_GOLDEN` needs no change of code. What can only be read by name comes from [`golden_file`], which fails where
//! there is none.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// Name of the environment variable that replaces the folder of golden files.
pub const GOLDEN_VAR: &str = "SDLORA_GOLDEN";

/// Folder of the golden files: `SDLORA_GOLDEN` if set and not empty, else the one of this crate.
pub fn golden_dir() -> PathBuf {
    match std::env::var_os(GOLDEN_VAR) {
        Some(dir) if !dir.is_empty() => dir.into(),
        _ => repository_dir(),
    }
}

/// The golden folder of the repository, whatever the variable says: for what is not compared with values,
/// such as files to damage.
pub fn repository_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Path of the golden file `name`.
///
/// # Panics
///
/// If the folder lacks it: a test that has nothing to compare with fails.
#[track_caller]
pub fn golden_file(name: &str) -> PathBuf {
    let path = golden_dir().join(name);
    assert!(path.is_file(), "{}", nothing_of(&format!("file `{name}`")));
    path
}

/// Why a test that compared nothing fails.
pub(crate) fn nothing_of(what: &str) -> String {
    format!(
        "compared nothing: {} has no {what}; add one, or leave {GOLDEN_VAR} unset to compare with the files of the \
         repository",
        golden_dir().display()
    )
}

/// An opened safetensors file.
///
/// All methods that take a tensor's name panic if the file lacks it, with the names that are there.
#[derive(Debug, Clone)]
pub struct Golden {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Golden {
    /// Reads the file and checks its header.
    ///
    /// # Panics
    ///
    /// If the file cannot be read or is no safetensors file.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_path_buf();
        let bytes = std::fs::read(&path)
            .unwrap_or_else(|err| panic!("cannot read golden file {}: {err}", path.display()));
        if let Err(err) = SafeTensors::deserialize(&bytes) {
            panic!("{} is not a safetensors file: {err}", path.display());
        }
        Self { path, bytes }
    }

    /// Path the file was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name of the file without its folder and ending, to name a case in messages.
    pub fn stem(&self) -> String {
        self.path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// Text that the file carries beside its tensors under that key.
    pub fn metadata(&self, key: &str) -> Option<String> {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).ok()?;
        header.metadata().as_ref()?.get(key).cloned()
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.file().names().into_iter().map(String::from).collect();
        names.sort();
        names
    }

    /// Whether the file holds the tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.file().tensor(name).is_ok()
    }

    /// Shape of the tensor `name`.
    #[track_caller]
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.view(name).shape().to_vec()
    }

    /// Values, row-major, and shape of a float tensor; float64 is rounded to float32.
    #[track_caller]
    pub fn f32(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let (values, shape) = self.f64(name);
        (
            values.into_iter().map(|value| value as f32).collect(),
            shape,
        )
    }

    /// Values, row-major, and shape of a float tensor; float32 is widened without change.
    #[track_caller]
    pub fn f64(&self, name: &str) -> (Vec<f64>, Vec<usize>) {
        let view = self.view(name);
        let values = match view.dtype() {
            Dtype::F32 => decode(view.data(), |bytes| f64::from(f32::from_le_bytes(bytes))),
            Dtype::F64 => decode(view.data(), f64::from_le_bytes),
            other => self.wrong_dtype(name, other, "a float32 or float64"),
        };
        (values, view.shape().to_vec())
    }

    /// Values, row-major, and shape of an integer tensor.
    #[track_caller]
    pub fn i64(&self, name: &str) -> (Vec<i64>, Vec<usize>) {
        let view = self.view(name);
        let values = match view.dtype() {
            Dtype::I64 => decode(view.data(), i64::from_le_bytes),
            Dtype::I32 => decode(view.data(), |bytes| i64::from(i32::from_le_bytes(bytes))),
            Dtype::U8 => view.data().iter().map(|&byte| i64::from(byte)).collect(),
            other => self.wrong_dtype(name, other, "an integer"),
        };
        (values, view.shape().to_vec())
    }

    /// Values, row-major, and shape of a tensor of bytes, such as images.
    #[track_caller]
    pub fn u8(&self, name: &str) -> (Vec<u8>, Vec<usize>) {
        let view = self.view(name);
        match view.dtype() {
            Dtype::U8 => (view.data().to_vec(), view.shape().to_vec()),
            other => self.wrong_dtype(name, other, "a uint8"),
        }
    }

    /// Float tensor `name` on `device` in float32; float64 is rounded.
    #[track_caller]
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (values, shape) = self.f32(name);
        self.check_rank::<D>(name, &shape);
        Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
    }

    /// Float tensor `name` on `device` in float64; float32 is widened.
    #[track_caller]
    pub fn tensor_f64<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (values, shape) = self.f64(name);
        self.check_rank::<D>(name, &shape);
        Tensor::from_data(TensorData::new(values, shape), (device, DType::F64))
    }

    /// Integer tensor `name` on `device`.
    #[track_caller]
    pub fn int_tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Int> {
        let (values, shape) = self.i64(name);
        self.check_rank::<D>(name, &shape);
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    #[track_caller]
    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes)
            .expect("the header was checked when the file was opened")
    }

    #[track_caller]
    fn view(&self, name: &str) -> TensorView<'_> {
        self.file().tensor(name).unwrap_or_else(|_| {
            panic!(
                "{} has no tensor `{name}`; it has {:?}",
                self.path.display(),
                self.names()
            )
        })
    }

    #[track_caller]
    fn check_rank<const D: usize>(&self, name: &str, shape: &[usize]) {
        assert_eq!(
            shape.len(),
            D,
            "{}: tensor `{name}` has shape {shape:?}, but {D} axes were asked for",
            self.path.display()
        );
    }

    #[track_caller]
    fn wrong_dtype(&self, name: &str, found: Dtype, expected: &str) -> ! {
        panic!(
            "{}: tensor `{name}` is {found:?}, but {expected} tensor was asked for",
            self.path.display()
        )
    }
}

fn decode<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    debug_assert!(rest.is_empty());
    chunks.iter().map(|chunk| read(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::below;
    use crate::{Tolerance, assert_close, test_device};
    use safetensors::serialize;

    /// A file with one tensor of every type, and the folder that holds it.
    fn example() -> (PathBuf, Golden) {
        let bytes_f64: Vec<u8> = [1.5f64, -2.0, 1.0 + 1e-12, 4.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let bytes_i64: Vec<u8> = [7i64, -8]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let view =
            |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
        let file = serialize(
            [
                ("wide", view(Dtype::F64, &[2, 2], bytes_f64.as_slice())),
                ("count", view(Dtype::I64, &[2], bytes_i64.as_slice())),
                ("pixel", view(Dtype::U8, &[3], [0u8, 128, 255].as_slice())),
            ],
            None,
        )
        .unwrap();
        // Tests run in parallel in one process: the thread's id keeps their folders apart.
        let dir = std::env::temp_dir().join(format!(
            "sdlora-testkit-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("example_1.safetensors");
        std::fs::write(&path, file).unwrap();
        let golden = Golden::open(&path);
        (dir, golden)
    }

    #[test]
    fn every_type_is_read() {
        let (dir, golden) = example();
        assert_eq!(golden.names(), ["count", "pixel", "wide"]);
        assert_eq!(golden.stem(), "example_1");
        assert!(golden.has("wide") && !golden.has("narrow"));
        assert_eq!(
            golden.f64("wide"),
            (vec![1.5, -2.0, 1.0 + 1e-12, 4.0], vec![2, 2])
        );
        assert_eq!(golden.f32("wide").0, [1.5, -2.0, 1.0, 4.0]);
        assert_eq!(golden.i64("count"), (vec![7, -8], vec![2]));
        assert_eq!(golden.u8("pixel"), (vec![0, 128, 255], vec![3]));
        let device = test_device();
        assert_eq!(golden.tensor::<2>("wide", &device).dtype(), DType::F32);
        assert_close(
            golden.tensor_f64::<2>("wide", &device),
            golden.f64("wide"),
            Tolerance::Abs(0.0),
            "wide",
        );
        assert_close(
            golden.int_tensor::<1>("count", &device),
            [7.0f32, -8.0],
            Tolerance::Abs(0.0),
            "count",
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    #[should_panic(expected = "compared nothing")]
    fn a_file_that_is_not_there_is_no_success() {
        golden_file("no such file");
    }

    #[test]
    #[should_panic(expected = "has no tensor `narrow`")]
    fn a_missing_tensor_is_named() {
        let (dir, golden) = example();
        std::fs::remove_dir_all(dir).unwrap();
        golden.f32("narrow");
    }

    #[test]
    #[should_panic(
        expected = "tensor `count` is I64, but a float32 or float64 tensor was asked for"
    )]
    fn a_wrong_type_is_named() {
        let (dir, golden) = example();
        std::fs::remove_dir_all(dir).unwrap();
        golden.f32("count");
    }

    #[test]
    #[should_panic(expected = "has shape [2, 2], but 3 axes were asked for")]
    fn a_wrong_rank_is_named() {
        let (dir, golden) = example();
        std::fs::remove_dir_all(dir).unwrap();
        golden.tensor::<3>("wide", &test_device());
    }

    #[test]
    fn every_golden_file_opens() {
        for path in below(&golden_dir(), "safetensors") {
            let golden = Golden::open(&path);
            assert!(!golden.names().is_empty(), "{} is empty", path.display());
        }
    }
}
