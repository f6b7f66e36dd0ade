//! The pages speak of files, commands and code that exist.

use std::path::{Path, PathBuf};

use clap::CommandFactory;

use crate::process::root;

/// README, changelog, the pages of the crates, and everything below `docs` and `.github`.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let page = entry.unwrap().path().join("README.md");
        pages.extend(page.is_file().then_some(page));
    }
    let mut folders = vec![root().join("docs"), root().join(".github")];
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
            let is_of_name = |c: &char| c.is_ascii_lowercase() || *c == '-';
            let name: String = rest.chars().take_while(is_of_name).collect();
            assert!(
                command.find_subcommand(&name).is_some(),
                "{}: cargo xtask {name}",
                page.display()
            );
        }
    }
}

/// A fenced block: the file that the text before it names last, its kind, its text.
fn blocks(page: &str) -> Vec<(Option<&str>, &str, &str)> {
    let parts: Vec<&str> = page.split("\n```").collect();
    let mut named = None;
    let mut blocks = Vec::new();
    for pair in parts.chunks(2) {
        let files = code_spans(pair[0]).filter(|span| span.starts_with("crates/"));
        named = files.last().or(named);
        if let Some((kind, text)) = pair.get(1).and_then(|block| block.split_once('\n')) {
            blocks.push((named, kind, text));
        }
    }
    blocks
}

#[test]
fn rust_code_of_a_page_is_compiled_by_the_tests() {
    // The pages that `crates/sdlora-train/src/lib.rs` hands to rustdoc.
    let compiled = [root().join("README.md"), root().join("docs/adding.md")];
    let lib = read(&root().join("crates/sdlora-train/src/lib.rs"));
    for page in &compiled {
        let name = page.strip_prefix(root()).unwrap().display().to_string();
        assert!(lib.contains(&name), "sdlora-train does not compile {name}");
    }
    for page in pages() {
        for (_, kind, text) in blocks(&read(&page)) {
            assert!(
                !kind.is_empty(),
                "{}: a block without a kind: {text}",
                page.display()
            );
            if kind.starts_with("rust") {
                assert!(compiled.contains(&page), "{} has Rust code", page.display());
                assert_eq!(
                    kind,
                    "rust",
                    "{}: code that no test compiles",
                    page.display()
                );
            }
        }
    }
}

#[test]
fn quoted_lines_of_the_page_on_additions_are_in_the_files_it_names() {
    let page = read(&root().join("docs/adding.md"));
    let mut n_lines = 0;
    for (file, kind, text) in blocks(&page) {
        if kind == "text" {
            let file = file.expect("a file named before the block");
            let source = read(&root().join(file));
            for line in text.lines() {
                assert!(
                    source.contains(&format!("\n{line}\n")),
                    "not in {file}: {line}"
                );
                n_lines += 1;
            }
        }
    }
    assert!(n_lines > 2, "only {n_lines} quoted lines found");
}

#[test]
fn a_page_says_sdlora_for_a_command_of_the_program() {
    // These two are renewed with the results.
    let others = [
        root().join("docs/results.md"),
        root().join("docs/reproducing.md"),
    ];
    let command = crate::Cli::command();
    for page in pages() {
        let is_history = page.ends_with("CHANGELOG.md");
        if is_history || others.contains(&page) {
            continue;
        }
        for rest in read(&page).split("cargo xtask ").skip(1) {
            let name: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
            let is_hidden = command
                .find_subcommand(&name)
                .is_some_and(clap::Command::is_hide_set);
            assert!(!is_hidden, "{}: say `sdlora {name}`", page.display());
        }
    }
}

/// Crates whose code outside tests may be unsafe, with the reason.
const UNSAFE: [(&str, &str); 5] = [
    ("sdlora-cli", "settings of the allocator"),
    ("sdlora-image", "vector instructions found at run time"),
    ("sdlora-kernels", "fused kernels"),
    ("sdlora-testkit", "an allocator that counts"),
    ("sdlora-train", "the matrix product of `gemm`"),
];

#[test]
fn a_crate_that_needs_no_unsafe_code_forbids_it() {
    let mut crates: Vec<PathBuf> = std::fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    crates.push(root().join("xtask"));
    for folder in crates {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let file = ["src/lib.rs", "src/main.rs"].map(|file| folder.join(file));
        let Some(file) = file.iter().find(|file| file.is_file()) else {
            continue;
        };
        let is_forbidden = read(file).contains("\n#![forbid(unsafe_code)]\n");
        let may = UNSAFE.iter().any(|(of, _)| *of == name);
        assert!(
            is_forbidden != may,
            "{name}: `#![forbid(unsafe_code)]` in {} or an entry in UNSAFE",
            file.display()
        );
    }
}

/// Every Rust file of the workspace.
fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("crates"), root().join("xtask")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// Whether a line has an option of a command line: two dashes and a word.
fn names_option(line: &str) -> bool {
    let mut places = line.match_indices("--");
    places.any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let next = line[at + 2..].chars().next();
        before.is_none_or(|c| matches!(c, ' ' | '`' | '(' | '"'))
            && next.is_some_and(|c| c.is_ascii_lowercase())
    })
}

#[test]
fn no_message_of_a_library_names_an_option_of_the_command_line() {
    assert!(
        names_option("add `--resume`") && names_option("give --heads") && !names_option("a -- b")
    );
    let mut wrong = String::new();
    for path in rust_files() {
        let file = path.strip_prefix(root()).unwrap();
        let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
        let [folder, name, "src", ..] = parts.iter().map(AsRef::as_ref).collect::<Vec<&str>>()[..]
        else {
            continue;
        };
        if folder != "crates" || ["sdlora-cli", "sdlora-testkit"].contains(&name) {
            continue;
        }
        for (idx, line) in read(&path).lines().enumerate() {
            if names_option(line) && !line.trim_start().starts_with("//") {
                wrong += &format!("{}:{}: {}\n", file.display(), idx + 1, line.trim());
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "say it in the terms of the library, and map the variant in crates/sdlora-cli/src/hints.rs:\n{wrong}"
    );
}

/// Characters of the longest comment; code ends at the `max_width` of `.rustfmt.toml`.
const COMMENT_WIDTH: usize = 120;

#[test]
fn comments_end_before_the_limit() {
    for path in rust_files() {
        for (idx, line) in read(&path).lines().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            let n = line.chars().count();
            // A row of a table cannot be broken.
            assert!(
                !is_comment || n <= COMMENT_WIDTH || line.contains(" | "),
                "{}:{} has {n} characters",
                path.display(),
                idx + 1
            );
        }
    }
}
