//! `cargo xtask golden`: the tests against values computed outside this workspace.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;

use crate::sdlora::DEVICES;
use crate::software_vulkan::SoftwareVulkan;
use crate::{cuda, process};

/// Backends whose work is code that cargo builds, so that it must be optimised.
const ON_THE_HOST: [&str; 2] = ["flex", "ndarray"];

/// Compare with the golden files, those of `sdlora-testkit` or of another folder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of golden files; the variable SDLORA_GOLDEN does the same
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Backend to compute on, built into the tests: flex, ndarray, cpu, wgpu or cuda
    #[arg(long, default_value = "flex", value_parser = DEVICES)]
    device: String,
    /// With `--device wgpu`: compute on the processor, with a Vulkan driver that is fetched where it is missing
    #[arg(long)]
    software: bool,
    /// Passed to the tests, for instance `--nocapture` or part of a test's name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Runs the command.
///
/// # Errors
///
/// When the folder does not exist, `--software` is given for another backend than `wgpu` or its driver
/// cannot be had, or cargo cannot be started.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.software && args.device != "wgpu" {
        bail!(
            "`--software` is a driver for wgpu, not for {}: add `--device wgpu` or leave it out",
            args.device
        );
    }
    // By convention every such test is an integration test whose name starts with `golden`.
    let mut cargo = process::cargo(["test", "--workspace", "--test", "golden*"]);
    if args.device != "flex" {
        cargo.args(["--features", &format!("sdlora-testkit/{}", args.device)]);
    }
    if !ON_THE_HOST.contains(&args.device.as_str()) {
        cargo.args(["--profile", "quick"]);
    }
    if args.device == "cuda" {
        cuda::build_there(&mut cargo)?;
    }
    cargo.env("SDLORA_TEST_DEVICE", &args.device).arg("--");
    if args.software {
        SoftwareVulkan::find_or_fetch()?.give_to(&mut cargo);
    }
    if let Some(dir) = &args.dir {
        let dir = process::root().join(dir);
        if !dir.is_dir() {
            bail!(
                "{} is no folder: give one with golden files to --dir",
                dir.display()
            );
        }
        cargo.env("SDLORA_GOLDEN", dir);
    }
    process::run(cargo.args(&args.args))
}
