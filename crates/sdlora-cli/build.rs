//! Lists the files below `presets`, so that a new one is in the binary without another line.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    let folder = "presets";
    println!("cargo:rerun-if-changed={folder}");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let mut names = Vec::new();
    list(&root.join(folder), "", &mut names);
    names.sort_by_key(|name| natural(name));
    let mut text = String::from("&[\n");
    for name in names {
        println!("cargo:rerun-if-changed={folder}/{name}.toml");
        let path = format!("/{folder}/{name}.toml");
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "({name:?}, include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?}))),"
        );
    }
    text.push_str("]\n");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    if let Err(error) = fs::write(out.join("presets.rs"), text) {
        panic!("the list of presets cannot be written: {error}");
    }
}

/// Names of the TOML files of a folder and of those below it, without ending.
fn list(folder: &Path, prefix: &str, names: &mut Vec<String>) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => panic!("{} cannot be listed: {error}", folder.display()),
    };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if path.is_dir() {
            println!("cargo:rerun-if-changed={}", path.display());
            list(&path, &format!("{prefix}{name}/"), names);
        } else if let Some(name) = name.strip_suffix(".toml") {
            names.push(format!("{prefix}{name}"));
        }
    }
}

/// A key that orders files before folders, and `n5` before `n10`.
fn natural(name: &str) -> (bool, Vec<(String, u64)>) {
    let mut parts = vec![(String::new(), String::new())];
    for c in name.chars() {
        if c.is_ascii_digit() {
            if let Some(last) = parts.last_mut() {
                last.1.push(c);
            }
            continue;
        }
        match parts.last_mut() {
            Some(last) if last.1.is_empty() => last.0.push(c),
            _ => parts.push((c.to_string(), String::new())),
        }
    }
    let numbered = |(text, digits): (String, String)| (text, digits.parse().unwrap_or(0));
    (
        name.contains('/'),
        parts.into_iter().map(numbered).collect(),
    )
}
