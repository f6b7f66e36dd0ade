//! What a comparison with another framework can be told.

use std::path::PathBuf;

use crate::sdlora::DEVICES;

/// Settings of `--against`
#[derive(Debug, clap::Args)]
pub(super) struct Comparison {
    /// Python with the packages of requirements-bench.txt; made under target/bench when absent
    #[arg(long, requires = "against")]
    pub(super) python: Option<PathBuf>,
    /// Threads of either side
    #[arg(long, default_value_t = 2, requires = "against")]
    pub(super) threads: usize,
    /// Rounds of one step of every program each
    #[arg(long, default_value_t = 5, requires = "against")]
    pub(super) rounds: usize,
    /// Models, all when absent: small, vit-ti, vit-b
    #[arg(long, value_delimiter = ',', requires = "against")]
    pub(super) models: Vec<String>,
    /// Numbers of past tasks
    #[arg(long, value_delimiter = ',', default_values_t = [0, 20], requires = "against")]
    pub(super) past: Vec<usize>,
    /// Images of a step instead of 32 (small), 16 (vit-ti) and 8 (vit-b); each number gives rows of its own
    #[arg(long, value_delimiter = ',', requires = "against")]
    pub(super) batch: Vec<usize>,
    /// Backend of ours, built into the benchmark: flex, ndarray, cpu, wgpu or cuda. PyTorch computes on the
    /// GPU beside the last two, and needs a `--python` whose torch can
    #[arg(long, default_value = "flex", value_parser = DEVICES, requires = "against")]
    pub(super) device: String,
    /// Number type of frozen weights and activations on either side
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16", "f16"], requires = "against")]
    pub(super) precision: String,
    /// Compare with PyTorch through torch.compile too
    #[arg(long, requires = "against")]
    pub(super) compiled: bool,
    /// What a ratio compares: seconds by the clock, or of the processor where others use the
    /// machine too, best with one thread
    #[arg(long, value_enum, default_value = "wall", requires = "against")]
    pub(super) clock: Clock,
    /// Renew the table of docs/performance.md, which is one of `flex` in f32
    #[arg(long, requires = "against", conflicts_with_all = ["batch", "device", "precision", "compiled"])]
    pub(super) write: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Clock {
    Wall,
    Processor,
}
