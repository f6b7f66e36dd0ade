//! What makes DualLoRA itself: where its two LoRAs may act, and what the similarity of an image decides.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use sdlora_core::Updates;
use sdlora_testkit::{Tolerance, assert_close, test_device, toy::SplitMix64};
use sdlora_train::{
    Finished, FinishedRun, Format, MethodState, Predictor, Start, TrainError, checkpoint, export,
    write_model,
};
use toy::{Bench, bits, data_dir, optimizer, shape};

const METHOD: &str = "name = \"duallora\"\nrank = 3\nresidual_rank = 3\nenergy = 0.9";

/// Adam, whose steps leave the subspace of the gradient.
fn run(bench: &Bench, folder: &str, method: &str, n_tasks: usize) -> Finished {
    let mut config = bench.config(method);
    config.stream.n_tasks = Some(n_tasks);
    config.optimizer = optimizer("adam", 0.01, 0.1);
    let plan = config.check().unwrap();
    bench.run(folder, &plan, Start::Fresh).unwrap()
}

fn host(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}

fn matrix(state: &MethodState, name: &str) -> Tensor<2> {
    state.get(name).unwrap().val().inner()
}

/// Vectors that every task added to the bases of every block, `[n_tasks][depth]`.
fn n_bases(state: &MethodState) -> Vec<Vec<usize>> {
    let layout = state.second_pass().unwrap().layout();
    serde_json::from_value(layout["n_bases"].clone()).unwrap()
}

fn length(tensor: Tensor<2>) -> f32 {
    tensor.square().sum().sqrt().into_scalar()
}

fn images(n: usize) -> Tensor<4> {
    let side = shape().image_size;
    let pixels = SplitMix64::new(4).fill(n * side * side, 1.0);
    Tensor::from_data(TensorData::new(pixels, [n, 1, side, side]), &test_device())
}

#[test]
fn one_lora_spares_old_inputs_and_the_other_stays_in_the_new_ones_with_adam_and_decay() {
    let bench = Bench::new();
    let model = run(&bench, "dual", METHOD, 3).model;
    let counts = n_bases(&model.state);
    assert_eq!((counts.len(), counts[0].len()), (3, shape().depth));
    for (i, bank) in model.adapter.sites.iter().enumerate() {
        let block = bank.site().group;
        let bases = matrix(&model.state, &format!("bases.{block}"));
        let (n_old, n_new) = (counts[0][block] + counts[1][block], counts[2][block]);
        assert!(n_old > 0 && n_old < shape().d_model, "{counts:?}");
        assert_eq!(bases.dims()[0], n_old + n_new);
        // Orthonormal rows.
        let gram = bases.clone().matmul(bases.clone().transpose());
        let eye = Tensor::<2>::eye(n_old + n_new, &test_device());
        let far: f32 = (gram - eye).abs().max().into_scalar();
        assert!(far < 1e-5, "{far}");

        let current = bank.current.as_ref().unwrap();
        let (a, b) = (current.a.val().inner(), current.b.val().inner());
        let (size, old) = (length(a.clone()), bases.clone().narrow(0, 0, n_old));
        let inside = length(old.clone().matmul(a));
        assert!(size > 0.1 && inside < 1e-5 * size, "{inside} of {size}");
        assert!(length(b) > 0.0, "it was trained");

        let a = matrix(&model.state, &format!("a.{i}"));
        assert!(length(matrix(&model.state, &format!("b.{i}"))) > 0.0 || n_new == 0);
        // Where a task adds nothing to the bases, its residual LoRA has no room.
        let outside = match n_new {
            0 => a.clone(),
            _ => {
                let own = bases.narrow(0, n_old, n_new);
                a.clone() - own.clone().transpose().matmul(own.matmul(a.clone()))
            }
        };
        let (size, outside) = (length(a), length(outside));
        assert!(outside <= 1e-5 * size, "{outside} of {size}");
    }
}

#[test]
fn a_lora_that_is_not_projected_does_not_spare_them() {
    let bench = Bench::new();
    let dual = run(&bench, "dual", METHOD, 2).model;
    let counts = n_bases(&dual.state);
    let plain = run(&bench, "plain", "name = \"lora-per-task\"\nrank = 3", 2).model;
    for bank in &plain.adapter.sites {
        let block = bank.site().group;
        let bases = matrix(&dual.state, &format!("bases.{block}"));
        let old = bases.narrow(0, 0, counts[0][block]);
        let a = bank.current.as_ref().unwrap().a.val().inner();
        let (size, inside) = (length(a.clone()), length(old.matmul(a)));
        assert!(inside > 0.2 * size, "{inside} of {size}");
    }
}

/// Weights of the branches for images, read off a run whose only trained branch is scaled: what the second pass adds.
fn shares(run: &Finished, n: usize) -> (Tensor<2>, Option<Tensor<2>>) {
    let state = run.model.state.valid();
    let vit = run.model.merged_backbone();
    let second_pass = state.second_pass().unwrap();
    let query = second_pass.query(&state, &vit, images(n), &Updates::default());
    let shifts = second_pass.shifts(&state, &query);
    (query, shifts)
}

#[test]
fn the_share_of_every_task_lies_between_0_and_1_and_all_of_them_sum_to_at_most_1() {
    let bench = Bench::new();
    let dual = run(&bench, "dual", METHOD, 3);
    let (shares, shifts) = shares(&dual, 5);
    assert_eq!(shares.dims(), [5, 3]);
    for row in host(shares).chunks(3) {
        let in_range = row.iter().all(|share| (0.0..=1.0).contains(share));
        assert!(in_range && row.iter().sum::<f32>() <= 1.0 + 1e-5, "{row:?}");
    }
    // Logarithms of confidences, the same for the three classes of a task, which sum to 1 over the tasks.
    let shifts = shifts.unwrap();
    assert_eq!(shifts.dims(), [5, 9]);
    let mut differs = false;
    for row in host(shifts).chunks(9) {
        let tasks: Vec<f32> = row.chunks(3).map(|task| task[0]).collect();
        for task in row.chunks(3) {
            assert!(task.iter().all(|shift| *shift == task[0]), "{row:?}");
        }
        let sum: f32 = tasks.iter().map(|shift| shift.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        differs |= tasks.iter().any(|shift| (shift - tasks[0]).abs() > 1e-3);
    }
    assert!(differs, "an image has a likelier task");
}

#[test]
fn without_sharpness_every_branch_counts_in_full_and_no_task_is_likelier() {
    let bench = Bench::new();
    let flat = run(&bench, "flat", &format!("{METHOD}\nsharpness = 0.0"), 2);
    let (_, shifts) = shares(&flat, 3);
    let expected = -(2.0f32.ln());
    let shifts = host(shifts.unwrap());
    assert!(
        shifts.iter().all(|s| (s - expected).abs() < 1e-6),
        "{shifts:?}"
    );
    // Merged by hand: the sum of all factors is one weight then.
    let state = flat.model.state.valid();
    let mut weights = flat.model.merged_backbone();
    for (i, bank) in flat.model.adapter.sites.iter().enumerate() {
        let site = bank.site();
        let part = ["query", "key", "value"];
        let part = part.iter().position(|p| site.name.ends_with(p)).unwrap();
        let of = |past: &str, last: &str, dim: usize| {
            let both = [past, last].map(|name| matrix(&state, &format!("{name}.{i}")));
            Tensor::cat(both.to_vec(), dim)
        };
        let change = of("past_a", "a", 1).matmul(of("past_b", "b", 0));
        let d = shape().d_model;
        let attn = &mut weights.blocks[site.group].attn;
        attn.qkv.weight = attn.qkv.weight.clone().map(|w| {
            let columns = w.clone().narrow(1, part * d, d) + change;
            w.slice_assign([0..d, part * d..(part + 1) * d], columns)
        });
    }
    let expected = host(weights.forward(images(3), &Updates::default()));
    let found = flat.model.extractor().features(images(3));
    assert_close(found, expected.as_slice(), Tolerance::Abs(1e-5), "merged");
    // With the similarity they are others.
    let sharp = run(&bench, "sharp", &format!("{METHOD}\nsharpness = 3.0"), 2);
    let found = host(sharp.model.extractor().features(images(3)));
    assert!(
        found
            .iter()
            .zip(&expected)
            .any(|(a, b)| (a - b).abs() > 1e-4)
    );
}

#[test]
fn calibration_moves_logits_and_no_feature() {
    let bench = Bench::new();
    let with = run(&bench, "with", METHOD, 2);
    let without = run(
        &bench,
        "without",
        &format!("{METHOD}\ncalibration = 0.0"),
        2,
    );
    assert_eq!(bits(&with.model), bits(&without.model));
    let features = |run: &Finished| host(run.model.extractor().features(images(4)));
    assert_eq!(features(&with), features(&without));
    assert!(shares(&without, 4).1.is_none());
    let one = run(&bench, "one", METHOD, 1);
    let of_one = host(shares(&one, 4).1.unwrap());
    assert!(
        of_one.iter().all(|shift| *shift == 0.0),
        "of one task: {of_one:?}"
    );
}

#[test]
fn a_saved_model_predicts_as_the_run_did_and_no_weights_hold_it() {
    let bench = Bench::new();
    let folder = bench.path("run");
    // A calibration that decides.
    let finished = run(&bench, "run", &format!("{METHOD}\ncalibration = 1000.0"), 2);
    write_model(&folder.join("model"), &finished).unwrap();
    let predictor = Predictor::load(&folder.join("model"), &test_device()).unwrap();
    let (_, shifts) = shares(&finished, 6);
    let shifts = host(shifts.unwrap());
    let answers = predictor.answers(images(6), 1);
    for (answer, shifts) in answers.iter().zip(shifts.chunks(6)) {
        let label = answer.top[0].0;
        let largest = shifts.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let near = shifts[label] > largest - 0.01;
        assert!(near, "class {label} is of an unlikely task: {shifts:?}");
    }
    let opened = FinishedRun::open(&folder, &data_dir(), &test_device()).unwrap();
    let expected = host(finished.model.extractor().features(images(2)));
    let found = opened.extractor().features(images(2));
    assert_close(found, expected.as_slice(), Tolerance::Abs(1e-6), "features");
    for (name, format) in Format::ALL {
        let out = bench.path(&format!("{name}.safetensors"));
        if format == Format::Bundle {
            export(&opened, format, &out, false).unwrap();
            continue;
        }
        let error = export(&opened, format, &out, false)
            .unwrap_err()
            .to_string();
        for part in [
            "duallora",
            "weighs branches",
            "the format `bundle`",
            "let the run itself predict",
        ] {
            assert!(error.contains(part), "{name}: {error}");
        }
        assert!(!out.exists(), "{name}");
    }
}

#[test]
fn a_checkpoint_has_bases_branches_and_similarity() -> Result<(), TrainError> {
    let bench = Bench::new();
    let whole = run(&bench, "run", METHOD, 3);
    let (model, counts, matrix) = (
        bits(&whole.model),
        n_bases(&whole.model.state),
        whole.log.matrix.clone(),
    );
    let stored = *whole.log.floats_stored.last().unwrap();
    // The run is over; opening it again reads its last checkpoint.
    drop(whole);
    assert!(checkpoint::latest(&bench.path("run").join("checkpoints")).is_some());
    let mut config = bench.config(METHOD);
    config.stream.n_tasks = Some(3);
    config.optimizer = optimizer("adam", 0.01, 0.1);
    let again = bench.run("run", &config.check()?, Start::Resume)?;
    assert_eq!(bits(&again.model), model);
    assert_eq!(n_bases(&again.model.state), counts);
    assert_eq!(again.log.matrix, matrix);
    // What is kept of old inputs is counted: bases, and two numbers a task.
    let n_rows: usize = counts.iter().flatten().sum();
    assert_eq!(stored.shared, n_rows * shape().d_model + 2 * 3);
    Ok(())
}
