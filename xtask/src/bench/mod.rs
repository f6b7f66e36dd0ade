//! `cargo xtask bench`: the benchmarks.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::process;

/// Run the benchmarks, all of them or one by name
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of one benchmark, for instance `fused` or `past_tasks`; all when absent
    #[arg(long, default_value = "*")]
    bench: String,
    /// Passed to the benchmark, for instance the name of one measurement
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Runs the command.
///
/// # Errors
///
/// When cargo cannot be started.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Only bench targets: the test harness of a library refuses the options of a benchmark.
    let mut cargo = process::cargo(["bench", "--workspace", "--bench", &args.bench, "--"]);
    process::run(cargo.args(&args.args))
}
