//! Ctrl-C and SIGTERM, and two processes on one folder, as a user meets them.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{data, err, out, sdlora};

/// A program that has not done what is waited for by then hangs.
const LONGEST: Duration = Duration::from_secs(240);

/// Four classes in two tasks, with more epochs than anybody waits for.
fn train(n_epochs: usize) -> Vec<String> {
    let data = data();
    let mut args: Vec<String> = [
        "train",
        "--name",
        "mine",
        "--data-dir",
        data.to_str().unwrap(),
    ]
    .map(str::to_owned)
    .to_vec();
    for set in [
        "stream.n_tasks=2",
        "stream.split={ increment = { init_cls = 4, increment = 4 } }",
        &format!("n_epochs={n_epochs}"),
        "batch_size=4",
    ] {
        args.extend(["--set".to_owned(), set.to_owned()]);
    }
    args
}

fn start(home: &Path, args: &[String]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sdlora"))
        .args(args)
        .current_dir(home)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < LONGEST, "{what} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a log tells of steps; the lines of the last second may not be there yet.
fn wait_for_steps(log: &Path) {
    wait_for("a first step", || {
        fs::read_to_string(log).is_ok_and(|text| text.contains("\"event\":\"step\""))
    });
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

fn end(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

/// Steps in a log, every line of which is whole.
fn steps(log: &Path) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(log).unwrap();
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line["event"] == "step")
        .map(|line| {
            (
                line["task"].as_u64().unwrap(),
                line["step"].as_u64().unwrap(),
            )
        })
        .collect()
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn a_signal_keeps_every_step_and_the_run_goes_on_from_there() {
    for name in ["-INT", "-TERM"] {
        let home = tempfile::tempdir().unwrap();
        let log = home.path().join("runs/mine/log.jsonl");
        let mut args = train(4000);
        let child = start(home.path(), &args);
        wait_for_steps(&log);

        // Meanwhile the folder is held.
        let mut again = args.clone();
        again.push("--resume".into());
        let second = sdlora(home.path(), &strs(&again));
        assert_eq!(second.status.code(), Some(2), "{}", err(&second));
        assert!(err(&second).contains("being written by another process"));

        signal(&child, name);
        let stopped = end(child);
        let told = err(&stopped);
        assert_eq!(stopped.status.code(), Some(130), "{told}");
        assert!(told.contains("stopped in task 1 after step"), "{told}");
        assert!(
            told.contains("--name mine --resume") && !told.contains("error"),
            "{told}"
        );
        let before = steps(&log);
        assert!(!before.is_empty());

        // Once more, and this time at once.
        args.push("--resume".into());
        let child = start(home.path(), &args);
        wait_for("the resumed log", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("resumed"))
        });
        signal(&child, name);
        let stopped = end(child);
        assert_eq!(stopped.status.code(), Some(130));
        let text = String::from_utf8_lossy(&stopped.stdout).into_owned();
        let n = before.len();
        assert!(
            text.contains(&format!("continuing in task 1, after step {n}")),
            "{text}"
        );
        let all = steps(&log);
        let expected: Vec<_> = (0..all.len() as u64).map(|step| (0, step)).collect();
        assert_eq!(all, expected, "every step once");
        assert!(all.len() >= n);
    }
}

#[test]
fn a_second_signal_ends_the_program_at_once_and_loses_no_checkpoint() {
    let home = tempfile::tempdir().unwrap();
    let child = start(home.path(), &train(4000));
    wait_for_steps(&home.path().join("runs/mine/log.jsonl"));
    signal(&child, "-INT");
    signal(&child, "-INT");
    assert_eq!(end(child).status.code(), Some(130));
    // Whether or not the first was in time to save: what is there is sound.
    let mut args = train(1);
    args.push("--resume".into());
    let other_plan = sdlora(home.path(), &strs(&args));
    assert!(
        err(&other_plan).contains("n_epochs = 4000"),
        "{}",
        err(&other_plan)
    );
}

#[test]
fn compare_stops_and_goes_on_with_the_runs_that_are_missing() {
    let home = tempfile::tempdir().unwrap();
    let suite = |n_epochs: usize| {
        format!(
            "name = \"own\"\nbase = \"omniglot-10x20\"\n\
             set = [\"stream.n_tasks=1\", \"stream.split={{ increment = {{ init_cls = 4, increment = 4 }} }}\"]\n\
             [[entry]]\nlabel = \"ncm\"\nset = [\"method={{ name = \\\"ncm\\\" }}\"]\n\
             [[entry]]\nlabel = \"long\"\nset = [\"method={{ name = \\\"linear\\\" }}\", \"n_epochs={n_epochs}\"]\n"
        )
    };
    let file = home.path().join("suite.toml");
    fs::write(&file, suite(1_000_000)).unwrap();
    let data = data();
    let args = [
        "compare",
        "--suite",
        file.to_str().unwrap(),
        "--seeds",
        "1",
        "--out",
        "table.md",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    let args: Vec<String> = args.map(str::to_owned).to_vec();
    let child = start(home.path(), &args);
    let runs = home.path().join("runs/compare/own");
    wait_for_steps(&runs.join("long-seed1/log.jsonl"));
    signal(&child, "-TERM");
    let stopped = end(child);
    assert_eq!(stopped.status.code(), Some(130), "{}", err(&stopped));
    assert!(
        err(&stopped).contains("the same command goes on"),
        "{}",
        err(&stopped)
    );
    assert!(!home.path().join("table.md").exists());
    assert!(runs.join("ncm-seed1/metrics.json").exists());
    let kept = fs::read_dir(runs.join("long-seed1/checkpoints")).unwrap();
    assert_eq!(kept.count(), 1);
}

#[test]
fn pretraining_stops_inside_an_epoch_and_goes_on_there() {
    let home = tempfile::tempdir().unwrap();
    let data = data();
    let args = [
        "pretrain",
        "--epochs",
        "1000",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    let args: Vec<String> = args.map(str::to_owned).to_vec();
    let log = home.path().join("runs/pretrain/log.jsonl");
    let child = start(home.path(), &args);
    wait_for_steps(&log);
    signal(&child, "-INT");
    let stopped = end(child);
    assert_eq!(stopped.status.code(), Some(130), "{}", err(&stopped));
    let n = steps(&log).len();
    assert!(n > 0);
    let child = start(home.path(), &args);
    wait_for("the resumed log", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("resumed"))
    });
    signal(&child, "-INT");
    assert_eq!(end(child).status.code(), Some(130));
    let all = steps(&log);
    let expected: Vec<_> = (0..all.len() as u64).map(|step| (0, step)).collect();
    assert_eq!(all, expected, "every step once");
    assert!(all.len() > n);
}

#[test]
fn names_that_leave_the_folder_of_the_runs_and_texts_that_are_none_are_refused() {
    let home = tempfile::tempdir().unwrap();
    for name in ["", "../x", "/x"] {
        let mut args = train(1);
        args[2] = name.into();
        let refused = sdlora(home.path(), &strs(&args));
        assert_eq!(refused.status.code(), Some(2), "{}", err(&refused));
        assert!(err(&refused).contains("--name"), "{}", err(&refused));
    }
    fs::write(home.path().join("latin.toml"), b"seed = 1\n# caf\xe9\n").unwrap();
    let refused = sdlora(home.path(), &["train", "--config", "latin.toml"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        err(&refused).contains("no UTF-8 text, first at byte 14"),
        "{}",
        err(&refused)
    );
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_plan_changed_by_hand_is_refused_by_predict_and_a_damaged_model_is_named() {
    let home = tempfile::tempdir().unwrap();
    let mut args = train(1);
    args.push("--quiet".into());
    out(&sdlora(home.path(), &strs(&args)));
    let run = home.path().join("runs/mine");
    let image = home.path().join("a.ppm");
    let mut ppm = b"P6 20 20 255\n".to_vec();
    ppm.resize(ppm.len() + 1200, 99);
    fs::write(&image, ppm).unwrap();
    let predict = || sdlora(home.path(), &["predict", "--run", "runs/mine", "a.ppm"]);
    out(&predict());

    // A model of an earlier version is prepared for by the plan.
    let later = ["predict.json", "SHA256SUMS"];
    let aside = home.path().join("aside");
    fs::create_dir(&aside).unwrap();
    for name in later {
        fs::rename(run.join("model").join(name), aside.join(name)).unwrap();
    }
    let plan = fs::read_to_string(run.join("plan.toml")).unwrap();
    fs::write(
        run.join("plan.toml"),
        plan.replace("side = 28", "side = 256"),
    )
    .unwrap();
    let refused = predict();
    assert_eq!(refused.status.code(), Some(2), "{}", err(&refused));
    assert!(err(&refused).contains("256 pixels"), "{}", err(&refused));
    fs::write(
        run.join("plan.toml"),
        format!("# written by sdlora 9, format 9\n{plan}"),
    )
    .unwrap();
    assert!(
        err(&predict()).contains("newer version"),
        "{}",
        err(&predict())
    );
    fs::write(run.join("plan.toml"), &plan).unwrap();
    out(&predict());
    for name in later {
        fs::rename(aside.join(name), run.join("model").join(name)).unwrap();
    }

    for entry in fs::read_dir(run.join("model")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let sound = fs::read(entry.path()).unwrap();
        let mut damaged = sound.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 4;
        fs::write(entry.path(), damaged).unwrap();
        // Predicting needs no directions.
        if name != "adapter.safetensors" {
            let refused = predict();
            assert_eq!(refused.status.code(), Some(1), "{name}: {}", err(&refused));
            assert!(
                err(&refused).contains("is damaged"),
                "{name}: {}",
                err(&refused)
            );
        }
        let export = [
            "export",
            "--run",
            "runs/mine",
            "--format",
            "safetensors",
            "--out",
            "x",
        ];
        let mut export = export.to_vec();
        let data = data();
        export.extend(["--data-dir", data.to_str().unwrap()]);
        let refused = sdlora(home.path(), &export);
        assert!(
            err(&refused).contains("is damaged"),
            "{name}: {}",
            err(&refused)
        );
        fs::write(entry.path(), sound).unwrap();
    }
    out(&predict());
}
