//! `cargo xtask api`: the public items of the library crates, as a list that is kept in `docs/api`.

mod items;
mod modules;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::process::root;

/// Folder of the lists.
const FOLDER: &str = "docs/api";

/// Crates with a library that nobody outside the workspace uses.
const INTERNAL: [&str; 1] = ["sdlora-testkit"];

/// Compare the public items of the library crates with the lists in docs/api
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the lists anew
    #[arg(long)]
    write: bool,
}

/// Runs the command.
///
/// # Errors
///
/// When a source file cannot be read or parsed, or a list cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.write {
        write()?;
        return Ok(ExitCode::SUCCESS);
    }
    let differences = differences()?;
    for line in &differences {
        eprintln!("{line}");
    }
    if differences.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("error: {ADVICE}");
    Ok(ExitCode::FAILURE)
}

const ADVICE: &str = "the public items are not those of docs/api: run `cargo xtask api --write` and \
                      say in the commit why callers need what is new";

/// Writes the lists and removes those of crates that are gone.
fn write() -> anyhow::Result<()> {
    let folder = root().join(FOLDER);
    std::fs::create_dir_all(&folder)?;
    let lists = lists()?;
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if path.extension().is_some_and(|e| e == "txt") && !lists.contains_key(name.as_ref()) {
            std::fs::remove_file(&path)?;
        }
    }
    for (name, list) in lists {
        let path = folder.join(format!("{name}.txt"));
        std::fs::write(&path, list).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The list of every crate, by the name of the crate.
fn lists() -> anyhow::Result<BTreeMap<String, String>> {
    libraries()?
        .into_iter()
        .map(|(name, lib)| {
            let krate = modules::Crate::read(&name.replace('-', "_"), &lib)?;
            let mut lines: Vec<String> = items::public(&krate).into_iter().collect();
            lines.push(String::new());
            Ok((name, lines.join("\n")))
        })
        .collect()
}

/// Name and `lib.rs` of every library crate that others may use.
fn libraries() -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root().join("crates"))? {
        let folder = entry?.path();
        let name = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let lib = folder.join("src/lib.rs");
        if lib.is_file() && !INTERNAL.contains(&name.as_str()) {
            found.insert(name, lib);
        }
    }
    Ok(found)
}

/// What the sources have and the lists lack, and the other way round: a line each.
fn differences() -> anyhow::Result<Vec<String>> {
    let mut differences = Vec::new();
    for (name, list) in lists()? {
        let path = root().join(FOLDER).join(format!("{name}.txt"));
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        let only = |from: &str, without: &str, sign: char| -> Vec<String> {
            let without: Vec<&str> = without.lines().collect();
            from.lines()
                .filter(|line| !without.contains(line))
                .map(|line| format!("{sign} {line}"))
                .collect()
        };
        differences.extend(only(&kept, &list, '-'));
        differences.extend(only(&list, &kept, '+'));
    }
    Ok(differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_items_are_those_of_the_lists() {
        let differences = differences().unwrap();
        assert!(
            differences.is_empty(),
            "{ADVICE}\n{}",
            differences.join("\n")
        );
    }

    #[test]
    fn every_library_has_a_list_and_every_list_a_library() {
        let known: Vec<String> = lists().unwrap().into_keys().collect();
        let mut kept: Vec<String> = std::fs::read_dir(root().join(FOLDER))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "txt"))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        kept.sort();
        assert_eq!(known, kept);
    }

    #[test]
    fn a_list_has_types_with_their_methods_and_re_exports() {
        let lists = lists().unwrap();
        let metrics = &lists["sdlora-metrics"];
        for line in [
            "pub struct sdlora_metrics::AccuracyMatrix // Clone, Debug, Deserialize, PartialEq, Serialize\n",
            "pub fn sdlora_metrics::AccuracyMatrix::new(",
            "pub fn sdlora_metrics::forgetting(",
            // The macro that makes this type hides it from a parser; the re-export still shows it.
            "pub use sdlora_metrics::Summary",
        ] {
            assert!(metrics.contains(line), "{line} is not in\n{metrics}");
        }
        assert!(!metrics.contains("tests"), "{metrics}");
    }
}
