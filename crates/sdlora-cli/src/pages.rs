//! The commands in the pages are commands that this program understands.

use std::path::{Path, PathBuf};

use clap::Parser;

use crate::Cli;

/// README and the Markdown files in and below `docs` and `.github`.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs"), root.join(".github")];
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

/// Lines of the shell blocks, joined where they end in a backslash, without prompts and comments.
fn lines(page: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let blocks = page.split("\n```").skip(1).step_by(2);
    for block in blocks {
        let Some((kind, text)) = block.split_once('\n') else {
            continue;
        };
        if kind != "sh" && kind != "console" {
            continue;
        }
        for line in text.replace("\\\n", " ").lines() {
            match (kind, line.strip_prefix("$ ")) {
                ("sh", _) => lines.push(line.to_owned()),
                (_, Some(command)) => lines.push(command.to_owned()),
                // What a command prints.
                _ => {}
            }
        }
    }
    lines
}

/// Words of a line as a shell splits it, up to a comment, a pipe or a redirection.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#' | '|' | '>') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Arguments of this program in a line of a page; `cargo xtask` passes on those of its own commands.
fn arguments(line: &str) -> Option<Vec<String>> {
    let words = words(line);
    let names: Vec<&str> = words.iter().map(String::as_str).collect();
    let n = match names.as_slice() {
        ["sdlora", ..] => 1,
        ["cargo", "xtask", "sdlora", ..] => 3,
        ["cargo", "xtask", "train", ..] => 2,
        _ => return None,
    };
    Some(words[n..].to_vec())
}

#[test]
fn every_command_of_a_page_is_understood() {
    let mut n_commands = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for line in lines(&text) {
            let Some(arguments) = arguments(&line) else {
                continue;
            };
            n_commands += 1;
            let command = std::iter::once("sdlora".to_owned()).chain(arguments);
            match Cli::try_parse_from(command) {
                Ok(_) => {}
                Err(asked) if !asked.use_stderr() => {}
                Err(mistake) => panic!("{}: {line}\n{mistake}", page.display()),
            }
        }
    }
    assert!(n_commands > 15, "only {n_commands} commands found");
}

#[test]
fn a_line_is_split_as_a_shell_splits_it() {
    assert_eq!(
        words("sdlora data show 'split={ a = 1 }' --x=\"b c\" > x  # said"),
        ["sdlora", "data", "show", "split={ a = 1 }", "--x=b c"]
    );
    let page = "a\n\n```sh\nsdlora train \\\n  --quiet\n```\n\n```console\n$ sdlora presets\nsdlora\n```\n";
    assert_eq!(lines(page), ["sdlora train    --quiet", "sdlora presets"]);
}

#[test]
fn pages_count_methods_and_heads_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let n_methods = sdlora_train::methods::METHODS.len();
    let n_heads = sdlora_train::heads::HEADS.len();
    for page in ["README.md", "crates/sdlora-train/README.md"] {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        for count in [format!("{n_methods} methods"), format!("{n_heads} heads")] {
            assert!(text.contains(&count), "{page} does not say {count}");
        }
    }
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let row = format!("| methods | {n_methods} |");
    assert!(readme.contains(&row), "README.md does not say {row}");
    let methods = std::fs::read_to_string(root.join("docs/methods.md")).unwrap();
    let heads = std::fs::read_to_string(root.join("docs/heads.md")).unwrap();
    // `sdlora` itself has the page on the method.
    let names = sdlora_train::methods::METHODS
        .iter()
        .map(|entry| entry.name);
    for name in names.filter(|name| *name != "sdlora") {
        assert!(
            methods.contains(&format!("| `{name}` |")),
            "docs/methods.md lacks {name}"
        );
    }
    for entry in sdlora_train::heads::HEADS {
        assert!(
            heads.contains(&format!("| `{}` |", entry.name)),
            "docs/heads.md lacks {}",
            entry.name
        );
    }
}
