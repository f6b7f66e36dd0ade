//! `cargo xtask bench`: the benchmarks, and the comparison with PyTorch.

use std::ffi::OsString;
use std::process::ExitCode;

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
    // Only bench targets: the test harness of a library refuses the options of a benchmark.
    let mut cargo = process::cargo(["bench", "--workspace", "--bench", &args.bench, "--"]);
    process::run(cargo.args(&args.args))
}
