//! Exports that are one file: what an ONNX graph and a bundle hold, and that a bundle is the run again.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

mod toy;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use sdlora_image::{Interpolation, PipelineConfig};
use sdlora_onnx::Model;
use sdlora_testkit::{Tolerance, assert_close, test_device};
use sdlora_train::{
    FeatureTable, FinishedRun, Format, HeadConfig, OnnxOptions, OnnxPreparation, Predictor, Start,
    TensorFile, TrainError, UnpackedBundle, Weights, export, write_model,
};
use sdlora_vit::{Activation, Pooling, PosEmbed, Vit, VitConfig};
use toy::{Bench, data_dir, shape};

const LORA: &str = "name = \"sdlora\"\nrank = 4";

/// A finished run in the folder `run`.
fn finished(bench: &Bench, method: &str, head: Option<HeadConfig>) -> PathBuf {
    let mut config = bench.config(method);
    config.n_epochs = 1;
    config.head = head;
    let plan = config.check().unwrap();
    let finished = bench.run("run", &plan, Start::Fresh).unwrap();
    let folder = bench.path("run");
    write_model(&folder.join("model"), &finished).unwrap();
    folder
}

fn open(folder: &Path) -> FinishedRun {
    FinishedRun::open(folder, &data_dir(), &test_device()).unwrap()
}

fn onnx(weights: Weights, preparation: OnnxPreparation) -> Format {
    Format::Onnx(OnnxOptions {
        weights,
        preparation: Some(preparation),
    })
}

fn read(path: &Path) -> Model {
    Model::from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

fn count(model: &Model, operator: &str) -> usize {
    let operators = model.graph().operators();
    operators.iter().filter(|found| **found == operator).count()
}

#[test]
fn a_graph_has_every_weight_once_and_names_its_classes() {
    let bench = Bench::new();
    let folder = finished(&bench, LORA, Some(HeadConfig::named("linear")));
    let run = open(&folder);
    let out = bench.path("model.onnx");
    export(
        &run,
        onnx(Weights::F32, OnnxPreparation::Normalise),
        &out,
        false,
    )
    .unwrap();
    let model = read(&out);
    assert_eq!(model.graph().inputs(), ["pixels"]);
    assert_eq!(model.graph().outputs(), ["logits"]);
    let c = shape();
    assert_eq!(count(&model, "LayerNormalization"), 2 * c.depth + 1);
    assert_eq!(count(&model, "Softmax"), c.depth);
    // Four maps of every block, and two products of its attention.
    assert_eq!(count(&model, "MatMul"), 6 * c.depth);
    let stored = model.graph().stored();
    let merged = TensorFile::read(&folder.join("model/vit.safetensors")).unwrap();
    for (name, tensor) in &merged.tensors {
        let mut expected = tensor.shape.clone();
        if expected.len() == 2 {
            // As the operator multiplies it.
            expected.reverse();
        }
        let n_bytes = 4 * tensor.values.len();
        assert_eq!(stored[name.as_str()], (expected, n_bytes), "{name}");
    }
    assert_eq!(stored["head.weight"].0, [6, c.d_model]);
    let classes: Vec<String> = serde_json::from_str(&model.metadata["classes"]).unwrap();
    let names = std::fs::read(folder.join("model/classes.json")).unwrap();
    let names: Vec<String> = serde_json::from_slice(&names).unwrap();
    assert_eq!(classes, names);
    // The same bytes again, and nothing is replaced unasked.
    let first = std::fs::read(&out).unwrap();
    let error = export(&run, Format::from_name("onnx").unwrap(), &out, false).unwrap_err();
    assert!(matches!(error, TrainError::OutputExists { .. }), "{error}");
    export(
        &run,
        onnx(Weights::F32, OnnxPreparation::Normalise),
        &out,
        true,
    )
    .unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), first);
}

#[test]
fn fewer_bits_make_a_smaller_file_and_say_what_they_cost() {
    let bench = Bench::new();
    let run = open(&finished(&bench, LORA, Some(HeadConfig::named("ncm"))));
    let out = bench.path("model.onnx");
    let c = shape();
    let qkv = "blocks.1.attn.qkv.weight";
    for (weights, size) in [(Weights::F32, 4), (Weights::F16, 2), (Weights::Int8, 1)] {
        let notes = export(&run, onnx(weights, OnnxPreparation::Full), &out, true).unwrap();
        let model = read(&out);
        let stored = model.graph().stored();
        assert_eq!(
            stored[qkv].1,
            size * 3 * c.d_model * c.d_model,
            "{weights:?}"
        );
        assert_eq!(stored["head.weight"].1, 4 * 6 * c.d_model);
        assert_eq!(model.metadata["sdlora.weights"], weights.name());
        let said = notes.join("\n");
        assert!(
            said.contains("`pictures` [batch, height, width, 3]"),
            "{said}"
        );
        // Five test images of each of six characters.
        let is_measured = said.contains("on 30 test images");
        assert_eq!(is_measured, weights == Weights::Int8, "{said}");
        let measured = model.metadata.get("sdlora.accuracy");
        assert_eq!(measured.is_some(), weights == Weights::Int8);
        if let Some(measured) = measured {
            let measured: serde_json::Value = serde_json::from_str(measured).unwrap();
            let [before, after] = ["f32", "int8"].map(|key| measured[key].as_f64().unwrap());
            let same = measured["same"].as_f64().unwrap();
            // What differs in more predictions than it shares cannot be nearly as good.
            assert!(
                (before - after).abs() <= (30.0 - same) / 30.0 + 1e-12,
                "{measured}"
            );
        }
    }
    // Without the data the file is written, and the note says that nothing was measured.
    let folder = bench.path("run");
    let run = FinishedRun::open(&folder, Path::new("nowhere"), &test_device()).unwrap();
    let notes = export(&run, onnx(Weights::Int8, OnnxPreparation::Full), &out, true).unwrap();
    assert!(notes.join("\n").contains("is not measured"), "{notes:?}");
    assert!(!read(&out).metadata.contains_key("sdlora.accuracy"));
}

#[test]
fn steps_that_operators_cannot_do_are_left_to_the_caller_and_named() {
    let bench = Bench::new();
    let folder = finished(&bench, LORA, None);
    let plan = folder.join("plan.toml");
    let text = std::fs::read_to_string(&plan).unwrap();
    let mut config = sdlora_train::RunConfig::parse(&text).unwrap();
    let mut pipeline = PipelineConfig::imagenet(14, 16, Interpolation::Bicubic);
    config.transform = config.transform.with_pipeline(pipeline.clone());
    let write = |config: &sdlora_train::RunConfig| {
        std::fs::write(&plan, config.clone().check().unwrap().to_toml().unwrap()).unwrap();
    };
    write(&config);
    let out = bench.path("model.onnx");
    let plain = Format::from_name("onnx").unwrap();
    export(&open(&folder), plain, &out, true).unwrap();
    let model = read(&out);
    assert_eq!(
        (model.graph().inputs(), count(&model, "Resize")),
        (vec!["pictures"], 3)
    );

    // No resize at all.
    pipeline.test.remove(0);
    config.transform = config.transform.with_pipeline(pipeline);
    write(&config);
    let notes = export(&open(&folder), plain, &out, true)
        .unwrap()
        .join("\n");
    assert!(
        notes.contains("does not resize") && notes.contains("center_crop"),
        "{notes}"
    );
    assert_eq!(read(&out).graph().inputs(), ["pixels"]);
    let full = onnx(Weights::F32, OnnxPreparation::Full);
    let error = export(&open(&folder), full, &bench.path("x.onnx"), false).unwrap_err();
    assert!(
        error.to_string().contains("the preparation `normalise`"),
        "{error}"
    );
    assert!(!bench.path("x.onnx").exists());
    let error = export(&open(&folder), plain, &bench.path("folder"), false).unwrap_err();
    assert!(error.to_string().contains(".onnx"), "{error}");
}

#[test]
fn graphs_that_onnx_runtime_ran_are_those_that_are_written_and_give_its_logits() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdlora-testkit/golden/onnx");
    let device = test_device();
    let mut n_compared = 0;
    for entry in std::fs::read_dir(&golden).unwrap() {
        let case = entry.unwrap().path();
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let bench = tempfile::tempdir().unwrap();
        let out = bench.path().join("model.onnx");
        let run = open(&case);
        export(
            &run,
            onnx(Weights::F32, OnnxPreparation::Normalise),
            &out,
            false,
        )
        .unwrap();
        let expected = read(&case.join("model.onnx"));
        let found = read(&out);
        assert_eq!(
            found.graph().operators(),
            expected.graph().operators(),
            "{name}"
        );
        assert!(
            found.graph() == expected.graph(),
            "{name}: other names, shapes or weights"
        );

        let io = TensorFile::read(&case.join("expected.safetensors")).unwrap();
        let input = &io.tensors["input"];
        let images = TensorData::new(input.values.clone(), input.shape.clone());
        let features = run
            .extractor()
            .features(Tensor::<4>::from_data(images, &device));
        let d_model = run.vit().config().d_model;
        let table = FeatureTable {
            labels: vec![0; features.dims()[0]],
            features: features.into_data().iter::<f32>().collect(),
            d_model,
            ..FeatureTable::default()
        };
        let logits = run.classifier().logits(&table);
        let expected = io.tensors["logits"].values.as_slice();
        assert_close(logits.as_slice(), expected, Tolerance::Abs(1e-4), &name);
        n_compared += 1;
    }
    assert!(
        n_compared >= 4,
        "only {n_compared} graphs in {}",
        golden.display()
    );
}

#[test]
fn every_shape_of_a_backbone_becomes_a_graph_that_holds_together() {
    let with_token = VitConfig {
        class_token: true,
        pooling: Pooling::ClassToken,
        ..shape()
    };
    let shapes = [
        with_token.clone(),
        VitConfig {
            layer_scale: true,
            n_registers: 2,
            pos_embed: PosEmbed::Patches,
            ..with_token.clone()
        },
        VitConfig {
            pre_norm: true,
            patch_bias: false,
            qkv_bias: false,
            ..with_token.clone()
        },
        VitConfig {
            fc_norm: true,
            pooling: Pooling::Average,
            ..with_token.clone()
        },
        VitConfig {
            activation: Activation::QuickGelu,
            ..with_token.clone()
        },
        VitConfig {
            activation: Activation::GeluTanh,
            n_registers: 1,
            ..shape()
        },
    ];
    for shape in shapes {
        let bench = Bench::new();
        let mut rng = <rand_chacha::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(6);
        let vit = Vit::init(&shape, &mut rng, &test_device()).unwrap();
        toy::save(&vit, &bench.path("vit.safetensors"));
        let run = open(&finished(&bench, LORA, Some(HeadConfig::named("linear"))));
        let out = bench.path("model.onnx");
        export(&run, onnx(Weights::F32, OnnxPreparation::Full), &out, false).unwrap();
        let model = read(&out);
        let n_norms = 2 * shape.depth + 1 + usize::from(shape.pre_norm);
        assert_eq!(count(&model, "LayerNormalization"), n_norms, "{shape:?}");
        let n_front = usize::from(shape.class_token) + usize::from(shape.n_registers > 0);
        assert_eq!(count(&model, "Expand"), n_front, "{shape:?}");
        assert_eq!(
            model.graph().stored().contains_key("blocks.0.ls1.gamma"),
            shape.layer_scale
        );
    }
}

/// The files of a folder by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

#[test]
fn a_bundle_gives_every_file_back_and_predicts_what_the_run_predicts() {
    for method in [LORA, "name = \"l2p\"\nlength = 2\ntop = 3\nspread = 0.5"] {
        let bench = Bench::new();
        let folder = finished(&bench, method, None);
        // What a later version may put there.
        std::fs::write(folder.join("model/later.bin"), [0xff, 0x00, 0x80]).unwrap();
        let out = bench.path("model.safetensors");
        let run = open(&folder).with_licence(Some("Apache-2.0".into()));
        export(&run, Format::Bundle, &out, false).unwrap();
        let bundle = UnpackedBundle::open(&out).unwrap();
        assert_eq!(
            files(&bundle.folder().join("model")),
            files(&folder.join("model"))
        );
        let plan = |folder: &Path| std::fs::read(folder.join("plan.toml")).unwrap();
        assert_eq!(plan(bundle.folder()), plan(&folder));

        let images = Tensor::<4>::random(
            [5, 1, 14, 14],
            burn::tensor::Distribution::Normal(0.0, 1.0),
            &test_device(),
        );
        let [ours, theirs] = [bundle.folder(), &folder]
            .map(|folder| Predictor::load(&folder.join("model"), &test_device()).unwrap());
        assert_eq!(ours.predict(images.clone()), theirs.predict(images));
        // It is a run for every other export.
        open(bundle.folder());
        let gone = bundle.folder().to_path_buf();
        drop(bundle);
        assert!(!gone.exists());
    }
}

#[test]
fn the_header_of_a_bundle_says_what_people_ask_for() {
    let bench = Bench::new();
    let folder = finished(&bench, LORA, None);
    let out = bench.path("model.safetensors");
    let run = open(&folder).with_licence(Some("Apache-2.0".into()));
    export(&run, Format::Bundle, &out, false).unwrap();
    let bytes = std::fs::read(&out).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let metadata = &header["__metadata__"];
    let text = |key: &str| metadata[key].as_str().unwrap().to_owned();
    assert!(
        text("licence").starts_with("Apache-2.0; its training images: MIT"),
        "{}",
        text("licence")
    );
    let classes: Vec<String> = serde_json::from_str(&text("classes")).unwrap();
    assert_eq!(classes.len(), 6);
    let transform: serde_json::Value = serde_json::from_str(&text("transform")).unwrap();
    assert_eq!(
        (&transform["side"], &transform["polarity"]),
        (&14.into(), &"inverted".into())
    );
    assert_eq!(
        (text("method"), text("head")),
        ("sdlora".into(), "linear".into())
    );
    assert_eq!(header["vit/cls_token"], serde_json::Value::Null);
    assert_eq!(header["vit/norm.weight"]["shape"], serde_json::json!([16]));
    assert_eq!(header["head/bias"]["shape"], serde_json::json!([6]));
}

#[test]
fn a_bundle_that_is_damaged_or_of_another_version_is_refused() {
    let bench = Bench::new();
    let folder = finished(&bench, LORA, None);
    let out = bench.path("model.safetensors");
    export(&open(&folder), Format::Bundle, &out, false).unwrap();
    let whole = std::fs::read(&out).unwrap();
    let error = |bytes: &[u8]| {
        std::fs::write(&out, bytes).unwrap();
        UnpackedBundle::open(&out).unwrap_err().to_string()
    };
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 1;
    let found = error(&bytes);
    assert!(found.contains("does not have the hash"), "{found}");
    assert!(error(&whole[..whole.len() - 9]).contains("no bundle"));
    let later = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole
            .windows(from.len())
            .position(|part| part == from.as_bytes())
            .unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let found = error(&later(r#""sdlora.bundle":"1""#, r#""sdlora.bundle":"2""#));
    assert!(found.contains("version 2"), "{found}");
    let found = error(&later(r#"classes.json\":"#, r#"../lasses.js\":"#));
    assert!(found.contains("no name of a file"), "{found}");
    let found = error(&std::fs::read(folder.join("model/vit.safetensors")).unwrap());
    assert!(found.contains("no bundle"), "{found}");
    let error = export(
        &open(&folder),
        Format::Bundle,
        &bench.path("model.bin"),
        false,
    );
    assert!(error.unwrap_err().to_string().contains(".safetensors"));
}

#[test]
fn folders_for_other_programs_carry_a_card_of_what_was_measured() {
    let bench = Bench::new();
    let folder = finished(&bench, LORA, None);
    let log = "{\"event\":\"task_started\",\"images\":45,\"new_classes\":3,\"task\":0}\n\
               {\"event\":\"task_started\",\"images\":45,\"new_classes\":3,\"task\":1}\n";
    std::fs::write(folder.join("log.jsonl"), log).unwrap();
    let metrics = r#"{"version": "0.1.0", "log": {"matrix": {"n_tasks": 2, "acc": [[0.9], [0.75, 0.5]]},
        "tasks": [], "eval_seconds": [], "magnitudes": [], "n_trained": []}}"#;
    std::fs::write(folder.join("metrics.json"), metrics).unwrap();
    let out = bench.path("timm");
    let run = open(&folder).with_licence(Some("CC-BY-4.0".into()));
    export(&run, Format::Timm, &out, false).unwrap();
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    for part in [
        "---\nlicense: cc-by-4.0\nlibrary_name: timm\npipeline_tag: image-classification\n",
        "# 6 classes of omniglot-evaluation, learned by sdlora\n",
        "| final accuracy, over tasks | 62.50 |",
        "| forgetting, over tasks | 15.00 |",
        "| 1 | 3 | 45 | 50.0 |",
        "CC-BY-4.0; its training images: MIT",
        "local-dir:PATH",
        ".convert(\"L\")",
    ] {
        assert!(card.contains(part), "{part} is not in\n{card}");
    }
    // No folder of this machine.
    assert!(!card.contains(bench.path("").to_str().unwrap()), "{card}");
    // An export replaces the card of an earlier one, and no page of the user.
    export(&run, Format::Timm, &out, true).unwrap();
    std::fs::write(out.join("README.md"), "my notes").unwrap();
    let error = export(&run, Format::Timm, &out, true).unwrap_err();
    assert!(error.to_string().contains("`README.md`"), "{error}");
}
