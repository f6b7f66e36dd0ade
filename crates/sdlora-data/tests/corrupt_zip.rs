//! Damaged and wrong Omniglot archives are refused with a message, never with a panic.

#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use proptest::prelude::*;
use sdlora_data::datasets::{Omniglot, OmniglotOptions};
use sdlora_data::{DataError, Dataset, Options, Split, datasets};
use zip::write::SimpleFileOptions;

const FOLDER: &str = "images_evaluation";

/// PNGs of one real character, and a zip of it under two names.
fn pngs() -> &'static [Vec<u8>] {
    static PNGS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    PNGS.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../datasets/omniglot/images_evaluation.zip");
        let mut zip = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
        (0..20)
            .map(|i| {
                let mut bytes = Vec::new();
                std::io::copy(&mut zip.by_index(i).unwrap(), &mut bytes).unwrap();
                bytes
            })
            .collect()
    })
}

fn members() -> Vec<(String, Vec<u8>)> {
    let name = |character: usize, drawer: usize| {
        format!("{FOLDER}/Toy/character{character:02}/0001_{drawer:02}.png")
    };
    (1..=2)
        .flat_map(|character| (1..=20).map(move |drawer| (character, drawer)))
        .map(|(character, drawer)| (name(character, drawer), pngs()[drawer - 1].clone()))
        .collect()
}

fn zipped(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        writer
            .start_file(name.as_str(), SimpleFileOptions::default())
            .unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Opens the bytes as a set and decodes every image.
fn read(zip: &[u8]) -> Result<Omniglot, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy.zip");
    std::fs::write(&path, zip).unwrap();
    let omniglot = Omniglot::read("toy", &path, FOLDER, &OmniglotOptions::default())?;
    for split in [Split::Train, Split::Test] {
        for idx in 0..omniglot.samples(split).len() {
            omniglot.image(split, idx)?;
        }
    }
    Ok(omniglot)
}

fn message_of(members: &[(String, Vec<u8>)]) -> String {
    read(&zipped(members)).unwrap_err().to_string()
}

#[test]
fn the_undamaged_archive_is_read() {
    let omniglot = read(&zipped(&members())).unwrap();
    assert_eq!(
        omniglot.class_names(),
        ["Toy/character01", "Toy/character02"]
    );
    assert_eq!(omniglot.samples(Split::Train).len(), 30);
}

#[test]
fn wrong_members_are_named() {
    let mut missing = members();
    missing.remove(25);
    let message = message_of(&missing);
    assert!(
        message.contains("Toy/character02") && message.contains("19 drawers"),
        "{message}"
    );

    let mut twice = members();
    twice.push((
        format!("{FOLDER}/Toy/character01/0009_03.png"),
        pngs()[0].clone(),
    ));
    let message = message_of(&twice);
    assert!(message.contains("second image"), "{message}");

    let mut text = members();
    text[3].1 = b"hello".to_vec();
    let message = message_of(&text);
    assert!(
        message.contains("0001_04.png") && message.contains("not a PNG"),
        "{message}"
    );

    let mut cut = members();
    cut[3].1.truncate(60);
    let message = message_of(&cut);
    assert!(
        message.contains("0001_04.png") && message.contains("decoded"),
        "{message}"
    );

    let mut stray = members();
    stray.push(("notes.txt".to_owned(), vec![]));
    let message = message_of(&stray);
    assert!(message.contains("notes.txt"), "{message}");
}

#[test]
fn a_set_with_other_counts_than_its_manifest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("omniglot")).unwrap();
    let path = dir.path().join("omniglot/images_evaluation.zip");
    std::fs::write(path, zipped(&members())).unwrap();
    let result = datasets::open("omniglot-evaluation", dir.path(), &Options::none());
    let message = result.err().unwrap().to_string();
    assert!(message.contains("2 classes instead of 659"), "{message}");
}

#[test]
fn a_truncated_archive_is_an_error_at_every_length() {
    let zip = zipped(&members());
    for len in (0..zip.len()).step_by(97) {
        assert!(read(&zip[..len]).is_err(), "{len} of {} bytes", zip.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A change may hit bytes nobody reads, so success is allowed; a panic is not.
    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        // The directory at the end is a small part of the file, so half of the changes go there.
        at_end in any::<bool>(),
    ) {
        static ZIP: OnceLock<Vec<u8>> = OnceLock::new();
        let mut zip = ZIP.get_or_init(|| zipped(&members())).clone();
        let start = if at_end { zip.len() * 3 / 4 } else { 0 };
        let part = &mut zip[start..];
        for (index, value) in changes {
            let at = index.index(part.len());
            part[at] = value;
        }
        let _ = read(&zip);
    }
}
