//! Runs on streams in which classes come again: the head grows by the new ones only, and the loss is over those of the
//! task.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use sdlora_data::{ClassOrder, ClassRef, Repeats, TaskSplit};
use sdlora_train::methods::LossOver;
use sdlora_train::{Finished, HeadConfig, Plan, RunConfig, Start};
use toy::Bench;

/// Tasks of classes 0 to 3, of 1 and 3 again with the new 4, and of 0 and 4 again.
fn plan(bench: &Bench, method: &str, head: &str, loss: LossOver, n_tasks: usize) -> Plan {
    changed(bench, method, head, loss, n_tasks, |_| {})
}

fn changed(
    bench: &Bench,
    method: &str,
    head: &str,
    loss: LossOver,
    n_tasks: usize,
    change: impl FnOnce(&mut RunConfig),
) -> Plan {
    let mut config = bench.config(method);
    let ids = |ids: &[usize]| ids.iter().map(|&id| ClassRef::Id(id)).collect();
    config.stream.class_order = ClassOrder::Natural;
    config.stream.split =
        TaskSplit::Groups(vec![ids(&[3, 1, 0, 2]), ids(&[4, 1, 3]), ids(&[0, 4])]);
    config.stream.repeats = Repeats::Split { seed: 1 };
    config.stream.n_tasks = Some(n_tasks);
    config.head = Some(HeadConfig::named(head));
    config.loss = loss;
    change(&mut config);
    config.check().unwrap()
}

/// Rows of the classifier that steps trained, one per class.
fn columns(run: &Finished) -> Vec<Vec<u32>> {
    let weight = run.model.head.trained.as_ref().unwrap().weight.val();
    let [d_model, n_classes] = weight.dims();
    let values: Vec<f32> = weight.into_data().iter::<f32>().collect();
    let column = |class| (0..d_model).map(move |row| row * n_classes + class);
    (0..n_classes)
        .map(|class| column(class).map(|at| values[at].to_bits()).collect())
        .collect()
}

#[test]
fn every_head_runs_and_resumes_on_classes_that_come_again() {
    let bench = Bench::new();
    let method = "name = \"sdlora\"\nrank = 4";
    for head in ["linear", "cosine", "ncm", "ridge"] {
        let plan = plan(&bench, method, head, LossOver::NewClasses, 3);
        let run = bench.run(head, &plan, Start::Fresh).unwrap();
        assert_eq!(run.classifier.n_classes(), 5, "{head}");
        assert_eq!(run.class_order, [3, 1, 0, 2, 4], "{head}");
        assert_eq!(run.log.matrix.n_rows(), 3, "{head}");

        // From the checkpoint after the second task on, it goes the same way.
        let part = format!("{head}-part");
        toy::copy_folder(&bench.path(head), &bench.path(&part));
        for entry in std::fs::read_dir(bench.path(&part).join("checkpoints")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with("task-002") {
                std::fs::remove_dir_all(&path).unwrap();
            }
        }
        let again = bench.run(&part, &plan, Start::Resume).unwrap();
        assert_eq!(again.log.matrix, run.log.matrix, "{head}");
    }
}

#[test]
fn a_task_moves_the_columns_of_its_own_classes_only() {
    let bench = Bench::new();
    let method = "name = \"linear\"";
    for (rule, decay) in [("sgd", 0.0), ("sgd", 0.1), ("adam", 0.1), ("adamw", 0.1)] {
        let run = |n_tasks: usize| {
            let change = |config: &mut RunConfig| {
                config.optimizer = toy::optimizer(rule, 0.02, decay);
            };
            let plan = changed(
                &bench,
                method,
                "linear",
                LossOver::NewClasses,
                n_tasks,
                change,
            );
            let folder = format!("{rule}-{decay}-{n_tasks}");
            bench.run(&folder, &plan, Start::Fresh).unwrap()
        };
        let (one, two, three) = (columns(&run(1)), columns(&run(2)), columns(&run(3)));
        assert_eq!((one.len(), two.len(), three.len()), (4, 5, 5));
        // Labels: class 3 has 0, 1 has 1, 0 has 2, 2 has 3, 4 has 4.
        let moved = |a: &[Vec<u32>], b: &[Vec<u32>]| -> Vec<bool> {
            a.iter().zip(b).map(|(a, b)| a != b).collect()
        };
        let what = format!("{rule} with decay {decay}");
        assert_eq!(moved(&one, &two), [true, true, false, false], "{what}");
        let last = [false, false, true, false, true];
        assert_eq!(moved(&two, &three), last, "{what}");
    }
}

#[test]
fn the_loss_over_seen_classes_moves_all_columns() {
    let bench = Bench::new();
    let run = |n_tasks: usize| {
        let plan = plan(
            &bench,
            "name = \"linear\"",
            "linear",
            LossOver::SeenClasses,
            n_tasks,
        );
        bench
            .run(&format!("{n_tasks}"), &plan, Start::Fresh)
            .unwrap()
    };
    let (two, three) = (columns(&run(2)), columns(&run(3)));
    assert!(two.iter().zip(&three).all(|(a, b)| a != b));
}

#[test]
fn class_means_in_parts_are_those_of_all_images() {
    let bench = Bench::new();
    let method = "name = \"ncm\"";
    let parts = plan(&bench, method, "ncm", LossOver::NewClasses, 3);
    let parts = bench.run("parts", &parts, Start::Fresh).unwrap();
    let mut config = bench.config(method);
    config.stream.class_order = ClassOrder::Listed(vec![3, 1, 0, 2, 4]);
    config.stream.split = TaskSplit::Joint;
    config.stream.n_tasks = None;
    let whole = bench
        .run("whole", &config.check().unwrap(), Start::Fresh)
        .unwrap();
    let (a, _) = parts.classifier.as_linear().unwrap();
    let (b, _) = whole.classifier.as_linear().unwrap();
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn a_trained_head_is_refused_where_a_task_has_one_class_and_fitted_ones_are_not() {
    let bench = Bench::new();
    let with = |head: &str, loss: LossOver, sizes: &[usize]| {
        let method = "name = \"sdlora\"\nrank = 4";
        let change = |config: &mut RunConfig| {
            let mut next = 0;
            let mut of = |n: usize| {
                next += n;
                (next - n..next).map(ClassRef::Id).collect::<Vec<_>>()
            };
            config.stream.split = TaskSplit::Groups(sizes.iter().map(|&n| of(n)).collect());
            config.stream.repeats = Repeats::default();
            config.n_epochs = 1;
        };
        let plan = changed(&bench, method, head, loss, sizes.len(), change);
        let folder = format!("{head}-{loss:?}-{sizes:?}").replace([' ', ',', '[', ']'], "");
        let found = bench.run(&folder, &plan, Start::Fresh);
        (found, bench.path(&folder))
    };
    let (new, seen) = (LossOver::NewClasses, LossOver::SeenClasses);
    for (head, loss, sizes, task, other_loss) in [
        ("linear", new, &[1, 1, 1][..], "task 1 ", false),
        ("cosine", new, &[2, 1], "task 2 ", true),
        ("linear", seen, &[1, 1, 1], "task 1 ", false),
    ] {
        let (found, folder) = with(head, loss, sizes);
        let error = found.unwrap_err();
        assert!(error.is_usage());
        let text = error.to_string();
        for part in [head, task, "ncm", "ridge", "qda", "gaussian"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(text.contains("seen-classes"), other_loss, "{text}");
        assert!(!folder.exists(), "{head}: nothing is written");
    }
    for (head, loss, sizes) in [
        ("ncm", new, &[1, 1, 1][..]),
        ("ridge", new, &[1, 1, 1]),
        ("gaussian", new, &[1, 1, 1]),
        ("qda", new, &[1, 1, 1]),
        ("linear", seen, &[2, 1]),
        ("linear", new, &[2, 2]),
    ] {
        let finished = with(head, loss, sizes).0.unwrap();
        let row = finished.log.matrix.row(sizes.len() - 1).unwrap().to_vec();
        // A fitted head that learned nothing would name the last class, or the first.
        let n_known = row.iter().filter(|&&share| share > 0.0).count();
        assert!(n_known > 1 || head == "linear", "{head}: {row:?}");
    }
}
