//! What is read from the checkpoints of a run agrees with what the run itself measured.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

mod toy;

use sdlora_testkit::test_device;
use sdlora_train::analysis::{
    LogitTable, Refit, TaskState, TrainedRun, Trajectory, collision_rate, collisions,
    direction_residuals, head_norms, parts, sparsity, straight_path, task_optima, update_scale,
};
use sdlora_train::{FeatureTable, Finished, Model, RunConfig, Start, TrainError, accuracy};
use toy::{Bench, data_dir};

/// A run of two tasks of three classes in the folder `name`, and the same run opened again.
fn opened(
    bench: &Bench,
    name: &str,
    method: &str,
    change: fn(&mut RunConfig),
) -> (Finished, TrainedRun) {
    let plan = || {
        let mut config = bench.config(method);
        change(&mut config);
        config.check().unwrap()
    };
    let finished = bench.run(name, &plan(), Start::Fresh).unwrap();
    let run = TrainedRun::open(&bench.path(name), plan(), &data_dir(), &test_device()).unwrap();
    (finished, run)
}

const SDLORA: &str = "name = \"sdlora\"\nrank = 4";

#[test]
fn the_trajectory_repeats_the_accuracies_of_the_run() {
    let bench = Bench::new();
    let (finished, run) = opened(&bench, "run", SDLORA, |_| {});
    let mut told = Vec::new();
    let found = Trajectory::of(&run, &mut |round| told.push(round)).unwrap();
    assert_eq!((told, &found.rounds), (vec![0, 1], &vec![0, 1]));
    for (after, row) in found.states.iter().enumerate() {
        assert_eq!(row.len(), after + 1);
        for (on, state) in row.iter().enumerate() {
            assert_eq!(Some(state.accuracy), finished.log.matrix.get(after, on));
            assert!(state.accuracy_in_task >= state.accuracy);
            // What a task id would repair was lost to another task.
            let n_lost = state.n_lost_later + state.n_lost_earlier;
            assert!(state.accuracy_in_task == state.accuracy || n_lost > 0);
        }
        let newest = &row[after];
        let (cosine, change) = (newest.cosine.unwrap(), newest.relative_change.unwrap());
        assert!((cosine - 1.0).abs() < 1e-6 && change < 1e-6);
        assert!(newest.cosine_to_base < 1.0);
    }
    let old = &found.states[1][0];
    assert!(old.cosine.unwrap() < 1.0 && old.relative_change.unwrap() > 0.0);
    assert_eq!(found.states[0][0].n_lost_later, 0);
    assert_eq!(found.last.n_classes, 6);
    let total = accuracy(&found.last.predict(), &found.last.labels);
    let refit = Refit::of(&run, &found.last).unwrap();
    assert_eq!(refit.own, total);
    // And each other number is that of its definition, written out.
    let models = [0, 1].map(|round| run.model_after(round).unwrap().0);
    let train = |of_rounds: [&Model; 2]| {
        let tables = of_rounds.iter().enumerate();
        let tables = tables.map(|(round, model)| run.train_features(round, model).unwrap());
        joined(tables)
    };
    let loaders = run.test_loaders().unwrap();
    let test = |model| joined(run.test_features(model, &loaders).unwrap());
    let (base, end) = (run.base(), &models[1]);
    let by_hand = by_class_means(&train([base, base]), &test(base));
    assert_eq!(refit.base, by_hand);
    assert_eq!(refit.fresh, by_class_means(&train([end, end]), &test(end)));
    let by_hand = by_class_means(&train([&models[0], end]), &test(end));
    assert_eq!(refit.stale, Some(by_hand));
    assert_eq!(refit.own_levelled, levelled_by_hand(&found.last, 3));
    let largest = [refit.base, refit.fresh, refit.own, refit.own_levelled];
    assert!(
        largest.iter().any(|&v| v > 1.0 / 6.0),
        "nothing is learned: {refit:?}"
    );
    assert!(refit.base != refit.fresh, "{refit:?}");
}

/// The rows of several tables.
fn joined(tables: impl IntoIterator<Item = FeatureTable>) -> FeatureTable {
    tables
        .into_iter()
        .fold(FeatureTable::default(), |mut all, table| {
            all.d_model = table.d_model;
            all.features.extend(table.features);
            all.labels.extend(table.labels);
            all
        })
}

/// Accuracy on `test` by the largest inner product with the sum of the unit-length rows of a class of
/// `train`, brought to unit length.
fn by_class_means(train: &FeatureTable, test: &FeatureTable) -> f64 {
    let d = train.d_model;
    let unit = |row: &[f64]| -> Vec<f64> {
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter().map(|v| v / length).collect()
    };
    let row = |table: &FeatureTable, i: usize| -> Vec<f64> {
        table.row(i).iter().map(|&v| f64::from(v)).collect()
    };
    let n_classes = train.labels.iter().max().unwrap() + 1;
    let mut sums = vec![vec![0.0; d]; n_classes];
    for (i, &label) in train.labels.iter().enumerate() {
        for (sum, v) in sums[label].iter_mut().zip(unit(&row(train, i))) {
            *sum += v;
        }
    }
    let means: Vec<Vec<f64>> = sums.iter().map(|sum| unit(sum)).collect();
    let is_right = |i: &usize| {
        let row = row(test, *i);
        let score = |mean: &Vec<f64>| row.iter().zip(mean).map(|(a, b)| a * b).sum::<f64>();
        let own = score(&means[test.labels[*i]]);
        means.iter().all(|mean| score(mean) <= own)
    };
    (0..test.len()).filter(is_right).count() as f64 / test.len() as f64
}

/// Accuracy with the mean largest logit of every task on the images of others taken off its classes;
/// every task has `n` classes.
fn levelled_by_hand(table: &LogitTable, n: usize) -> f64 {
    let top = |i: usize, task: usize| {
        let block = &table.row(i)[task * n..(task + 1) * n];
        block.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    };
    let levels: Vec<f32> = (0..table.n_classes / n)
        .map(|task| {
            let foreign = (0..table.len()).filter(|&i| table.labels[i] / n != task);
            let tops: Vec<f64> = foreign.map(|i| f64::from(top(i, task))).collect();
            (tops.iter().sum::<f64>() / tops.len() as f64) as f32
        })
        .collect();
    let is_right = |i: &usize| {
        let score = |label: usize| table.row(*i)[label] - levels[label / n];
        let own = score(table.labels[*i]);
        (0..table.n_classes).all(|label| score(label) <= own)
    };
    (0..table.len()).filter(is_right).count() as f64 / table.len() as f64
}

#[test]
fn frozen_features_do_not_drift_and_the_weights_do_not_change() {
    let bench = Bench::new();
    let (_, run) = opened(&bench, "run", "name = \"linear\"", |_| {});
    let found = Trajectory::of(&run, &mut |_| {}).unwrap();
    let old = &found.states[1][0];
    assert!((old.cosine.unwrap() - 1.0).abs() < 1e-6 && (old.cosine_to_base - 1.0).abs() < 1e-6);
    assert_eq!(old.relative_change, Some(0.0));
    let refit = Refit::of(&run, &found.last).unwrap();
    assert_eq!((refit.stale, refit.base), (Some(refit.fresh), refit.fresh));
    assert!(update_scale(&run).unwrap().sites.is_empty());
    assert!(direction_residuals(&run).unwrap().1.is_empty());
    let found = collisions(&run, 1e-9).unwrap();
    assert_eq!((found.sparsity, found.rates[0][1]), (vec![1.0; 2], 0.0));
}

#[test]
fn the_ends_of_a_path_are_the_checkpoints() {
    let bench = Bench::new();
    let (finished, run) = opened(&bench, "run", SDLORA, |_| {});
    let path = straight_path(&run, 0, 1, 2, 4).unwrap().unwrap();
    let lambdas: Vec<f64> = path.iter().map(|p| p.lambda).collect();
    assert_eq!(lambdas, [0.0, 0.25, 0.5, 0.75, 1.0]);
    // Only the first task is known at the start.
    assert!(path.iter().all(|p| p.accuracy.len() == 1));
    assert_eq!(Some(path[0].accuracy[0]), finished.log.matrix.get(0, 0));

    let (model, _) = run.model_after(1).unwrap();
    let tests = run.test_loaders().unwrap();
    let device = test_device();
    let table = FeatureTable::extract(&model.extractor(), &tests[0], &device).unwrap();
    let logits = run.classifier(&model).unwrap().logits(&table);
    let n_right = logits
        .chunks_exact(6)
        .zip(&table.labels)
        .filter(|(row, label)| row[..3].iter().all(|v| *v <= row[**label]))
        .count();
    assert_eq!(path[4].accuracy[0], n_right as f64 / table.len() as f64);
}

#[test]
fn the_scale_is_that_of_the_update_and_only_adapted_sites_are_listed() {
    let bench = Bench::new();
    let (_, run) = opened(&bench, "run", SDLORA, |_| {});
    let scale = update_scale(&run).unwrap();
    let names: Vec<&str> = scale.projections().iter().map(|p| p.name()).collect();
    assert_eq!(names, ["query", "value"]);
    assert_eq!(scale.sites.len(), 4);
    let (model, _) = run.model_after(1).unwrap();
    let updates = model.adapter.updates();
    for site in &scale.sites {
        let update = updates.get(&site.projection.site(site.block_idx)).unwrap();
        let values = update.dense().into_data();
        let norm = values.iter::<f32>().map(|v| f64::from(v).powi(2));
        let norm = norm.sum::<f64>().sqrt();
        assert!((site.update[1] - norm).abs() < 1e-4 * norm, "{site:?}");
    }
}

#[test]
fn collisions_are_those_of_the_updates_of_two_tasks() {
    let bench = Bench::new();
    let threshold = 1e-3;
    let (finished, run) = opened(&bench, "run", "name = \"nlora\"\nrank = 4", |_| {});
    let found = collisions(&run, threshold).unwrap();
    // The updates of all sites, one task after the other: a LoRA of its own each, never rescaled.
    let mut updates = [Vec::new(), Vec::new()];
    for site in &finished.model.adapter.sites {
        let past = site.past.as_ref().unwrap();
        let current = site.current.as_ref().unwrap();
        let factors = [(&past.a, &past.b), (&current.a, &current.b)];
        for (update, (a, b)) in updates.iter_mut().zip(factors) {
            let product = a.val().matmul(b.val()).into_data();
            update.extend(product.iter::<f32>());
        }
    }
    let [first, second] = updates;
    // Differences of rounded weights: an entry that just meets the threshold may not do so there.
    let near = |found: f64, expected: f64| (found - expected).abs() * first.len() as f64 <= 2.5;
    let shares = [&first, &second].map(|update| sparsity(update, threshold));
    let rate = collision_rate(&first, &second, threshold);
    assert!(shares.iter().all(|&s| s > 0.01 && s < 0.99), "{shares:?}");
    assert!(near(found.sparsity[0], shares[0]) && near(found.sparsity[1], shares[1]));
    assert!(near(found.mean_rate().unwrap(), rate), "{found:?}, {rate}");
    assert_eq!(found.rates[0][1], found.rates[1][0]);
    // The smaller a change that counts, the more of them there are.
    let finer = collisions(&run, threshold / 10.0).unwrap();
    assert!(finer.mean_rate() > found.mean_rate());
}

#[test]
fn parts_and_residuals_of_two_directions() {
    let bench = Bench::new();
    let (finished, run) = opened(&bench, "run", SDLORA, |_| {});
    let (model, log) = run.model_after(1).unwrap();
    assert_eq!(log.magnitudes, finished.log.magnitudes);
    let parts = parts(&model);
    let trained: usize = parts.iter().map(|p| p.n_trained).sum();
    assert_eq!(trained, finished.log.n_trained[1]);
    let of = |name: &str| parts.iter().find(|p| p.name == name).unwrap();
    assert_eq!(of("head").n_stored, 6 * 17);
    assert_eq!(of("magnitudes").n_stored, 2);
    // Trained: the running factors on two projections of two blocks.
    assert_eq!(of("directions").n_trained, 4 * 2 * 16 * 4);
    assert_eq!(of("backbone").n_trained, 0);
    let norms = head_norms(&run.classifier(&model).unwrap()).unwrap();
    assert!(norms.len() == 6 && norms.iter().all(|(length, _)| *length > 0.0));

    let (names, residuals) = direction_residuals(&run).unwrap();
    assert_eq!(names[1], "blocks.0.value");
    for site in &residuals {
        assert!(site.len() == 2 && site[0] == 1.0 && site[1] > 0.5 && site[1] <= 1.0);
    }
}

#[test]
fn the_parts_of_every_kind_of_method_are_all_the_model_stores() {
    let bench = Bench::new();
    for (method, part, n_trained) in [
        (
            "name = \"l2p\"\nn_prompts = 4\nlength = 2\ntop = 2",
            "method state",
            4 * 16 + 4 * 2 * 16,
        ),
        (
            "name = \"hide-prompt\"\nblocks = [0, 1]\nlength = 2",
            "method state",
            2 * 2 * 2 * 16,
        ),
        ("name = \"inflora\"\nrank = 2", "method state", 0),
    ] {
        let name = method.split('"').nth(1).unwrap();
        let (finished, run) = opened(&bench, name, method, |config| config.n_epochs = 1);
        let (model, log) = run.model_after(1).unwrap();
        let found = parts(&model);
        let of = found.iter().find(|p| p.name == part);
        let of = of.unwrap_or_else(|| panic!("{name} has no {part}: {found:?}"));
        assert_eq!(of.n_trained, n_trained, "{name}: {found:?}");
        let arrays = model.head.per_class.values();
        let arrays = arrays.chain(model.head.shared.values());
        let arrays: usize = arrays.map(|array| array.values.len()).sum();
        let parameters: usize = toy::bits(&model).iter().map(Vec::len).sum();
        let stored: usize = found.iter().map(|p| p.n_stored).sum();
        assert_eq!(stored, parameters + arrays, "{name}: {found:?}");
        let trained: usize = found.iter().map(|p| p.n_trained).sum();
        assert_eq!(trained, log.n_trained[1], "{name}: {found:?}");
        if name == "inflora" {
            assert_eq!(of.n_stored, finished.model.state.floats_stored().shared);
        }
    }
}

#[test]
fn residuals_by_step_are_recorded_where_asked_for_and_change_no_weight() {
    let bench = Bench::new();
    let run = |name: &str, every: usize| {
        let mut config = bench.config(SDLORA);
        config.residual_every = every;
        bench
            .run(name, &config.check().unwrap(), Start::Fresh)
            .unwrap()
    };
    let (plain, recorded) = (run("plain", 0), run("recorded", 3));
    assert!(plain.log.tasks.iter().all(|task| task.residuals.is_empty()));
    // The first direction has none before it.
    assert!(recorded.log.tasks[0].residuals.is_empty());
    let task = &recorded.log.tasks[1];
    assert_eq!(task.residuals.len(), task.losses.len() / 3);
    assert_eq!(task.residuals[0].0, 2);
    assert!(task.residuals.iter().all(|(_, r)| *r > 0.0 && *r <= 1.0));
    assert!(toy::bits(&plain.model) == toy::bits(&recorded.model));
    assert_eq!(plain.log.matrix, recorded.log.matrix);
}

#[test]
fn optima_of_tasks_start_at_the_pretrained_weights_each() {
    let bench = Bench::new();
    let (_, run) = opened(&bench, "run", SDLORA, |config| config.n_epochs = 1);
    let optima = task_optima(&run, 2, 1.0, &mut |_| {}).unwrap();
    assert!(optima.to_base.iter().all(|&d| d > 0.0));
    assert_eq!(optima.between[0][0], 0.0);
    assert_eq!(optima.between[0][1], optima.between[1][0]);
    // A triangle with the start as its third corner.
    assert!(optima.between[0][1] <= optima.to_base[0] + optima.to_base[1] + 1e-6);
    // The second optimum does not depend on the first.
    let smaller = task_optima(&run, 2, 0.1, &mut |_| {}).unwrap();
    assert!(smaller.to_base[1] < optima.to_base[1]);
}

#[test]
fn a_checkpoint_that_is_gone_is_named_and_the_others_still_answer() {
    let bench = Bench::new();
    let (_, run) = opened(&bench, "run", SDLORA, |_| {});
    let whole = Trajectory::of(&run, &mut |_| {}).unwrap();
    let whole_refit = Refit::of(&run, &whole.last).unwrap();
    assert!(run.missing_rounds().is_empty());
    assert_eq!([0, 1].map(|task| run.round_of(task)), [0, 1]);
    drop(run);
    let checkpoints = bench.path("run").join("checkpoints");
    std::fs::remove_dir_all(checkpoints.join("task-000-trained")).unwrap();
    let open = || {
        let plan = bench.config(SDLORA).check().unwrap();
        TrainedRun::open(&bench.path("run"), plan, &data_dir(), &test_device())
    };
    let run = open().unwrap();
    assert_eq!((run.rounds(), run.missing_rounds()), (&[1][..], vec![0]));
    assert!(matches!(
        collisions(&run, 1e-3),
        Err(TrainError::NotKept { .. })
    ));
    let error = run.model_after(0).unwrap_err();
    assert!(
        error.is_usage() && error.to_string().contains("end of task 0"),
        "{error}"
    );
    // What the last model and the images tell is what it was, the rest is not there.
    let found = Trajectory::of(&run, &mut |_| {}).unwrap();
    assert_eq!(found.rounds, [1]);
    let (now, then) = (&found.states[0], &whole.states[1]);
    assert!(then[0].cosine.unwrap() < 1.0);
    assert_eq!((now[0].cosine, now[0].relative_change), (None, None));
    let without = |state: &TaskState| TaskState {
        cosine: None,
        relative_change: None,
        ..state.clone()
    };
    assert_eq!(now[0], without(&then[0]));
    assert_eq!(now[1], then[1]);
    assert_eq!(found.last, whole.last);
    let refit = Refit::of(&run, &found.last).unwrap();
    let expected = Refit {
        stale: None,
        ..whole_refit.clone()
    };
    assert!(whole_refit.stale.is_some() && whole_refit.fresh_ridge.is_some());
    assert_eq!(refit, expected);
    std::fs::remove_dir_all(&checkpoints).unwrap();
    assert!(matches!(open().err(), Some(TrainError::NotKept { .. })));
}
