//! `cargo xtask torture`: what attacked the program, again and for longer.
//!
//! The same tests run in CI with small numbers. Here they get theirs from the command line, through the
//! environment, and print how much they did.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use crate::process;

/// Kill runs at random moments and damage every file that is read
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kills of running runs; 0 leaves them out
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Damaged forms of every file
    #[arg(long, default_value_t = NonZeroUsize::new(10_000).unwrap_or(NonZeroUsize::MIN))]
    mutations: NonZeroUsize,
    /// Only these: kills, weights, vit, image, data, train, cli
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Build without optimisation, which the tests of every day do as well
    #[arg(long)]
    dev: bool,
}

/// One attack: its name, and the arguments of `cargo test`.
const ATTACKS: &[(&str, &[&str])] = &[
    ("kills", &["-p", "sdlora-cli", "--test", "kills"]),
    ("weights", &["-p", "sdlora-weights", "--test", "mutations"]),
    ("vit", &["-p", "sdlora-vit", "--test", "mutations"]),
    ("image", &["-p", "sdlora-image", "--test", "mutations"]),
    ("data", &["-p", "sdlora-data", "--test", "mutations"]),
    ("train", &["-p", "sdlora-train", "--test", "mutations"]),
    (
        "cli",
        &["-p", "sdlora-cli", "--bin", "sdlora", "mutations::"],
    ),
];

/// Runs the command: all attacks, also after one that failed.
///
/// # Errors
///
/// When cargo cannot be started or an attack is not known.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(unknown) = args
        .only
        .iter()
        .find(|name| ATTACKS.iter().all(|(known, _)| known != name))
    {
        let known: Vec<_> = ATTACKS.iter().map(|(name, _)| *name).collect();
        anyhow::bail!(
            "there is no attack `{unknown}`: choose of {}",
            known.join(", ")
        );
    }
    let mut failed = Vec::new();
    for (name, words) in ATTACKS {
        let is_left_out = !args.only.is_empty() && !args.only.iter().any(|only| only == name);
        if is_left_out || (*name == "kills" && args.kills == 0) {
            continue;
        }
        eprintln!("== {name}");
        if process::run(&mut attack(args, words))? != ExitCode::SUCCESS {
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        eprintln!("== nothing lost, no panic, no hang");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("== FAILED: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn attack(args: &Args, words: &[&str]) -> std::process::Command {
    let mut cargo = process::cargo(["test"]);
    if !args.dev {
        cargo.arg("--release");
    }
    // The figures stand on standard error, which a test that passes would keep.
    cargo
        .args(words)
        .args(["--", "--nocapture"])
        .env("SDLORA_KILLS", args.kills.to_string())
        .env("SDLORA_MUTATIONS", args.mutations.to_string());
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attack_is_a_test_that_is_there() {
        for (name, words) in ATTACKS {
            let krate = words[1];
            let file = match words.iter().position(|word| *word == "--test") {
                Some(at) => format!("crates/{krate}/tests/{}.rs", words[at + 1]),
                None => format!("crates/{krate}/src/mutations.rs"),
            };
            let path = process::root().join(&file);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{file}: {e}"));
            let variable = match *name {
                "kills" => "SDLORA_KILLS",
                _ => "mutations::",
            };
            assert!(
                text.contains(variable),
                "{file} takes no number from outside"
            );
        }
    }

    #[test]
    fn the_numbers_reach_the_tests() {
        let args = Args {
            kills: 7,
            mutations: NonZeroUsize::MIN,
            only: Vec::new(),
            dev: true,
        };
        let command = attack(&args, ATTACKS[0].1);
        let found: Vec<_> = command.get_envs().collect();
        assert!(found.contains(&("SDLORA_KILLS".as_ref(), Some("7".as_ref()))));
        assert!(found.contains(&("SDLORA_MUTATIONS".as_ref(), Some("1".as_ref()))));
    }

    #[test]
    fn an_unknown_attack_is_refused() {
        let args = Args {
            kills: 1,
            mutations: NonZeroUsize::MIN,
            only: vec!["cosmic-rays".into()],
            dev: true,
        };
        let error = run(&args).unwrap_err().to_string();
        assert!(
            error.contains("cosmic-rays") && error.contains("weights"),
            "{error}"
        );
    }
}
