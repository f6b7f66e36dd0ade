//! `cargo xtask package`: the packages of the crates as crates.io would get them.

use std::process::ExitCode;

use crate::process;

/// Pack every crate that can be published
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compile each package by itself too, which builds burn once more
    #[arg(long)]
    verify: bool,
}

/// Crates that stay in the repository: tools, and what only tests use.
const PRIVATE: [&str; 2] = ["xtask", "sdlora-testkit"];

/// Runs the command.
///
/// # Errors
///
/// When cargo cannot be started.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    process::run(&mut process::cargo(cargo_args(args.verify)))
}

fn cargo_args(verify: bool) -> Vec<&'static str> {
    let mut all = vec![
        "package",
        "--quiet",
        "--locked",
        "--allow-dirty",
        "--workspace",
    ];
    for name in PRIVATE {
        all.extend(["--exclude", name]);
    }
    all.extend((!verify).then_some("--no-verify"));
    all
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::architecture::metadata;
    use crate::process::root;

    /// Largest package, in bytes on disk; crates.io takes 10 MiB compressed.
    const LARGEST: u64 = 2 << 20;

    fn strings<'a>(package: &'a Value, key: &str) -> Vec<&'a str> {
        let all = package[key].as_array().into_iter().flatten();
        all.filter_map(Value::as_str).collect()
    }

    /// Every package that can be published.
    fn published() -> Vec<Value> {
        let all: Vec<Value> = metadata().packages().cloned().collect();
        let (private, published): (Vec<Value>, Vec<Value>) = all
            .into_iter()
            .partition(|package| !package["publish"].is_null());
        let names: Vec<_> = private.iter().filter_map(|p| p["name"].as_str()).collect();
        assert!(
            names.len() == PRIVATE.len() && PRIVATE.iter().all(|name| names.contains(name)),
            "`publish = false` stands in {names:?}, PRIVATE has {PRIVATE:?}"
        );
        published
    }

    #[test]
    fn a_crate_has_what_its_page_on_crates_io_shows() {
        for package in published() {
            let name = package["name"].as_str().unwrap();
            for key in ["description", "license", "repository", "rust_version"] {
                assert!(package[key].is_string(), "{name} has no `{key}`");
            }
            assert_eq!(package["readme"], "README.md", "{name}");
            let keywords = strings(&package, "keywords");
            assert!((1..=5).contains(&keywords.len()), "{name}: {keywords:?}");
            for keyword in keywords {
                assert!(
                    keyword.len() <= 20 && !keyword.contains(' '),
                    "{name}: {keyword}"
                );
            }
            assert!(!strings(&package, "categories").is_empty(), "{name}");
            assert!(
                package["metadata"]["docs"]["rs"].is_object(),
                "{name} says nothing to docs.rs"
            );
            for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
                let file = root().join("crates").join(name).join(licence);
                let text = std::fs::read_to_string(&file).unwrap();
                let of_all = std::fs::read_to_string(root().join(licence)).unwrap();
                assert_eq!(
                    text,
                    of_all,
                    "{}: link it to the file of the root",
                    file.display()
                );
            }
        }
    }

    #[test]
    fn a_crate_of_the_workspace_is_asked_for_by_version() {
        for package in published() {
            let dependencies = package["dependencies"].as_array().unwrap();
            for dependency in dependencies.iter().filter(|d| d["path"].is_string()) {
                let is_private = PRIVATE.iter().any(|name| dependency["name"] == *name);
                let is_own = dependency["name"] == package["name"];
                // Without a version cargo leaves a dependency of tests out of the package.
                let expected = if is_private || is_own { "*" } else { "^0.1.0" };
                assert_eq!(
                    dependency["req"], expected,
                    "{}: {dependency}",
                    package["name"]
                );
            }
        }
    }

    #[test]
    fn a_package_holds_sources_and_nothing_large() {
        for package in published() {
            let name = package["name"].as_str().unwrap();
            let args = [
                "package",
                "--list",
                "--offline",
                "--allow-dirty",
                "-p",
                name,
            ];
            let output = process::cargo(args).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let folder = root().join("crates").join(name);
            let size = |file: &str| folder.join(file).metadata().map_or(0, |found| found.len());
            let bytes: u64 = text.lines().map(size).sum();
            assert!((1..LARGEST).contains(&bytes), "{name} has {bytes} bytes");
            assert!(
                text.contains("README.md") && text.contains("src/"),
                "{name}:\n{text}"
            );
            for unwanted in ["tests/", "benches/", "fuzz/", "golden/"] {
                let has = text.lines().any(|file| file.starts_with(unwanted));
                assert!(!has, "{name} packs {unwanted}");
            }
        }
    }

    #[test]
    fn packing_leaves_out_what_stays_here() {
        let line = cargo_args(false).join(" ");
        assert!(
            line.contains("--exclude xtask --exclude sdlora-testkit"),
            "{line}"
        );
        assert!(line.ends_with("--no-verify"), "{line}");
        assert!(!cargo_args(true).contains(&"--no-verify"));
    }
}
