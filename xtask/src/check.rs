//! `cargo xtask check`: what CI runs, cheapest first; it stops at the first step that fails.

use std::process::{Command, ExitCode, Stdio};

use crate::process;

/// Run the checks: format, spelling, arrows, licences, clippy, rustdoc, tests with doctests
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave out the tests of the crates
    #[arg(long)]
    fast: bool,
    /// Pass over a step whose cargo component is not installed
    #[arg(long)]
    skip_missing: bool,
}

/// One step: what it is, its program and arguments, its environment, whether `--fast` runs it.
struct Step {
    name: &'static str,
    program: Program,
    args: &'static [&'static str],
    env: Option<(&'static str, &'static str)>,
    fast: bool,
}

/// What runs a step.
#[derive(Clone, Copy)]
enum Program {
    /// Cargo and the components of Rust.
    Cargo,
    /// A tool that is not part of Rust: how to ask whether it is there, and how to get it. Without it the step is
    /// left out.
    Tool {
        probe: &'static [&'static str],
        install: &'static str,
    },
}

const STEPS: &[Step] = &[
    Step {
        name: "format",
        program: Program::Cargo,
        args: &["fmt", "--all", "--check"],
        env: None,
        fast: true,
    },
    Step {
        name: "spelling",
        program: Program::Tool {
            probe: &["typos", "--version"],
            install: "cargo install --locked typos-cli",
        },
        args: &["typos"],
        env: None,
        fast: true,
    },
    // Part of the tests below as well; here because it takes seconds.
    Step {
        name: "arrows, documents, public items and packages",
        program: Program::Cargo,
        args: &["test", "--quiet", "-p", "xtask"],
        env: None,
        fast: true,
    },
    Step {
        name: "licences and advisories",
        program: Program::Tool {
            probe: &["cargo", "deny", "--version"],
            install: "cargo install --locked cargo-deny",
        },
        args: &["cargo", "deny", "check"],
        env: None,
        fast: true,
    },
    Step {
        name: "clippy",
        program: Program::Cargo,
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
        program: Program::Cargo,
        args: &["doc", "--workspace", "--no-deps"],
        env: Some(("RUSTDOCFLAGS", "-D warnings")),
        fast: true,
    },
    Step {
        name: "tests and doctests",
        program: Program::Cargo,
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
        let line = step.args.join(" ");
        let mut command = match step.program {
            Program::Cargo => {
                let subcommand = step.args[0];
                if args.skip_missing
                    && COMPONENTS.contains(&subcommand)
                    && !is_installed(subcommand)
                {
                    eprintln!(
                        "== {}: SKIPPED, `cargo {subcommand}` is not installed",
                        step.name
                    );
                    continue;
                }
                eprintln!("== {}: cargo {line}", step.name);
                process::cargo(step.args.iter().copied())
            }
            Program::Tool { probe, install } => {
                if !answers(&mut tool(probe)) {
                    eprintln!("== {}: SKIPPED, get it with `{install}`", step.name);
                    continue;
                }
                eprintln!("== {}: {line}", step.name);
                tool(step.args)
            }
        };
        let code = process::run(command.envs(step.env))?;
        if code != ExitCode::SUCCESS {
            eprintln!("== {}: FAILED", step.name);
            return Ok(ExitCode::FAILURE);
        }
    }
    eprintln!("== all steps passed");
    Ok(ExitCode::SUCCESS)
}

/// A program by its name, in the workspace root.
fn tool(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(process::root());
    command
}

fn answers(probe: &mut Command) -> bool {
    let status = probe.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn is_installed(subcommand: &str) -> bool {
    answers(&mut process::cargo([subcommand, "--version"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_nobody_has_is_not_installed() {
        assert!(!is_installed("no-such-component-of-sdlora"));
        assert!(!answers(&mut tool(&[
            "no-such-tool-of-sdlora",
            "--version"
        ])));
    }

    #[test]
    fn warnings_are_denied_in_clippy_and_rustdoc() {
        let step = |name| STEPS.iter().find(|step| step.name == name).unwrap();
        assert!(step("clippy").args.ends_with(&["-D", "warnings"]));
        assert_eq!(step("rustdoc").env, Some(("RUSTDOCFLAGS", "-D warnings")));
    }
}
