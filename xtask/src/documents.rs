//! The pages speak of files, commands and code that exist.

use std::path::{Path, PathBuf};

use clap::CommandFactory;

use crate::process::root;

/// README, changelog and everything below `docs/`.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every `…` of the text that lies in one line.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn named_files_exist() {
    let mut n_named = 0;
    for page in pages() {
        for span in code_spans(&read(&page)) {
            let is_path = ["crates/", "docs/", "datasets/", "xtask/"]
                .iter()
                .any(|p| span.starts_with(p))
                && !span.contains(['<', '*', ' ', '{', '…']);
            if is_path {
                n_named += 1;
                assert!(
                    root().join(span).exists(),
                    "{} names `{span}`",
                    page.display()
                );
            }
        }
    }
    assert!(
        n_named > 20,
        "only {n_named} names found: has the form of the pages changed?"
    );
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in pages() {
        for link in read(&page).split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            if !target.is_empty() && !target.contains("://") {
                let path = page.parent().unwrap().join(target);
                assert!(path.exists(), "{} links to {target}", page.display());
            }
        }
    }
}

#[test]
fn named_commands_exist() {
    let command = crate::Cli::command();
    for page in pages() {
        for rest in read(&page).split("cargo xtask ").skip(1) {
            if rest.starts_with('-') {
                continue;
            }
            let name: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
            assert!(
                command.find_subcommand(&name).is_some(),
                "{}: cargo xtask {name}",
                page.display()
            );
        }
    }
}

#[test]
fn the_code_of_the_readme_is_the_doctest_of_the_core() {
    let readme = read(&root().join("README.md"));
    let code = readme
        .split("```rust\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let lib = read(&root().join("crates/sdlora-core/src/lib.rs"));
    let doc: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.trim().trim_start_matches("# "))
        .collect();
    assert!(code.lines().count() > 10);
    for line in code.lines().map(str::trim).filter(|line| !line.is_empty()) {
        assert!(
            doc.contains(&line),
            "not in the doctest of sdlora-core: {line}"
        );
    }
}
