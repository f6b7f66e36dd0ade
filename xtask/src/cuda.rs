//! A second workspace in which CUDA builds without LLVM.
//!
//! `cubecl-cuda` compiles kernels with LLVM or, with its feature `cpp`, with NVIDIA's NVRTC, and depends on
//! `cubecl-llvm` in either case, whose build script downloads LLVM. The workspace made here is this one
//! with two changes: a crate that turns the feature on, and an empty `cubecl-llvm` in the place of the real
//! one. Both lie in `xtask/cuda-nvrtc`; everything else is reached through links, with the versions of
//! `Cargo.lock`, so that there is no second manifest to keep in step.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::process;

/// Folders that are linked into the second workspace.
const LINKED: [&str; 3] = ["crates", "xtask", "datasets"];
/// The line of the manifest that lists the crates.
const MEMBERS: &str = "\nmembers = [";

/// Where the second workspace is built.
pub fn target_dir() -> PathBuf {
    process::root().join("target/cuda-nvrtc/target")
}

/// Lets a command of cargo build in the second workspace.
///
/// # Errors
///
/// Those of [`manifest`].
pub fn build_there(cargo: &mut Command) -> anyhow::Result<()> {
    cargo.arg("--manifest-path").arg(manifest()?);
    cargo.arg("--target-dir").arg(target_dir());
    Ok(())
}

/// Makes the second workspace, or brings it up to date, and returns its manifest.
///
/// # Errors
///
/// When its files cannot be written, and where the system has no links of folders.
fn manifest() -> anyhow::Result<PathBuf> {
    let root = process::root();
    let folder = root.join("target/cuda-nvrtc");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for name in LINKED {
        link(&root.join(name), &folder.join(name))?;
    }
    let text = read(&root.join("Cargo.toml"))?;
    let lock = read(&root.join("Cargo.lock"))?;
    let path = folder.join("Cargo.toml");
    let Some(text) = with_nvrtc(&text) else {
        bail!("Cargo.toml has no line that begins with `members = [`: mend xtask/src/cuda.rs");
    };
    // Cargo replaces in the copied lock what differs here, and nothing else. It is copied when the manifest
    // or the lock it was copied from changes, which a second copy tells.
    let copied = folder.join("Cargo.lock.copied");
    let is = |path: &Path, text: &String| read(path).ok().as_ref() == Some(text);
    if !is(&path, &text) || !is(&copied, &lock) || !folder.join("Cargo.lock").exists() {
        write(&folder.join("Cargo.lock"), &lock)?;
        write(&copied, &lock)?;
        write(&path, &text)?;
    }
    Ok(path)
}

/// The manifest of the workspace with the crate that asks for NVRTC and without LLVM.
fn with_nvrtc(manifest: &str) -> Option<String> {
    let (before, after) = manifest.split_once(MEMBERS)?;
    Some(format!(
        "{before}{MEMBERS}\"xtask/cuda-nvrtc/nvrtc\", {after}\n\
         [patch.crates-io]\ncubecl-llvm = {{ path = \"xtask/cuda-nvrtc/cubecl-llvm\" }}\n"
    ))
}

fn link(target: &Path, link: &Path) -> anyhow::Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == target) {
        return Ok(());
    }
    // A link of a checkout that was moved.
    let _ = fs::remove_file(link);
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(target, link);
    #[cfg(windows)]
    let made = std::os::windows::fs::symlink_dir(target, link);
    made.with_context(|| {
        format!(
            "cannot link {} to {}: build with `--features cuda` instead, which downloads LLVM",
            link.display(),
            target.display()
        )
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_gains_a_member_and_a_patch() {
        let text = read(&process::root().join("Cargo.toml")).unwrap();
        let made = with_nvrtc(&text).unwrap();
        let table: toml::Table = made.parse().unwrap();
        let members = table["workspace"]["members"].as_array().unwrap();
        assert!(
            members
                .iter()
                .any(|m| m.as_str() == Some("xtask/cuda-nvrtc/nvrtc"))
        );
        assert_eq!(
            table["patch"]["crates-io"]["cubecl-llvm"]["path"].as_str(),
            Some("xtask/cuda-nvrtc/cubecl-llvm")
        );
        assert!(with_nvrtc("[workspace]\n").is_none());
    }

    #[test]
    fn the_stand_in_has_the_version_that_is_locked() {
        let root = process::root();
        let lock: toml::Table = read(&root.join("Cargo.lock")).unwrap().parse().unwrap();
        let stand_in = read(&root.join("xtask/cuda-nvrtc/cubecl-llvm/Cargo.toml")).unwrap();
        let stand_in: toml::Table = stand_in.parse().unwrap();
        let packages = lock["package"].as_array().unwrap();
        let locked = packages
            .iter()
            .find(|package| package["name"].as_str() == Some("cubecl-llvm"))
            .unwrap();
        assert_eq!(locked["version"], stand_in["package"]["version"]);
    }
}
