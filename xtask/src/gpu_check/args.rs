//! What the command can be told.

use std::path::PathBuf;

use crate::sdlora::DEVICES;

/// Check and measure a GPU: pack what it takes on one machine, run it on another
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Build everything into this folder, as archives with a script `run.sh`
    #[arg(long, value_name = "FOLDER", conflicts_with = "run")]
    pub(super) pack: Option<PathBuf>,
    /// Measure with the programs in `--folder`; continues where an earlier run was cut off
    #[arg(long)]
    pub(super) run: bool,
    /// Folder that was packed, unpacked; results are written into it
    #[arg(long, default_value = ".", requires = "run")]
    pub(super) folder: PathBuf,
    /// Checkout with the data and golden files that `--lean` left out; the folder itself when absent
    #[arg(long, requires = "run")]
    pub(super) checkout: Option<PathBuf>,
    /// Backends, the first of them the one that is measured with every variant
    #[arg(long, default_value = "cuda,wgpu", value_parser = DEVICES, value_delimiter = ',')]
    pub(super) device: Vec<String>,
    /// How burn is built, one set of programs each; with `cuda` only, any but `plain`
    #[arg(
        long,
        value_enum,
        default_value = "plain,autotune,fusion,both",
        value_delimiter = ','
    )]
    pub(super) variant: Vec<Variant>,
    /// Leave out what a checkout of the same commit has: data sets, golden files and Python programs
    #[arg(long, requires = "pack")]
    pub(super) lean: bool,
    /// Profile of cargo that the programs are built with
    #[arg(long, default_value = "gpu", requires = "pack")]
    pub(super) profile: String,
    /// A tiny model and matrices of 256 rows: to try every line of this command where there is no GPU
    #[arg(long, requires = "run")]
    pub(super) small: bool,
    /// Minutes that all parts together may take
    #[arg(long, default_value_t = 9.5, requires = "run")]
    pub(super) minutes: f64,
    /// Python whose torch is compared with, where it can be imported
    #[arg(long, default_value = "python3", requires = "run")]
    pub(super) python: PathBuf,
}

/// How burn runs kernels: chosen by measuring (autotune), elementwise ones joined (fusion).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Variant {
    Plain,
    Autotune,
    Fusion,
    Both,
}

impl Variant {
    /// Its folder in the pack, and its name in results.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Autotune => "autotune",
            Self::Fusion => "fusion",
            Self::Both => "both",
        }
    }

    /// Features of the second workspace, see [`crate::cuda`].
    pub(super) fn features(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Autotune => &["sdlora-nvrtc/autotune"],
            Self::Fusion => &["sdlora-nvrtc/fusion"],
            Self::Both => &["sdlora-nvrtc/autotune", "sdlora-nvrtc/fusion"],
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// The arguments of a line.
    pub(in crate::gpu_check) fn args(line: &str) -> Args {
        Line::parse_from(format!("gpu-check {line}").split_whitespace()).args
    }

    #[test]
    fn the_defaults_are_what_a_gpu_is_measured_with() {
        let args = args("--pack there");
        assert_eq!(args.device, ["cuda", "wgpu"]);
        let names: Vec<_> = args.variant.iter().map(|v| v.name()).collect();
        assert_eq!(names, ["plain", "autotune", "fusion", "both"]);
        assert!(args.minutes < 10.0);
    }
}
