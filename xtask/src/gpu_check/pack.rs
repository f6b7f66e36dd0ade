//! `--pack`: programs, data and a script in one folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use super::args::{Args, Variant};
use crate::{cuda, process};

/// What a checkout has, too, in the same places.
const SHARED: [&str; 3] = [
    "crates/sdlora-testkit/golden",
    "crates/sdlora-testkit/python",
    "datasets",
];
/// The programs of a variant; the last one runs the main job, and one variant of it is enough.
const PROGRAMS: [&str; 3] = ["step", "every_golden", "sdlora"];
/// Bytes that a service which runs single commands on a GPU may take at once, with the checkout.
const AT_ONCE: u64 = 64 << 20;

/// Builds, copies, compresses, and says the sizes.
///
/// # Errors
///
/// When a program cannot be built, a file cannot be copied, or there is no `tar` with `xz`.
pub(super) fn run(args: &Args, folder: &Path) -> anyhow::Result<ExitCode> {
    let has_cuda = args.device.iter().any(|device| device == "cuda");
    if !has_cuda
        && args
            .variant
            .iter()
            .any(|variant| *variant != Variant::Plain)
    {
        bail!(
            "only programs with `cuda` are built with autotune or fusion: pass `--variant plain`"
        );
    }
    let folder = process::root().join(folder);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut archives = Vec::new();
    for (idx, &variant) in args.variant.iter().enumerate() {
        let programs = build(args, variant, idx == 0)?;
        let inside = folder.join(variant.name());
        fresh(&inside)?;
        for program in &programs {
            let name = program_name(program).context("cargo named a program without a name")?;
            copy(program, &inside.join(name))?;
        }
        archives.push(archive(&folder, &[variant.name()], variant.name())?);
    }
    let mut inside = vec!["xtask"];
    let xtask = std::env::current_exe().context("cannot find this program")?;
    copy(&xtask, &folder.join("xtask"))?;
    // Smaller where the tool is there.
    let _ = Command::new("strip").arg(folder.join("xtask")).status();
    if !args.lean {
        for shared in SHARED {
            fresh(&folder.join(shared))?;
            copy_all(&process::root().join(shared), &folder.join(shared))?;
        }
        inside.extend(SHARED);
    }
    archives.insert(0, archive(&folder, &inside, "common")?);
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
    executable(&script)?;
    clear(&folder)?;
    eprint!("{}", sizes(&archives, tracked())?);
    Ok(ExitCode::SUCCESS)
}

/// Unpacks what lies beside it and runs it: `tar` where that knows `xz`, else Python.
const SCRIPT: &str = r#"#!/bin/sh
# Unpacks the archives beside this script and runs `cargo xtask gpu-check --run` of them; arguments are passed on.
# Results: results.jsonl, a line for each part, and gpu-check.md. Run again, it continues.
set -eu
cd "$(dirname "$0")"
for archive in *.tar.xz; do
    [ -e "$archive" ] || continue
    tar -xJf "$archive" 2>/dev/null || python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(".")' "$archive"
    rm -f "$archive"
done
exec ./xtask gpu-check --run --folder . "$@"
"#;

/// Builds the programs of a variant and finds where cargo put them.
fn build(args: &Args, variant: Variant, with_sdlora: bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut cargo = process::cargo(build_args(args, variant, with_sdlora));
    if args.device.iter().any(|device| device == "cuda") {
        cuda::build_there(&mut cargo)?;
    }
    eprintln!("building `{}`: {cargo:?}", variant.name());
    let output = cargo
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {cargo:?}; is cargo installed?"))?;
    if !output.status.success() {
        bail!(
            "the programs of `{}` could not be built, see above",
            variant.name()
        );
    }
    let found = executables(&String::from_utf8_lossy(&output.stdout));
    let n_expected = PROGRAMS.len() - usize::from(!with_sdlora);
    if found.len() < n_expected {
        bail!("cargo built {found:?} of {PROGRAMS:?}");
    }
    Ok(found)
}

fn build_args(args: &Args, variant: Variant, with_sdlora: bool) -> Vec<String> {
    let mut features: Vec<String> = Vec::new();
    for device in args.device.iter().filter(|device| *device != "flex") {
        features.extend(["sdlora-testkit", "sdlora-cli"].map(|name| format!("{name}/{device}")));
    }
    features.extend(
        variant
            .features()
            .iter()
            .map(|feature| (*feature).to_owned()),
    );
    // A test of the command line brings the program `sdlora` with the features of the tests.
    let sdlora = with_sdlora.then_some("--test usage");
    let line = [
        "test --no-run --workspace --bench step --test every_golden",
        sdlora.unwrap_or_default(),
        "--message-format=json-render-diagnostics --profile",
        &args.profile,
    ]
    .join(" ");
    let mut all: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    if !features.is_empty() {
        all.extend(["--features".to_owned(), features.join(",")]);
    }
    all
}

/// The programs in cargo's messages, one JSON object a line.
fn executables(messages: &str) -> Vec<PathBuf> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let is_ours = |message: &serde_json::Value| {
        let name = message["target"]["name"].as_str().unwrap_or_default();
        // The unit tests of the command line have its name.
        PROGRAMS.contains(&name) && (name != "sdlora" || message["profile"]["test"] == false)
    };
    messages
        .filter(is_ours)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

/// `step` of `step-0123456789abcdef`.
fn program_name(path: &Path) -> Option<&'static str> {
    let stem = path.file_stem()?.to_str()?;
    let is_of = |name: &&str| {
        let rest = stem.strip_prefix(*name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    PROGRAMS.into_iter().find(is_of)
}

/// Packs files of a folder into an archive in it, and returns its path.
fn archive(folder: &Path, inside: &[&str], name: &str) -> anyhow::Result<PathBuf> {
    let path = folder.join(format!("{name}.tar.xz"));
    let mut tar = Command::new("tar");
    tar.env("XZ_OPT", "-6 -T0").arg("-cJf").arg(&path);
    let status = tar.arg("-C").arg(folder).args(inside).status();
    let status = status.context("cannot start tar: install it, and xz")?;
    if !status.success() {
        bail!("{tar:?} failed, see above: it needs xz");
    }
    Ok(path)
}

/// Removes what is in the archives.
fn clear(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        let is_kept = entry.file_name() == "run.sh" || path.extension().is_some_and(|e| e == "xz");
        match (is_kept, path.is_dir()) {
            (true, _) => {}
            (false, true) => fs::remove_dir_all(&path)?,
            (false, false) => fs::remove_file(&path)?,
        }
    }
    Ok(())
}

fn fresh(folder: &Path) -> anyhow::Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn copy_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
            copy_all(&path, &to)?;
        } else {
            copy(&path, &to)?;
        }
    }
    Ok(())
}

fn executable(path: &Path) -> anyhow::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", path.display()))?;
    }
    let _ = path;
    Ok(())
}

/// Bytes of the files that git tracks; 0 without git.
fn tracked() -> u64 {
    let mut git = Command::new("git");
    let output = git.args(["ls-files"]).current_dir(process::root()).output();
    let files = output.map(|output| output.stdout).unwrap_or_default();
    let size = |file: &str| fs::metadata(process::root().join(file)).map_or(0, |found| found.len());
    String::from_utf8_lossy(&files).lines().map(size).sum()
}

/// The sizes of the archives, and which of them travel together with a checkout.
fn sizes(archives: &[PathBuf], n_checkout: u64) -> anyhow::Result<String> {
    let mib = |n: u64| n as f64 / f64::from(1 << 20);
    let mut text = String::new();
    let mut sizes = Vec::new();
    for path in archives {
        let n = fs::metadata(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .len();
        text.push_str(&format!("{:8.1} MiB  {}\n", mib(n), path.display()));
        sizes.push(n);
    }
    let all: u64 = sizes.iter().sum();
    let left = AT_ONCE.saturating_sub(n_checkout);
    let common = sizes.first().copied().unwrap_or(0);
    let largest = sizes.iter().skip(1).copied().max().unwrap_or(0);
    let advice = match (all <= left, common + largest <= left) {
        (true, _) => "all of it travels at once",
        (false, true) => "carry common.tar.xz with one variant at a time; results continue",
        (false, false) => {
            "not even one variant travels with the checkout: pack with --lean, or fewer backends"
        }
    };
    text.push_str(&format!(
        "{:8.1} MiB  together, beside {:.1} MiB that git tracks; of 64 MiB at once {advice}\n",
        mib(all),
        mib(n_checkout)
    ));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::args::tests::args;
    use super::*;

    #[test]
    fn a_variant_is_built_with_every_backend_at_once() {
        let args = args("--pack there --device cuda,wgpu");
        let line = build_args(&args, Variant::Both, false).join(" ");
        assert!(line.contains("--profile gpu --features"), "{line}");
        assert!(
            line.ends_with(
                "sdlora-testkit/cuda,sdlora-cli/cuda,sdlora-testkit/wgpu,sdlora-cli/wgpu,\
                 sdlora-nvrtc/autotune,sdlora-nvrtc/fusion"
            ),
            "{line}"
        );
        assert!(!line.contains("usage"), "{line}");
        assert!(build_args(&args, Variant::Plain, true).contains(&"usage".to_owned()));
        let flex = super::super::args::tests::args("--pack there --device flex");
        assert!(!build_args(&flex, Variant::Plain, true).contains(&"--features".to_owned()));
    }

    #[test]
    fn the_programs_are_those_that_cargo_built_to_run() {
        let messages = r#"{"target":{"name":"step"},"profile":{"test":true},"executable":"/t/step-0a"}
{"target":{"name":"sdlora"},"profile":{"test":true},"executable":"/t/sdlora-0b"}
{"target":{"name":"sdlora"},"profile":{"test":false},"executable":"/t/sdlora"}
{"target":{"name":"usage"},"profile":{"test":true},"executable":"/t/usage-0c"}"#;
        let found = executables(messages);
        let names: Vec<_> = found.iter().filter_map(|path| program_name(path)).collect();
        assert_eq!(names, ["step", "sdlora"]);
        assert_eq!(program_name(Path::new("/t/stepping-0a")), None);
    }

    #[test]
    fn what_is_packed_is_in_the_checkout() {
        for shared in SHARED {
            assert!(process::root().join(shared).is_dir(), "{shared}");
        }
    }
}
