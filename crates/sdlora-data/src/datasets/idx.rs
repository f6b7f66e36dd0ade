//! MNIST and its siblings, in the IDX format (LeCun): big-endian lengths, then one byte a pixel or label.
//!
//! `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of `t10k` (EMNIST: `emnist-<set>-train-images-...`
//! and `-test-`), plain or with `.gz`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::entry::DatasetEntry;
use super::pixels::{Order, PixelImages, Pixels, left_out_note};
use crate::dataset::{Dataset, Options, Sample};
use crate::error::DataError;
use crate::files::{Files, MAX_FILES, Place, locate, place_of};

/// Handwritten digits.
pub(super) const MNIST: DatasetEntry = DatasetEntry {
    name: "mnist",
    summary: "MNIST: 70,000 handwritten digits of 28x28 pixels, 10 classes",
    manifest: include_str!("../../manifests/mnist.toml"),
    open: |data_dir, options| {
        open(
            &MNIST,
            &PLAIN,
            &["mnist", "MNIST/raw", "mnist-t10k"],
            data_dir,
            options,
        )
    },
};

/// Articles of clothing.
pub(super) const FASHION_MNIST: DatasetEntry = DatasetEntry {
    name: "fashion-mnist",
    summary: "Fashion-MNIST: 70,000 articles of clothing of 28x28 pixels, 10 classes",
    manifest: include_str!("../../manifests/fashion-mnist.toml"),
    open: |data_dir, options| {
        let names = Names {
            classes: &CLOTHES,
            ..PLAIN
        };
        open(
            &FASHION_MNIST,
            &names,
            &["FashionMNIST/raw"],
            data_dir,
            options,
        )
    },
};

/// Cursive Japanese characters.
pub(super) const KMNIST: DatasetEntry = DatasetEntry {
    name: "kmnist",
    summary: "Kuzushiji-MNIST: 70,000 cursive Japanese characters of 28x28 pixels, 10 classes",
    manifest: include_str!("../../manifests/kmnist.toml"),
    open: |data_dir, options| {
        let names = Names {
            classes: &["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"],
            ..PLAIN
        };
        open(&KMNIST, &names, &["KMNIST/raw"], data_dir, options)
    },
};

/// Handwritten digits and letters, the same number of each.
pub(super) const EMNIST_BALANCED: DatasetEntry = DatasetEntry {
    name: "emnist-balanced",
    summary: "EMNIST balanced: 131,600 handwritten digits and letters of 28x28 pixels, 47 classes",
    manifest: EMNIST,
    open: |data_dir, options| {
        open(
            &EMNIST_BALANCED,
            &emnist("balanced", 47),
            data_dir_also(),
            data_dir,
            options,
        )
    },
};

/// Handwritten letters.
pub(super) const EMNIST_LETTERS: DatasetEntry = DatasetEntry {
    name: "emnist-letters",
    summary: "EMNIST letters: 145,600 handwritten letters of 28x28 pixels, 26 classes",
    manifest: EMNIST,
    open: |data_dir, options| {
        let names = Names {
            first_label: 1,
            ..emnist("letters", 26)
        };
        open(&EMNIST_LETTERS, &names, data_dir_also(), data_dir, options)
    },
};

/// Handwritten digits and letters, as frequent as they were written.
pub(super) const EMNIST_BYCLASS: DatasetEntry = DatasetEntry {
    name: "emnist-byclass",
    summary: "EMNIST by class: 814,255 handwritten digits and letters of 28x28 pixels, 62 classes",
    manifest: EMNIST,
    open: |data_dir, options| {
        open(
            &EMNIST_BYCLASS,
            &emnist("byclass", 62),
            data_dir_also(),
            data_dir,
            options,
        )
    },
};

const EMNIST: &str = include_str!("../../manifests/emnist.toml");
const CLOTHES: [&str; 10] = [
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
];
const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
/// Characters of EMNIST in the order of its labels; letters that look alike in both cases are merged (its
/// mapping files).
const BY_CLASS: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const BALANCED: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt";
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz";

/// Most bytes of one file; the largest known, the images of EMNIST by class, has 547 MB.
const MAX_BYTES: u64 = 1 << 30;

/// Files and classes of one set.
#[derive(Clone, Copy)]
struct Names {
    train: &'static str,
    test: &'static str,
    /// Set of EMNIST.
    set: Option<&'static str>,
    classes: &'static [&'static str],
    n_classes: usize,
    first_label: usize,
    order: Order,
}

const PLAIN: Names = Names {
    train: "train",
    test: "t10k",
    set: None,
    classes: &DIGITS,
    n_classes: 10,
    first_label: 0,
    order: Order::Planes,
};

fn emnist(set: &'static str, n_classes: usize) -> Names {
    Names {
        test: "test",
        set: Some(set),
        classes: &[],
        n_classes,
        order: Order::Columns,
        ..PLAIN
    }
}

fn data_dir_also() -> &'static [&'static str] {
    &["EMNIST/raw", "gzip.zip", "emnist-gzip.zip"]
}

impl Names {
    fn file(&self, half: &str, what: &str) -> String {
        let dimensions = if what == "images" { 3 } else { 1 };
        match self.set {
            Some(set) => format!("emnist-{set}-{half}-{what}-idx{dimensions}-ubyte"),
            None => format!("{half}-{what}-idx{dimensions}-ubyte"),
        }
    }

    fn find(&self, files: &Files, half: &str, what: &str) -> Option<usize> {
        let name = self.file(half, what);
        files
            .find_named(&name)
            .or_else(|| files.find_named(&format!("{name}.gz")))
    }

    fn class_names(&self) -> Vec<String> {
        let characters = match self.set {
            Some("balanced") => BALANCED,
            Some("letters") => LETTERS,
            _ => BY_CLASS,
        };
        if self.set.is_some() {
            characters.chars().map(String::from).collect()
        } else {
            self.classes.iter().map(|&name| name.to_owned()).collect()
        }
    }
}

/// Options of the sets in the IDX format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdxOptions {
    /// Folder or archive, below the data directory or absolute.
    pub root: Option<PathBuf>,
    /// Read the test files only: so many of their first images are the training half, the others the test half.
    pub first_of_test: Option<usize>,
    /// Leave out and note the images whose labels are out of range.
    pub skip_bad: bool,
}

fn open(
    entry: &DatasetEntry,
    names: &Names,
    also: &[&str],
    data_dir: &Path,
    options: &Options,
) -> Result<Box<dyn Dataset>, DataError> {
    let options: IdxOptions = options.parse(entry.name)?;
    let manifest = entry.manifest()?;
    let place = Place {
        dataset: entry.name,
        manifest: &manifest,
        data_dir,
        root: options.root.as_deref(),
        also,
        max_files: MAX_FILES,
    };
    let files = locate(&place, |files| {
        names.find(files, names.test, "images").is_some()
    })?;
    let mut left_out = Vec::new();
    let bad = options.skip_bad.then_some(&mut left_out);
    let test = half(&files, names, names.test, bad)?;
    let bad = options.skip_bad.then_some(&mut left_out);
    let (train, test) = match options.first_of_test {
        None => (half(&files, names, names.train, bad)?, test),
        Some(n) => split(test, n)?,
    };
    if train.side != test.side {
        return Err(DataError::content(
            place_of(files.path()),
            format!(
                "has training images of {:?} and test images of {:?} pixels",
                train.side, test.side
            ),
            "fetch it again",
        ));
    }
    let mut images = PixelImages {
        name: entry.name.to_owned(),
        class_names: names.class_names(),
        groups: Vec::new(),
        side: test.side,
        channels: 1,
        order: names.order,
        train: train.pixels,
        test: test.pixels,
        notes: left_out_note(&left_out),
    };
    if let Some(set) = manifest.set(entry.name) {
        let differences = set.differences(&images);
        images.notes.extend(differences);
    }
    Ok(Box::new(images))
}

/// One half as it was read.
struct Half {
    side: [usize; 2],
    pixels: Pixels,
}

/// The first `n` images, and the others.
fn split(mut all: Half, n: usize) -> Result<(Half, Half), DataError> {
    let len = all.pixels.samples.len();
    if n == 0 || n >= len {
        return Err(DataError::setting(
            "first_of_test",
            n,
            format!("above 0 and below {len}"),
        ));
    }
    let rest = Pixels {
        samples: all.pixels.samples.split_off(n),
        bytes: all.pixels.bytes.split_off(n * all.side[0] * all.side[1]),
    };
    let side = all.side;
    Ok((all, Half { side, pixels: rest }))
}

/// Reads a half; images with labels out of range go to `left_out`, or are refused where there is none.
fn half(
    files: &Files,
    names: &Names,
    half: &str,
    mut left_out: Option<&mut Vec<String>>,
) -> Result<Half, DataError> {
    let find = |what: &str| {
        names.find(files, half, what).ok_or_else(|| {
            DataError::content(
                place_of(files.path()),
                format!(
                    "has no file `{}`, plain or with `.gz`",
                    names.file(half, what)
                ),
                "fetch it, or use the test files alone with the option `first_of_test`",
            )
        })
    };
    let (images, labels) = (find("images")?, find("labels")?);
    let [n_images, height, width] = lengths::<3>(files, images)?;
    let [n_labels] = lengths::<1>(files, labels)?;
    if n_images != n_labels {
        return Err(files.error(
            labels,
            format!("has {n_labels} labels for {n_images} images"),
            "fetch both again",
        ));
    }
    if n_images == 0 || width == 0 || height == 0 {
        return Err(files.error(images, "holds no images", "fetch it again"));
    }
    let label_bytes = read(files, labels, [n_labels])?;
    let mut bytes = read(files, images, [n_images, height, width])?;
    let file = names.file(half, "images");
    let mut samples = Vec::with_capacity(n_images);
    let len = width * height;
    for (at, &label) in label_bytes.iter().enumerate() {
        let name = format!("{file} image {at}");
        let class_id = usize::from(label)
            .checked_sub(names.first_label)
            .filter(|&class_id| class_id < names.n_classes);
        let Some(class_id) = class_id else {
            if let Some(left_out) = &mut left_out {
                left_out.push(name);
                continue;
            }
            return Err(files.error(
                labels,
                format!(
                    "gives image {at} the label {label}, expected {} to {}",
                    names.first_label,
                    names.first_label + names.n_classes - 1
                ),
                "fetch it again",
            ));
        };
        // In place of those that were left out.
        bytes.copy_within(at * len..(at + 1) * len, samples.len() * len);
        samples.push(Sample { class_id, name });
    }
    bytes.truncate(samples.len() * len);
    Ok(Half {
        side: [width, height],
        pixels: Pixels { samples, bytes },
    })
}

/// Lengths in the header of an IDX file of unsigned bytes with `N` dimensions.
fn lengths<const N: usize>(files: &Files, idx: usize) -> Result<[usize; N], DataError> {
    let start = files.plain_start(idx, header_len::<N>())?;
    // Two zero bytes, the type (8: unsigned bytes), the number of dimensions.
    if start.len() as u64 != header_len::<N>() || start[..4] != [0, 0, 8, N as u8] {
        return Err(files.error(
            idx,
            format!("is no IDX file of unsigned bytes with {N} dimensions"),
            "fetch it again",
        ));
    }
    let mut lens = [0; N];
    for (len, field) in lens.iter_mut().zip(start[4..].chunks_exact(4)) {
        *len = u32::from_be_bytes([field[0], field[1], field[2], field[3]]) as usize;
    }
    Ok(lens)
}

const fn header_len<const N: usize>() -> u64 {
    4 + 4 * N as u64
}

/// Contents of an IDX file of these lengths; no more is unpacked than they ask for.
fn read<const N: usize>(files: &Files, idx: usize, lens: [usize; N]) -> Result<Vec<u8>, DataError> {
    let problem = |text: String| files.error(idx, text, "fetch it again");
    let expected = lens
        .iter()
        .try_fold(1u64, |n, &len| n.checked_mul(len as u64))
        .filter(|&n| n <= MAX_BYTES)
        .ok_or_else(|| problem(format!("asks for too many bytes with its lengths {lens:?}")))?;
    let bytes = files.read_plain(idx, header_len::<N>() + expected)?;
    let Some(mut bytes) = bytes else {
        return Err(problem(format!(
            "has more bytes of data than its lengths {lens:?} ask for"
        )));
    };
    bytes.drain(..(header_len::<N>() as usize).min(bytes.len()));
    if bytes.len() as u64 != expected {
        return Err(problem(format!(
            "has {} bytes of data, its lengths {lens:?} ask for another number",
            bytes.len()
        )));
    }
    Ok(bytes)
}
