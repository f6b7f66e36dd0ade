//! `cargo xtask`: starts the project's processes.
//!
//! Links neither burn nor a crate of the workspace, so it builds in seconds. Exit codes are those of
//! the process it started: 0 done, 1 failed, 2 wrong command or settings.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr)]

mod api;
#[cfg(test)]
mod architecture;
mod bench;
mod browse;
mod check;
#[cfg(test)]
mod circles;
mod cuda;
#[cfg(test)]
mod documents;
mod golden;
mod gpu_check;
mod interop;
mod package;
mod process;
mod schema;
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
    /// Run any command of `sdlora`, built for the device that it names
    Sdlora(sdlora::Args),
    Api(api::Args),
    Bench(bench::Args),
    Browse(browse::Args),
    Check(check::Args),
    Golden(golden::Args),
    GpuCheck(gpu_check::Args),
    Interop(interop::Args),
    Package(package::Args),
    Schema(schema::Args),
    Torture(torture::Args),
    // The names by which older pages call commands of `sdlora`.
    #[command(hide = true)]
    Pretrain(sdlora::Args),
    #[command(hide = true)]
    Compare(sdlora::Args),
    #[command(hide = true)]
    Predict(sdlora::Args),
    #[command(hide = true)]
    Inspect(sdlora::Args),
    #[command(hide = true)]
    Presets(sdlora::Args),
    #[command(hide = true)]
    Data(sdlora::Args),
    #[command(hide = true)]
    Export(sdlora::Args),
    #[command(hide = true)]
    Features(sdlora::Args),
    #[command(hide = true)]
    Analyse(sdlora::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Train(args) => sdlora::run(Some("train"), &args),
        Command::Sdlora(args) => sdlora::run(None, &args),
        Command::Api(args) => api::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Browse(args) => browse::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Golden(args) => golden::run(&args),
        Command::GpuCheck(args) => gpu_check::run(&args),
        Command::Interop(args) => interop::run(&args),
        Command::Package(args) => package::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Torture(args) => torture::run(&args),
        Command::Pretrain(args) => sdlora::run(Some("pretrain"), &args),
        Command::Compare(args) => sdlora::run(Some("compare"), &args),
        Command::Predict(args) => sdlora::run(Some("predict"), &args),
        Command::Inspect(args) => sdlora::run(Some("inspect"), &args),
        Command::Presets(args) => sdlora::run(Some("presets"), &args),
        Command::Data(args) => sdlora::run(Some("data"), &args),
        Command::Export(args) => sdlora::run(Some("export"), &args),
        Command::Features(args) => sdlora::run(Some("features"), &args),
        Command::Analyse(args) => sdlora::run(Some("analyse"), &args),
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
            "train",
            "sdlora",
            "api",
            "bench",
            "browse",
            "check",
            "golden",
            "gpu-check",
            "interop",
            "package",
            "schema",
            "torture",
        ] {
            assert!(
                help.contains(&format!("\n  {name} ")),
                "{name} is not in\n{help}"
            );
        }
        assert!(!help.contains("\n  compare "), "{help}");
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
