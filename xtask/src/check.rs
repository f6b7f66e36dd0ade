//! `cargo xtask check`: what CI runs, cheapest first; it stops at the first step that fails.

use std::process::{ExitCode, Stdio};

use crate::process;

/// Run the checks: format, arrows, clippy, rustdoc, tests with doctests
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave out the tests of the crates
    #[arg(long)]
    fast: bool,
    /// Pass over a step whose cargo component is not installed
    #[arg(long)]
    skip_missing: bool,
}

/// One step: what it is, its cargo command, its environment, whether `--fast` runs it.
struct Step {
    name: &'static str,
    args: &'static [&'static str],
    env: Option<(&'static str, &'static str)>,
    fast: bool,
}

const STEPS: &[Step] = &[
    Step {
        name: "format",
        args: &["fmt", "--all", "--check"],
        env: None,
        fast: true,
    },
    // Part of the tests below as well; here because it takes seconds.
    Step {
        name: "arrows and documents",
        args: &["test", "--quiet", "-p", "xtask"],
        env: None,
        fast: true,
    },
    Step {
        name: "clippy",
        args: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
        env: None,
        fast: true,
    },
    Step {
        name: "rustdoc",
        args: &["doc", "--workspace", "--no-deps"],
        env: Some(("RUSTDOCFLAGS", "-D warnings")),
        fast: true,
    },
    Step {
        name: "tests and doctests",
        args: &["test", "--workspace"],
        env: None,
        fast: false,
    },
];

/// Components of Rust that an installation may lack.
const COMPONENTS: [&str; 2] = ["fmt", "clippy"];

/// Runs the command.
///
/// # Errors
///
/// When cargo cannot be started.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    for step in STEPS.iter().filter(|step| step.fast || !args.fast) {
        let subcommand = step.args[0];
        if args.skip_missing && COMPONENTS.contains(&subcommand) && !is_installed(subcommand) {
            eprintln!(
                "== {}: SKIPPED, `cargo {subcommand}` is not installed",
                step.name
            );
            continue;
        }
        eprintln!("== {}: cargo {}", step.name, step.args.join(" "));
        let mut cargo = process::cargo(step.args.iter().copied());
        let code = process::run(cargo.envs(step.env))?;
        if code != ExitCode::SUCCESS {
            eprintln!("== {}: FAILED", step.name);
            return Ok(ExitCode::FAILURE);
        }
    }
    eprintln!("== all steps passed");
    Ok(ExitCode::SUCCESS)
}

fn is_installed(subcommand: &str) -> bool {
    let mut probe = process::cargo([subcommand, "--version"]);
    let status = probe.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_nobody_has_is_not_installed() {
        assert!(!is_installed("no-such-component-of-sdlora"));
    }

    #[test]
    fn warnings_are_denied_in_clippy_and_rustdoc() {
        let step = |name| STEPS.iter().find(|step| step.name == name).unwrap();
        assert!(step("clippy").args.ends_with(&["-D", "warnings"]));
        assert_eq!(step("rustdoc").env, Some(("RUSTDOCFLAGS", "-D warnings")));
    }
}
