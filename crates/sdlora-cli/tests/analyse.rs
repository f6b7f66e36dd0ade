//! `sdlora analyse` from the command line.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{data, err, out, sdlora};

/// A run of four tasks of two characters in `runs/tiny`.
fn train(home: &Path, more: &[&str]) {
    let data = data();
    let mut args = vec![
        "train",
        "--quiet",
        "--data-dir",
        data.to_str().unwrap(),
        "--name",
        "tiny",
        "--set",
        "n_epochs=1",
        "--set",
        "stream.n_tasks=4",
        "--set",
        "stream.split={ increment = { init_cls = 2, increment = 2 } }",
    ];
    args.extend(more);
    out(&sdlora(home, &args));
}

fn analyse(home: &Path, more: &[&str]) -> Output {
    let data = data();
    let mut args = vec!["analyse", "--quiet", "--data-dir", data.to_str().unwrap()];
    args.extend(more);
    sdlora(home, &args)
}

/// Checks that a figure is whole and needs nothing beside it.
fn check_figure(path: &Path) {
    let svg = fs::read_to_string(path).unwrap();
    assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"));
    assert!(!svg.contains("NaN") && !svg.contains("href"));
}

#[test]
fn every_diagnostic_of_a_run_writes_its_figure_its_table_and_its_line() {
    let home = tempfile::tempdir().unwrap();
    train(home.path(), &[]);
    let text = out(&analyse(home.path(), &["runs/tiny", "--points", "2"]));
    let folder = home.path().join("runs/tiny/analysis");
    for name in [
        "residual",
        "magnitudes",
        "path",
        "staircase",
        "scale",
        "collisions",
        "drift",
        "confusion",
        "logits",
        "head",
        "refit",
        "calibration",
        "parameters",
    ] {
        let line = text.lines().find(|l| l.starts_with(&format!("{name}: ")));
        let line = line.unwrap_or_else(|| panic!("no line of {name} in\n{text}"));
        assert!(
            !line.contains("NaN") && !line.contains("not shown"),
            "{line}"
        );
        check_figure(&folder.join(format!("{name}.svg")));
        let table = fs::read_to_string(folder.join(format!("{name}.csv"))).unwrap();
        let widths: Vec<usize> = table.lines().map(|l| l.split(',').count()).collect();
        assert!(
            widths.len() > 1 && widths.iter().all(|&w| w == widths[0]),
            "{table}"
        );
    }
    assert!(text.contains("staircase: claim holds"), "{text}");
    let findings = fs::read_to_string(folder.join("findings.csv")).unwrap();
    assert_eq!(findings.lines().count(), 14);

    // The accuracy of the confusion is that of the run.
    let metrics = fs::read_to_string(home.path().join("runs/tiny/metrics.json")).unwrap();
    let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
    let accuracy = metrics["summary"]["weighted_final_accuracy"]
        .as_f64()
        .unwrap();
    let line = format!("{:.2} % of test images are right", 100.0 * accuracy);
    assert!(text.contains(&line), "{line} is not in\n{text}");

    let text = out(&analyse(
        home.path(),
        &[
            "runs/tiny",
            "--only",
            "optima",
            "--tasks",
            "2",
            "--out",
            "else",
        ],
    ));
    assert!(text.starts_with("optima: claim "), "{text}");
    check_figure(&home.path().join("else/optima.svg"));
}

/// The number behind some words of the line of a diagnostic.
fn number_behind<'a>(text: &'a str, diagnostic: &str, words: &str) -> &'a str {
    let line = text
        .lines()
        .find(|l| l.starts_with(&format!("{diagnostic}: ")));
    let line = line.unwrap_or_else(|| panic!("no line of {diagnostic} in\n{text}"));
    let at = line
        .find(words)
        .unwrap_or_else(|| panic!("no `{words}` in {line}"));
    let rest = line[at + words.len()..].trim_start();
    rest.split([' ', ',', ';']).next().unwrap_or_default()
}

#[test]
fn without_earlier_checkpoints_the_rest_is_what_it_was_and_what_needs_them_is_not_shown() {
    let home = tempfile::tempdir().unwrap();
    train(home.path(), &[]);
    let only = [
        "runs/tiny",
        "--only",
        "drift,refit,parameters,scale,path,confusion",
    ];
    let whole = out(&analyse(home.path(), &only));
    // What `compare` leaves: the checkpoint of the last task.
    let checkpoints = home.path().join("runs/tiny/checkpoints");
    for task in 0..3 {
        fs::remove_dir_all(checkpoints.join(format!("task-00{task}-trained"))).unwrap();
    }
    let text = out(&analyse(home.path(), &only));
    for (diagnostic, words) in [
        ("drift", "all have"),
        ("refit", "class means at the end"),
        ("refit", "ridge at the end"),
        ("refit", "pre-trained class means"),
        ("refit", "the head of the run has"),
        ("parameters", "in the last task,"),
        ("scale", "and"),
        ("confusion", "measured:"),
    ] {
        let before = match words {
            "class means at the end" => number_behind(&whole, diagnostic, ", at the end"),
            words => number_behind(&whole, diagnostic, words),
        };
        assert_eq!(
            number_behind(&text, diagnostic, words),
            before,
            "{words}:\n{whole}\n{text}"
        );
    }
    let gone = "not shown, checkpoints of the end of tasks 0 to 2 are gone";
    for (diagnostic, words) in [
        ("drift", "against those when learned"),
        ("refit", "those taken when learned"),
    ] {
        let line = text.lines().find(|l| l.starts_with(diagnostic)).unwrap();
        assert!(line.contains(&format!("{words}: {gone}")), "{line}");
        assert!(!line.contains("NaN"), "{line}");
    }
    assert!(text.contains("path: not shown: a line needs"), "{text}");
    let folder = home.path().join("runs/tiny/analysis");
    let drift = fs::read_to_string(folder.join("drift.csv")).unwrap();
    assert!(drift.contains("\n3,0,,,0."), "{drift}");
    let newest = drift.lines().last().unwrap();
    assert!(
        newest.starts_with("3,3,") && !newest.contains(",,"),
        "{drift}"
    );
    check_figure(&folder.join("drift.svg"));
    check_figure(&folder.join("refit.svg"));
}

#[test]
fn what_a_method_does_not_have_is_said_and_the_rest_is_shown() {
    let home = tempfile::tempdir().unwrap();
    train(
        home.path(),
        &["--set", "method={ name = \"ncm\" }", "--set", "head=ncm"],
    );
    let text = out(&analyse(home.path(), &["runs/tiny"]));
    for name in ["residual", "magnitudes", "scale", "calibration"] {
        assert!(text.contains(&format!("{name}: not shown: ")), "{text}");
        assert!(
            !home
                .path()
                .join(format!("runs/tiny/analysis/{name}.svg"))
                .exists()
        );
    }
    assert!(text.contains("confusion: measured: "), "{text}");
    // Without directions nothing moves.
    assert!(text.contains("so drift costs 0.00 points"), "{text}");
}

#[test]
fn the_staircase_needs_no_run_and_mistakes_are_named() {
    let home = tempfile::tempdir().unwrap();
    let text = out(&analyse(
        home.path(),
        &["--only", "staircase", "--out", "here"],
    ));
    assert!(text.contains("staircase: claim holds"), "{text}");
    check_figure(&home.path().join("here/staircase.svg"));

    let text = out(&analyse(home.path(), &["--only", "scale", "--out", "here"]));
    assert!(
        text.contains("scale: not shown: no run was given"),
        "{text}"
    );

    for (args, part) in [
        (&["nothing-here"][..], "plan.toml"),
        (&[], "--out"),
        (&["--only", "drft", "--out", "x"], "drift"),
        (
            &["--only", "staircase", "--out", "x", "--lr-factor", "0"],
            "--lr-factor",
        ),
        (
            &["--only", "staircase", "--out", "x", "--points", "0"],
            "--points",
        ),
        (
            &["--only", "staircase", "--out", "x", "--threshold", "0"],
            "--threshold",
        ),
    ] {
        let output = analyse(home.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
        assert!(err(&output).contains(part), "{args:?}: {}", err(&output));
    }
}
