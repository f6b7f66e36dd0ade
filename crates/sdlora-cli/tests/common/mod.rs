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
