//! The tables of the pages are those of the records beside them: no number there was typed.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{data, out, sdlora};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page(name: &str) -> String {
    fs::read_to_string(repository().join(name)).unwrap()
}

#[test]
fn the_page_of_results_has_the_tables_of_the_records() {
    let home = tempfile::tempdir().unwrap();
    let renewed = home.path().join("results.md");
    let before = page("docs/results.md");
    fs::write(&renewed, &before).unwrap();
    // A copy: runs whose recipe has changed would be missing, and must not be looked for.
    let records = home.path().join("paper.jsonl");
    fs::copy(repository().join("docs/results/paper.jsonl"), &records).unwrap();
    let data = data();
    let args = [
        "compare",
        "--suite",
        "paper",
        "--finished",
        "--records",
        records.to_str().unwrap(),
        "--data-dir",
        data.to_str().unwrap(),
        "--out",
        renewed.to_str().unwrap(),
    ];
    let found = sdlora(home.path(), &args);
    out(&found);
    assert!(!home.path().join("runs").exists());
    let after = fs::read_to_string(&renewed).unwrap();
    let differs = before.lines().zip(after.lines()).find(|(a, b)| a != b);
    assert!(
        before == after,
        "docs/results.md is not what the records say, first at {differs:?}: `sdlora compare \
         --suite paper --finished --records docs/results/paper.jsonl --out docs/results.md` renews it"
    );
}

/// The cells of the lines of a table, a line each.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().filter(|line| line.starts_with("| "));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

#[test]
fn the_table_of_the_readme_is_taken_from_that_page() {
    let results = page("docs/results.md");
    // One section a stream; the accuracy stands in the third column.
    let streams: Vec<BTreeMap<&str, &str>> =
        ["omniglot-10x20", "omniglot-alphabets", "omniglot-100x5"]
            .iter()
            .map(|stream| {
                let heading = format!("### {stream}\n");
                let section = results.split(&heading).nth(1).unwrap();
                let methods = section.split("| Claim ").next().unwrap();
                rows(methods).map(|cells| (cells[0], cells[2])).collect()
            })
            .collect();

    let readme = page("README.md");
    let table = readme
        .split("| method | 10 tasks of 20 | 20 alphabets | 100 tasks of 5 |")
        .nth(1)
        .unwrap();
    let table = table.split("\n\n").next().unwrap();
    let mut n_rows = 0;
    for cells in rows(table) {
        for (stream, cell) in streams.iter().zip(&cells[1..]) {
            assert_eq!(stream.get(cells[0]), Some(cell), "{cells:?}");
        }
        n_rows += 1;
    }
    assert_eq!(n_rows, 6);
}
