//! `sdlora-merge`: what its mean is the mean of, where a task starts, what it keeps, and which features a head
//! compares.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use sdlora_core::{Adapter, HostFactors, ScaledFactors, Update, Updates};
use sdlora_data::{Cache, Dataset, ImageSource, LoaderConfig, TaskSplit, TaskStream};
use sdlora_testkit::{test_device, test_device_autodiff};
use sdlora_train::heads::HeadTask;
use sdlora_train::methods::{self, TaskContext};
use sdlora_train::{
    ColumnStart, Extractor, FeatureTable, Finished, FinishedRun, Format, HeadConfig, Plan, Start,
    TrainError, export, write_model,
};
use sdlora_vit::Vit;
use toy::{Bench, StopAfter, bits};

/// Tasks of two classes at a rate that moves the features; columns start as those of the plain LoRAs do.
fn plan(bench: &Bench, method: &str, head: &str, n_tasks: usize) -> Plan {
    let mut config = bench.config(method);
    config.stream.split = TaskSplit::Increment {
        init_cls: 2,
        increment: 2,
    };
    config.stream.n_tasks = Some(n_tasks);
    config.optimizer.lr = 0.1;
    config.head = Some(HeadConfig::named(head).starting(ColumnStart::Torch));
    config.check().unwrap()
}

/// A run in a folder of its own.
fn run(bench: &Bench, method: &str, head: &str, n_tasks: usize) -> Finished {
    static N_RUNS: AtomicUsize = AtomicUsize::new(0);
    let folder = format!("run-{}", N_RUNS.fetch_add(1, Ordering::Relaxed));
    let plan = plan(bench, method, head, n_tasks);
    bench.run(&folder, &plan, Start::Fresh).unwrap()
}

fn merge(options: &str) -> String {
    format!("name = \"sdlora-merge\"\nrank = 4\n{options}")
}

/// The update of every site.
fn updates(adapter: &Adapter) -> Vec<Vec<f32>> {
    let updates = adapter.updates();
    let dense = adapter.sites.iter().map(|bank| {
        let update = updates.get(&bank.site().name).unwrap().dense();
        update.into_data().iter().collect()
    });
    dense.collect()
}

/// The factors that the method kept of its last task, by site.
fn kept(run: &Finished) -> Vec<HostFactors> {
    let factor = |name: String| -> (Vec<f32>, usize) {
        let values = run.model.state.get(&name).unwrap().val();
        let [_, n_columns] = values.dims();
        (values.into_data().iter().collect(), n_columns)
    };
    let sites = 0..run.model.adapter.sites.len();
    sites
        .map(|i| {
            let ((a, rank), (b, _)) = (factor(format!("a.{i}")), factor(format!("b.{i}")));
            HostFactors { a, b, rank }
        })
        .collect()
}

/// `A B` by hand.
fn product(factors: &HostFactors) -> Vec<f32> {
    let d_output = factors.b.len() / factors.rank;
    let rows = factors.a.chunks_exact(factors.rank);
    rows.flat_map(|row| {
        let entry = move |j: usize| -> f64 {
            let b = factors.b.iter().skip(j).step_by(d_output);
            row.iter()
                .zip(b)
                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                .sum()
        };
        (0..d_output).map(entry)
    })
    .map(|v| v as f32)
    .collect()
}

/// The largest difference relative to the largest number of `b`.
fn far(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    assert_eq!(a.len(), b.len());
    let (a, b) = (a.iter().flatten(), b.iter().flatten());
    let largest = b.clone().fold(0.0f32, |max, v| max.max(v.abs()));
    let differences = a.zip(b).map(|(a, b)| (a - b).abs());
    f64::from(differences.fold(0.0f32, f32::max) / largest)
}

/// A weighted sum of updates, site by site.
fn sum(parts: &[(f32, &[Vec<f32>])]) -> Vec<Vec<f32>> {
    let n_sites = parts[0].1.len();
    let of_site = |site: usize| {
        let mut sum = vec![0.0; parts[0].1[site].len()];
        for (weight, part) in parts {
            sum.iter_mut()
                .zip(&part[site])
                .for_each(|(sum, v)| *sum += weight * v);
        }
        sum
    };
    (0..n_sites).map(of_site).collect()
}

#[test]
fn with_a_share_of_1_each_start_is_another_method() {
    let bench = Bench::new();
    let of = |options: &str, head: &str| run(&bench, &merge(options), head, 3);
    let named = |name: &str, head: &str| {
        let method = format!("name = \"{name}\"\nrank = 4");
        run(&bench, &method, head, 3)
    };
    // Trained on, and nothing of old tasks is left but where it starts: `lora`.
    let (previous, lora) = (of("share = 1.0", "linear"), named("lora", "linear"));
    let expected: Vec<HostFactors> = lora
        .model
        .adapter
        .sites
        .iter()
        .map(|bank| bank.current.as_ref().unwrap().to_host())
        .collect();
    assert_eq!(kept(&previous), expected);
    assert_eq!(bits(&previous.model.head), bits(&lora.model.head));
    assert_eq!(toy::losses(&previous), toy::losses(&lora));
    assert!(
        far(
            &updates(&previous.model.adapter),
            &updates(&lora.model.adapter)
        ) < 1e-5
    );

    // On top of what is merged: the sum of all tasks.
    let merged = of("share = 1.0\nstart = \"merged\"", "linear");
    let per_task = named("lora-per-task", "linear");
    let expected = updates(&per_task.model.adapter);
    let found = far(&updates(&merged.model.adapter), &expected);
    assert!(found < 1e-3, "{found}");
    // Each from the backbone: the last task alone, which is no sum.
    let fresh = of("share = 1.0\nstart = \"fresh\"", "linear");
    assert!(far(&updates(&fresh.model.adapter), &expected) > 0.1);

    // The factors themselves: to the bit.
    let factors = of("share = 1.0\nmerge = \"factors\"", "linear");
    assert_eq!(bits(&factors.model.adapter), bits(&lora.model.adapter));
    assert_eq!(bits(&factors.model.head), bits(&lora.model.head));

    // Magnitudes: to the bit.
    let magnitudes = of("share = 1.0\nmerge = \"magnitudes\"", "ncm");
    let relative = named("sdlora-relative", "ncm");
    assert_eq!(
        bits(&magnitudes.model.adapter),
        bits(&relative.model.adapter)
    );
    let half = of("share = 0.5\nmerge = \"magnitudes\"", "ncm");
    assert_ne!(bits(&half.model.adapter), bits(&relative.model.adapter));
}

#[test]
fn what_is_merged_is_the_mean_of_the_updates_in_weight_space() {
    let bench = Bench::new();
    // No task sees the mean, so a task trains to the same update at every share.
    let of_task: Vec<Vec<Vec<f32>>> = (1..=3)
        .map(|n_tasks| {
            let run = run(&bench, &merge("share = 0.5"), "linear", n_tasks);
            kept(&run).iter().map(product).collect()
        })
        .collect();
    let [first, second, third] = of_task.try_into().unwrap();
    for (share, n_tasks, expected) in [
        ("0.5", 1, sum(&[(1.0, &first)])),
        ("0.5", 2, sum(&[(0.5, &first), (0.5, &second)])),
        (
            "0.2",
            3,
            sum(&[(0.64, &first), (0.16, &second), (0.2, &third)]),
        ),
        (
            "\"by-tasks\"",
            3,
            sum(&[
                (1.0 / 3.0, &first),
                (1.0 / 3.0, &second),
                (1.0 / 3.0, &third),
            ]),
        ),
    ] {
        let method = merge(&format!("share = {share}"));
        let run = run(&bench, &method, "linear", n_tasks);
        let found = updates(&run.model.adapter);
        let distance = far(&found, &expected);
        assert!(distance < 1e-5, "{share}, {n_tasks} tasks: {distance}");
        if n_tasks > 1 {
            let last = if n_tasks == 2 { &second } else { &third };
            assert!(far(&found, last) > 1e-2, "{share}: the last task alone");
        }
    }
}

#[test]
fn shares_by_images_follow_the_sizes_of_tasks() {
    let bench = Bench::new();
    let with = |share: &str| {
        let mut config = bench.config(&merge(&format!("share = \"{share}\"")));
        config.optimizer.lr = 0.1;
        config.head = Some(HeadConfig::named("linear"));
        config.stream.split = TaskSplit::Increment {
            init_cls: 4,
            increment: 2,
        };
        let plan = config.check().unwrap();
        bench.run(share, &plan, Start::Fresh).unwrap()
    };
    let (by_images, by_tasks) = (with("by-images"), with("by-tasks"));
    let second: Vec<Vec<f32>> = kept(&by_images).iter().map(product).collect();
    // ½ (first + second) without the second is half the first.
    let half = sum(&[(1.0, &updates(&by_tasks.model.adapter)), (-0.5, &second)]);
    let expected = sum(&[(4.0 / 3.0, &half), (1.0 / 3.0, &second)]);
    let found = updates(&by_images.model.adapter);
    assert!(far(&found, &expected) < 1e-5);
    assert!(far(&found, &updates(&by_tasks.model.adapter)) > 1e-2);
    // Fifteen training images of each of six classes.
    let counted = by_images.model.state.fact("n_images").unwrap();
    assert_eq!(counted.as_u64(), Some(90));
}

#[test]
fn a_task_starts_from_the_factors_of_the_last_one_bit_by_bit_unless_told_otherwise() {
    let bench = Bench::new();
    for start in ["previous", "fresh", "merged"] {
        let method = format!("rank = 4\nshare = 0.3\nstart = \"{start}\"");
        let options: toml::Table = method.parse().unwrap();
        let method = methods::build("sdlora-merge", &options).unwrap();
        let before = run(
            &bench,
            &merge(&format!("share = 0.3\nstart = \"{start}\"")),
            "linear",
            2,
        );
        let task = TaskContext {
            task_idx: 2,
            n_tasks: 3,
            n_new_classes: 2,
            seed: 11,
            device: test_device_autodiff(),
            head: HeadConfig::named("linear").build().unwrap(),
            start: ColumnStart::Torch,
        };
        let after = method.before_task(before.model.clone(), &task).unwrap();
        let merged = updates(&before.model.adapter);
        for (i, bank) in after.adapter.sites.iter().enumerate() {
            let current = bank.current.as_ref().unwrap().to_host();
            let is_zero = current.b.iter().all(|v| *v == 0.0);
            match start {
                "previous" => assert_eq!(current, kept(&before)[i]),
                _ => assert!(is_zero && current.a.iter().any(|v| *v != 0.0), "{start}"),
            }
            assert_eq!(bank.merged.is_some(), start == "merged");
            if start != "merged" {
                // Beside the task, to be merged with it.
                let aside = after.state.get(&format!("merged.{i}")).unwrap();
                assert!(!aside.is_require_grad());
                let aside: Vec<f32> = aside.val().into_data().iter().collect();
                assert_eq!(aside, merged[i], "{start}");
            }
        }
    }
}

#[test]
fn what_is_kept_does_not_grow_with_the_tasks_unless_directions_are() {
    let bench = Bench::new();
    let sizes = |options: &str, n_tasks: usize| {
        let run = run(&bench, &merge(options), "linear", n_tasks);
        let count = |bits: Vec<Vec<u32>>| bits.iter().map(Vec::len).sum::<usize>();
        let (adapter, state) = (&run.model.adapter, &run.model.state);
        (adapter.n_tasks(), count(bits(adapter)), count(bits(state)))
    };
    let d = toy::shape().d_model;
    for (options, n_factors) in [
        ("share = 0.3", 4 * 2 * 4 * d),
        ("share = 0.3\nstart = \"fresh\"", 0),
        ("share = 0.3\nstart = \"merged\"", 0),
    ] {
        // A matrix per site and the one magnitude of 1.
        assert_eq!(
            sizes(options, 2),
            (1, 4 * d * d + 1, n_factors),
            "{options}"
        );
        assert_eq!(sizes(options, 5), sizes(options, 2), "{options}");
    }
    let factors = "share = 0.3\nmerge = \"factors\"";
    assert_eq!(sizes(factors, 2), (1, 4 * 2 * 4 * d + 1, 4 * 2 * 4 * d));
    assert_eq!(sizes(factors, 5), sizes(factors, 2));
    let magnitudes = "share = 0.3\nmerge = \"magnitudes\"";
    let (two, five) = (sizes(magnitudes, 2), sizes(magnitudes, 5));
    assert_eq!((two.0, five.0), (2, 5));
    assert!(five.1 > 2 * two.1);
}

#[test]
fn magnitudes_move_a_share_of_the_way_and_directions_stay() {
    let bench = Bench::new();
    let of = |share: f64, n_tasks: usize| {
        let method = merge(&format!("share = {share:?}\nmerge = \"magnitudes\""));
        run(&bench, &method, "ncm", n_tasks).model.adapter
    };
    // Two tasks start alike, because the first counts whole; the second ends in the same factors.
    let (whole, part, first) = (of(1.0, 2), of(0.25, 2), of(1.0, 1));
    let before = [first.magnitude_rows()[0][0], 0.0];
    let (trained, found) = (whole.magnitude_rows(), part.magnitude_rows());
    for k in 0..2 {
        let expected = 0.75 * before[k] + 0.25 * trained[0][k];
        assert!((found[0][k] - expected).abs() < 1e-6, "{found:?}");
        assert!((trained[0][k] - before[k]).abs() > 1e-4, "{trained:?}");
    }
    let currents = whole.sites.iter().zip(&part.sites);
    for (whole, part) in currents {
        let host = |bank: &sdlora_core::SiteDirections| bank.current.as_ref().unwrap().to_host();
        assert_eq!(host(whole), host(part));
    }
}

#[test]
fn a_mean_of_factors_is_a_lora_of_the_same_rank_and_no_mean_of_products() {
    let bench = Bench::new();
    let of = |options: &str, n_tasks: usize| run(&bench, &merge(options), "linear", n_tasks);
    let factors = "share = 0.25\nmerge = \"factors\"";
    let (first, second) = (kept(&of(factors, 1)), of(factors, 2));
    for (i, bank) in second.model.adapter.sites.iter().enumerate() {
        let (mean, before, task) = (
            bank.current.as_ref().unwrap().to_host(),
            &first[i],
            &kept(&second)[i],
        );
        let of_both = |a: &[f32], b: &[f32]| sum(&[(0.75, &[a.to_vec()]), (0.25, &[b.to_vec()])]);
        assert!(far(&[mean.a], &of_both(&before.a, &task.a)) < 1e-6);
        assert!(far(&[mean.b], &of_both(&before.b, &task.b)) < 1e-6);
        assert_eq!((mean.rank, bank.merged.is_none()), (4, true));
    }
    // Trained alike, merged otherwise.
    let products = of("share = 0.25", 2);
    assert_eq!(kept(&products), kept(&second));
    let (a, b) = (&products.model.adapter, &second.model.adapter);
    assert!(far(&updates(a), &updates(b)) > 1e-4);
    // And there is an adapter to export.
    let folder = bench.path("run");
    let plan = plan(&bench, &merge(factors), "ncm", 2);
    let finished = bench.run("run", &plan, Start::Fresh).unwrap();
    write_model(&folder.join("model"), &finished).unwrap();
    assert!(folder.join("model/adapter.safetensors").is_file());
}

/// Features of the training images of a task, in their order.
fn table(plan: &Plan, extractor: &Extractor, task_idx: usize) -> FeatureTable {
    let config = plan.config();
    let dataset: Arc<dyn Dataset> =
        sdlora_data::datasets::open(&config.dataset, &toy::data_dir(), &Default::default())
            .unwrap()
            .into();
    let stream = TaskStream::new(dataset.as_ref(), &config.stream).unwrap();
    let transform = config.transform.for_evaluation().init().unwrap();
    let set = &stream.tasks()[task_idx].train;
    let source = ImageSource::new(dataset, set, transform, Cache::Memory);
    let loader = LoaderConfig::evaluation(1000)
        .init(Arc::new(source), 0)
        .unwrap();
    FeatureTable::extract(extractor, &loader, &test_device()).unwrap()
}

#[test]
fn a_head_compares_features_before_a_task_with_those_of_the_merged_model_after_it() {
    let bench = Bench::new();
    let device = test_device_autodiff();
    for drift in ["compensated", "linear"] {
        let head = HeadConfig::named("ncm")
            .with("mean", "features")
            .with("drift", drift);
        let plan = |n_tasks: usize| {
            let mut config = bench.config(&merge("share = 0.3"));
            config.optimizer.lr = 0.3;
            config.n_epochs = 20;
            config.head = Some(head.clone());
            config.stream.n_tasks = Some(n_tasks);
            config.check().unwrap()
        };
        let run = |n_tasks: usize| {
            let folder = format!("{drift}-{n_tasks}");
            bench.run(&folder, &plan(n_tasks), Start::Fresh).unwrap()
        };
        let (first, second) = (run(1), run(2));
        // What the second task trained, without the merge.
        let mut of_task = Updates::default();
        for (bank, factors) in second.model.adapter.sites.iter().zip(kept(&second)) {
            let (site, rank) = (bank.site(), factors.rank);
            let tensor = |values: Vec<f32>, shape: [usize; 2]| {
                Tensor::from_data(TensorData::new(values, shape), &test_device())
            };
            let term = ScaledFactors {
                a: tensor(factors.a, [site.d_input, rank]),
                b: tensor(factors.b, [rank, site.d_output]),
            };
            of_task.insert(site, Update::new(vec![term]));
        }
        let unmerged = Extractor::from(bench.backbone().merged(&of_task));
        let plan = plan(2);
        let before = table(&plan, &first.model.extractor(), 1);
        let built = head.build().unwrap();
        let means_after = |after: &FeatureTable| -> Vec<f32> {
            let task = |table| HeadTask {
                table,
                first_label: 3,
                task_idx: 1,
                seed: 11,
                device: &device,
            };
            let state = first.model.head.clone();
            let state = built.before_task(state, &task(&before)).unwrap();
            let state = built.fit(state, &task(after)).unwrap();
            state.per_class["means"].values.clone()
        };
        let of_old = |means: &[f32]| vec![means[..3 * before.d_model].to_vec()];
        let found = second.model.head.per_class["means"].values.clone();
        let merged = means_after(&table(&plan, &second.model.extractor(), 1));
        let trained = means_after(&table(&plan, &unmerged, 1));
        let distance = |a: &[f32], b: &[f32]| far(&[a.to_vec()], &[b.to_vec()]);
        let (near, apart) = (distance(&found, &merged), distance(&found, &trained));
        assert!(near < 1e-4 && apart > 1e-3, "{drift}: {near} and {apart}");
        if drift == "compensated" {
            let old = first.model.head.per_class["means"].values.clone();
            let moved = far(&of_old(&found), &[old]);
            let otherwise = far(&of_old(&found), &of_old(&trained));
            // Means of old classes move, and by the merged features.
            assert!(moved > 1e-3 && otherwise > 1e-3, "{moved} {otherwise}");
        }
    }
}

#[test]
fn a_run_that_was_stopped_inside_a_later_task_ends_with_the_same_bits_whatever_is_merged() {
    let bench = Bench::new();
    for (i, options) in [
        "share = \"by-images\"",
        "share = 0.3\nstart = \"fresh\"",
        "share = \"by-tasks\"\nstart = \"merged\"",
        "merge = \"factors\"",
        "merge = \"magnitudes\"",
    ]
    .iter()
    .enumerate()
    {
        let plan = plan(&bench, &merge(options), "qda", 3);
        let whole = bench
            .run(&format!("whole-{i}"), &plan, Start::Fresh)
            .unwrap();
        let n_steps: usize = whole.log.tasks.iter().map(|task| task.losses.len()).sum();
        let mut stop = StopAfter::new(n_steps - 2);
        let broken = format!("broken-{i}");
        let error = bench.run_observed(&broken, &plan, Start::Fresh, &mut stop);
        assert!(
            matches!(error, Err(TrainError::Stopped { .. })),
            "{options}"
        );
        let resumed = bench.run(&broken, &plan, Start::Resume).unwrap();
        assert!(bits(&resumed.model) == bits(&whole.model), "{options}");
        assert_eq!(resumed.model.head.per_class, whole.model.head.per_class);
        assert_eq!(resumed.log.matrix, whole.log.matrix, "{options}");
    }
}

#[test]
fn it_is_one_plain_file_of_weights_and_no_adapter() {
    let bench = Bench::new();
    let options =
        "share = 0.3\nprojections = [\"query\", \"key\", \"value\", \"output\", \"fc1\", \"fc2\"]";
    let folder = bench.path("run");
    let finished = bench
        .run(
            "run",
            &plan(&bench, &merge(options), "ncm", 2),
            Start::Fresh,
        )
        .unwrap();
    write_model(&folder.join("model"), &finished).unwrap();
    let run = FinishedRun::open(&folder, &toy::data_dir(), &test_device()).unwrap();
    let file = bench.path("vit.out.safetensors");
    export(&run, Format::Timm, &file, false).unwrap();
    let side = toy::shape().image_size;
    let pixels = sdlora_testkit::toy::SplitMix64::new(4).fill(2 * side * side, 1.0);
    let images =
        Tensor::<4>::from_data(TensorData::new(pixels, [2, 1, side, side]), &test_device());
    let host = |x: Tensor<2>| -> Vec<f32> { x.into_data().iter().collect() };
    let expected = host(finished.model.valid().features(images.clone()));
    let written = Vit::load(&file, None, &test_device()).unwrap().0;
    let found = host(written.forward(images.clone(), &Updates::default()));
    assert!(far(&[found], std::slice::from_ref(&expected)) < 1e-5);
    let plain = host(bench.backbone().forward(images, &Updates::default()));
    assert!(far(&[plain], &[expected]) > 1e-3, "it has learned");
    // What was merged is no product of a small rank any more.
    let error = export(&run, Format::Peft, &bench.path("peft"), false).unwrap_err();
    assert!(error.to_string().contains("no directions"), "{error}");
    assert!(!bench.path("peft").exists());
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let bench = Bench::new();
    for (options, expected) in [
        ("share = 0.0", "method.share"),
        ("share = 1.5", "method.share"),
        ("share = nan", "method.share"),
        ("share = \"by-time\"", "by-tasks"),
        ("start = \"last\"", "previous"),
        (
            "merge = \"magnitudes\"\nstart = \"previous\"",
            "method.start",
        ),
        ("merge = \"factors\"\nstart = \"fresh\"", "method.start"),
        ("merge = \"norms\"", "magnitudes"),
        ("slot = {}", "slot"),
    ] {
        let error = bench.config(&merge(options)).check().unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected), "{options}: {error}");
    }
    bench.config(&merge("share = 1")).check().unwrap();
}
