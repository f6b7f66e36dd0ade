//! `cargo xtask bench`: the benchmarks, and the comparison with PyTorch.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::process;
use crate::sdlora::DEVICES;

mod against;
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

/// Settings of `--against`
#[derive(Debug, clap::Args)]
pub struct Comparison {
    /// Python with the packages of requirements-bench.txt; made under target/bench when absent
    #[arg(long, requires = "against")]
    python: Option<PathBuf>,
    /// Threads of either side
    #[arg(long, default_value_t = 2, requires = "against")]
    threads: usize,
    /// Rounds of one step of every program each
    #[arg(long, default_value_t = 5, requires = "against")]
    rounds: usize,
    /// Models, all when absent: small, vit-ti, vit-b
    #[arg(long, value_delimiter = ',', requires = "against")]
    models: Vec<String>,
    /// Numbers of past tasks
    #[arg(long, value_delimiter = ',', default_values_t = [0, 20], requires = "against")]
    past: Vec<usize>,
    /// Images of a step instead of 32 (small), 16 (vit-ti) and 8 (vit-b); each number gives rows of its own
    #[arg(long, value_delimiter = ',', requires = "against")]
    batch: Vec<usize>,
    /// Backend of ours, built into the benchmark: flex, ndarray, cpu, wgpu or cuda. PyTorch computes on the
    /// GPU beside the last two, and needs a `--python` whose torch can
    #[arg(long, default_value = "flex", value_parser = DEVICES, requires = "against")]
    device: String,
    /// Number type of frozen weights and activations on either side
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16", "f16"], requires = "against")]
    precision: String,
    /// Compare with PyTorch through torch.compile too
    #[arg(long, requires = "against")]
    compiled: bool,
    /// What a ratio compares: seconds by the clock, or of the processor where others use the
    /// machine too, best with one thread
    #[arg(long, value_enum, default_value = "wall", requires = "against")]
    clock: Clock,
    /// Renew the table of docs/performance.md, which is one of `flex` in f32
    #[arg(long, requires = "against", conflicts_with_all = ["batch", "device", "precision", "compiled"])]
    write: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Clock {
    Wall,
    Processor,
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
