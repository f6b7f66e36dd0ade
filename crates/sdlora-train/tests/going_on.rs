//! A run that goes on from a finished one with one more folder ends where one run on all folders ends, although the
//! images of the first are gone.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

mod toy;

use std::fs;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_data::datasets::{FoldersOptions, LearnedFolder, open};
use sdlora_data::{Options, Split};
use sdlora_image::encode_png;
use sdlora_testkit::test_device;
use sdlora_train::{
    Finished, HeadConfig, LossWeights, Plan, RunConfig, RunOptions, Silent, Start, TrainError, run,
    write_model,
};
use sdlora_vit::Vit;
use toml::Value;
use toy::{Bench, data_dir, difference};

/// A folder of characters: `images` of each class.
fn write(root: &Path, classes: std::ops::Range<usize>, images: std::ops::Range<usize>) {
    let set = open("omniglot-evaluation", &data_dir(), &Options::none()).unwrap();
    for class in classes {
        let folder = root.join(format!("class {class}"));
        fs::create_dir_all(&folder).unwrap();
        let samples = set.samples(Split::Train).iter().enumerate();
        let of_class = samples.filter(|(_, sample)| sample.class_id == class);
        for (idx, _) in of_class.skip(images.start).take(images.len()) {
            let image = set.image(Split::Train, idx).unwrap().into_rgb();
            let png = encode_png(image.width(), image.height(), image.data()).unwrap();
            fs::write(folder.join(format!("{idx:05}.png")), png).unwrap();
        }
    }
}

/// The folder as a learned one.
fn learned(root: &Path) -> LearnedFolder {
    let options = Options::none().with("root", root.to_str().unwrap());
    let set = open("folder", root, &options).unwrap();
    LearnedFolder {
        root: root.into(),
        classes: set.class_names().to_vec(),
        listing: Some(LearnedFolder::listing_of(set.as_ref())),
        skip_bad: false,
    }
}

fn plan(config: &RunConfig, folders: &[LearnedFolder]) -> Plan {
    let options = FoldersOptions {
        folders: folders.to_vec(),
        ..FoldersOptions::default()
    };
    let Value::Table(options) = Value::try_from(options).unwrap() else {
        panic!("options are a table");
    };
    let stream = "split = { per_domain = { order = \"natural\" } }";
    let config = RunConfig {
        dataset: "folders".into(),
        dataset_options: Options(options),
        stream: toml::from_str(stream).unwrap(),
        ..config.clone()
    };
    config.check().unwrap()
}

struct Chain {
    bench: Bench,
    config: RunConfig,
    folders: Vec<LearnedFolder>,
}

impl Chain {
    fn new(method: &str, head: Option<&str>, change: impl FnOnce(&mut RunConfig)) -> Self {
        let bench = Bench::new();
        let mut config = bench.config(method);
        config.n_epochs = 2;
        config.head = head.map(|text| {
            let Value::Table(table) =
                format!("head = {text}").parse::<toml::Table>().unwrap()["head"].clone()
            else {
                return HeadConfig::named(text.trim_matches('"'));
            };
            Value::Table(table).try_into().unwrap()
        });
        change(&mut config);
        Self {
            bench,
            config,
            folders: Vec::new(),
        }
    }

    fn add(&mut self, name: &str, classes: std::ops::Range<usize>, images: std::ops::Range<usize>) {
        let root = self.bench.path(name);
        write(&root, classes, images);
        self.folders.push(learned(&root));
    }

    /// Runs all folders so far, after the run that is named.
    fn run(&self, name: &str, after: Option<&str>, start: Start) -> Result<Finished, TrainError> {
        let plan = plan(&self.config, &self.folders);
        let options = RunOptions {
            start,
            after: after.map(|name| self.bench.path(name)),
            ..RunOptions::new(&data_dir(), &test_device(), &self.bench.path(name))
        };
        let finished = run(&plan, &options, &mut Silent)?;
        if let Some(kept) = &finished.kept {
            kept.write(&self.bench.path(name))?;
        }
        Ok(finished)
    }

    fn root(&self, idx: usize) -> PathBuf {
        self.folders[idx].root.clone()
    }
}

/// Everything a head keeps.
fn head(finished: &Finished) -> Vec<(String, Vec<u32>)> {
    let head = &finished.model.head;
    let arrays = head.per_class.iter().chain(&head.shared);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
    arrays
        .map(|(name, array)| (name.clone(), bits(&array.values)))
        .collect()
}

#[test]
fn going_on_without_the_first_images_is_one_run_to_the_last_bit() {
    let frozen = "name = \"ncm\"";
    for (method, own_head, keeps) in [
        (frozen, None, true),
        (frozen, Some("\"ridge\""), true),
        (frozen, Some("{ name = \"ridge\", projection = 30 }"), true),
        (frozen, Some("\"qda\""), true),
        ("name = \"linear\"", None, true),
        ("name = \"sdlora\"\nrank = 2", None, false),
        ("name = \"lora\"\nrank = 2", Some("\"ncm\""), false),
    ] {
        let mut chain = Chain::new(method, own_head, |config| config.calibrate_on = 1);
        chain.add("one", 0..3, 0..9);
        let first = chain.run("first", None, Start::Fresh).unwrap();
        let alone = first.log.matrix.get(0, 0).unwrap();
        drop(first);
        // A class that comes again, with other images, and a new one.
        chain.add("two", 2..4, 9..15);
        let whole = chain.run("whole", None, Start::Fresh).unwrap();
        fs::remove_dir_all(chain.root(0)).unwrap();
        let going_on = chain.run("second", Some("first"), Start::Fresh).unwrap();
        assert_eq!(head(&going_on), head(&whole), "{method} {own_head:?}");
        assert_eq!(difference(&going_on, &whole), 0.0, "{method} {own_head:?}");
        assert_eq!(going_on.class_names, whole.class_names);
        assert_eq!(whole.class_names.len(), 4);
        let (now, then) = (&going_on.log.matrix, &whole.log.matrix);
        assert_eq!(now.test_counts(), then.test_counts());
        assert_eq!((now.get(0, 0), then.get(0, 0)), (Some(alone), Some(alone)));
        assert_eq!(now.get(1, 1), then.get(1, 1));
        if keeps {
            // Measured and calibrated on features that were kept.
            assert_eq!(now, then, "{method} {own_head:?}");
            assert_eq!(going_on.predicting, whole.predicting);
            assert_eq!(going_on.log.classes, whole.log.classes);
        } else {
            assert_eq!(now.get(1, 0), None);
            assert!(then.get(1, 0).is_some());
            assert_eq!(going_on.log.classes[0].n_images, 0);
        }
        // What it leaves is a model.
        write_model(&chain.bench.path("second/model"), &going_on).unwrap();
    }
}

#[test]
fn a_run_that_was_killed_goes_on_from_its_own_checkpoint_or_from_the_run_before() {
    let mut chain = Chain::new("name = \"sdlora\"\nrank = 2", None, |config| {
        config.checkpoint_every = 1;
    });
    chain.add("one", 0..2, 0..6);
    drop(chain.run("first", None, Start::Fresh).unwrap());
    chain.add("two", 2..4, 0..6);
    let whole = chain.run("whole", Some("first"), Start::Fresh).unwrap();
    fs::remove_dir_all(chain.root(0)).unwrap();
    // Before its first checkpoint, and after the last.
    let second = chain.run("second", Some("first"), Start::Fresh).unwrap();
    let matrix = second.log.matrix.clone();
    assert_eq!(matrix.get(1, 0), None, "its images are gone");
    drop(second);
    for is_gone in [true, false] {
        if is_gone {
            fs::remove_dir_all(chain.bench.path("second/checkpoints")).unwrap();
        }
        let again = chain.run("second", Some("first"), Start::Resume).unwrap();
        assert_eq!(difference(&again, &whole), 0.0, "{is_gone}");
        assert_eq!(again.log.matrix, matrix, "{is_gone}");
    }
    // The folder that is to be learned may not change meanwhile, the first may.
    let image = fs::read_dir(chain.root(1).join("class 2")).unwrap().next();
    fs::remove_file(image.unwrap().unwrap().path()).unwrap();
    let error = chain
        .run("second", Some("first"), Start::Resume)
        .unwrap_err();
    assert!(matches!(error, TrainError::DataChanged { .. }), "{error}");
    fs::remove_dir_all(chain.root(1)).unwrap();
    let error = chain
        .run("second", Some("first"), Start::Resume)
        .unwrap_err();
    assert!(
        error.to_string().contains("without the images of task 2"),
        "{error}"
    );
}

#[test]
fn other_weights_and_methods_that_need_all_tasks_are_refused() {
    let mut chain = Chain::new("name = \"ncm\"", None, |_| {});
    chain.add("one", 0..2, 0..5);
    drop(chain.run("first", None, Start::Fresh).unwrap());
    chain.add("two", 2..4, 0..5);
    let weights = chain.bench.path("other.safetensors");
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    toy::save(
        &Vit::init(&toy::shape(), &mut rng, &test_device()).unwrap(),
        &weights,
    );
    let before = chain.config.backbone.weights.clone();
    chain.config.backbone.weights = weights;
    let error = chain
        .run("second", Some("first"), Start::Fresh)
        .unwrap_err();
    assert!(
        matches!(error, TrainError::WeightsChanged { .. }),
        "{error}"
    );
    assert!(!chain.bench.path("second").exists());
    chain.config.backbone.weights = before;
    for method in ["joint", "inflora"] {
        chain.config.method = sdlora_train::MethodConfig {
            name: method.into(),
            options: toml::Table::new(),
        };
        chain.config.head = None;
        let error = chain.run("third", None, Start::Fresh).unwrap_err();
        assert!(error.to_string().contains("more may follow"), "{error}");
    }
}

#[test]
fn balanced_weights_count_every_class_the_same_and_all_images_as_many() {
    let losses = |weights| {
        let head = "{ name = \"linear\", start = \"zeros\" }";
        let mut chain = Chain::new("name = \"linear\"", Some(head), |config| {
            config.loss_weights = weights;
            config.batch_size = 64;
        });
        chain.add("unequal", 0..1, 0..15);
        write(&chain.root(0), 1..2, 0..4);
        chain.folders[0] = learned(&chain.root(0));
        let finished = chain.run("run", None, Start::Fresh).unwrap();
        finished.log.tasks[0].losses.clone()
    };
    let (equal, balanced) = (losses(LossWeights::Equal), losses(LossWeights::Balanced));
    // One step an epoch. Columns of zeros guess, and the weights of all images have the mean 1.
    assert_eq!((equal.len(), balanced.len()), (2, 2));
    for first in [equal[0], balanced[0]] {
        assert!((first - 2f64.ln()).abs() < 1e-6, "{first}");
    }
    assert!(
        (equal[1] - balanced[1]).abs() > 1e-5,
        "{equal:?} {balanced:?}"
    );
}
