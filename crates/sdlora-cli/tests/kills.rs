//! A run that is killed again and again ends with the model of one that is not.
//!
//! The number of kills is [`KILLS`] in the environment, few in the tests of every day. Their moments
//! follow a seed, but the machine decides what the program is doing then, so a failure names the moment
//! and keeps the folder.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::toy_run;
use sdlora_testkit::toy::SplitMix64;

/// Environment variable with the number of kills.
const KILLS: &str = "SDLORA_KILLS";
/// Kills where the environment names no number.
const FEW: usize = 6;
/// A program that has not ended by then hangs.
const LONGEST: Duration = Duration::from_secs(180);

fn n_kills() -> usize {
    std::env::var(KILLS).map_or(FEW, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{KILLS} is `{text}`: give a number"))
    })
}

struct Home {
    folder: tempfile::TempDir,
    method: &'static str,
}

impl Home {
    fn start(&self, name: &str, is_resumed: bool) -> Child {
        let mut args = toy_run(self.folder.path(), name);
        args.extend(
            [
                "--set",
                "n_epochs=2",
                "--set",
                "checkpoint_every=2",
                "--quiet",
            ]
            .map(str::to_owned),
        );
        args.extend(["--set".to_owned(), format!("method={}", self.method)]);
        args.extend(is_resumed.then(|| "--resume".to_owned()));
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join(format!("{name}.err")))
            .unwrap();
        Command::new(env!("CARGO_BIN_EXE_sdlora"))
            .args(args)
            .current_dir(self.folder.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn run(&self, name: &str) -> PathBuf {
        self.folder.path().join("runs").join(name)
    }

    fn told(&self, name: &str) -> String {
        let bytes = fs::read(self.folder.path().join(format!("{name}.err"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Waits for the end; a program that hangs is a finding.
fn wait(child: &mut Child, until: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

/// The tensors of a safetensors file and everything its header says, in an order of its own.
fn content(path: &Path) -> (serde_json::Value, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    (header, bytes[8 + n..].to_vec())
}

/// What a run must leave whatever happened to it: the model bit for bit, and the accuracies.
fn result(run: &Path) -> BTreeMap<String, (serde_json::Value, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(run.join("model")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let found = match name.ends_with(".safetensors") {
            true => content(&entry.path()),
            false => (serde_json::Value::Null, fs::read(entry.path()).unwrap()),
        };
        all.insert(name, found);
    }
    let matrix = fs::read(run.join("accuracy_matrix.csv")).unwrap();
    all.insert("accuracies".into(), (serde_json::Value::Null, matrix));
    let metrics = fs::read(run.join("metrics.json")).unwrap();
    let metrics: serde_json::Value = serde_json::from_slice(&metrics).unwrap();
    let losses = metrics["log"]["tasks"].as_array().unwrap();
    let losses: Vec<_> = losses.iter().map(|task| task["losses"].clone()).collect();
    all.insert("losses".into(), (losses.into(), Vec::new()));
    all
}

#[test]
fn a_run_that_is_killed_at_any_moment_ends_with_the_same_bits() {
    let n_kills = n_kills();
    let (mut n_done, mut n_finished, mut n_by_signal) = (0, 0, [0, 0]);
    // One method with directions and trained columns, one with prompts; half of the kills for each.
    for (i, method) in [
        "{ name = \"sdlora\", rank = 2, variant = \"reference\" }",
        "{ name = \"l2p\" }",
    ]
    .into_iter()
    .enumerate()
    {
        let home = Home {
            folder: tempfile::tempdir().unwrap(),
            method,
        };
        let start = Instant::now();
        let status = wait(&mut home.start("calm", false), LONGEST);
        assert!(status.is_some_and(|s| s.success()), "{}", home.told("calm"));
        let longest = start.elapsed();
        let expected = result(&home.run("calm"));

        let mut rng = SplitMix64::new(i as u64);
        let share = (i + 1) * n_kills / 2 - i * n_kills / 2;
        let mut n_left = share;
        while n_left > 0 {
            let name = format!("run{n_finished}");
            let mut moments = Vec::new();
            loop {
                // Once it has a plan it is continued; before, it never began.
                let is_resumed = home.run(&name).join("plan.toml").is_file();
                let mut child = home.start(&name, is_resumed);
                let after = longest.mul_f32(rng.uniform());
                let is_killed = n_left > 0 && wait(&mut child, after).is_none();
                if is_killed {
                    let is_term = rng.uniform() < 0.5;
                    moments.push((after, if is_term { "TERM" } else { "KILL" }));
                    n_by_signal[usize::from(is_term)] += 1;
                    (n_left, n_done) = (n_left - 1, n_done + 1);
                    if is_term {
                        let id = child.id().to_string();
                        Command::new("kill").args(["-TERM", &id]).status().unwrap();
                    } else {
                        child.kill().unwrap();
                    }
                }
                let status = wait(&mut child, LONGEST);
                let kept = || {
                    let _ = kept_folder(&home);
                    format!("{method}, {name}, killed {moments:?}: {}", home.told(&name))
                };
                let Some(status) = status else {
                    let message = kept();
                    panic!("hangs: {message}");
                };
                assert!(!home.told(&name).contains("panicked"), "{}", kept());
                if status.success() {
                    break;
                }
                assert!(is_killed, "a run that was killed cannot go on: {}", kept());
            }
            let found = result(&home.run(&name));
            for (what, expected) in &expected {
                assert!(
                    found.get(what) == Some(expected),
                    "{what} differs: {method}, {name}, killed {moments:?}; kept in {}",
                    kept_folder(&home).display()
                );
            }
            fs::remove_dir_all(home.run(&name)).unwrap();
            n_finished += 1;
        }
    }
    eprintln!(
        "{n_done} kills (KILL and TERM: {n_by_signal:?}) over {n_finished} runs, every model as undisturbed"
    );
    assert_eq!(n_done, n_kills);
}

/// A copy of everything, for who looks for the reason.
fn kept_folder(home: &Home) -> PathBuf {
    let kept = std::env::temp_dir().join(format!("sdlora-kills-{}", std::process::id()));
    let _ = Command::new("cp")
        .arg("-r")
        .arg(home.folder.path())
        .arg(&kept)
        .status();
    kept
}
