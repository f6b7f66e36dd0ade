//! `cargo xtask interop`: round trips with timm, transformers and peft on small models.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use crate::process;

/// The Python programs.
const FOLDER: &str = "crates/sdlora-testkit/python";
/// The page that carries the table.
const PAGE: &str = "docs/interop.md";
const BEGIN: &str = "<!-- interop: begin -->\n";
const END: &str = "<!-- interop: end -->";

/// Compare features and logits with timm, transformers and peft, and renew docs/interop.md
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Python with the packages of requirements-interop.txt; made under target/interop when absent
    #[arg(long)]
    python: Option<PathBuf>,
    /// Build the program for debugging, which is quicker to build and slower to run
    #[arg(long)]
    dev: bool,
    /// Folder for golden files of the tests, replaced
    #[arg(long)]
    golden: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
///
/// When a program cannot be started or the page has no place for the table.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let root = process::root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let work = root.join(&target).join("interop");
    std::fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;

    // The test kit is built along so that burn has the features the tests build it with.
    let mut cargo = process::cargo(["build", "-p", "sdlora-cli", "-p", "sdlora-testkit"]);
    if !args.dev {
        cargo.arg("--release");
    }
    if process::run(&mut cargo)? != ExitCode::SUCCESS {
        return Ok(ExitCode::FAILURE);
    }
    let python = match &args.python {
        Some(python) => python.clone(),
        None => environment(&work, "requirements-interop.txt")?,
    };
    let profile = if args.dev { "debug" } else { "release" };
    let binary = format!("sdlora{}", std::env::consts::EXE_SUFFIX);
    let table = work.join("table.md");
    let mut interop = Command::new(python);
    interop
        .arg(root.join(FOLDER).join("interop.py"))
        .arg("--sdlora")
        .arg(root.join(&target).join(profile).join(binary))
        .arg("--data-dir")
        .arg(root.join("datasets"))
        .arg("--table")
        .arg(&table)
        .current_dir(&root);
    if let Some(golden) = &args.golden {
        interop.arg("--golden").arg(root.join(golden));
    }
    let code = process::run(&mut interop)?;
    if code == ExitCode::SUCCESS {
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let page = root.join(PAGE);
        let text = with_table(&read(&page)?, &read(&table)?)?;
        std::fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))?;
    }
    Ok(code)
}

/// A Python of its own with the pinned packages of a file beside the programs.
///
/// # Errors
///
/// When it cannot be made or a package cannot be installed.
pub(crate) fn environment(work: &Path, requirements: &str) -> anyhow::Result<PathBuf> {
    let venv = work.join("venv");
    let python = match cfg!(windows) {
        true => venv.join("Scripts").join("python.exe"),
        false => venv.join("bin").join("python"),
    };
    if !python.is_file() {
        let mut make = Command::new("python3");
        if process::run(make.args(["-m", "venv"]).arg(&venv))? != ExitCode::SUCCESS {
            bail!("python3 cannot make an environment: install its venv, or give --python");
        }
    }
    let requirements = process::root().join(FOLDER).join(requirements);
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "-r"]);
    if process::run(pip.arg(requirements))? != ExitCode::SUCCESS {
        bail!("the packages could not be installed: check the connection, or give --python");
    }
    Ok(python)
}

/// The page with another table between its marks.
fn with_table(page: &str, table: &str) -> anyhow::Result<String> {
    process::with_table(page, table, BEGIN, END)
        .with_context(|| format!("{PAGE} has lost the marks around its table"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_table_of_the_page_changes() {
        let page = format!("a\n{BEGIN}old\n{END}\nb\n");
        let text = with_table(&page, "new\n").unwrap();
        assert_eq!(text, format!("a\n{BEGIN}new\n{END}\nb\n"));
        assert!(with_table("no marks", "new\n").is_err());
    }

    #[test]
    fn the_page_has_a_place_for_the_table() {
        let page = std::fs::read_to_string(process::root().join(PAGE)).unwrap();
        with_table(&page, "").unwrap();
    }
}
