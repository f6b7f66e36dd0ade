#![allow(dead_code, reason = "each test file uses a part")]
//! The program as a user starts it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The data sets of the repository.
pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets")
}

/// Runs `sdlora` in `home`, without network and with the cache of the Hub below it.
pub fn sdlora(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sdlora"))
        .args(args)
        .current_dir(home)
        .env("HF_HOME", home)
        .env("HF_HUB_OFFLINE", "1")
        .env_remove("HF_HUB_CACHE")
        .env_remove("HUGGINGFACE_HUB_CACHE")
        .output()
        .unwrap()
}

/// What a run that succeeds prints.
pub fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", err(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a run prints beside its results.
pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Arguments of a run of seconds, called `name`: two tasks of a few characters.
pub fn toy_run(home: &Path, name: &str) -> Vec<String> {
    let data = data();
    let mut args: Vec<String> = ["train", "--name", name, "--data-dir"]
        .map(str::to_owned)
        .into();
    args.push(data.to_str().unwrap().to_owned());
    args.push("--runs".into());
    args.push(home.join("runs").to_str().unwrap().to_owned());
    for set in [
        "n_epochs=1",
        "stream.n_tasks=2",
        "stream.split={ increment = { init_cls = 3, increment = 3 } }",
    ] {
        args.extend(["--set".to_owned(), set.to_owned()]);
    }
    args
}
