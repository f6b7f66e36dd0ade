//! Slots: what a direction has besides factors, as a method of its own and inside SD-LoRA's.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use burn::tensor::{Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_core::{Adapter, Direction, DirectionForm, HostFactors, Site, Variant};
use sdlora_testkit::{test_device, toy::SplitMix64};
use sdlora_train::slot::SlotSpec;
use sdlora_train::{Finished, Start, TrainError};
use toy::{Bench, StopAfter, bits, shape};

fn run(bench: &Bench, name: &str, method: &str) -> Finished {
    let plan = bench.config(method).check().unwrap();
    bench.run(name, &plan, Start::Fresh).unwrap()
}

/// What two methods train to: directions and columns.
fn trained(run: &Finished) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    (bits(&run.model.adapter), bits(&run.model.head))
}

#[test]
fn without_its_own_setting_each_is_a_plain_lora_to_the_last_bit() {
    let bench = Bench::new();
    let plain = trained(&run(&bench, "plain", "name = \"lora-per-task\""));
    for (name, method) in [
        ("one-chunk", "name = \"prolora\"\nchunks = 1\nunshared = 0"),
        (
            "all-unshared",
            "name = \"prolora\"\nchunks = 4\nunshared = 10",
        ),
        (
            "no-mask",
            "name = \"lora-dropout\"\ndropout = 0.0\nn_masks = 1",
        ),
        (
            "no-pruning",
            "name = \"prilora\"\nrank = 10\nlast_rank = 10\nshare = 0.0",
        ),
    ] {
        let found = run(&bench, name, method);
        let (directions, head) = trained(&found);
        assert!(head == plain.1, "{name}");
        // A state of the method stands beside them and changes nothing.
        assert!(directions == plain.0, "{name}");
    }
    // And with it each is another model.
    for (name, method) in [
        ("two-chunks", "name = \"prolora\""),
        ("masks", "name = \"lora-dropout\""),
        ("pruned", "name = \"prilora\"\nrank = 10\nlast_rank = 10"),
        ("gated", "name = \"sora\""),
        ("beam", "name = \"beamlora\""),
    ] {
        assert!(trained(&run(&bench, name, method)).1 != plain.1, "{name}");
    }
    // A chain of one round is one LoRA for all tasks.
    let one = run(&bench, "one", "name = \"lora\"");
    let chain = run(
        &bench,
        "chain",
        "name = \"raclora\"\nevery = 0\nfrozen = \"none\"",
    );
    assert!(trained(&one) == trained(&chain));
}

#[test]
fn slots_combine_inside_sdlora_and_resume_to_the_same_bits() {
    let bench = Bench::new();
    for (name, slot) in [
        (
            "gate",
            "{ gate = { threshold = 0.01 }, last_block_rank = 4 }",
        ),
        ("masks", "{ dropout = { share = 0.3 }, chunks = { n = 2 } }"),
        ("beam", "{ beam = {}, pruning = { every = 2 } }"),
    ] {
        let method = format!("name = \"sdlora\"\nslot = {slot}");
        let plan = bench.config(&method).check().unwrap();
        let whole = bench
            .run(&format!("{name}-whole"), &plan, Start::Fresh)
            .unwrap();
        // In the second task, between two exchanges of ranks.
        let mut stop = StopAfter::new(9 + 3);
        let stopped = bench.run_observed(name, &plan, Start::Fresh, &mut stop);
        assert!(matches!(stopped, Err(TrainError::Stopped { .. })), "{name}");
        let resumed = bench.run(name, &plan, Start::Resume).unwrap();
        assert!(bits(&resumed.model) == bits(&whole.model), "{name}");
        assert_eq!(resumed.log.matrix, whole.log.matrix, "{name}");
        let plain = run(&bench, &format!("{name}-plain"), "name = \"sdlora\"");
        assert!(bits(&plain.model.head) != bits(&whole.model.head), "{name}");
    }
}

#[test]
fn a_threshold_takes_ranks_away_and_a_larger_one_no_fewer() {
    let bench = Bench::new();
    let live = |threshold: f64| -> usize {
        let method = format!("name = \"sora\"\nthreshold = {threshold:?}");
        let run = run(&bench, &format!("sora-{threshold}"), &method);
        let sites = run.model.adapter.sites.iter();
        // What was compacted after the last task is a plain direction.
        let currents = sites.map(|bank| bank.current.as_ref().unwrap());
        currents
            .map(|current| {
                assert!(current.gate.is_none());
                current.rank()
            })
            .sum()
    };
    let ranks: Vec<usize> = [0.0, 0.03, 0.1].map(live).to_vec();
    assert_eq!(ranks[0], 4 * 10, "nothing is exactly 0 without a threshold");
    assert!(ranks[0] > ranks[1] && ranks[1] > ranks[2], "{ranks:?}");
    // All gates at 0 leave one rank of zeros on every site.
    assert_eq!(live(10.0), 4);
}

#[test]
fn ranks_by_depth_are_those_of_the_paper() {
    let slot = SlotSpec {
        last_block_rank: Some(12),
        ..SlotSpec::default()
    };
    let ranks: Vec<usize> = (0..12).map(|block| slot.rank(4, block, 12)).collect();
    assert_eq!(ranks, [4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12]);
    assert_eq!(ranks.iter().sum::<usize>(), 96);
    assert_eq!(slot.rank(4, 0, 1), 4);
}

#[test]
fn the_last_step_of_a_task_leaves_the_down_projections_sparse() {
    let bench = Bench::new();
    let run = run(&bench, "prilora", "name = \"prilora\"\nshare = 0.3");
    let mut n_seen = 0;
    for bank in &run.model.adapter.sites {
        let past = bank.past.as_ref().unwrap().to_host();
        let current = bank.current.as_ref().unwrap().to_host();
        for HostFactors { a, rank, .. } in past.iter().chain([&current]) {
            let expected = if bank.site().group == 0 { 4 } else { 12 };
            assert_eq!(*rank, expected);
            for k in 0..*rank {
                let zeros = a.chunks_exact(*rank).filter(|row| row[k] == 0.0).count();
                // ⌊0.3 · 16⌋
                assert_eq!(zeros, 4, "{}", bank.site());
                n_seen += 1;
            }
        }
    }
    assert_eq!(n_seen, 2 * 2 * (4 + 12));
}

#[test]
fn a_chain_keeps_one_matrix_a_site_whatever_its_rounds_and_merging_changes_nothing() {
    let bench = Bench::new();
    let run = run(&bench, "chain", "name = \"raclora\"\nrank = 2\nevery = 2");
    let adapter = &run.model.adapter;
    assert_eq!(adapter.n_tasks(), 1, "one magnitude, never more");
    for bank in &adapter.sites {
        assert!(bank.past.is_none() && bank.current.is_none());
        let merged = bank.merged.as_ref().unwrap();
        assert!(!merged.is_require_grad());
        let values: Vec<f32> = merged.val().into_data().iter().collect();
        assert!(values.iter().any(|v| *v != 0.0));
    }
    // Merged, the model is what its updates say it is.
    let side = shape().image_size;
    let device = test_device();
    let pixels = SplitMix64::new(4).fill(2 * side * side, 1.0);
    let images = Tensor::<4>::from_data(TensorData::new(pixels, [2, 1, side, side]), &device);
    let inner = burn::module::Module::valid(&run.model);
    let host = |x: Tensor<2>| -> Vec<f32> { x.into_data().iter().collect() };
    let apart = host(inner.features(images.clone()));
    let inside = host(run.model.extractor().features(images));
    for (a, b) in apart.iter().zip(&inside) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn a_booster_that_counts_half_is_merged_at_half() {
    let bench = Bench::new();
    let method = |rate: f64| {
        // One round in all: what is merged after the task is what was trained, at the rate.
        format!("name = \"xgblora\"\nevery = 100\nblocks = 1.0\nrate = {rate:?}")
    };
    let merged = |rate: f64| -> Vec<f32> {
        let mut config = bench.config(&method(rate));
        config.stream.n_tasks = Some(1);
        let plan = config.check().unwrap();
        let run = bench
            .run(&format!("rate-{rate}"), &plan, Start::Fresh)
            .unwrap();
        let merged = run.model.adapter.sites[0].merged.as_ref().unwrap().val();
        merged.into_data().iter().collect()
    };
    let (whole, half) = (merged(1.0), merged(0.5));
    assert!(whole.iter().any(|v| *v != 0.0));
    for (whole, half) in whole.iter().zip(&half) {
        assert!(
            (half - 0.5 * whole).abs() <= 1e-6 * whole.abs(),
            "{half} {whole}"
        );
    }
}

fn site(d: usize) -> Site {
    Site {
        name: "site".into(),
        group: 0,
        d_input: d,
        d_output: d,
    }
}

#[test]
fn the_mean_over_masks_is_what_counts_outside_training_and_no_mask_lowers_the_rank() {
    let (d, rank, share) = (12, 3, 0.5);
    let device = test_device();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let form = DirectionForm {
        dropout: Some(share),
        ..DirectionForm::default()
    };
    let mut direction = Direction::init_as(form, &site(d), rank, &mut rng, &device);
    let b = SplitMix64::new(7).fill(rank * d, 1.0);
    let b = Tensor::<2>::from_data(TensorData::new(b, [rank, d]), &device);
    direction.b = burn::module::Param::from_tensor(b);
    let adapter = Adapter::new(Variant::Reference.config(), &[site(d)])
        .unwrap()
        .begin_task_with(vec![direction.clone()], &device)
        .unwrap();
    assert!(adapter.has_masks());
    let dense = |updates: sdlora_core::Updates| -> Vec<f32> {
        let dense = updates.get("site").unwrap().dense();
        dense.into_data().iter().collect()
    };
    let mean = dense(adapter.updates());
    let n_draws = 4000;
    let mut sum = vec![0.0f64; d * d];
    for _ in 0..n_draws {
        let masked = dense(adapter.masked_updates(&mut rng));
        sum.iter_mut()
            .zip(&masked)
            .for_each(|(s, &v)| *s += f64::from(v));
        let n_rows = masked
            .chunks_exact(d)
            .filter(|row| row.iter().any(|v| *v != 0.0));
        // As many rows as columns of A are kept, far more than the rank: rows of a product of rank 3 are
        // dropped as whole ones.
        assert!(n_rows.count() <= d);
    }
    for (sum, &mean) in sum.iter().zip(&mean) {
        let found = sum / f64::from(n_draws);
        // An entry is there in a quarter of the draws: its standard error is √3 · |mean| / √n.
        let bound = 5.0 * 3f64.sqrt() * f64::from(mean.abs()) / f64::from(n_draws).sqrt();
        assert!(
            (found - f64::from(mean)).abs() <= bound + 1e-9,
            "{found} {mean}"
        );
    }
    // What is frozen after the task is the mean.
    let whole = direction.to_host();
    let (a, b) = direction.factors();
    let product: Vec<f32> = a.matmul(b).into_data().iter().collect();
    let frozen = {
        let data = |values: &[f32], shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), &device)
        };
        let product = data(&whole.a, [d, rank]).matmul(data(&whole.b, [rank, d]));
        product.into_data().iter::<f32>().collect::<Vec<f32>>()
    };
    for (frozen, product) in frozen.iter().zip(&product) {
        assert!((frozen - 0.25 * product).abs() < 1e-6);
    }
}

#[test]
fn settings_out_of_range_are_refused_by_name_when_they_are_read() {
    let bench = Bench::new();
    for (method, expected) in [
        ("name = \"sora\"\nthreshold = -1.0", "threshold"),
        ("name = \"sora\"\nthreshold = []", "threshold"),
        ("name = \"sora\"\ngate_lr = 0.0", "lr_factor"),
        ("name = \"beamlora\"\nperiod = 0.0", "period"),
        ("name = \"beamlora\"\ntemperature = 0.0", "temperature"),
        ("name = \"prolora\"\nchunks = 0", "chunks"),
        ("name = \"prolora\"\nunshared = 11", "unshared"),
        ("name = \"prilora\"\nshare = 1.5", "share"),
        ("name = \"prilora\"\ndecay = 1.0", "decay"),
        ("name = \"prilora\"\nprojections = [\"fc1\"]", "projections"),
        ("name = \"lora-dropout\"\ndropout = 1.0", "dropout"),
        ("name = \"lora-dropout\"\nn_masks = 0", "n_masks"),
        ("name = \"raclora\"\nevery = 0", "frozen"),
        ("name = \"xgblora\"\nblocks = 0.0", "blocks"),
        ("name = \"xgblora\"\nrate = nan", "rate"),
        ("name = \"sdlora\"\nslot = { gate = {}, beam = {} }", "beam"),
        (
            "name = \"sdlora\"\nslot = { beam = {}, chunks = { n = 2 } }",
            "beam",
        ),
        ("name = \"sdlora\"\nslot = { surprise = 1 }", "surprise"),
        ("name = \"lora\"\nthreshold = 0.1", "threshold"),
    ] {
        let error = bench.config(method).check().unwrap_err().to_string();
        assert!(error.contains(expected), "{method}: {error}");
    }
    // A rank that the backbone cannot have is refused before anything is written.
    let plan = bench
        .config("name = \"prilora\"\nlast_rank = 40")
        .check()
        .unwrap();
    let error = bench.run("too-wide", &plan, Start::Fresh).unwrap_err();
    assert!(error.to_string().contains("rank 40"), "{error}");
    assert!(!bench.path("too-wide").exists());
    let mut masked = bench.config("name = \"lora-dropout\"");
    masked.gradient_checkpointing = true;
    let error = masked.check().unwrap_err().to_string();
    assert!(error.contains("mask"), "{error}");
}

#[test]
fn a_gradient_from_every_patch_is_none_at_all_and_from_some_another_that_a_division_does_not_change()
 {
    let bench = Bench::new();
    let with = |name: &str, patches: &str| {
        trained(&run(
            &bench,
            name,
            &format!("name = \"lora\"\nslot = {{ {patches} }}"),
        ))
    };
    let plain = with("plain", "");
    assert_eq!(with("all", "patches = { probability = 1.0 }"), plain);
    let half = "patches = { probability = 0.5 }";
    let some = with("some", half);
    assert_ne!(some.0, plain.0);
    // The same rows are drawn again, whatever is computed at once.
    assert_eq!(with("again", half), some);
    let mut config = bench.config(&format!("name = \"lora\"\nslot = {{ {half} }}"));
    let whole = bench.run_on("whole", &config, 1);
    config.micro_batch = std::num::NonZeroUsize::new(3);
    let pieces = bench.run_on("pieces", &config, 1);
    let far = toy::largest_difference(&toy::losses(&whole), &toy::losses(&pieces));
    assert!(far < 1e-4, "losses differ by {far}");

    for wrong in ["0.0", "1.5", "nan"] {
        let method = format!("name = \"lora\"\nslot = {{ patches = {{ probability = {wrong} }} }}");
        let error = bench.config(&method).check().unwrap_err().to_string();
        assert!(error.contains("patches.probability"), "{error}");
    }
    config.gradient_checkpointing = true;
    let error = config.check().unwrap_err().to_string();
    assert!(error.contains("patches"), "{error}");
}

/// Features by hand: the mean over masks of what a backbone with the masked factors in its weights gives.
#[test]
fn an_ensemble_averages_masked_models_and_training_does_not_know() {
    use sdlora_core::{ScaledFactors, Update, Updates};
    let bench = Bench::new();
    let mean_field = "name = \"lora-dropout\"\nrank = 3\nn_masks = 2";
    let ensemble = |n: usize| format!("{mean_field}\ninference = \"ensemble\"\nn_passes = {n}");
    let (mean, three) = (
        run(&bench, "mean", mean_field),
        run(&bench, "three", &ensemble(3)),
    );
    assert_eq!(trained(&mean), trained(&three));
    let side = shape().image_size;
    let pixels = SplitMix64::new(4).fill(4 * side * side, 1.0);
    let images = || {
        Tensor::<4>::from_data(
            TensorData::new(pixels.clone(), [4, 1, side, side]),
            &test_device(),
        )
    };
    let host = |features: Tensor<2>| -> Vec<f32> { features.into_data().iter().collect() };
    let features = |run: &Finished| host(run.model.extractor().features(images()));
    let far = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .fold(0.0f32, |far, (a, b)| far.max((a - b).abs()))
    };

    // The masks as they are drawn: of every pass, site by site, inputs before outputs.
    let vit = bench.backbone();
    let mut expected = vec![0.0f32; 4 * shape().d_model];
    for pass in 0..3 {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        rng.set_stream((0x66 << 32) | pass);
        let mut updates = Updates::default();
        for (i, bank) in three.model.adapter.sites.iter().enumerate() {
            let matrix = |name: &str| {
                let name = format!("{name}.{i}");
                three.model.state.get(&name).unwrap().val().inner()
            };
            let (a, b) = (matrix("a"), matrix("b"));
            let d = shape().d_model;
            assert_eq!((a.dims(), b.dims()), ([d, 6], [6, d]));
            let mut mask = || -> Tensor<1> {
                use rand::RngExt;
                let drawn: Vec<f32> = (0..d)
                    .map(|_| if rng.random::<f64>() >= 0.5 { 1.0 } else { 0.0 })
                    .collect();
                Tensor::from_data(TensorData::new(drawn, [d]), &test_device())
            };
            let (rows, columns) = (mask().reshape([d, 1]), mask().reshape([1, d]));
            // A quarter of the product is the mean over masks, which the weights have.
            let term = ScaledFactors {
                a: a * rows,
                b: b * columns * 4.0,
            };
            updates.insert(bank.site(), Update::new(vec![term]));
        }
        for (sum, v) in expected
            .iter_mut()
            .zip(host(vit.forward(images(), &updates)))
        {
            *sum += v / 3.0;
        }
    }
    let found = features(&three);
    assert!(far(&found, &expected) < 1e-5, "{found:?} {expected:?}");
    assert!(
        far(&found, &features(&mean)) > 1e-3,
        "the mean field is another model"
    );
    let one = features(&run(&bench, "one", &ensemble(1)));
    assert!(
        far(&found, &one) > 1e-3,
        "one mask is not the mean of three"
    );
    // Without masks all of them are one model.
    let no_masks = |name: &str, more: &str| {
        let method = format!("name = \"lora-dropout\"\nrank = 3\nn_masks = 1\ndropout = 0.0{more}");
        features(&run(&bench, name, &method))
    };
    let (plain, same) = (
        no_masks("plain", ""),
        no_masks("same", "\ninference = \"ensemble\"\nn_passes = 2"),
    );
    assert!(far(&plain, &same) < 1e-5);
}

#[test]
fn an_ensemble_is_saved_with_its_masks_resumes_and_is_not_merged() {
    use sdlora_train::{FinishedRun, Format, Predictor, export, write_model};
    let bench = Bench::new();
    let method =
        "name = \"lora-dropout\"\nrank = 3\nn_masks = 1\ninference = \"ensemble\"\nn_passes = 3";
    let finished = run(&bench, "run", method);
    write_model(&bench.path("run").join("model"), &finished).unwrap();
    let opened = FinishedRun::open(&bench.path("run"), &toy::data_dir(), &test_device()).unwrap();
    let side = shape().image_size;
    let images = Tensor::<4>::ones([2, 1, side, side], &test_device());
    let host = |features: Tensor<2>| -> Vec<f32> { features.into_data().iter().collect() };
    let expected = host(finished.model.extractor().features(images.clone()));
    let found = host(opened.extractor().features(images.clone()));
    let far = found
        .iter()
        .zip(&expected)
        .fold(0.0f32, |far, (a, b)| far.max((a - b).abs()));
    assert!(far < 1e-6, "{far}");
    let predictor = Predictor::load(&bench.path("run").join("model"), &test_device()).unwrap();
    assert_eq!(predictor.predict(images).len(), 2);
    let error = export(&opened, Format::Timm, &bench.path("out"), false).unwrap_err();
    assert!(error.to_string().contains("mean-field"), "{error}");

    let model = bits(&finished.model);
    drop(finished);
    let plan = bench.config(method).check().unwrap();
    let again = bench.run("run", &plan, Start::Resume).unwrap();
    assert_eq!(bits(&again.model), model);
}
