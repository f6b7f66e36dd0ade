//! `cargo xtask`: starts the project's processes.
//!
//! Links neither burn nor a crate of the workspace, so it builds in seconds. Exit codes are those of
//! the process it started: 0 done, 1 failed, 2 wrong command or settings.
#![allow(clippy::print_stderr)]

mod api;
#[cfg(test)]
mod architecture;
mod bench;
mod check;
#[cfg(test)]
mod circles;
mod cuda;
#[cfg(test)]
mod documents;
mod golden;
mod interop;
mod process;
mod sdlora;
mod software_vulkan;
mod torture;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Commands of the sdlora workspace; every one runs in the workspace root.
///
/// Paths in arguments start at the workspace root.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Learn a stream of tasks one after another; without arguments the main job
    Train(sdlora::Args),
    /// Make the backbone from its recipe
    Pretrain(sdlora::Args),
    /// Compare methods on one stream over several seeds, as one table
    Compare(sdlora::Args),
    /// Name the class of images with a finished run
    Predict(sdlora::Args),
    /// Show what a checkpoint, a model of the Hub or a run is
    Inspect(sdlora::Args),
    /// List the configurations inside the binary, or print one
    Presets(sdlora::Args),
    /// List data sets, verify their files, or show what is in one
    Data(sdlora::Args),
    Bench(bench::Args),
    /// Write the model of a run for timm, Hugging Face or peft
    Export(sdlora::Args),
    /// Write features of images
    Features(sdlora::Args),
    /// Check what the paper says of its method in a run, with pictures and tables
    Analyse(sdlora::Args),
    Api(api::Args),
    Golden(golden::Args),
    Interop(interop::Args),
    Check(check::Args),
    Torture(torture::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Train(args) => sdlora::run("train", &args),
        Command::Pretrain(args) => sdlora::run("pretrain", &args),
        Command::Compare(args) => sdlora::run("compare", &args),
        Command::Predict(args) => sdlora::run("predict", &args),
        Command::Inspect(args) => sdlora::run("inspect", &args),
        Command::Presets(args) => sdlora::run("presets", &args),
        Command::Data(args) => sdlora::run("data", &args),
        Command::Export(args) => sdlora::run("export", &args),
        Command::Features(args) => sdlora::run("features", &args),
        Command::Analyse(args) => sdlora::run("analyse", &args),
        Command::Bench(args) => bench::run(&args),
        Command::Api(args) => api::run(&args),
        Command::Golden(args) => golden::run(&args),
        Command::Interop(args) => interop::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Torture(args) => torture::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_commands_are_well_formed_and_listed_in_the_help() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        let help = command.render_long_help().to_string();
        for name in [
            "train", "pretrain", "compare", "predict", "inspect", "presets", "data", "export",
            "features", "analyse", "bench", "golden", "interop", "check", "torture",
        ] {
            assert!(
                help.contains(&format!("\n  {name} ")),
                "{name} is not in\n{help}"
            );
        }
    }

    #[test]
    fn options_of_the_started_program_pass_through_untouched() {
        let cli =
            Cli::try_parse_from(["xtask", "train", "--help", "--set", "a=1", "--device=wgpu"]);
        match cli.unwrap().command {
            Command::Train(args) => {
                assert_eq!(args.args, ["--help", "--set", "a=1", "--device=wgpu"]);
            }
            other => panic!("{other:?}"),
        }
    }
}
