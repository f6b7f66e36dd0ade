//! Methods with a second pass: what is frozen stays, a saved model predicts what it did, and what plain weights
//! cannot hold is refused.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use sdlora_core::Updates;
use sdlora_testkit::{Tolerance, assert_close, test_device, toy::SplitMix64};
use sdlora_train::{
    Finished, FinishedRun, Format, HeadConfig, MethodState, Predictor, RunConfig, Start,
    TensorFile, export, extract_features, write_model,
};
use toy::{Bench, bits, data_dir, shape};

const L2P: &str = "name = \"l2p\"\nlength = 2\ntop = 3\nspread = 0.5";
const DUAL: &str = "name = \"dualprompt\"\ngeneral_length = 2\nexpert_length = 3\nspread = 0.5";
const CODA: &str = "name = \"coda-prompt\"\nn_components = 3\nlength = 2";
const HIDE: &str = "name = \"hide-prompt\"\nlength = 2\nspread = 0.5";
const ALL: [&str; 4] = [L2P, DUAL, CODA, HIDE];
/// Without prompts: its second pass has other weights.
const APER: &str = "name = \"aper\"\nrank = 4";

fn run_with(
    bench: &Bench,
    folder: &str,
    method: &str,
    change: impl Fn(&mut RunConfig),
) -> Finished {
    let mut config = bench.config(method);
    change(&mut config);
    bench
        .run(folder, &config.check().unwrap(), Start::Fresh)
        .unwrap()
}

fn run(bench: &Bench, folder: &str, method: &str, n_tasks: usize) -> Finished {
    run_with(bench, folder, method, |config| {
        config.stream.n_tasks = Some(n_tasks);
    })
}

/// The state of the method after some tasks.
fn state(bench: &Bench, method: &str, n_tasks: usize) -> MethodState {
    run(bench, &n_tasks.to_string(), method, n_tasks)
        .model
        .state
}

/// The bits of a matrix, row by row.
fn matrix(state: &MethodState, name: &str) -> Vec<u32> {
    let values = state.get(name);
    bits(values.unwrap_or_else(|| panic!("no {name}"))).concat()
}

/// Four images.
fn pixels() -> Vec<f32> {
    let side = shape().image_size;
    SplitMix64::new(4).fill(4 * side * side, 1.0)
}

fn images() -> Tensor<4> {
    let side = shape().image_size;
    Tensor::from_data(
        TensorData::new(pixels(), [4, 1, side, side]),
        &test_device(),
    )
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}

#[test]
fn experts_and_keys_of_earlier_tasks_do_not_move() {
    let bench = Bench::new();
    let prompts = |n_tasks: usize| state(&bench, DUAL, n_tasks);
    let (one, two, three) = (prompts(1), prompts(2), prompts(3));
    assert_eq!(matrix(&two, "past_experts"), matrix(&one, "expert"));
    assert_eq!(matrix(&two, "past_keys"), matrix(&one, "key"));
    assert_ne!(
        matrix(&two, "expert"),
        matrix(&one, "expert"),
        "it was trained"
    );
    let both = [matrix(&one, "expert"), matrix(&two, "expert")].concat();
    assert_eq!(matrix(&three, "past_experts"), both);
    assert_ne!(
        matrix(&two, "general"),
        matrix(&one, "general"),
        "the general prefix is trained in every task"
    );
}

#[test]
fn components_of_earlier_tasks_do_not_move() {
    let bench = Bench::new();
    let (one, two) = (state(&bench, CODA, 1), state(&bench, CODA, 2));
    for block in 0..shape().depth {
        for part in ["keys", "attention", "prompts"] {
            let before = matrix(&one, &format!("blocks.{block}.current.{part}"));
            assert_eq!(matrix(&two, &format!("blocks.{block}.past.{part}")), before);
        }
        let keys = two.get(&format!("blocks.{block}.current.keys")).unwrap();
        assert_eq!(keys.val().dims(), [3, shape().d_model]);
    }
}

#[test]
fn prefixes_and_classes_of_earlier_tasks_do_not_move_and_are_counted() {
    let bench = Bench::new();
    let run = |n_tasks: usize| run(&bench, &n_tasks.to_string(), HIDE, n_tasks);
    let (one, two) = (run(1), run(2));
    let (first, second) = (&one.model.state, &two.model.state);
    assert_eq!(matrix(second, "past_experts"), matrix(first, "expert"));
    assert_ne!(matrix(second, "expert"), matrix(first, "expert"));
    let (means, prompted) = ("identity.means", "identity.prompted_means");
    for name in [means, prompted] {
        let (old, new) = (matrix(first, name), matrix(second, name));
        assert!(new.len() > old.len());
        assert_eq!(new[..old.len()], old);
    }
    assert_ne!(matrix(second, means), matrix(second, prompted));
    let (own, all) = (second.floats_stored(), two.model.floats_stored());
    let head = two.model.head.floats_stored();
    assert_eq!(all.per_class, head.per_class + own.per_class);
    assert_eq!(all.total, head.total + own.total);
    let d = shape().d_model;
    assert_eq!((own.per_class, own.shared), (3 * d + 1, d * (d + 1) / 2));
}

#[test]
fn a_pool_is_trained_on_and_stays_one_pool() {
    let bench = Bench::new();
    let (one, two) = (state(&bench, L2P, 1), state(&bench, L2P, 2));
    assert_eq!(one.names().collect::<Vec<_>>(), ["keys", "prompts"]);
    for name in ["keys", "prompts"] {
        let dims = |state: &MethodState| state.get(name).unwrap().val().dims();
        assert_eq!(dims(&one), dims(&two), "{name}");
        assert_ne!(
            matrix(&one, name),
            matrix(&two, name),
            "{name} are trained on"
        );
    }
}

/// The start is drawn alike, so what more epochs leave as it was gets no gradient.
#[test]
fn every_part_of_the_prompts_that_is_said_to_be_trained_moves_with_every_epoch() {
    struct Trained(Vec<Vec<f32>>);
    impl ModuleVisitor for Trained {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0.push(host(param.val()));
            }
        }
    }
    let bench = Bench::new();
    for (i, method) in ALL.into_iter().enumerate() {
        let parts = |n_epochs: usize| {
            let run = run_with(&bench, &format!("{i}-{n_epochs}"), method, |config| {
                config.stream.n_tasks = Some(1);
                config.n_epochs = n_epochs;
            });
            let mut trained = Trained(Vec::new());
            run.model.state.visit(&mut trained);
            trained.0
        };
        let (one, two) = (parts(1), parts(2));
        assert!(!one.is_empty() && one.len() == two.len(), "{method}");
        for (k, (one, two)) in one.iter().zip(&two).enumerate() {
            assert_eq!(one.len(), two.len());
            assert!(
                one != two,
                "{method}: part {k} of the prompts is not trained"
            );
        }
    }
}

#[test]
fn evaluation_goes_through_the_prompts() {
    let bench = Bench::new();
    for (i, method) in ALL.into_iter().enumerate() {
        let model = run(&bench, &i.to_string(), method, 2).model;
        let expected = host(model.valid().features(images()));
        let features = model.extractor().features(images());
        assert_close(
            features.clone(),
            expected.as_slice(),
            Tolerance::Abs(1e-6),
            method,
        );
        let plain = model
            .merged_backbone()
            .forward(images(), &Updates::default());
        let largest: f32 = (features - plain).abs().max().into_scalar();
        assert!(largest > 1e-3, "{method}: the prompts change {largest}");
    }
}

#[test]
fn a_fitted_head_sees_the_features_of_the_prompts() {
    let bench = Bench::new();
    let ncm = |folder: &str, method: &str| {
        let with_ncm = |config: &mut RunConfig| config.head = Some(HeadConfig::named("ncm"));
        run_with(&bench, folder, method, with_ncm).classifier
    };
    let (plain, prompted) = (ncm("plain", "name = \"ncm\""), ncm("prompted", DUAL));
    assert_eq!(prompted.n_classes(), plain.n_classes());
    assert_ne!(prompted, plain);
}

#[test]
fn a_saved_model_predicts_and_gives_features_as_before_and_is_not_exported() {
    let bench = Bench::new();
    for (i, method) in ALL.into_iter().chain([APER]).enumerate() {
        let folder = bench.path(&i.to_string());
        let finished = run(&bench, &i.to_string(), method, 2);
        write_model(&folder.join("model"), &finished).unwrap();
        let extractor = finished.model.extractor();
        let expected = host(extractor.features(images()));

        let opened = FinishedRun::open(&folder, &data_dir(), &test_device()).unwrap();
        let file = extract_features(&opened.extractor(), &pixels(), &[], &test_device()).unwrap();
        assert_eq!(file.tensors["features"].values, expected, "{method}");
        let error = extract_features(&opened.extractor(), &pixels(), &[0], &test_device());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("`layer` is [0]"), "{error}");

        let table = sdlora_train::FeatureTable {
            features: expected,
            d_model: extractor.width(),
            labels: vec![0; 4],
            ..Default::default()
        };
        let labels = finished.classifier.predict(&table);
        let names: Vec<&str> = labels
            .iter()
            .map(|&label| finished.class_names[label].as_str())
            .collect();
        let predictor = Predictor::load(&folder.join("model"), &test_device()).unwrap();
        assert_eq!(predictor.predict(images()), names, "{method}");

        for (name, format) in Format::ALL {
            let out = bench.path(&format!("{i}-{name}.safetensors"));
            if format == Format::Bundle {
                // The one that holds what a second pass reads.
                export(&opened, format, &out, false).unwrap();
                continue;
            }
            let error = export(&opened, format, &out, false).unwrap_err();
            assert!(error.is_usage());
            let error = error.to_string();
            assert!(
                error.contains("let the run itself predict")
                    && error.contains("prompts.safetensors"),
                "{error}"
            );
            assert!(!out.exists(), "{method}, {name}");
        }
    }
}

#[test]
fn a_damaged_file_of_prompts_says_what_is_wrong() {
    let bench = Bench::new();
    let folder = bench.path("run");
    write_model(&folder.join("model"), &run(&bench, "run", CODA, 2)).unwrap();
    let path = folder.join("model").join("prompts.safetensors");
    // A folder without sums is taken as it is, so that the reader of the file itself has to refuse.
    std::fs::remove_file(folder.join("model").join("SHA256SUMS")).unwrap();
    let whole = TensorFile::read(&path).unwrap();
    let keys = "blocks.1.past.keys";
    assert_eq!(whole.tensors[keys].shape, [3, shape().d_model]);
    for (part, damage) in [
        (
            keys,
            &(|file: &mut TensorFile| {
                file.tensors.remove(keys);
            }) as &dyn Fn(&mut TensorFile),
        ),
        ("version", &|file| {
            file.metadata
                .insert("sdlora.prompts.version".into(), "9".into());
        }),
        ("layout", &|file| {
            file.metadata.insert("sdlora.prompts".into(), "{}".into());
        }),
        ("block 7", &|file| {
            let layout = file.metadata.get_mut("sdlora.prompts").unwrap();
            *layout = layout.replace("[0,1]", "[0,7]");
        }),
    ] {
        let mut file = whole.clone();
        damage(&mut file);
        file.write(&path).unwrap();
        let error = Predictor::load(&folder.join("model"), &test_device());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}
