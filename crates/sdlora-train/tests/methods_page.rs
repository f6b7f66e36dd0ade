//! The table of all methods in `docs/methods.md`: measured on the shipped backbone, accuracies from `docs/results.md`,
//! which another test fills from the records. `SDLORA_WRITE_PAGES=1` renews the page.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use sdlora_testkit::{test_device, test_device_autodiff, toy::SplitMix64};
use sdlora_train::heads::HeadTask;
use sdlora_train::methods::{AdapterSpec, METHODS, MethodEntry, TaskContext, TaskImages};
use sdlora_train::{FeatureTable, HeadConfig, Model, TrainError};
use sdlora_vit::Vit;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(name: &str) -> String {
    let path = repository().join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Classes of a task, and images of each.
const N_NEW: usize = 2;
const N_IMAGES: usize = 6;

/// Drawn images of the classes of a task.
struct Drawn {
    images: Tensor<4>,
    labels: Vec<usize>,
}

impl Drawn {
    fn of_task(task_idx: usize, vit: &Vit) -> Self {
        let (side, n) = (vit.config().image_size, N_NEW * N_IMAGES);
        let n_channels = vit.config().n_channels;
        let pixels = SplitMix64::new(40 + task_idx as u64).fill(n * n_channels * side * side, 1.0);
        let shape = [n, n_channels, side, side];
        Self {
            images: Tensor::from_data(TensorData::new(pixels, shape), &test_device()),
            labels: (0..n).map(|i| task_idx * N_NEW + i % N_NEW).collect(),
        }
    }
}

impl TaskImages for Drawn {
    fn each_batch(&self, see: &mut dyn FnMut(Tensor<4>, &[usize])) -> Result<(), TrainError> {
        see(self.images.clone(), &self.labels);
        Ok(())
    }
}

/// Numbers of low-rank updates, magnitudes and learned state, without what is kept of old classes.
fn n_learned(model: &Model) -> usize {
    let of_sites = model.adapter.sites.iter().map(|bank| {
        let (site, past) = (bank.site(), bank.past.as_ref());
        let ranks = past.map_or(0, |past| past.ranks().iter().sum());
        let current = bank.current.as_ref().map_or(0, Module::num_params);
        ranks * (site.d_input + site.d_output) + current
    });
    let magnitudes: usize = model.adapter.magnitude_rows().iter().map(Vec::len).sum();
    let state = model.state.num_params() - model.state.floats_stored().total;
    let magnitudes = match has_trained_magnitudes(model) {
        true => magnitudes,
        false => 0,
    };
    of_sites.sum::<usize>() + magnitudes + state
}

/// Magnitudes that no task trains are the constant 1, and no numbers of a method.
fn has_trained_magnitudes(model: &Model) -> bool {
    struct IsTrained(bool);
    impl ModuleVisitor for IsTrained {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 |= param.is_require_grad();
        }
    }
    let mut is_trained = IsTrained(false);
    model.adapter.magnitudes.visit(&mut is_trained);
    is_trained.0
}

/// Takes the place of steps: a direction of zeros would be one that others span.
fn drawn_up_projections(model: &mut Model, task_idx: usize) {
    for (i, bank) in model.adapter.sites.iter_mut().enumerate() {
        let Some(mut current) = bank.current.take() else {
            continue;
        };
        let (shape, is_trained) = (current.b.lazy_shape().dims(), current.b.is_require_grad());
        let [n_rows, n_columns]: [usize; 2] = shape;
        let seed = (100 * task_idx + i) as u64;
        let values = SplitMix64::new(seed).fill(n_rows * n_columns, 0.1);
        let values = Tensor::from_data(TensorData::new(values, shape), &test_device_autodiff());
        current.b = current.b.map(|_| values.set_require_grad(is_trained));
        bank.current = Some(current);
    }
}

/// A line of the table, but for the accuracy.
fn measured(entry: &MethodEntry) -> [String; 5] {
    let device = test_device_autodiff();
    let method = (entry.build)(&toml::Table::new()).unwrap();
    // Ten thousand random features would take minutes; how a head is, and not how large, is asked here.
    let head = match entry.name {
        "ranpac" => HeadConfig::named("ridge").with("projection", 40),
        _ => method.default_head(),
    };
    let head = head.build().unwrap();
    let weights = repository().join("datasets/omniglot/vit_omniglot_patch7_28.safetensors");
    let (backbone, _) = Vit::load(&weights, None, &device).unwrap();
    let adapter = AdapterSpec::adapter(method.adapter().as_ref(), backbone.config()).unwrap();
    let d_model = backbone.config().d_model;
    let mut model = Model::new(backbone, adapter);
    let n_tasks = if method.is_joint() { 1 } else { 2 };
    let mut learned = Vec::new();
    for task_idx in 0..n_tasks {
        let task = TaskContext {
            task_idx,
            n_tasks,
            n_new_classes: N_NEW,
            seed: 1,
            device: device.clone(),
            head: head.clone(),
            start: method.column_start(),
        };
        let images = Drawn::of_task(task_idx, &model.backbone);
        model = method.before_task(model, &task).unwrap();
        model = method.prepare(model, &task, &images).unwrap();
        drawn_up_projections(&mut model, task_idx);
        model = method.review(model, &task, &images).unwrap();
        model = method.after_task(model, &task).unwrap();
        learned.push(n_learned(&model));
        let features = model.extractor().features(images.images.clone());
        let table = FeatureTable {
            features: features.into_data().iter().collect(),
            d_model,
            labels: images.labels,
            ..FeatureTable::default()
        };
        let head_task = HeadTask {
            table: &table,
            first_label: task_idx * N_NEW,
            task_idx,
            seed: 1,
            device: &device,
        };
        if head.is_fitted() {
            model.head = head.fit(model.head, &head_task).unwrap();
        }
    }
    let added = match learned[..] {
        [first, second] => second.saturating_sub(first),
        _ => 0,
    };
    let stored = model.state.floats_stored();
    let kept = match (stored.per_class, stored.shared) {
        (0, 0) => "nothing".to_owned(),
        (0, _) => "statistics".to_owned(),
        (n, 0) => format!("{} per class", with_commas(n)),
        (n, _) => format!("{} per class, statistics", with_commas(n)),
    };
    let has_second_pass = model.state.second_pass().is_some();
    let is_linear = model
        .classifier(head.as_ref())
        .unwrap()
        .as_linear()
        .is_some();
    let merges = match (has_second_pass, is_linear) {
        (true, _) => "no",
        (false, false) => "all but the head",
        (false, true) => "yes",
    };
    [
        format!("`{}`", entry.name),
        with_commas(added),
        kept,
        if has_second_pass { "2" } else { "1" }.to_owned(),
        merges.to_owned(),
    ]
}

fn with_commas(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap())
        .collect();
    groups.join(",")
}

/// Final accuracies on `omniglot-10x20` by method: of the first entry of the suite that has its default options.
fn accuracies() -> BTreeMap<String, String> {
    let results = read("docs/results.md");
    let section = results.split("### omniglot-10x20\n").nth(1).unwrap();
    let section = section.split("| Claim ").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with("| "));
    let by_label: BTreeMap<String, String> = lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            (cells[0].to_owned(), cells[2].to_owned())
        })
        .collect();
    let suite: toml::Table = read("crates/sdlora-cli/presets/suite-paper.toml")
        .parse()
        .unwrap();
    let mut found = BTreeMap::new();
    for entry in suite["entry"].as_array().unwrap() {
        let label = entry["label"].as_str().unwrap();
        let settings = entry["set"].as_array().unwrap().iter();
        let settings: Vec<&str> = settings.map(|set| set.as_str().unwrap()).collect();
        let method = settings.iter().find_map(|set| set.strip_prefix("method="));
        let name = match method {
            _ if settings.iter().any(|set| set.starts_with("method.")) => continue,
            None => "sdlora".to_owned(),
            Some(method) => {
                let table: toml::Table = format!("method = {method}").parse().unwrap();
                let method = table["method"].as_table().unwrap();
                if method.len() > 1 {
                    continue;
                }
                method["name"].as_str().unwrap().to_owned()
            }
        };
        if let Some(accuracy) = by_label.get(label) {
            found.entry(name).or_insert_with(|| accuracy.clone());
        }
    }
    found
}

const BEGIN: &str = "<!-- the table of all methods: `SDLORA_WRITE_PAGES=1 cargo test -p sdlora-train --test methods_page` -->\n";
const END: &str = "<!-- its end -->\n";

#[test]
fn the_table_of_all_methods_is_what_the_methods_and_the_records_say() {
    let accuracies = accuracies();
    for name in ["sdlora", "lora", "ncm", "ranpac", "hide-prompt"] {
        assert!(accuracies.contains_key(name), "{name}: {accuracies:?}");
    }
    let mut table = String::from(
        "| method | added per task | kept besides | passes | one file | omniglot-10x20 |\n\
         | --- | ---: | --- | ---: | --- | ---: |\n",
    );
    for entry in METHODS {
        let accuracy = accuracies.get(entry.name).map_or("", String::as_str);
        let cells = measured(entry).join(" | ");
        table.push_str(&format!("| {cells} | {accuracy} |\n"));
    }
    let path = "docs/methods.md";
    let page = read(path);
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (found, behind) = rest.split_once(END).unwrap();
    if std::env::var_os("SDLORA_WRITE_PAGES").is_some() {
        let renewed = format!("{before}{BEGIN}{table}{END}{behind}");
        fs::write(repository().join(path), renewed).unwrap();
        return;
    }
    let differs = found.lines().zip(table.lines()).find(|(a, b)| a != b);
    assert!(
        found == table,
        "{path} is stale, first at {differs:?}: SDLORA_WRITE_PAGES=1 with this test renews it"
    );
}
