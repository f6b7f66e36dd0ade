//! Files that PyTorch and the safetensors package wrote, read back and compared number by number.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use sdlora_testkit::discover::below;
use sdlora_testkit::{Compared, golden_dir, golden_file};
use sdlora_weights::{ContainerKind, Dtype, WeightFile, WeightsError};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    shape: Vec<usize>,
    dtype: String,
    values: Vec<f32>,
}

/// A file of the folder `containers`; without it there is nothing to compare with, and the test fails.
fn path_of(name: &str) -> PathBuf {
    golden_file(&format!("containers/{name}"))
}

fn open(name: &str) -> Result<WeightFile, WeightsError> {
    WeightFile::open(&path_of(name))
}

fn message(name: &str) -> String {
    open(name).unwrap_err().to_string()
}

#[test]
fn every_tensor_of_every_container_is_what_was_saved() {
    let json = std::fs::read(path_of("expected.json")).unwrap();
    let files: BTreeMap<String, BTreeMap<String, Expected>> =
        serde_json::from_slice(&json).unwrap();
    let mut compared = Compared::new("containers");
    for (name, tensors) in files {
        let file = open(&name).unwrap();
        let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
        let expected: Vec<&str> = tensors.keys().map(String::as_str).collect();
        assert_eq!(names, expected, "{name}");
        for (tensor, expected) in &tensors {
            let info = file.get(tensor).unwrap();
            assert_eq!(info.shape, expected.shape, "{name} {tensor}");
            let read = file.read_f32(tensor);
            match (expected.dtype.as_str(), tensor.as_str()) {
                ("float32" | "float16" | "bfloat16" | "float64", t) if t != "expanded" => {
                    assert_eq!(read.unwrap(), expected.values, "{name} {tensor}");
                }
                (_, "expanded") => {
                    let message = read.unwrap_err().to_string();
                    assert!(message.contains(".contiguous()"), "{message}");
                }
                _ => assert!(matches!(read, Err(WeightsError::NotFloat { .. }))),
            }
        }
        compared.add(name);
    }
}

#[test]
fn dtypes_kinds_and_metadata_are_told() {
    let half = open("half.pth").unwrap();
    let dtype = |name: &str| half.get(name).unwrap().dtype.clone();
    assert_eq!(half.kind(), ContainerKind::PyTorchZip);
    assert_eq!(dtype("f16"), Dtype::F16);
    assert_eq!(dtype("bf16"), Dtype::BF16);
    assert_eq!(dtype("f64"), Dtype::F64);
    assert_eq!(dtype("i64"), Dtype::Other("I64".into()));
    assert_eq!(dtype("bool"), Dtype::Other("BOOL".into()));
    assert_eq!(dtype("u16"), Dtype::Other("U16".into()));
    assert_eq!(half.get("scalar").unwrap().n_elements(), 1);
    assert_eq!(half.n_bytes(), 12 + 12 + 48 + 24 + 2 + 4 + 4);

    let small = open("small.safetensors").unwrap();
    assert_eq!(small.kind(), ContainerKind::Safetensors);
    assert_eq!(small.metadata()["format"], "pt");
}

#[test]
fn wrappers_around_the_model_are_kept_and_named() {
    assert_eq!(
        open("module_prefix.pth").unwrap().state_prefix(),
        "model.module."
    );
    assert_eq!(open("state_dict.pth").unwrap().state_prefix(), "");
    let dino = open("args_beside.pth").unwrap();
    assert_eq!(dino.state_prefix(), "teacher.backbone.");
    assert!(
        dino.unbuilt().contains("argparse.Namespace"),
        "{:?}",
        dino.unbuilt()
    );
}

#[test]
fn a_command_in_a_pickle_is_named_and_not_run() {
    let file = open("executes.pth").unwrap();
    // The function's module is that of the system it was pickled on.
    let named: Vec<_> = file.unbuilt().iter().collect();
    assert_eq!(named, ["posix.system"]);
    assert_eq!(file.tensors().len(), 1);
    assert_eq!(file.read_f32("weight").unwrap(), [0.0, 0.25]);
    assert!(!std::path::Path::new("EXECUTED").exists());
}

#[test]
fn what_cannot_be_read_says_what_to_do() {
    let legacy = message("legacy.pth");
    assert!(legacy.contains("torch.save(torch.load("), "{legacy}");
    assert!(legacy.contains("weights_only=True"), "{legacy}");
    let big = message("big_endian.pth");
    assert!(big.contains("`big` byte order"), "{big}");
    let cyclic = message("cyclic.pth");
    assert!(cyclic.contains("contains itself"), "{cyclic}");
    let module = message("whole_module.pth");
    assert!(
        module.contains("torch.nn.modules.linear.Linear") && module.contains("state_dict()"),
        "{module}"
    );
}

#[test]
fn the_golden_backbone_is_the_same_from_both_containers() {
    // Every PyTorch file with a safetensors file of the same name beside it.
    let mut compared = Compared::new("models in two containers");
    for path in below(&golden_dir(), "pth") {
        let other = path.with_extension("safetensors");
        if !other.is_file() {
            continue;
        }
        let pth = WeightFile::open(&path).unwrap();
        let safetensors = WeightFile::open(&other).unwrap();
        assert_eq!(pth.tensors(), safetensors.tensors());
        assert_eq!(pth.n_bytes(), safetensors.n_bytes());
        for info in pth.tensors() {
            assert_eq!(
                pth.read_f32(&info.name).unwrap(),
                safetensors.read_f32(&info.name).unwrap(),
                "{}",
                info.name
            );
        }
        compared.add(path.display().to_string());
    }
}

#[test]
fn what_the_safetensors_crate_writes_is_read_back() {
    use safetensors::tensor::{Dtype, TensorView, serialize};
    let numbers: Vec<u8> = (0..6_u8).flat_map(|x| f32::from(x).to_le_bytes()).collect();
    let views = [
        (
            "matrix",
            TensorView::new(Dtype::F32, vec![2, 3], &numbers).unwrap(),
        ),
        (
            "row",
            TensorView::new(Dtype::F32, vec![1], &numbers[4..8]).unwrap(),
        ),
        (
            "none",
            TensorView::new(Dtype::F64, vec![0, 7], &[]).unwrap(),
        ),
    ];
    let bytes = serialize(views, None).unwrap();
    let file = WeightFile::from_bytes("round.safetensors", bytes).unwrap();
    assert_eq!(
        file.read_f32("matrix").unwrap(),
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    );
    assert_eq!(file.read_f32("row").unwrap(), [1.0]);
    assert!(file.read_f32("none").unwrap().is_empty());
    let message = file.read_f32("other").unwrap_err().to_string();
    assert!(message.contains("no tensor `other`"), "{message}");
}
