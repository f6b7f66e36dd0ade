//! Commands of the pages that only print are run.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{data, err, out, sdlora};

/// Commands in the backticks and shell blocks of a page that list something and need no run.
fn cheap(page: &str) -> Vec<Vec<String>> {
    let spans = page
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    let blocks = page.lines().map(|line| line.trim_start_matches("$ "));
    let mut commands: Vec<Vec<String>> = spans
        .chain(blocks)
        .filter(|text| {
            let kinds = ["sdlora presets", "sdlora data list"];
            kinds.iter().any(|kind| text.starts_with(kind))
        })
        .map(|text| {
            let command = text.split(" #").next().unwrap();
            let words = command.split_whitespace().skip(1);
            words.map(str::to_owned).collect()
        })
        // `NAME` and the like are for the reader to fill in.
        .filter(|words: &Vec<String>| {
            let is_blank = |word: &String| word.chars().all(|c| c.is_ascii_uppercase());
            !words.iter().any(is_blank)
        })
        .collect();
    commands.sort();
    commands.dedup();
    commands
}

#[test]
fn commands_that_list_something_succeed() {
    let home = tempfile::tempdir().unwrap();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut n_run = 0;
    for name in ["../README.md", "recipes.md", "data.md", "reproducing.md"] {
        let page = fs::read_to_string(docs.join(name)).unwrap();
        for command in cheap(&page) {
            let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
            let data = data();
            if args[0] == "data" {
                args.extend(["--data-dir", data.to_str().unwrap()]);
            }
            let output = sdlora(home.path(), &args);
            assert!(
                !out(&output).is_empty(),
                "{name}: {command:?}: {}",
                err(&output)
            );
            n_run += 1;
        }
    }
    assert!(n_run >= 3, "only {n_run} commands found");
}
