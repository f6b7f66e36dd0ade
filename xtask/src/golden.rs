//! `cargo xtask golden`: the tests against values computed outside this workspace.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;

use crate::sdlora::DEVICES;
use crate::software_vulkan::SoftwareVulkan;
use crate::{cuda, process};

/// Compare with the golden files, those of `sdlora-testkit` or of another folder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of golden files; the variable SDLORA_GOLDEN does the same
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Backends to compute on, one after another, all built into the tests: flex, ndarray, cpu, wgpu or cuda
    #[arg(long, default_value = "flex", value_parser = DEVICES, value_delimiter = ',')]
    device: Vec<String>,
    /// With `wgpu` among the devices: compute on the processor, with a Vulkan driver that is fetched if it is missing
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
/// When the folder does not exist, `--software` is given without `wgpu` or its driver
/// cannot be had, or cargo cannot be started.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let has = |name: &str| args.device.iter().any(|device| device == name);
    if args.software && !has("wgpu") {
        bail!(
            "`--software` is a driver for wgpu, not for {}: add `--device wgpu` or leave it out",
            args.device.join(", ")
        );
    }
    let golden = match &args.dir {
        None => None,
        Some(dir) => {
            let dir = process::root().join(dir);
            if !dir.is_dir() {
                bail!(
                    "{} is no folder: give one with golden files to --dir",
                    dir.display()
                );
            }
            Some(dir)
        }
    };
    let driver = match args.software {
        true => Some(SoftwareVulkan::find_or_fetch()?),
        false => None,
    };
    for device in &args.device {
        // By convention every such test is an integration test whose name starts with `golden`.
        let mut cargo = process::cargo(["test", "--workspace", "--test", "golden*"]);
        cargo.args(build_args(&args.device));
        if has("cuda") {
            cuda::build_there(&mut cargo)?;
        }
        cargo.env("SDLORA_TEST_DEVICE", device).arg("--");
        if let Some(driver) = driver.as_ref().filter(|_| device == "wgpu") {
            driver.give_to(&mut cargo);
        }
        if let Some(dir) = &golden {
            cargo.env("SDLORA_GOLDEN", dir);
        }
        let code = process::run(cargo.args(&args.args))?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How the tests are built with these backends: alike for each of them, so that cargo builds once.
fn build_args(devices: &[String]) -> Vec<String> {
    let features: Vec<String> = devices
        .iter()
        .filter(|device| *device != "flex")
        .map(|device| format!("sdlora-testkit/{device}"))
        .collect();
    let mut args = Vec::new();
    if !features.is_empty() {
        args.extend(["--features".to_owned(), features.join(",")]);
    }
    if !devices.iter().all(|device| device == "flex") {
        args.extend(["--profile", "quick"].map(str::to_owned));
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_backends_are_built_at_once() {
        let args = |devices: &[&str]| {
            let devices: Vec<_> = devices.iter().map(|&d| d.to_owned()).collect();
            build_args(&devices).join(" ")
        };
        assert_eq!(args(&["flex"]), "");
        assert_eq!(
            args(&["ndarray", "wgpu"]),
            "--features sdlora-testkit/ndarray,sdlora-testkit/wgpu --profile quick"
        );
        assert_eq!(
            args(&["flex", "cuda"]),
            "--features sdlora-testkit/cuda --profile quick"
        );
    }
}
