//! Reports of several runs, and event files, as a user asks for them.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{data, err, out, sdlora, toy_run};

fn train(home: &Path, name: &str, more: &[&str]) -> std::process::Output {
    let mut args = toy_run(home, name);
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    sdlora(home, &args)
}

#[test]
fn runs_stand_side_by_side_on_one_page_and_mistakes_write_nothing() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    for (name, method) in [("one", "linear"), ("two", "finetune")] {
        out(&train(
            home.path(),
            name,
            &[
                "--quiet",
                "--set",
                &format!("method={{ name = \"{method}\" }}"),
            ],
        ));
    }
    let said = out(&sdlora(
        home.path(),
        &["report", "runs/one", "runs/two", "--out", "both.html"],
    ));
    assert!(said.contains("report: both.html"), "{said}");
    let page = fs::read_to_string(at("both.html")).unwrap();
    for part in [
        "2 runs side by side",
        "linear",
        "finetune",
        "Accuracy and forgetting",
        "All numbers",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    // What the page says is what the run has measured.
    let metrics: serde_json::Value =
        serde_json::from_slice(&fs::read(at("runs/one/metrics.json")).unwrap()).unwrap();
    let accuracy = metrics["summary"]["final_average_accuracy"]
        .as_f64()
        .unwrap();
    let cell = format!("<td data-v=\"{accuracy}\">{:.2} %</td>", 100.0 * accuracy);
    assert!(page.contains(&cell), "{cell}");

    fs::create_dir(at("empty")).unwrap();
    fs::remove_file(at("both.html")).unwrap();
    for (args, part) in [
        (
            &["report", "runs/one", "empty"][..],
            "no folder of a finished run",
        ),
        (&["report", "runs/one", "runs/../runs/one"], "twice"),
        (
            &["report", "runs/one", "--out", "runs/one/x.html"],
            "choose another place",
        ),
        (
            &["report", "runs/one", "--out", "no/x.html"],
            "there is no folder no",
        ),
        (&["report"], "<RUN>"),
    ] {
        let refused = sdlora(home.path(), args);
        assert_eq!(
            refused.status.code(),
            Some(2),
            "{args:?}: {}",
            err(&refused)
        );
        assert!(err(&refused).contains(part), "{args:?}: {}", err(&refused));
    }
    assert!(!at("comparison.html").exists() && !at("runs/one/x.html").exists());
}

#[test]
fn event_files_lie_in_a_folder_of_the_run_and_are_never_taken_from_another() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let events = "events.out.tfevents.0000000000.sdlora";
    let said = out(&train(home.path(), "mine", &["--tensorboard"]));
    assert!(said.contains("events: "), "{said}");
    assert!(at("runs/mine/tensorboard").join(events).is_file());
    out(&train(
        home.path(),
        "other",
        &["--quiet", "--tensorboard", "board"],
    ));
    let path = at("board/other").join(events);
    let before = fs::read(&path).unwrap();
    assert!(before.len() > 500);
    fs::remove_dir_all(at("runs/other")).unwrap();
    let refused = train(home.path(), "other", &["--tensorboard", "board"]);
    assert_eq!(refused.status.code(), Some(2), "{}", err(&refused));
    assert!(
        err(&refused).contains("holds the events of another run"),
        "{}",
        err(&refused)
    );
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(!at("runs/other").exists());
}

#[test]
fn compare_writes_the_same_page_with_the_curves_of_its_runs() {
    let home = tempfile::tempdir().unwrap();
    let suite = "name = \"own\"\nbase = \"omniglot-10x20\"\n\
         set = [\"stream.n_tasks=2\", \"stream.split={ increment = { init_cls = 3, increment = 3 } }\"]\n\
         [[entry]]\nlabel = \"means\"\nset = [\"method={ name = \\\"ncm\\\" }\"]\n\
         [[entry]]\nlabel = \"columns\"\nset = [\"method={ name = \\\"linear\\\" }\", \"n_epochs=1\"]\n";
    fs::write(home.path().join("suite.toml"), suite).unwrap();
    let data = data();
    let args = [
        "compare",
        "--suite",
        "suite.toml",
        "--seeds",
        "1,2",
        "--plot",
        "plot.html",
        "--quiet",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    out(&sdlora(home.path(), &args));
    let page = fs::read_to_string(home.path().join("plot.html")).unwrap();
    for part in [
        "own, omniglot-10x20",
        "means",
        "Accuracy after each of 2 tasks, a line for each of 2 entries",
        " ± ",
    ] {
        assert!(page.contains(part), "no {part}");
    }
}
