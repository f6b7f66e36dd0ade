//! `cargo xtask bench`: the benchmarks, and the comparison with PyTorch.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::process;
use comparison::Comparison;

mod against;
mod comparison;
mod rounds;

/// Run the benchmarks, all of them or one by name, or compare with another framework
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of one benchmark, for instance `fused` or `past_tasks`; all when absent
    #[arg(long, default_value = "*")]
    bench: String,
    /// Compare a training step and inference with this framework, in alternating rounds
    #[arg(long, value_enum, conflicts_with = "bench")]
    against: Option<Framework>,
    /// Compare images a second of `sdlora predict` with those of inference alone, on this folder of JPEG photographs
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["bench", "against"])]
    photographs: Option<PathBuf>,
    #[command(flatten)]
    comparison: Comparison,
    /// Passed to the benchmark, for instance the name of one measurement
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Framework {
    Pytorch,
}

/// Runs the command.
///
/// # Errors
///
/// When a program cannot be started or stops before it has answered.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.against.is_some() {
        return against::run(&args.comparison);
    }
    if let Some(folder) = &args.photographs {
        // Cargo starts a benchmark in the folder of its crate.
        let folder = std::fs::canonicalize(folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        let mut cargo = process::cargo(["bench", "-p", "sdlora-train", "--bench", "predict"]);
        return process::run(cargo.env("SDLORA_PHOTOGRAPHS", folder));
    }
    // Only bench targets: the test harness of a library refuses the options of a benchmark.
    let mut cargo = process::cargo(["bench", "--workspace", "--bench", &args.bench, "--"]);
    process::run(cargo.args(&args.args))
}
