//! The arrows between crates are those of `docs/architecture.md`, both ways: none too many, none
//! that the page only claims.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::process;

/// Dependencies outside the workspace that only some crates may have, with those crates.
///
/// The tests of the workspace may use anything; this is about what a crate is linked to.
const RESTRICTED: &[(&str, &[&str])] = &[
    ("anyhow", &["sdlora-cli", "xtask"]),
    ("clap", &["sdlora-cli", "xtask"]),
    ("indicatif", &["sdlora-cli"]),
    ("mimalloc", &["sdlora-cli"]),
    ("signal-hook", &["sdlora-cli"]),
    ("libmimalloc-sys", &["sdlora-cli"]),
    ("image", &["sdlora-image"]),
    ("prost", &["sdlora-cli", "sdlora-onnx"]),
    ("ureq", &["sdlora-fetch"]),
    ("zip", &["sdlora-data", "sdlora-weights"]),
    (
        "safetensors",
        &["sdlora-vit", "sdlora-train", "sdlora-testkit"],
    ),
    (
        "burn",
        &[
            "sdlora-core",
            "sdlora-kernels",
            "sdlora-vit",
            "sdlora-data",
            "sdlora-train",
            "sdlora-cli",
            "sdlora-testkit",
        ],
    ),
];

/// Features of burn that choose a backend.
const BACKENDS: [&str; 10] = [
    "flex", "ndarray", "cpu", "wgpu", "vulkan", "metal", "webgpu", "cuda", "rocm", "tch",
];

/// What cargo knows of the workspace.
pub(crate) struct Metadata(Vec<Value>);

/// Asks cargo.
pub(crate) fn metadata() -> Metadata {
    let args = [
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
    ];
    let output = process::cargo(args).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut json: Value = serde_json::from_slice(&output.stdout).unwrap();
    match json["packages"].take() {
        Value::Array(packages) => Metadata(packages),
        other => panic!("no packages in {other}"),
    }
}

impl Metadata {
    pub(crate) fn package(&self, name: &str) -> &Value {
        self.0
            .iter()
            .find(|p| p["name"] == name)
            .unwrap_or_else(|| panic!("no package {name}"))
    }

    pub(crate) fn packages(&self) -> impl Iterator<Item = &Value> {
        self.0.iter()
    }

    fn names(&self) -> BTreeSet<&str> {
        self.0.iter().filter_map(|p| p["name"].as_str()).collect()
    }

    /// What every package is linked to: dependencies that are not for tests or builds.
    fn links(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().flat_map(|package| {
            let from = package["name"].as_str().unwrap_or_default();
            let all = package["dependencies"].as_array().into_iter().flatten();
            all.filter(|d| d["kind"].is_null()).map(move |d| (from, d))
        })
    }

    fn arrows(&self) -> BTreeMap<String, BTreeSet<String>> {
        let names = self.names();
        let mut arrows: BTreeMap<String, BTreeSet<String>> = names
            .iter()
            .map(|&name| (name.to_owned(), BTreeSet::new()))
            .collect();
        for (from, dependency) in self.links() {
            let to = dependency["name"].as_str().unwrap_or_default();
            if names.contains(to) {
                arrows.get_mut(from).unwrap().insert(to.to_owned());
            }
        }
        arrows
    }
}

/// The table under "## Arrows": a crate in the first cell, what it may use in the second.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let page = std::fs::read_to_string(process::root().join("docs/architecture.md")).unwrap();
    let section = page
        .split("\n## ")
        .find(|s| s.starts_with("Arrows\n"))
        .expect("a section `Arrows`");
    let quoted = |cell: &str| -> Vec<String> {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|');
            let name = quoted(cells.next().unwrap()).remove(0);
            (name, quoted(cells.next().unwrap()).into_iter().collect())
        })
        .collect()
}

#[test]
fn arrows_are_those_of_the_architecture_page() {
    assert_eq!(
        metadata().arrows(),
        documented(),
        "left: Cargo.toml files, right: docs/architecture.md; a new arrow needs a note in docs/decisions/"
    );
}

#[test]
fn restricted_dependencies_stay_where_they_belong() {
    for (from, dependency) in metadata().links() {
        let to = dependency["name"].as_str().unwrap();
        if let Some((_, allowed)) = RESTRICTED.iter().find(|(name, _)| *name == to) {
            assert!(
                allowed.contains(&from),
                "{from} must not depend on {to}; only {allowed:?} may"
            );
        }
    }
}

#[test]
fn only_the_test_kit_takes_a_backend_unasked() {
    for (from, dependency) in metadata().links().filter(|(_, d)| d["name"] == "burn") {
        assert_eq!(
            dependency["uses_default_features"], false,
            "{from} takes burn's default features"
        );
        let features = dependency["features"].as_array().unwrap();
        let backends: Vec<_> = features
            .iter()
            .filter(|f| BACKENDS.iter().any(|b| *f == b))
            .collect();
        let is_testkit = from == "sdlora-testkit";
        assert!(
            is_testkit || backends.is_empty(),
            "{from} chooses the backend {backends:?}"
        );
    }
}

#[test]
fn the_test_kit_is_linked_by_tests_only() {
    for (from, dependency) in metadata().links() {
        assert_ne!(
            dependency["name"], "sdlora-testkit",
            "{from} links the test kit"
        );
    }
}

/// What opens a file for writing, makes a folder, renames or removes.
const WRITES: [&str; 13] = [
    "fs::write(",
    "fs::copy(",
    "File::create(",
    "File::options(",
    "OpenOptions::new(",
    "fs::rename(",
    "fs::create_dir",
    "fs::remove_",
    "file.set_len(",
    ".persist(",
    "tempfile_in(",
    "tempdir_in(",
    "tempdir(",
];

#[test]
fn only_the_places_of_the_architecture_page_write() {
    let page = std::fs::read_to_string(process::root().join("docs/architecture.md")).unwrap();
    let section = page.split("\n## ").find(|s| s.starts_with("Who writes\n"));
    let section = section.expect("a section `Who writes`");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeSet<String> = rows
        .map(|line| line.split('`').nth(1).unwrap().to_owned())
        .collect();
    let mut found = BTreeSet::new();
    let mut folders = vec![process::root().join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(process::root()).unwrap();
            let name = name.to_string_lossy().replace('\\', "/");
            // `mutations.rs` is a module of tests, and the test kit is linked by tests alone.
            let of_tests = name.ends_with("/mutations.rs") || name.contains("/sdlora-testkit/");
            let is_source = name.contains("/src/") && name.ends_with(".rs") && !of_tests;
            if path.is_dir() {
                folders.push(path);
            } else if is_source {
                let text = std::fs::read_to_string(&path).unwrap();
                // What stands below is for tests.
                let code = text.split("mod tests {").next().unwrap();
                let mut lines = code
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("//"));
                if lines.any(|line| WRITES.iter().any(|write| line.contains(write))) {
                    found.insert(name);
                }
            }
        }
    }
    assert_eq!(
        found, documented,
        "left: the sources, right: the table `Who writes` of docs/architecture.md; write through a place \
         that is there, or add a row that says how the new one keeps a file whole"
    );
}
