//! Cargo as a child process in the workspace root.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;

/// The workspace root: the folder above this crate, also when the checkout was moved after xtask
/// was built.
pub fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
    let here = Path::new(&here);
    here.parent().unwrap_or(here).to_path_buf()
}

/// Cargo with these arguments, run in the workspace root.
pub fn cargo<I, S>(args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: Into<OsString>,
{
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command
        .args(args.into_iter().map(Into::into))
        .current_dir(root());
    command
}

/// Runs the command to its end and passes its exit code on; 1 when a signal ended it.
///
/// # Errors
///
/// When the program cannot be started.
pub fn run(command: &mut Command) -> anyhow::Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}; is cargo installed?"))?;
    let code = status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// A page with another table between its marks; `None` when it has lost one of them.
pub fn with_table(page: &str, table: &str, begin: &str, end: &str) -> Option<String> {
    let (before, rest) = page.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}{table}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("Cargo.lock").is_file() && root().join("crates").is_dir());
    }

    #[cfg(unix)]
    #[test]
    fn exit_codes_pass_through_and_a_signal_is_a_failure() {
        for (script, expected) in [
            ("exit 0", 0),
            ("exit 2", 2),
            ("exit 101", 101),
            ("kill -9 $$", 1),
        ] {
            let code = run(Command::new("sh").args(["-c", script])).unwrap();
            assert_eq!(code, ExitCode::from(expected), "{script}");
        }
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        let error = run(&mut Command::new("no-such-program-of-sdlora")).unwrap_err();
        assert!(
            error.to_string().contains("no-such-program-of-sdlora"),
            "{error}"
        );
    }
}
