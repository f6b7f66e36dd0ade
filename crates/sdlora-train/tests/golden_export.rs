//! Exports read back: what other programs would compute from them is what the run computes, and
//! what cannot be exported says so.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use rand::SeedableRng;
use sdlora_core::Updates;
use sdlora_image::{Interpolation, PipelineConfig};
use sdlora_testkit::{Tolerance, assert_close, golden_file, test_device};
use sdlora_train::{
    AdapterFolder, FeatureTable, FinishedRun, Format, HeadConfig, Start, TensorFile, TrainError,
    export, extract_features, write_model,
};
use sdlora_vit::{Activation, Checkpoint, Hints, Pooling, PosEmbed, Vit, VitConfig};
use toy::{Bench, shape};

const SDLORA: &str = "name = \"sdlora\"\nrank = 4\nvariant = \"paper\"";

/// A finished run in `bench`, on a backbone with a class token.
fn finished(bench: &Bench, method: &str, head: &str) -> PathBuf {
    finished_on(bench, with_class_token(), method, head)
}

fn with_class_token() -> VitConfig {
    VitConfig {
        class_token: true,
        pooling: Pooling::ClassToken,
        ..shape()
    }
}

fn finished_on(bench: &Bench, config: VitConfig, method: &str, head: &str) -> PathBuf {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
    let vit = Vit::init(&config, &mut rng, &test_device()).unwrap();
    toy::save(&vit, &bench.path("vit.safetensors"));
    run(bench, method, head)
}

fn run(bench: &Bench, method: &str, head: &str) -> PathBuf {
    let mut config = bench.config(method);
    config.n_epochs = 1;
    config.head = Some(HeadConfig::named(head));
    let plan = config.check().unwrap();
    let finished = bench.run("run", &plan, Start::Fresh).unwrap();
    let folder = bench.path("run");
    write_model(&folder.join("model"), &finished).unwrap();
    folder
}

fn open(folder: &Path) -> FinishedRun {
    FinishedRun::open(folder, Path::new(""), &test_device()).unwrap()
}

fn write(run: &FinishedRun, format: Format, out: &Path) -> TensorFile {
    export(run, format, out, false).unwrap();
    let name = match format {
        Format::Peft => "adapter_model.safetensors",
        Format::Safetensors => "adapter.safetensors",
        _ => "model.safetensors",
    };
    TensorFile::read(&out.join(name)).unwrap()
}

fn tensor(file: &TensorFile, name: &str) -> Tensor<2> {
    let found = file
        .tensors
        .get(name)
        .unwrap_or_else(|| panic!("no {name}"));
    let data = TensorData::new(found.values.clone(), found.shape.clone());
    Tensor::from_data(data, &test_device())
}

#[track_caller]
fn assert_same(found: Tensor<2>, expected: &[f32], what: &str) {
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert_close(
        found,
        expected,
        Tolerance::Abs(1e-6 * f64::from(largest)),
        what,
    );
}

#[test]
fn merged_exports_hold_the_merged_weights_and_the_head() {
    let bench = Bench::new();
    let run = finished(&bench, SDLORA, "linear");
    let merged = TensorFile::read(&run.join("model/vit.safetensors")).unwrap();
    let head = TensorFile::read(&run.join("model/head.safetensors")).unwrap();
    let run = open(&run);
    let timm = write(&run, Format::Timm, &bench.path("timm"));
    assert_eq!(timm.tensors.len(), merged.tensors.len() + 2);
    for (name, tensor) in &merged.tensors {
        assert_eq!(&timm.tensors[name], tensor, "{name}");
    }
    assert_eq!(timm.tensors["head.weight"], head.tensors["weight"]);
    assert_eq!(timm.tensors["head.bias"], head.tensors["bias"]);
    let file = bench.path("timm.safetensors");
    export(&run, Format::Timm, &file, false).unwrap();
    assert_eq!(TensorFile::read(&file).unwrap().tensors, timm.tensors);

    let hf = write(&run, Format::Hf, &bench.path("hf"));
    assert_eq!(hf.tensors["classifier.weight"], head.tensors["weight"]);
    for block in 0..shape().depth {
        for kind in ["weight", "bias"] {
            let packed: Vec<f32> = ["query", "key", "value"]
                .iter()
                .flat_map(|part| {
                    let name =
                        format!("vit.encoder.layer.{block}.attention.attention.{part}.{kind}");
                    hf.tensors[&name].values.clone()
                })
                .collect();
            let name = format!("blocks.{block}.attn.qkv.{kind}");
            assert_eq!(packed, merged.tensors[&name].values, "{name}");
        }
    }
    // Two more tensors of query, key and value for each one that was packed, and the classifier.
    assert_eq!(
        hf.tensors.len(),
        merged.tensors.len() + 4 * shape().depth + 2
    );
}

#[test]
fn the_peft_adapter_on_the_base_is_the_merged_model() {
    let bench = Bench::new();
    let folder = finished(&bench, SDLORA, "linear");
    let merged = TensorFile::read(&folder.join("model/vit.safetensors")).unwrap();
    let out = bench.path("peft");
    let peft = write(&open(&folder), Format::Peft, &out);
    let base = TensorFile::read(&out.join("base/model.safetensors")).unwrap();
    let d = shape().d_model;
    let mut changed = 0.0f32;
    for block in 0..shape().depth {
        for (part, name, module) in [(0, "query", "q_proj"), (2, "value", "v_proj")] {
            let base_name = format!("vit.encoder.layer.{block}.attention.attention.{name}.weight");
            let lora = format!("base_model.model.vit.layers.{block}.attention.{module}");
            let a = tensor(&peft, &format!("{lora}.lora_A.weight"));
            assert_eq!(a.dims(), [8, d], "two tasks of rank 4");
            let update = tensor(&peft, &format!("{lora}.lora_B.weight")).matmul(a);
            changed = changed.max(update.clone().abs().max().into_scalar());
            let packed = &merged.tensors[&format!("blocks.{block}.attn.qkv.weight")].values;
            let expected = &packed[part * d * d..(part + 1) * d * d];
            assert_same(tensor(&base, &base_name) + update, expected, &lora);
        }
    }
    assert!(changed > 1e-4, "the run changed nothing: {changed}");
}

/// Features of what `vit` makes of gray images, in as many channels as it has.
fn features_of(vit: &Vit) -> Tensor<2> {
    let c = vit.config();
    let n = c.image_size * c.image_size;
    let gray: Vec<f32> = (0..2 * n).map(|i| (i as f32 * 0.7).sin()).collect();
    let values: Vec<f32> = gray
        .chunks_exact(n)
        .flat_map(|image| image.repeat(c.n_channels))
        .collect();
    let shape = [2, c.n_channels, c.image_size, c.image_size];
    let images = Tensor::<4>::from_data(TensorData::new(values, shape), &test_device());
    vit.forward(images, &Updates::default())
}

#[test]
fn what_transformers_has_no_place_for_is_folded_into_its_weights() {
    let c = with_class_token();
    let shapes = [
        VitConfig {
            qkv_bias: false,
            patch_bias: false,
            ..c.clone()
        },
        VitConfig {
            layer_scale: true,
            pos_embed: PosEmbed::Patches,
            activation: Activation::QuickGelu,
            ..c.clone()
        },
        VitConfig {
            fc_norm: true,
            ..c.clone()
        },
    ];
    let everywhere = format!("{SDLORA}\nprojections = [\"query\", \"output\", \"fc2\"]");
    for shape in shapes {
        let bench = Bench::new();
        let folder = finished_on(&bench, shape.clone(), &everywhere, "linear");
        let run = open(&folder);
        let merged = write(&run, Format::Hf, &bench.path("hf"));
        // Read as any folder of transformers is.
        let (read, report) = Vit::load(&bench.path("hf"), None, &test_device()).unwrap();
        assert_eq!(report.unused, ["classifier.bias", "classifier.weight"]);
        assert_eq!(
            read.config().n_channels,
            3,
            "colours, for processors give no other"
        );
        assert_eq!(read.config().qkv_bias, shape.qkv_bias);
        assert_eq!(read.config().activation, shape.activation);
        let expected: Vec<f32> = features_of(run.vit()).into_data().iter().collect();
        let found = features_of(&read);
        assert_close(found, expected.as_slice(), Tolerance::Abs(1e-5), "features");

        let peft = write(&run, Format::Peft, &bench.path("peft"));
        let base = TensorFile::read(&bench.path("peft/base/model.safetensors")).unwrap();
        for (module, name) in [
            ("attention.q_proj", "attention.attention.query"),
            ("attention.o_proj", "attention.output.dense"),
            ("mlp.fc2", "output.dense"),
        ] {
            let lora = format!("base_model.model.vit.layers.1.{module}");
            let name = format!("vit.encoder.layer.1.{name}.weight");
            let update = tensor(&peft, &format!("{lora}.lora_B.weight"))
                .matmul(tensor(&peft, &format!("{lora}.lora_A.weight")));
            let expected = &merged.tensors[&name].values;
            assert_same(tensor(&base, &name) + update, expected, &name);
        }
    }
    for shape in [
        VitConfig {
            n_registers: 2,
            ..c.clone()
        },
        VitConfig {
            pre_norm: true,
            ..c
        },
    ] {
        let bench = Bench::new();
        let run = open(&finished_on(&bench, shape, SDLORA, "linear"));
        let error = export(&run, Format::Hf, &bench.path("hf"), false).unwrap_err();
        assert!(error.to_string().contains("format `timm`"), "{error}");
    }
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_peft_folder_names_its_base_so_that_it_is_found_from_anywhere() {
    let bench = Bench::new();
    let run = open(&finished(&bench, SDLORA, "ncm"));
    let out = bench.path("peft");
    let notes = export(&run, Format::Peft, &out, false).unwrap();
    let config = json(&out.join("adapter_config.json"));
    let base = Path::new(config["base_model_name_or_path"].as_str().unwrap());
    assert!(
        base.is_absolute() && base.join("config.json").is_file(),
        "{base:?}"
    );
    assert_eq!(base, out.join("base"));
    // What `AutoPeftModel` builds the base with.
    let mapping = &config["auto_mapping"];
    assert_eq!(mapping["base_model_class"], "ViTForImageClassification");
    assert_eq!(
        mapping["parent_library"],
        "transformers.models.vit.modeling_vit"
    );
    let processors = [&out, &out.join("base")].map(|f| json(&f.join("preprocessor_config.json")));
    assert_eq!(processors[0], processors[1]);
    let said = notes.join("\n");
    for part in ["base_model_name_or_path", "`ncm`", "another filter"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn resize_and_crop_of_a_run_reach_the_processor_and_come_back() {
    let bench = Bench::new();
    let mut folder = finished(&bench, SDLORA, "linear");
    // Any resize between 14 and its double: here 16, as 35 is to 32.
    let plan = folder.join("plan.toml");
    let text = std::fs::read_to_string(&plan).unwrap();
    let mut config = sdlora_train::RunConfig::parse(&text).unwrap();
    let pipeline = PipelineConfig::imagenet(14, 16, Interpolation::Bicubic);
    config.transform = config.transform.with_pipeline(pipeline);
    config.n_epochs = 1;
    let finished = bench
        .run("cropped", &config.check().unwrap(), Start::Fresh)
        .unwrap();
    folder.set_file_name("cropped");
    write_model(&folder.join("model"), &finished).unwrap();
    let run = open(&folder);
    // transformers cuts the centre of some pictures one pixel further to the left.
    for (format, name, n_notes) in [(Format::Hf, "hf", 1), (Format::Timm, "timm", 0)] {
        let out = bench.path(name);
        let notes = export(&run, format, &out, false).unwrap();
        assert_eq!(notes.len(), n_notes, "{name}: {notes:?}");
        let of_centre = |note: &String| note.contains("the centre lies one pixel further");
        assert!(notes.iter().all(of_centre), "{name}: {notes:?}");
        let checkpoint = Checkpoint::open(&out, &Hints::default()).unwrap();
        let found = checkpoint.preprocess().unwrap();
        assert_eq!((found.input_size, found.resized_side()), (14, 16));
        assert_eq!(found.interpolation, sdlora_vit::Interpolation::Bicubic);
        assert_eq!(found.resize, sdlora_vit::Resize::ShortSide);
    }
    let processor = json(&bench.path("hf/preprocessor_config.json"));
    assert_eq!(processor["size"], serde_json::json!({"shortest_edge": 16}));
    assert_eq!(
        processor["crop_size"],
        serde_json::json!({"height": 14, "width": 14})
    );
    assert_eq!(
        (&processor["do_center_crop"], &processor["resample"]),
        (&true.into(), &3.into())
    );
}

#[test]
fn the_adapter_folder_on_the_base_gives_the_features_of_the_run() {
    let bench = Bench::new();
    let folder = run(&bench, SDLORA, "ncm");
    let run = open(&folder);
    let out = bench.path("adapter");
    write(&run, Format::Safetensors, &out);
    let adapter = AdapterFolder::load(&out).unwrap();
    let vit = adapter.apply(bench.backbone(), &test_device()).unwrap();
    let images: Vec<f32> = (0..3 * 14 * 14).map(|i| (i as f32 * 0.7).sin()).collect();
    let features = |vit: &Vit| {
        let file = extract_features(&vit.clone().into(), &images, &[1], &test_device()).unwrap();
        assert_eq!(file.tensors["block.1"].shape, [3, 4, 16]);
        tensor(&file, "features")
    };
    let expected: Vec<f32> = features(run.vit()).into_data().iter().collect();
    assert_close(
        features(&vit),
        expected.as_slice(),
        Tolerance::Abs(1e-5),
        "features",
    );
    let plain: Vec<f32> = features(&bench.backbone()).into_data().iter().collect();
    assert!(plain != expected, "the adapter changed nothing");
    // Class means classify: their rows, and no bias.
    let head = TensorFile::read(&folder.join("model/head.safetensors")).unwrap();
    let (weight, bias) = adapter.classifier.as_linear().unwrap();
    assert_eq!(weight, head.tensors["weight"].values);
    assert!(bias.iter().all(|&b| b == 0.0));
    assert_eq!(adapter.class_names.len(), 6);

    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let other = Vit::init(
        &VitConfig::standard(8, 4, 12, 1, 2),
        &mut rng,
        &test_device(),
    )
    .unwrap();
    assert!(matches!(
        adapter.apply(other, &test_device()),
        Err(TrainError::Setting { .. })
    ));
}

#[test]
fn what_cannot_be_exported_says_so() {
    let bench = Bench::new();
    let folder = run(&bench, "name = \"finetune\"", "linear");
    let run = open(&folder);
    for format in [Format::Peft, Format::Safetensors] {
        let error = export(&run, format, &bench.path("out"), true).unwrap_err();
        assert!(error.to_string().contains("finetune"), "{error}");
    }
    // No class token.
    let error = export(&run, Format::Hf, &bench.path("out"), true).unwrap_err();
    assert!(error.to_string().contains("format `timm`"), "{error}");

    let out = bench.path("timm");
    export(&run, Format::Timm, &out, false).unwrap();
    let error = export(&run, Format::Timm, &out, false).unwrap_err();
    assert!(matches!(error, TrainError::OutputExists { .. }), "{error}");
    export(&run, Format::Timm, &out, true).unwrap();

    let error = Format::from_name("gguf").unwrap_err().to_string();
    assert!(
        error.contains("timm, hf, peft, safetensors, bundle, onnx"),
        "{error}"
    );
    std::fs::remove_file(folder.join("model/head.safetensors")).unwrap();
    for path in [folder, bench.path("nowhere")] {
        let error = FinishedRun::open(&path, Path::new(""), &test_device()).unwrap_err();
        assert!(matches!(error, TrainError::NotFinished { .. }), "{error}");
        assert!(error.is_usage());
    }
}

#[test]
fn a_base_that_is_not_the_one_of_the_run_is_refused() {
    let bench = Bench::new();
    let run = open(&finished(&bench, SDLORA, "linear"));
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(99);
    let other = Vit::init(run.vit().config(), &mut rng, &test_device()).unwrap();
    toy::save(&other, &bench.path("vit.safetensors"));
    let error = export(&run, Format::Peft, &bench.path("out"), false).unwrap_err();
    assert!(
        error.to_string().contains("not base plus directions"),
        "{error}"
    );
}

#[test]
fn logits_are_those_peft_computed() {
    // By name, so that the test also runs where there is no checkout.
    let expected = golden_file("export/expected.safetensors");
    let folder = expected.parent().unwrap();
    let device = test_device();
    let (base, _) = Vit::load(&folder.join("backbone.safetensors"), None, &device).unwrap();
    let adapter = AdapterFolder::load(&folder.join("adapter")).unwrap();
    let vit = adapter.apply(base, &device).unwrap();
    let expected = TensorFile::read(&expected).unwrap();
    let input = &expected.tensors["input"];
    let images = TensorData::new(input.values.clone(), input.shape.clone());
    let features = vit.forward(Tensor::<4>::from_data(images, &device), &Updates::default());
    let table = FeatureTable {
        d_model: vit.config().d_model,
        labels: vec![0; features.dims()[0]],
        features: features.into_data().iter::<f32>().collect(),
        ..FeatureTable::default()
    };
    let logits = adapter.classifier.logits(&table);
    let expected = expected.tensors["logits"].values.as_slice();
    assert_close(logits.as_slice(), expected, Tolerance::Abs(1e-4), "logits");
}

#[test]
fn offsets_of_absorbed_directions_are_exported() {
    let bench = Bench::new();
    for variant in ["reference", "carry"] {
        let method = format!(
            "name = \"sdlora-kd\"\nrank = 4\nnorm = \"fro\"\nthreshold = 1.0\nvariant = \"{variant}\""
        );
        let mut config = bench.config(&method);
        config.n_epochs = 1;
        let name = format!("kd-{variant}");
        let finished = bench
            .run(&name, &config.check().unwrap(), Start::Fresh)
            .unwrap();
        let folder = bench.path(&name);
        write_model(&folder.join("model"), &finished).unwrap();
        // Export refuses directions that do not add up to the merged weights: without the offsets
        // it would.
        let out = bench.path(&format!("out-{variant}"));
        let file = write(&open(&folder), Format::Safetensors, &out);
        let offsets = file.tensors.iter().filter(|(n, _)| n.ends_with(".offset"));
        let values: Vec<f32> = offsets.map(|(_, t)| t.values[0]).collect();
        assert_eq!(
            values.len(),
            2 * shape().depth,
            "one direction on each site"
        );
        assert!(values.iter().any(|v| v.abs() > 1e-6), "{values:?}");
    }
}

#[test]
fn a_ridge_head_is_exported_as_a_linear_one_without_bias() {
    let bench = Bench::new();
    let mut config = bench.config(SDLORA);
    config.n_epochs = 1;
    config.head = Some(HeadConfig::named("ridge"));
    let finished = bench
        .run("run", &config.check().unwrap(), Start::Fresh)
        .unwrap();
    let folder = bench.path("run");
    write_model(&folder.join("model"), &finished).unwrap();
    let head = TensorFile::read(&folder.join("model/head.safetensors")).unwrap();
    let expected = &finished.model.head.per_class["weight"];
    assert_eq!(head.tensors["weight"].values, expected.values);
    assert!(head.tensors["bias"].values.iter().all(|&b| b == 0.0));
}
