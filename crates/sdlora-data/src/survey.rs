//! A look at a data set before anything is learned from it: what there is, and what is odd about it.

use std::collections::HashMap;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::dataset::{Dataset, Look, SampleIdx};
use crate::datasets::{has_colour, some_of};
use crate::split::Split;

/// How many times as many images the largest class may have as the smallest before that is worth a word.
const UNEQUAL: usize = 5;
/// How many times as long a side may be as another before that is worth a word.
const UNLIKE_SIDES: usize = 8;

/// A class and its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassCount {
    /// Its name.
    pub name: String,
    /// Images to learn from.
    pub train: usize,
    /// Images to test on.
    pub test: usize,
}

/// Something odd about a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A sentence without a full stop.
    pub text: String,
    /// Whether images or classes cannot be used, and are left out.
    pub is_bad: bool,
}

/// What there is in a data set, and what is odd about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Survey {
    /// Its classes, in the order of their ids.
    pub classes: Vec<ClassCount>,
    /// Shortest and longest side of all images in pixels; `None` where no image could be looked at.
    pub sides: Option<(usize, usize)>,
    /// Images in which a pixel has a colour.
    pub n_colour: usize,
    /// Images that were looked at.
    pub n_looked_at: usize,
    /// The share of every class that was drawn for testing, where the files have no test half.
    pub drawn: Option<f64>,
    /// What is odd.
    pub findings: Vec<Finding>,
}

impl Survey {
    /// Looks at every image of a data set once; those that opening it decoded are not read again. To have
    /// unreadable images as findings and not as an error, open it with `skip_bad`.
    pub fn of(dataset: &dyn Dataset) -> Self {
        let mut classes: Vec<ClassCount> = dataset
            .class_names()
            .iter()
            .map(|name| ClassCount {
                name: name.clone(),
                train: 0,
                test: 0,
            })
            .collect();
        let mut all: Vec<(Split, SampleIdx)> = Vec::new();
        for split in [Split::Train, Split::Test] {
            for (idx, sample) in dataset.samples(split).iter().enumerate() {
                all.push((split, idx));
                if let Some(class) = classes.get_mut(sample.class_id) {
                    match split {
                        Split::Train => class.train += 1,
                        Split::Test => class.test += 1,
                    }
                }
            }
        }
        let looks: Vec<Option<Look>> = all
            .par_iter()
            .map(|&(split, idx)| look(dataset, split, idx))
            .collect();
        let facts = dataset.listing();
        let mut findings: Vec<Finding> = dataset
            .notes()
            .iter()
            .map(|note| Finding {
                text: note.clone(),
                is_bad: facts.left_out.contains(note),
            })
            .collect();
        let mut odd = |text: String| {
            findings.push(Finding {
                text,
                is_bad: false,
            });
        };
        if let Some(text) = in_two_classes(dataset, &all, &looks) {
            odd(text);
        }
        let smallest = classes.iter().min_by_key(|class| class.train);
        let largest = classes.iter().max_by_key(|class| class.train);
        if let (Some(smallest), Some(largest)) = (smallest, largest)
            && largest.train > UNEQUAL * smallest.train
        {
            odd(format!(
                "classes differ in size: `{}` has {} images to learn from and `{}` has {}",
                largest.name, largest.train, smallest.name, smallest.train
            ));
        }
        let seen = || looks.iter().flatten();
        let sides = || seen().flat_map(|look| [look.width, look.height]);
        let sides = sides().min().zip(sides().max());
        if let Some((shortest, longest)) = sides
            && longest > UNLIKE_SIDES * shortest
        {
            odd(format!(
                "images differ in size: the shortest side has {shortest} pixels and the longest {longest}"
            ));
        }
        Self {
            sides,
            n_colour: seen().filter(|look| look.has_colour).count(),
            n_looked_at: seen().count(),
            drawn: facts.drawn,
            classes,
            findings,
        }
    }

    /// Images to learn from.
    pub fn n_train(&self) -> usize {
        self.classes.iter().map(|class| class.train).sum()
    }

    /// Images to test on.
    pub fn n_test(&self) -> usize {
        self.classes.iter().map(|class| class.test).sum()
    }

    /// Fewest and most images to learn from of a class.
    pub fn train_range(&self) -> (usize, usize) {
        let counts = || self.classes.iter().map(|class| class.train);
        (counts().min().unwrap_or(0), counts().max().unwrap_or(0))
    }

    /// Whether most images are coloured.
    pub fn is_coloured(&self) -> bool {
        2 * self.n_colour > self.n_looked_at
    }
}

/// What an image is; `None` where it cannot be decoded.
fn look(dataset: &dyn Dataset, split: Split, idx: SampleIdx) -> Option<Look> {
    if let Some(look) = dataset.look(split, idx) {
        return Some(look);
    }
    let image = dataset.image(split, idx).ok()?;
    let digest = match dataset.stored(split, idx) {
        Some(Ok(bytes)) => Sha256::digest(bytes),
        _ => Sha256::digest(image.data()),
    };
    Some(Look {
        digest: digest.into(),
        width: image.width(),
        height: image.height(),
        has_colour: has_colour(&image),
    })
}

/// Names images that are there under two classes.
fn in_two_classes(
    dataset: &dyn Dataset,
    all: &[(Split, SampleIdx)],
    looks: &[Option<Look>],
) -> Option<String> {
    let mut first: HashMap<[u8; 32], (Split, SampleIdx)> = HashMap::new();
    let mut pairs = Vec::new();
    for (&(split, idx), look) in all.iter().zip(looks) {
        let Some(look) = look else { continue };
        let &mut (other_split, other_idx) = first.entry(look.digest).or_insert((split, idx));
        let (a, b) = (
            &dataset.samples(other_split)[other_idx],
            &dataset.samples(split)[idx],
        );
        if a.class_id != b.class_id {
            pairs.push(format!("`{}` and `{}`", a.name, b.name));
        }
    }
    let n = pairs.len();
    let what = match n {
        0 => return None,
        1 => "1 image is",
        _ => "images are",
    };
    let count = if n == 1 {
        String::new()
    } else {
        format!("{n} ")
    };
    Some(format!(
        "{count}{what} there under two classes: {}",
        some_of(&pairs)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use crate::dataset::Options;
    use crate::datasets;
    use sdlora_image::encode_png;

    fn write(root: &Path, name: &str, pixel: [u8; 3], side: usize) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let data: Vec<u8> = pixel
            .iter()
            .copied()
            .cycle()
            .take(side * side * 3)
            .collect();
        std::fs::write(path, encode_png(side, side, &data).unwrap()).unwrap();
    }

    fn survey(root: &Path) -> Survey {
        let options = Options::none()
            .with("root", root.to_str().unwrap())
            .with("skip_bad", true);
        let dataset = datasets::open("folder", root, &options).unwrap();
        Survey::of(dataset.as_ref())
    }

    #[test]
    fn one_pass_counts_and_names_what_is_odd() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path();
        for i in 0..12 {
            write(at, &format!("train/cup/{i}.png"), [200, 10, i], 8);
        }
        for i in 0..2 {
            write(at, &format!("train/pen/{i}.png"), [i, i, i], 80);
        }
        for class in ["cup", "pen"] {
            write(
                at,
                &format!("test/{class}/a.png"),
                [9, 9, class.as_bytes()[0]],
                8,
            );
        }
        // In both halves, under two classes, in another format, and broken.
        write(at, "test/cup/again.png", [200, 10, 3], 8);
        write(at, "train/pen/cup.png", [200, 10, 5], 8);
        std::fs::write(at.join("train/pen/x.gif"), "GIF89a").unwrap();
        std::fs::write(at.join("train/pen/half.png"), b"\x89PNG\r\n\x1a\n").unwrap();
        let found = survey(at);
        let counts: Vec<_> = found
            .classes
            .iter()
            .map(|class| (class.name.as_str(), class.train, class.test))
            .collect();
        assert_eq!(counts, [("cup", 12, 2), ("pen", 3, 1)]);
        assert_eq!(found.sides, Some((8, 80)));
        assert_eq!((found.n_looked_at, found.drawn), (18, None));
        assert!(found.is_coloured());
        let has = |part: &str, is_bad: bool| {
            let mut findings = found.findings.iter();
            assert!(
                findings.any(|f| f.text.contains(part) && f.is_bad == is_bad),
                "{part}: {:?}",
                found.findings
            );
        };
        has("1 unreadable images: `train/pen/half.png`", true);
        has("formats that are not read: 1 .gif", false);
        has(
            "1 test images are the same as an image to learn from",
            false,
        );
        has(
            "under two classes: `train/cup/5.png` and `train/pen/cup.png`",
            false,
        );
        has("the shortest side has 8 pixels and the longest 80", false);
        assert_eq!(found.findings.len(), 5, "{:?}", found.findings);
    }

    #[test]
    fn unequal_classes_are_named_and_a_test_half_that_is_drawn_is_said() {
        let root = tempfile::tempdir().unwrap();
        for i in 0..40u8 {
            write(root.path(), &format!("cup/{i}.png"), [i, i, i], 8);
        }
        for i in 0..4u8 {
            write(root.path(), &format!("pen/{i}.png"), [100 + i, i, i], 8);
        }
        let found = survey(root.path());
        assert_eq!(found.drawn, Some(0.2));
        assert_eq!(found.train_range(), (3, 32));
        let text = &found.findings[0].text;
        assert!(
            text.contains("`cup` has 32") && text.contains("`pen` has 3"),
            "{text}"
        );
        assert_eq!((found.n_train(), found.n_test()), (35, 9));
        assert!(!found.is_coloured());
    }
}
