//! A Vulkan driver that computes on the processor: SwiftShader, as Debian's package `chromium-common` carries it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::process;

/// The description by which a loader finds the driver, beside the driver itself.
const DESCRIPTION: &str = "vk_swiftshader_icd.json";
/// The driver.
const DRIVER: &str = "libvk_swiftshader.so";
/// Where the package puts them.
const IN_PACKAGE: &str = "usr/lib/chromium";

/// A folder with the driver, its description and a loader.
#[derive(Debug)]
pub struct SoftwareVulkan {
    folder: PathBuf,
}

impl SoftwareVulkan {
    /// The driver of the installed package; without one the package is fetched with `apt-get download`
    /// and unpacked below `target/`, which needs no rights and installs nothing.
    ///
    /// # Errors
    ///
    /// Where there is no `apt-get` or `dpkg`, the package cannot be fetched, or it has no driver in it.
    pub fn find_or_fetch() -> anyhow::Result<Self> {
        let below_target = process::root().join("target/software-vulkan");
        let unpacked = below_target.join(IN_PACKAGE);
        for folder in [&Path::new("/").join(IN_PACKAGE), &unpacked] {
            if let Some(found) = Self::in_folder(folder) {
                return Ok(found);
            }
        }
        fetch(&below_target)?;
        match Self::in_folder(&unpacked) {
            Some(found) => Ok(found),
            None => bail!(
                "the package chromium-common has no {DRIVER} with {DESCRIPTION} in {IN_PACKAGE}: install a \
                 Vulkan driver yourself, name its description in VK_DRIVER_FILES, and leave `--software` out"
            ),
        }
    }

    fn in_folder(folder: &Path) -> Option<Self> {
        let is_whole = [DESCRIPTION, DRIVER]
            .iter()
            .all(|name| folder.join(name).is_file());
        is_whole.then(|| Self {
            folder: folder.to_owned(),
        })
    }

    /// Lets the command see this driver and no other.
    pub fn give_to(&self, command: &mut Command) {
        let description = self.folder.join(DESCRIPTION);
        // The second name is the one that loaders before 1.3.207 know.
        for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
            command.env(name, &description);
        }
        // The package's loader: a machine without a GPU seldom has one installed.
        let mut path = OsString::from(&self.folder);
        if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH").filter(|rest| !rest.is_empty()) {
            path.push(":");
            path.push(rest);
        }
        command.env("LD_LIBRARY_PATH", path);
    }
}

fn fetch(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let mut download = Command::new("apt-get");
    run(download
        .args(["download", "chromium-common"])
        .current_dir(folder))?;
    let package = std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    run(Command::new("dpkg").arg("-x").arg(&package).arg(folder))?;
    // A package left behind would be found before a newer one.
    std::fs::remove_file(&package).with_context(|| format!("cannot remove {}", package.display()))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let advice = "SwiftShader is taken from Debian's package chromium-common: run `apt-get update`, or install \
                  the package, or a Vulkan driver of your own without `--software`";
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}; {advice}"))?;
    if !status.success() {
        bail!("{command:?} failed; {advice}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_without_its_description_is_none() {
        let folder = std::env::temp_dir().join(format!("sdlora-vulkan-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(DRIVER), "").unwrap();
        assert!(SoftwareVulkan::in_folder(&folder).is_none());
        std::fs::write(folder.join(DESCRIPTION), "{}").unwrap();
        let found = SoftwareVulkan::in_folder(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found.unwrap().folder, folder);
    }

    #[test]
    fn the_command_sees_this_driver_first() {
        let driver = SoftwareVulkan {
            folder: "/opt/driver".into(),
        };
        let mut command = Command::new("true");
        driver.give_to(&mut command);
        let value = |name: &str| {
            let (_, value) = command.get_envs().find(|(key, _)| *key == name).unwrap();
            value.unwrap().to_string_lossy().into_owned()
        };
        for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
            assert_eq!(value(name), format!("/opt/driver/{DESCRIPTION}"));
        }
        let path = value("LD_LIBRARY_PATH");
        assert_eq!(path.split(':').next(), Some("/opt/driver"));
    }
}
