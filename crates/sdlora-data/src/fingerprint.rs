//! What tells a data set from what it was before: names, sizes and order of what was listed.
//!
//! A run keeps it, so that one that continues notices an image that came or went, a class that has another name, and
//! pixels that changed where they are in memory anyway. No image file is read for it: a file whose bytes change and
//! whose size does not stays unnoticed.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::dataset::{Content, Dataset};
use crate::hex::hex;
use crate::split::Split;

/// The fingerprint of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The classes in the order of their ids.
    pub classes: Vec<ClassPrint>,
    /// Digest of the groups and domains, by which streams are cut.
    pub groups: String,
    /// Digest of the order of all samples, of the training and of the test half.
    pub order: [String; 2],
}

/// A class and what its images are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassPrint {
    /// Its name.
    pub name: String,
    /// Its training images.
    pub train: HalfPrint,
    /// Its test images.
    pub test: HalfPrint,
}

/// The images of a class in one half.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfPrint {
    /// How many there are.
    pub n_images: usize,
    /// Their bytes together, as far as they are known.
    pub n_bytes: u64,
    /// Digest of their names, domains and what is known of their content, in their order.
    pub digest: String,
}

/// How a data set differs from what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The first difference, in words.
    pub text: String,
    /// Whether every label still means what it meant, so that a run could go on.
    pub keeps_labels: bool,
}

impl Fingerprint {
    /// That of an opened data set.
    pub fn of(dataset: &dyn Dataset) -> Self {
        let names = dataset.class_names();
        let mut halves: Vec<[Half; 2]> = names.iter().map(|_| Default::default()).collect();
        let mut order = [Sha256::new(), Sha256::new()];
        for (half, split) in [Split::Train, Split::Test].into_iter().enumerate() {
            for (idx, sample) in dataset.samples(split).iter().enumerate() {
                let class = sample.class_id as u64;
                order[half].update(class.to_le_bytes());
                // A sample of no class is refused where the stream is cut.
                if let Some(class) = halves.get_mut(sample.class_id) {
                    let domain = dataset.domain_of(split, idx);
                    class[half].add(&sample.name, domain, dataset.content(split, idx));
                }
            }
        }
        let mut groups = Sha256::new();
        for group in dataset.groups() {
            text(&mut groups, &group.name);
            for &class in &group.classes {
                groups.update((class as u64).to_le_bytes());
            }
        }
        for domain in dataset.domains() {
            text(&mut groups, domain);
        }
        let classes = names
            .iter()
            .zip(halves)
            .map(|(name, [train, test])| ClassPrint {
                name: name.clone(),
                train: train.finish(),
                test: test.finish(),
            });
        Self {
            classes: classes.collect(),
            groups: hexadecimal(groups),
            order: order.map(hexadecimal),
        }
    }

    /// The first difference to the same data set as it is `now`.
    pub fn change(&self, now: &Self) -> Option<Change> {
        let lost = |text: String| {
            Some(Change {
                text,
                keeps_labels: false,
            })
        };
        let other = |text: String| {
            Some(Change {
                text,
                keeps_labels: true,
            })
        };
        let place = |of: &Self, name: &str| of.classes.iter().position(|c| c.name == name);
        if self.classes.len() != now.classes.len() {
            let (before, n) = (self.classes.len(), now.classes.len());
            let new = now.classes.iter().find(|c| place(self, &c.name).is_none());
            let gone = self.classes.iter().find(|c| place(now, &c.name).is_none());
            let which = match (new, gone) {
                (Some(new), _) if n > before => format!(", `{}` is new", new.name),
                (_, Some(gone)) => format!(", `{}` is gone", gone.name),
                _ => String::new(),
            };
            return lost(format!(
                "there were {before} classes and are {n} now{which}"
            ));
        }
        let pairs = || self.classes.iter().zip(&now.classes).enumerate();
        for (id, (_, class)) in pairs() {
            if let Some(before) = place(self, &class.name).filter(|&before| before != id) {
                return lost(format!(
                    "class `{}` was number {} and is number {} now",
                    class.name,
                    before + 1,
                    id + 1
                ));
            }
        }
        if self.groups != now.groups {
            return lost("the groups or domains of its classes differ".into());
        }
        for (id, (before, class)) in pairs() {
            if before.name != class.name {
                return other(format!(
                    "class number {} was `{}` and is `{}` now",
                    id + 1,
                    before.name,
                    class.name
                ));
            }
        }
        for (_, (before, class)) in pairs() {
            let train = before.train.change(&class.train, "training");
            if let Some(text) = train.or_else(|| before.test.change(&class.test, "test")) {
                return other(format!("class `{}` {text}", class.name));
            }
        }
        if self.order != now.order {
            return other("its images come in another order".into());
        }
        None
    }
}

impl HalfPrint {
    /// What follows the name of a class, whose `half` this is.
    fn change(&self, now: &Self, half: &str) -> Option<String> {
        if self.n_images != now.n_images {
            let (before, now) = (self.n_images, now.n_images);
            return Some(format!("had {before} {half} images and has {now} now"));
        }
        (self != now).then(|| {
            format!(
                "has other {half} images: of another name or size, or with other pixels ({} images of {} bytes \
                 together then, {} bytes now)",
                now.n_images, self.n_bytes, now.n_bytes
            )
        })
    }
}

/// The images of a class in one half, while they are counted.
#[derive(Default)]
struct Half {
    n_images: usize,
    n_bytes: u64,
    digest: Sha256,
}

impl Half {
    fn add(&mut self, name: &str, domain: Option<usize>, content: Content<'_>) {
        self.n_images += 1;
        text(&mut self.digest, name);
        let domain = domain.map_or(u64::MAX, |domain| domain as u64);
        self.digest.update(domain.to_le_bytes());
        match content {
            Content::Unknown => self.digest.update([0]),
            Content::Size(size) => {
                self.n_bytes += size;
                self.digest.update([1]);
                self.digest.update(size.to_le_bytes());
            }
            Content::Bytes(bytes) => {
                self.n_bytes += bytes.len() as u64;
                self.digest.update([2]);
                self.digest.update((bytes.len() as u64).to_le_bytes());
                self.digest.update(bytes);
            }
        }
    }

    fn finish(self) -> HalfPrint {
        HalfPrint {
            n_images: self.n_images,
            n_bytes: self.n_bytes,
            digest: hexadecimal(self.digest),
        }
    }
}

/// A text whose end is told from the start of the next.
fn text(digest: &mut Sha256, text: &str) {
    digest.update((text.len() as u64).to_le_bytes());
    digest.update(text);
}

/// The first half of a digest, which is enough to tell what changed by accident, in a file of thousands of them.
fn hexadecimal(digest: Sha256) -> String {
    hex(&digest.finalize()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Options;
    use crate::datasets;
    use sdlora_image::encode_png;
    use std::path::Path;

    /// A folder of two classes with three images each in both halves.
    fn folder(root: &Path) {
        let png = encode_png(2, 2, &[80; 12]).unwrap();
        for half in ["train", "test"] {
            for class in ["cat", "dog"] {
                let folder = root.join("own").join(half).join(class);
                std::fs::create_dir_all(&folder).unwrap();
                for i in 0..3 {
                    std::fs::write(folder.join(format!("{i}.png")), &png).unwrap();
                }
            }
        }
    }

    fn of(root: &Path) -> Fingerprint {
        let options = Options::none().with("root", "own");
        let dataset = datasets::open("folder", root, &options).unwrap();
        Fingerprint::of(dataset.as_ref())
    }

    #[test]
    fn a_folder_that_changes_says_its_first_difference() {
        let root = tempfile::tempdir().unwrap();
        folder(root.path());
        let before = of(root.path());
        assert_eq!(before.change(&of(root.path())), None);
        let at = |name: &str| root.path().join("own").join(name);
        let change = || before.change(&of(root.path())).unwrap();

        std::fs::copy(at("train/dog/0.png"), at("train/dog/9.png")).unwrap();
        let added = change();
        assert!(added.keeps_labels, "{added:?}");
        assert_eq!(
            added.text,
            "class `dog` had 3 training images and has 4 now"
        );
        std::fs::remove_file(at("train/dog/9.png")).unwrap();

        std::fs::rename(at("test/cat/1.png"), at("test/cat/1b.png")).unwrap();
        let renamed = change();
        assert!(
            renamed.keeps_labels
                && renamed
                    .text
                    .starts_with("class `cat` has other test images")
        );
        std::fs::rename(at("test/cat/1b.png"), at("test/cat/1.png")).unwrap();

        let mut bytes = std::fs::read(at("train/cat/2.png")).unwrap();
        bytes.push(0);
        std::fs::write(at("train/cat/2.png"), &bytes).unwrap();
        assert!(
            change()
                .text
                .contains("class `cat` has other training images")
        );
        bytes.pop();
        std::fs::write(at("train/cat/2.png"), &bytes).unwrap();

        for half in ["train", "test"] {
            std::fs::rename(at(&format!("{half}/cat")), at(&format!("{half}/cats"))).unwrap();
        }
        let class = change();
        assert!(class.keeps_labels);
        assert_eq!(class.text, "class number 1 was `cat` and is `cats` now");
        // Behind the other one in the alphabet, so that labels would be exchanged.
        for half in ["train", "test"] {
            std::fs::rename(at(&format!("{half}/cats")), at(&format!("{half}/zebra"))).unwrap();
        }
        let exchanged = change();
        assert!(!exchanged.keeps_labels);
        assert_eq!(
            exchanged.text,
            "class `dog` was number 2 and is number 1 now"
        );
    }

    #[test]
    fn a_class_that_comes_or_goes_is_named() {
        let root = tempfile::tempdir().unwrap();
        folder(root.path());
        let before = of(root.path());
        for half in ["train", "test"] {
            let at = |name: &str| root.path().join("own").join(half).join(name);
            std::fs::create_dir(at("bird")).unwrap();
            std::fs::copy(at("cat/0.png"), at("bird/0.png")).unwrap();
        }
        let after = of(root.path());
        let come = before.change(&after).unwrap();
        let gone = after.change(&before).unwrap();
        assert_eq!(
            come.text,
            "there were 2 classes and are 3 now, `bird` is new"
        );
        assert_eq!(
            gone.text,
            "there were 3 classes and are 2 now, `bird` is gone"
        );
        assert!(!come.keeps_labels && !gone.keeps_labels);
    }

    #[test]
    fn pixels_in_memory_count_with_every_bit() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("mnist");
        std::fs::create_dir(&folder).unwrap();
        let write = |half: &str, pixel: u8| {
            let mut images = vec![0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 7];
            images.push(pixel);
            let labels = [0, 0, 8, 1, 0, 0, 0, 1, 4];
            std::fs::write(folder.join(format!("{half}-images-idx3-ubyte")), images).unwrap();
            std::fs::write(folder.join(format!("{half}-labels-idx1-ubyte")), labels).unwrap();
        };
        let of = || {
            let dataset = datasets::open("mnist", root.path(), &Options::none()).unwrap();
            Fingerprint::of(dataset.as_ref())
        };
        write("train", 1);
        write("t10k", 1);
        let before = of();
        write("t10k", 0);
        let change = before.change(&of()).unwrap();
        assert!(
            change.text.starts_with("class `4` has other test images"),
            "{change:?}"
        );
    }
}
