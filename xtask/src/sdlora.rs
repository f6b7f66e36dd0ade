//! The commands of the program `sdlora`, built for the device they name.
//!
//! Without a device the program is the one that `cargo test --workspace` builds, so that a newcomer builds every
//! dependency once for both commands. A driver's backend is built in release mode.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use crate::{cuda, process};

/// Devices that are features of `sdlora-cli`; `flex` is always compiled in.
pub const DEVICES: [&str; 5] = ["flex", "ndarray", "cpu", "wgpu", "cuda"];

/// Arguments of `sdlora`, passed on as they are.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Passed to `sdlora`; `--help` lists them, `--device` also chooses the backend to build
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// Builds and runs `sdlora <command> <args>`; without a command, the arguments start with one.
///
/// # Errors
///
/// When cargo cannot be started.
pub fn run(command: Option<&str>, args: &Args) -> anyhow::Result<ExitCode> {
    if !backends_of(&args.args).contains(&"cuda") {
        let is_built = is_built();
        if !is_built {
            eprintln!("building sdlora and what it needs, which takes some minutes the first time");
        }
        let args = cargo_args(command, &args.args, is_built);
        return process::run(&mut process::cargo(args));
    }
    let mut build = process::cargo(cuda_build_args(&args.args));
    cuda::build_there(&mut build)?;
    let code = process::run(&mut build)?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    let program = cuda::target_dir()
        .join("release")
        .join(format!("sdlora{}", std::env::consts::EXE_SUFFIX));
    let mut sdlora = Command::new(program);
    process::run(sdlora.args(command).args(&args.args))
}

/// Whether the program was built before, so that another build is short and cargo need not say how far it is.
fn is_built() -> bool {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let name = format!("sdlora{}", std::env::consts::EXE_SUFFIX);
    let debug = process::root().join(target).join("debug");
    debug.join(name).is_file()
}

/// How `sdlora` is built with CUDA; the second package brings the feature for NVRTC.
fn cuda_build_args(args: &[OsString]) -> Vec<OsString> {
    let features: Vec<String> = ["flex"]
        .into_iter()
        .chain(backends_of(args))
        .map(|backend| format!("sdlora-cli/{backend}"))
        .collect();
    [
        "build",
        "--quiet",
        "--release",
        "-p",
        "sdlora-cli",
        "-p",
        "sdlora-nvrtc",
        "--no-default-features",
        "--features",
        &features.join(","),
    ]
    .map(Into::into)
    .into()
}

fn cargo_args(command: Option<&str>, args: &[OsString], is_quiet: bool) -> Vec<OsString> {
    let backends = backends_of(args);
    let features = format!("flex,{}", backends.join(","));
    // Without a package, cargo resolves the features of the whole workspace, as the tests do.
    let build: &[&str] = match backends.is_empty() {
        true => &["run", "--bin", "sdlora"],
        false => &[
            "run",
            "--release",
            "-p",
            "sdlora-cli",
            "--no-default-features",
            "--features",
            &features,
        ],
    };
    let mut all: Vec<OsString> = build.iter().map(Into::into).collect();
    if is_quiet {
        all.push("--quiet".into());
    }
    all.push("--".into());
    all.extend(command.map(Into::into));
    all.extend(args.iter().cloned());
    all
}

/// The backends of the devices the arguments name, as far as they are features beside `flex`. A name
/// that is no feature is left to `sdlora`, whose message lists what there is.
fn backends_of(args: &[OsString]) -> Vec<&'static str> {
    let mut args = args.iter().map(|arg| arg.to_string_lossy());
    let mut named: Vec<String> = Vec::new();
    while let Some(arg) = args.next() {
        if arg == "--" {
            break;
        }
        for option in ["--device", "--devices"] {
            match arg.strip_prefix(option) {
                Some("") => named.extend(args.next().map(|names| names.into_owned())),
                Some(rest) => named.extend(rest.strip_prefix('=').map(str::to_owned)),
                None => {}
            }
        }
    }
    let names: Vec<&str> = named
        .iter()
        .flat_map(|names| names.split(','))
        .map(|name| name.split(':').next().unwrap_or(name))
        .collect();
    let is_named = |backend: &&str| *backend != "flex" && names.contains(backend);
    DEVICES.into_iter().filter(is_named).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn line(command: &str, args: &[&str]) -> String {
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        let all = cargo_args(Some(command), &args, false);
        all.iter()
            .map(|arg| arg.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_main_job_needs_no_argument_and_no_feature() {
        assert_eq!(line("train", &[]), "run --bin sdlora -- train");
        let flex = line("train", &["--device", "flex"]);
        assert_eq!(flex, "run --bin sdlora -- train --device flex");
    }

    #[test]
    fn a_device_becomes_a_feature_beside_flex() {
        for args in [&["--device", "wgpu"][..], &["--quiet", "--device=wgpu"]] {
            let line = line("compare", args);
            assert!(
                line.contains("--no-default-features --features flex,wgpu -- compare"),
                "{line}"
            );
            assert!(line.ends_with(&args.join(" ")), "{line}");
        }
    }

    #[test]
    fn numbers_and_lists_of_devices_name_their_backends_once() {
        let backends = |args: &[&str]| {
            let args: Vec<OsString> = args.iter().map(Into::into).collect();
            backends_of(&args)
        };
        for args in [
            &["--device", "cuda:1"][..],
            &["--devices", "cuda:0,cuda:1"],
            &["--devices=cuda:0,flex"],
        ] {
            assert_eq!(backends(args), ["cuda"], "{args:?}");
        }
        assert_eq!(backends(&["--devices", "wgpu:0,cuda"]), ["wgpu", "cuda"]);
        assert!(backends(&["--device", "flex"]).is_empty());
        let args = ["--device", "cuda"].map(OsString::from);
        let build = cuda_build_args(&args).join(OsStr::new(" "));
        let build = build.to_string_lossy();
        assert!(
            build.ends_with("--features sdlora-cli/flex,sdlora-cli/cuda"),
            "{build}"
        );
    }

    #[test]
    fn unknown_devices_and_look_alikes_are_left_to_the_program() {
        for args in [
            &["--device", "tpu"][..],
            &["--device"],
            &["--device-list=wgpu"],
            &["--", "--device=wgpu"],
        ] {
            assert!(!line("train", args).contains("--features"), "{args:?}");
        }
    }

    #[test]
    fn devices_are_the_features_of_the_program() {
        let metadata = crate::architecture::metadata();
        let cli = metadata.package("sdlora-cli");
        let features = cli["features"].as_object().unwrap();
        let mut declared: Vec<_> = features
            .keys()
            .map(String::as_str)
            .filter(|&f| f != "default")
            .collect();
        let mut known = DEVICES.to_vec();
        declared.sort_unstable();
        known.sort_unstable();
        assert_eq!(declared, known);
    }
}
