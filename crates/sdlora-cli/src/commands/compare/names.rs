//! Names of runs: of their folders, and as `--only` takes them and `--list` prints them.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// A label as a part of a name: small letters, digits and single dashes.
pub fn slug(label: &str) -> String {
    let mut out = String::new();
    for c in label.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c.to_ascii_lowercase());
        } else if !out.ends_with('-') && !out.is_empty() {
            out.push('-');
        }
    }
    out.trim_end_matches('-').to_owned()
}

/// What the name of a run says before its checksum: `suite/stream/entry/seed`.
pub fn place(suite: &str, stream: &str, entry: &str, seed: u32) -> String {
    let mut place = String::new();
    for part in [suite, stream, entry] {
        let part = slug(part);
        // A label may have no letter that a name can have; the checksum still tells it from others.
        place.push_str(if part.is_empty() { "x" } else { &part });
        place.push('/');
    }
    let _ = write!(place, "{seed}");
    place
}

/// The name of a run: its place, and eight digits of a checksum over its label and its recipe. It consists of
/// letters, digits, dashes and slashes, so that no shell sees anything else in it.
pub fn name(place: &str, entry: &str, recipe: &str) -> String {
    let sum = Sha256::digest(format!("{entry}\n{recipe}"));
    let mut name = format!("{place}-");
    for byte in &sum[..4] {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// The place in the name of a run, and the seed there; `None` for a text that is no name of a run.
pub fn place_of(name: &str) -> Option<(&str, u32)> {
    let (place, sum) = name.rsplit_once('-')?;
    let is_sum = sum.len() == 8 && sum.bytes().all(|c| c.is_ascii_hexdigit());
    let is_place = place.matches('/').count() == 3;
    let seed = place.rsplit('/').next()?.parse().ok()?;
    (is_sum && is_place).then_some((place, seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_readable_and_tells_labels_and_recipes_apart_that_look_alike() {
        let of = |entry: &str, recipe: &str| {
            name(
                &place("Paper", "omniglot-10x20", entry, 1993),
                entry,
                recipe,
            )
        };
        let names = [
            of("sdlora (reference) + ncm", "one"),
            of("sdlora, reference + ncm", "one"),
            of("sdlora (reference) + ncm", "two"),
            of("猫", "one"),
            of("犬", "one"),
        ];
        let place = "paper/omniglot-10x20/sdlora-reference-ncm/1993";
        for (i, name) in names.iter().enumerate() {
            let is_safe = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '/');
            assert!(name.chars().all(is_safe), "{name}");
            assert!(!names[..i].contains(name), "{names:?}");
            let (of_name, seed) = place_of(name).unwrap();
            assert_eq!(seed, 1993);
            assert!(of_name == place || of_name == "paper/omniglot-10x20/x/1993");
        }
        // It stays what it is: lists of runs outlive a program.
        assert_eq!(names[0], format!("{place}-f8e7700e"));
    }

    #[test]
    fn a_label_is_no_name() {
        for label in [
            "ncm",
            "a/b/c/7",
            "a/b/7-0a1b2c3d",
            "a/b/c/x-0a1b2c3d",
            "a/b/c/7-0a1b2c3",
        ] {
            assert_eq!(place_of(label), None, "{label}");
        }
        assert_eq!(place_of("a/b/c/7-0a1b2c3d"), Some(("a/b/c/7", 7)));
    }
}
