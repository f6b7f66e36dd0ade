//! GTSRB: 43 German traffic signs (Stallkamp et al. 2011).
//!
//! The original archives, unpacked or as they are:
//!
//! ```text
//! GTSRB/Final_Training/Images/<class>/*.ppm   (or GTSRB/Training/<class>/*.ppm, its smaller first half)
//! GTSRB/Final_Test/Images/*.ppm
//! GT-final_test.csv                           Filename;...;ClassId
//! ```
//!
//! or `train/<class>/*` and `test/<class>/*`, as many copies have it.

use std::collections::HashMap;
use std::path::Path;

use sdlora_image::is_image;

use super::entry::DatasetEntry;
use super::folder::{FolderOptions, find, read};
use super::listed::{Bad, Listed, ListedImages, Usable, some_of};
use crate::dataset::{Dataset, Options};
use crate::error::DataError;
use crate::files::Files;
use crate::split::Split;

/// Traffic signs.
pub(super) const GTSRB: DatasetEntry = DatasetEntry {
    name: "gtsrb",
    summary: "GTSRB: 51,839 photographs of 43 German traffic signs",
    manifest: include_str!("../../manifests/gtsrb.toml"),
    open,
};

/// The classes of the test images.
const TRUTH: &str = "GT-final_test.csv";
const N_CLASSES: usize = 43;

fn open(data_dir: &Path, options: &Options) -> Result<Box<dyn Dataset>, DataError> {
    let name = GTSRB.name;
    let options = options.parse::<FolderOptions>(name)?.check()?;
    let manifest = GTSRB.manifest()?;
    let files = find(&GTSRB, &manifest, &["GTSRB"], data_dir, &options)?;
    let is_original = files
        .names()
        .any(|name| is_image(name) && half(name).is_some());
    let images = if is_original && options.csv.is_none() {
        let (mut listed, notes) = original(&files, options.bad())?;
        options.keep_classes(&mut listed)?;
        let reading = options.reading(name);
        let usable = Usable::of(&files, listed, options.bad(), reading, |_| true)?;
        ListedImages::new(name, files, usable)?.with_notes(notes)
    } else {
        read(name, files, &options)?
    };
    let differences = manifest
        .set(name)
        .map(|set| set.differences(&images))
        .unwrap_or_default();
    Ok(Box::new(images.with_notes(differences)))
}

/// The half an image of the original archives belongs to, by the folders it lies in.
fn half(name: &str) -> Option<Split> {
    name.split('/').find_map(|part| match part {
        "Final_Training" | "Training" => Some(Split::Train),
        "Final_Test" => Some(Split::Test),
        _ => None,
    })
}

/// The images of the original archives, and notes on what was left out.
fn original(files: &Files, bad: Bad) -> Result<(Vec<Listed>, Vec<String>), DataError> {
    let truth = match files.find_named(TRUTH) {
        Some(idx) => classes(files, idx)?,
        None => HashMap::new(),
    };
    let mut listed = Vec::new();
    let mut unknown = Vec::new();
    for idx in (0..files.len()).filter(|&idx| is_image(files.name(idx))) {
        let name = files.name(idx);
        let Some(split) = half(name) else {
            continue;
        };
        let mut parts = name.rsplit('/');
        let (file, folder) = (parts.next(), parts.next());
        let class = match split {
            Split::Train => folder.filter(|folder| class_number(folder).is_some()),
            Split::Test => file.and_then(|file| truth.get(file)).map(String::as_str),
        };
        match class {
            Some(class) => listed.push(Listed {
                file_idx: idx,
                class: class.to_owned(),
                split,
            }),
            None if bad == Bad::Skip => unknown.push(format!("`{name}`")),
            None => {
                let (problem, action) = match split {
                    Split::Train => (
                        format!(
                            "lies in no folder named by a class from 00000 to {:05}",
                            N_CLASSES - 1
                        ),
                        "remove it, or fetch the data set again",
                    ),
                    Split::Test => (
                        format!("has no class, as `{TRUTH}` does not name it or is not there"),
                        "fetch GTSRB_Final_Test_GT.zip and put it beside the images",
                    ),
                };
                return Err(files.error(idx, problem, action));
            }
        }
    }
    let notes = if unknown.is_empty() {
        Vec::new()
    } else {
        vec![format!(
            "left out {} images without a class: {}",
            unknown.len(),
            some_of(&unknown)
        )]
    };
    Ok((listed, notes))
}

/// The class of every test image, as its folder would be named.
fn classes(files: &Files, table: usize) -> Result<HashMap<String, String>, DataError> {
    let text = files.read_text(table)?;
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    let headings: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split(';')
        .map(str::trim)
        .collect();
    let column = |heading: &str| {
        headings
            .iter()
            .position(|found| *found == heading)
            .ok_or_else(|| {
                files.error(
                    table,
                    format!("has no column `{heading}`"),
                    "fetch it again",
                )
            })
    };
    let (file_column, class_column) = (column("Filename")?, column("ClassId")?);
    let mut classes = HashMap::new();
    for (at, line) in lines
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let fields: Vec<&str> = line.split(';').map(str::trim).collect();
        let (Some(file), Some(class)) = (fields.get(file_column), fields.get(class_column)) else {
            return Err(files.error(
                table,
                format!("has a line {} with too few columns", at + 2),
                "fetch it again",
            ));
        };
        let number = class_number(class).ok_or_else(|| {
            files.error(
                table,
                format!(
                    "gives the class `{class}` in line {}, expected one from 0 to {}",
                    at + 2,
                    N_CLASSES - 1
                ),
                "fetch it again",
            )
        })?;
        classes.insert((*file).to_owned(), format!("{number:05}"));
    }
    Ok(classes)
}

/// A class in decimal digits, in range.
fn class_number(text: &str) -> Option<usize> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|&number| is_number && number < N_CLASSES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::four_ways;

    const PPM: &[u8] = b"P6 1 1 255\n\x01\x02\x03";
    const TABLE: &[u8] = b"Filename;Width;ClassId\r\n00000.ppm;1;1\r\n00001.ppm;1;0\r\n";

    fn open_at(root: &Path, skip_bad: bool) -> Result<Box<dyn Dataset>, DataError> {
        let options = Options::none()
            .with("root", root.to_str().unwrap())
            .with("skip_bad", skip_bad);
        open(Path::new("."), &options)
    }

    fn originals(table: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        let table = table.to_vec();
        let mut files = vec![("GT-final_test.csv", table)];
        for name in [
            "GTSRB/Final_Training/Images/00000/00000_00000.ppm",
            "GTSRB/Final_Training/Images/00001/00000_00000.ppm",
            "GTSRB/Final_Test/Images/00000.ppm",
            "GTSRB/Final_Test/Images/00001.ppm",
        ] {
            files.push((name, PPM.to_vec()));
        }
        files
    }

    fn ways(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, [std::path::PathBuf; 4]) {
        let files: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (*n, b.as_slice())).collect();
        four_ways(&files)
    }

    #[test]
    fn the_original_layout_is_read() {
        let (_dir, paths) = ways(&originals(TABLE));
        for path in paths {
            let dataset = open_at(&path, false).unwrap();
            assert_eq!(dataset.class_names(), ["00000", "00001"]);
            let classes = |split| -> Vec<usize> {
                dataset.samples(split).iter().map(|s| s.class_id).collect()
            };
            assert_eq!(classes(Split::Train), [0, 1]);
            assert_eq!(classes(Split::Test), [1, 0]);
            assert_eq!(dataset.image(Split::Test, 0).unwrap().width(), 1);
        }
    }

    #[test]
    fn three_archives_in_a_folder_are_one_data_set() {
        let dir = tempfile::tempdir().unwrap();
        let originals = originals(TABLE);
        let zip = |name: &str, files: &[(&str, Vec<u8>)]| {
            let (_dir, paths) = ways(files);
            std::fs::copy(&paths[1], dir.path().join(name)).unwrap();
        };
        zip("GTSRB_Final_Test_GT.zip", &originals[..1]);
        zip("GTSRB_Final_Training_Images.zip", &originals[1..3]);
        zip("GTSRB_Final_Test_Images.zip", &originals[3..]);
        let dataset = open_at(dir.path(), false).unwrap();
        assert_eq!(dataset.samples(Split::Train).len(), 2);
        assert_eq!(dataset.samples(Split::Test).len(), 2);
        assert_eq!(dataset.image(Split::Train, 1).unwrap().height(), 1);
    }

    #[test]
    fn what_is_wrong_with_the_table_is_named() {
        let message = |table: &[u8]| {
            let (_dir, paths) = ways(&originals(table));
            match open_at(&paths[1], false) {
                Ok(_) => panic!("opened"),
                Err(error) => error.to_string(),
            }
        };
        for (table, part) in [
            (
                &b"Filename;ClassId\n00000.ppm;43\n"[..],
                "class `43` in line 2",
            ),
            (b"Filename;ClassId\n00000.ppm;-1\n", "class `-1` in line 2"),
            (b"Filename;Class\n", "no column `ClassId`"),
            (b"Filename;ClassId\n00000.ppm\n", "line 2 with too few"),
            (b"Filename;ClassId\n00000.ppm;1\n", "00001.ppm"),
            (b"", "no column `Filename`"),
        ] {
            let error = message(table);
            assert!(error.contains(part) && error.contains("a.zip"), "{error}");
        }
        let mut without = originals(TABLE);
        without.remove(0);
        let (_dir, paths) = ways(&without);
        let error = match open_at(&paths[0], false) {
            Ok(_) => panic!("opened"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("GTSRB_Final_Test_GT.zip"), "{error}");
    }

    #[test]
    fn test_images_without_a_class_are_skipped_on_request() {
        let mut files = originals(TABLE);
        files.push(("GTSRB/Final_Test/Images/00002.ppm", PPM.to_vec()));
        let (_dir, paths) = ways(&files);
        let dataset = open_at(&paths[0], true).unwrap();
        assert_eq!(dataset.samples(Split::Test).len(), 2);
        let notes = dataset.notes().join("; ");
        assert!(
            notes.contains("left out 1 images without a class"),
            "{notes}"
        );
        assert!(notes.contains("00002.ppm"), "{notes}");
    }
}
