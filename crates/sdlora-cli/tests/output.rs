//! What the program does when its output is gone or full, and what of a file reaches the terminal.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{data, err, out, sdlora, toy_run};

/// Where standard output leads.
#[derive(Debug, Clone, Copy)]
enum To {
    /// A pipe that nobody reads any more, as behind `head`.
    Closed,
    /// A device without space.
    Full,
}

impl To {
    fn stdio(self) -> Stdio {
        match self {
            Self::Closed => {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                writer.into()
            }
            Self::Full => File::create("/dev/full").unwrap().into(),
        }
    }
}

fn run(home: &Path, args: &[&str], stdout: Stdio, stderr: Stdio) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sdlora"))
        .args(args)
        .current_dir(home)
        .env("HF_HOME", home)
        .env("HF_HUB_OFFLINE", "1")
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap()
}

#[test]
fn a_run_goes_on_without_its_output_and_says_so_once() {
    let home = tempfile::tempdir().unwrap();
    for (name, to, part) in [
        ("closed", To::Closed, "nobody reads the output"),
        ("full", To::Full, "No space left"),
    ] {
        let args = toy_run(home.path(), name);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let found = run(home.path(), &args, to.stdio(), Stdio::piped());
        assert_eq!(found.status.code(), Some(0), "{name}: {}", err(&found));
        let told = err(&found);
        assert!(told.contains(part) && told.contains("goes on"), "{told}");
        assert_eq!(told.matches("goes on").count(), 1, "{told}");
        assert!(!told.contains("panicked"), "{told}");
        let folder = home.path().join("runs").join(name);
        assert!(folder.join("metrics.json").is_file());

        // Nor does it need standard error.
        let name = &format!("{name}-silent");
        let args = toy_run(home.path(), name);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let found = run(home.path(), &args, to.stdio(), to.stdio());
        assert_eq!(found.status.code(), Some(0), "{name}");
        assert!(
            home.path()
                .join("runs")
                .join(name)
                .join("metrics.json")
                .is_file()
        );
    }
}

#[test]
fn a_question_ends_quietly_without_its_reader_and_with_an_error_on_a_full_device() {
    let home = tempfile::tempdir().unwrap();
    let data = data();
    let data_dir = data.to_str().unwrap();
    let weights = data.join("omniglot/vit_omniglot_patch7_28.safetensors");
    let weights = weights.to_str().unwrap();
    let preset = "omniglot-10x20";
    let tasks = [
        "data",
        "show",
        "omniglot-evaluation",
        "--tasks",
        "--data-dir",
        data_dir,
    ];
    for args in [
        &["presets"][..],
        &["presets", "show", preset],
        &["presets", "diff", preset, "omniglot-100x5"],
        &["inspect", weights],
        &["data", "list", "--data-dir", data_dir],
        &tasks,
        &["--help"],
        &["train", "--help"],
        &["--version"],
    ] {
        let closed = run(home.path(), args, To::Closed.stdio(), Stdio::piped());
        assert_eq!(closed.status.code(), Some(0), "{args:?}: {}", err(&closed));
        assert_eq!(err(&closed), "", "{args:?}");
        let full = run(home.path(), args, To::Full.stdio(), Stdio::piped());
        assert_eq!(full.status.code(), Some(1), "{args:?}: {}", err(&full));
        let told = err(&full);
        assert!(
            told.starts_with("error: the output cannot be written"),
            "{told}"
        );
    }
    // What it checks is told by the exit code, so it checks everything all the same.
    let verify = [
        "data",
        "verify",
        "omniglot-evaluation",
        "--data-dir",
        data_dir,
    ];
    let closed = run(home.path(), &verify, To::Closed.stdio(), Stdio::piped());
    assert_eq!(closed.status.code(), Some(0));
    assert!(err(&closed).contains("goes on"), "{}", err(&closed));
    let full = run(home.path(), &verify, To::Full.stdio(), Stdio::piped());
    assert_eq!(full.status.code(), Some(1));
}

#[test]
fn an_error_without_a_place_for_its_message_keeps_its_exit_code() {
    let home = tempfile::tempdir().unwrap();
    for to in [To::Closed, To::Full] {
        for (args, code) in [
            (&["presets", "show", "nothing"][..], 2),
            (&["presets", "--no-such-option"], 2),
            (&["inspect", "nothing"], 2),
        ] {
            let found = run(home.path(), args, to.stdio(), to.stdio());
            assert_eq!(found.status.code(), Some(code), "{to:?} {args:?}");
        }
    }
}

/// A weight file with one tensor of that name and one text.
fn weight_file(path: &Path, name: &str, key: &str, value: &str) {
    let text = |text: &str| serde_json::to_string(text).unwrap();
    let header = format!(
        "{{\"__metadata__\":{{{}:{}}},{}:{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}}}",
        text(key),
        text(value),
        text(name)
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend([0; 4]);
    fs::write(path, bytes).unwrap();
}

#[test]
fn no_name_of_a_file_acts_on_the_terminal_or_breaks_a_line() {
    let home = tempfile::tempdir().unwrap();
    let evil = "\u{1b}]0;gotcha\u{7}\u{1b}[2J\nerror: fine\r\u{9b}31m";
    let file = home.path().join("evil\u{1b}[31m.safetensors");
    weight_file(&file, evil, evil, evil);
    let harmless = |found: &Output| {
        let text = format!("{}{}", String::from_utf8_lossy(&found.stdout), err(found));
        let is_bad = |c: char| c.is_control() && c != '\n' && c != '\t';
        assert!(!text.contains(is_bad), "{text:?}");
        assert!(
            !text.lines().any(|line| line.starts_with("error: fine")),
            "{text}"
        );
        text
    };
    let shown = harmless(&sdlora(home.path(), &["inspect", file.to_str().unwrap()]));
    assert!(
        shown.contains(r"\u{1b}[2J\nerror: fine\r\u{9b}31m"),
        "{shown}"
    );
    // In messages: of our own, of the readers, and of the command line.
    let name = "nothing\u{1b}[2J\nerror: fine";
    for args in [
        &["inspect", name][..],
        &["train", "--backbone", file.to_str().unwrap()],
        &[
            "features",
            "--backbone",
            file.to_str().unwrap(),
            "--input",
            name,
            "--out",
            "x",
        ],
        &["presets", name],
        &["presets", "--no\u{1b}[2J"],
        &["data", "verify", name],
    ] {
        let found = sdlora(home.path(), args);
        assert_ne!(found.status.code(), Some(0), "{args:?}");
        harmless(&found);
    }
}

#[test]
fn long_texts_are_clipped() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("long.safetensors");
    let long = "k".repeat(1 << 20);
    weight_file(&file, &"t".repeat(70_000), &long, &long);
    // No backbone, so the exit code is 1, but what the file holds is shown.
    let found = sdlora(home.path(), &["inspect", "long.safetensors"]);
    assert_eq!(found.status.code(), Some(1));
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(text.len() < 5000, "{} bytes", text.len());
    assert!(text.contains("and 69800 more characters"), "{text}");

    let preset = out(&sdlora(home.path(), &["presets", "show", "omniglot-10x20"]));
    let weights = "omniglot/vit_omniglot_patch7_28.safetensors";
    fs::write(home.path().join("a.toml"), preset.replace(weights, &long)).unwrap();
    let text = out(&sdlora(
        home.path(),
        &["presets", "diff", "a.toml", "omniglot-10x20"],
    ));
    assert!(
        text.contains("backbone.weights") && text.len() < 5000,
        "{}",
        text.len()
    );
    // An error that repeats a key of 1 MB.
    fs::write(home.path().join("b.toml"), format!("{long} = 1")).unwrap();
    let found = sdlora(
        home.path(),
        &["presets", "diff", "b.toml", "omniglot-10x20"],
    );
    assert_eq!(found.status.code(), Some(2));
    assert!(err(&found).len() < 100_000, "{} bytes", err(&found).len());
}
