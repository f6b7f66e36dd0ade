//! CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the binary and in the Python format.
//!
//! Binary: a record is the labels (one byte; CIFAR-100: superclass, class) and 3,072 bytes, the planes of red, green
//! and blue, 32 rows each. Python: a pickle with `data`, one row of 3,072 bytes an image, and lists of labels.
//! Superclasses of CIFAR-100 are groups.

use std::path::{Path, PathBuf};

use sdlora_pickle::PickleError;
use serde::{Deserialize, Serialize};

use super::entry::DatasetEntry;
use super::numpy::Arrays;
use super::pixels::{Order, PixelImages, Pixels, left_out_note};
use crate::dataset::{Dataset, Group, Options, Sample};
use crate::error::DataError;
use crate::files::{Files, MAX_FILES, Place, locate};

/// Ten classes.
pub(super) const CIFAR10: DatasetEntry = DatasetEntry {
    name: "cifar10",
    summary: "CIFAR-10: 60,000 photographs of 32x32 pixels, 10 classes",
    manifest: include_str!("../../manifests/cifar10.toml"),
    open: |data_dir, options| open(&CIFAR10, &TEN, data_dir, options),
};

/// A hundred classes in twenty superclasses.
pub(super) const CIFAR100: DatasetEntry = DatasetEntry {
    name: "cifar100",
    summary: "CIFAR-100: 60,000 photographs of 32x32 pixels, 100 classes in 20 superclasses",
    manifest: include_str!("../../manifests/cifar100.toml"),
    open: |data_dir, options| open(&CIFAR100, &HUNDRED, data_dir, options),
};

const SIDE: usize = 32;
const N_BYTES: usize = 3 * SIDE * SIDE;

/// How the two sets differ.
struct Kind {
    train: [&'static [&'static str]; 2],
    test: [&'static str; 2],
    names: [&'static str; 2],
    names_key: &'static str,
    labels_key: &'static str,
    group_names: Option<[&'static str; 2]>,
    n_classes: usize,
    also: &'static [&'static str],
}

/// Files of the binary format first, of the Python format second.
const TEN: Kind = Kind {
    train: [
        &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        &[
            "data_batch_1",
            "data_batch_2",
            "data_batch_3",
            "data_batch_4",
            "data_batch_5",
        ],
    ],
    test: ["test_batch.bin", "test_batch"],
    names: ["batches.meta.txt", "batches.meta"],
    names_key: "label_names",
    labels_key: "labels",
    group_names: None,
    n_classes: 10,
    also: &[
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
        "cifar-10-binary.tar.gz",
        "cifar-10-python.tar.gz",
    ],
};
const HUNDRED: Kind = Kind {
    train: [&["train.bin"], &["train"]],
    test: ["test.bin", "test"],
    names: ["fine_label_names.txt", "meta"],
    names_key: "fine_label_names",
    labels_key: "fine_labels",
    group_names: Some(["coarse_label_names.txt", "coarse_label_names"]),
    n_classes: 100,
    also: &[
        "cifar-100-binary",
        "cifar-100-python",
        "cifar-100-binary.tar.gz",
        "cifar-100-python.tar.gz",
    ],
};
/// Superclasses of CIFAR-100.
const N_GROUPS: usize = 20;

/// Options of the CIFAR sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CifarOptions {
    /// Folder or archive, below the data directory or absolute.
    pub root: Option<PathBuf>,
    /// Leave out and note the images whose labels are out of range.
    pub skip_bad: bool,
}

fn open(
    entry: &DatasetEntry,
    kind: &Kind,
    data_dir: &Path,
    options: &Options,
) -> Result<Box<dyn Dataset>, DataError> {
    let options: CifarOptions = options.parse(entry.name)?;
    let manifest = entry.manifest()?;
    let place = Place {
        dataset: entry.name,
        manifest: &manifest,
        data_dir,
        root: options.root.as_deref(),
        also: kind.also,
        max_files: MAX_FILES,
    };
    let files = locate(&place, |files| format_of(files, kind).is_some())?;
    let mut images = read(entry.name, &files, kind, options.skip_bad)?;
    if let Some(set) = manifest.set(entry.name) {
        let differences = set.differences(&images);
        images.notes.extend(differences);
    }
    Ok(Box::new(images))
}

/// 0 for the binary, 1 for the Python format.
fn format_of(files: &Files, kind: &Kind) -> Option<usize> {
    (0..2).find(|&format| files.find_named(kind.test[format]).is_some())
}

fn read(name: &str, files: &Files, kind: &Kind, skip_bad: bool) -> Result<PixelImages, DataError> {
    let format = format_of(files, kind).unwrap_or(0);
    let find = |file: &str| {
        files.find_named(file).ok_or_else(|| {
            DataError::content(
                crate::files::place_of(files.path()),
                format!("has no file `{file}` of data set `{name}`"),
                "fetch it again",
            )
        })
    };
    let (class_names, group_names) = names(files, kind, format)?;
    let mut group_of = vec![None; kind.n_classes];
    let mut halves = [Pixels::default(), Pixels::default()];
    let mut left_out = Vec::new();
    let test = [kind.test[format]];
    for (half, names) in halves.iter_mut().zip([kind.train[format], &test[..]]) {
        for file in names {
            let idx = find(file)?;
            let records = if format == 0 {
                binary(files, idx, kind)?
            } else {
                python(files, idx, kind)?
            };
            let pixels = records.pixels.chunks_exact(N_BYTES);
            for (at, (record, pixels)) in records.labels.iter().zip(pixels).enumerate() {
                let name = format!("{file} image {at}");
                match check(files, idx, at, record, kind, &mut group_of) {
                    Err(_) if skip_bad => {
                        left_out.push(name);
                        continue;
                    }
                    checked => checked?,
                }
                half.bytes.extend_from_slice(pixels);
                half.samples.push(Sample {
                    class_id: record.class,
                    name,
                });
            }
        }
    }
    let groups = group_names
        .into_iter()
        .enumerate()
        .map(|(group, name)| Group {
            name,
            classes: (0..kind.n_classes)
                .filter(|&class| group_of[class] == Some(group))
                .collect(),
        })
        .filter(|group| !group.classes.is_empty())
        .collect();
    let [train, test] = halves;
    Ok(PixelImages {
        name: name.to_owned(),
        class_names,
        groups,
        side: [SIDE, SIDE],
        channels: 3,
        order: Order::Planes,
        train,
        test,
        notes: left_out_note(&left_out),
    })
}

/// Labels of one image.
struct Labels {
    class: usize,
    group: Option<usize>,
}

/// What one file holds.
struct Records {
    labels: Vec<Labels>,
    pixels: Vec<u8>,
}

/// Refuses labels out of range, and classes in two superclasses.
fn check(
    files: &Files,
    file: usize,
    at: usize,
    labels: &Labels,
    kind: &Kind,
    group_of: &mut [Option<usize>],
) -> Result<(), DataError> {
    let range = |what: &str, found: usize, n: usize| {
        files.error(
            file,
            format!("gives image {at} the {what} {found}, expected one below {n}"),
            "fetch it again",
        )
    };
    if labels.class >= kind.n_classes {
        return Err(range("label", labels.class, kind.n_classes));
    }
    let Some(group) = labels.group else {
        return Ok(());
    };
    if group >= N_GROUPS {
        return Err(range("superclass", group, N_GROUPS));
    }
    let known = *group_of[labels.class].get_or_insert(group);
    if known != group {
        return Err(files.error(
            file,
            format!(
                "puts class {} in superclass {group} at image {at}, and in {known} before",
                labels.class
            ),
            "fetch it again",
        ));
    }
    Ok(())
}

fn binary(files: &Files, file: usize, kind: &Kind) -> Result<Records, DataError> {
    let bytes = files.read(file)?;
    let n_labels = if kind.group_names.is_some() { 2 } else { 1 };
    let len = n_labels + N_BYTES;
    if bytes.is_empty() || bytes.len() % len != 0 {
        return Err(files.error(
            file,
            format!("has {} bytes, which is no multiple of {len}", bytes.len()),
            "fetch it again",
        ));
    }
    let mut records = Records {
        labels: Vec::with_capacity(bytes.len() / len),
        pixels: Vec::with_capacity(bytes.len()),
    };
    for record in bytes.chunks_exact(len) {
        records.labels.push(Labels {
            class: record[n_labels - 1].into(),
            group: (n_labels == 2).then(|| record[0].into()),
        });
        records.pixels.extend_from_slice(&record[n_labels..]);
    }
    Ok(records)
}

fn python(files: &Files, file: usize, kind: &Kind) -> Result<Records, DataError> {
    let problem = |text: String| files.error(file, text, "fetch it again");
    let bytes = files.read(file)?;
    let pickle = Arrays::read(&bytes).map_err(|error| problem(unreadable(&error)))?;
    let integers = |key: &str| -> Result<Vec<usize>, DataError> {
        pickle
            .numbers(key)
            .ok_or_else(|| problem(format!("has no list of numbers `{key}`")))
    };
    let classes = integers(kind.labels_key)?;
    let groups = match kind.group_names {
        Some(_) => integers("coarse_labels")?.into_iter().map(Some).collect(),
        None => vec![None; classes.len()],
    };
    let pixels = pickle
        .bytes("data")
        .ok_or_else(|| problem("has no array of bytes `data`".to_owned()))?;
    if groups.len() != classes.len() || classes.len().checked_mul(N_BYTES) != Some(pixels.len()) {
        return Err(problem(format!(
            "has {} labels, {} superclasses and {} bytes of pixels, expected {N_BYTES} each",
            classes.len(),
            groups.len(),
            pixels.len()
        )));
    }
    let labels = classes
        .into_iter()
        .zip(groups)
        .map(|(class, group)| Labels { class, group })
        .collect();
    Ok(Records {
        labels,
        pixels: pixels.to_vec(),
    })
}

/// A pickle that cannot be read, as the end of a sentence about its file.
fn unreadable(error: &PickleError) -> String {
    format!("is a pickle that cannot be read: {error}")
}

/// Names of classes and superclasses; numbers when the file with the names is not there.
fn names(
    files: &Files,
    kind: &Kind,
    format: usize,
) -> Result<(Vec<String>, Vec<String>), DataError> {
    let n_groups = if kind.group_names.is_some() {
        N_GROUPS
    } else {
        0
    };
    let list = |file: &str, key: &str, what: &str, n: usize| -> Result<Vec<String>, DataError> {
        let Some(idx) = files.find_named(file).filter(|_| n > 0) else {
            return Ok((0..n).map(|i| format!("{what} {i:02}")).collect());
        };
        let names: Vec<String> = if format == 0 {
            let text = files.read_text(idx)?;
            text.lines()
                .map(|line| line.trim().to_owned())
                .filter(|line| !line.is_empty())
                .collect()
        } else {
            let bytes = files.read(idx)?;
            Arrays::read(&bytes)
                .map_err(|error| files.error(idx, unreadable(&error), "fetch it again"))?
                .texts(key)
                .unwrap_or_default()
        };
        if names.len() == n {
            Ok(names)
        } else {
            Err(files.error(
                idx,
                format!("has {} names instead of {n}", names.len()),
                "fetch it again",
            ))
        }
    };
    let [group_file, group_key] = kind.group_names.unwrap_or_default();
    let group_file = if format == 0 {
        group_file
    } else {
        kind.names[1]
    };
    Ok((
        list(kind.names[format], kind.names_key, "class", kind.n_classes)?,
        list(group_file, group_key, "superclass", n_groups)?,
    ))
}
