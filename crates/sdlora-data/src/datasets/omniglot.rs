//! Omniglot: 1,623 handwritten characters of 50 alphabets, each by 20 drawers (Lake et al. 2015).
//!
//! Read from the two zips of the original release; members are called
//! `<set>/<Alphabet>/characterNN/<id>_<drawer>.png`. A class is a character, its id the rank of
//! `<Alphabet>/characterNN`, a group is an alphabet. The PNGs stay packed in memory (5 to 7 MB) and are decoded when
//! asked for.

use std::collections::BTreeMap;
use std::path::Path;

use sdlora_image::Image;
use serde::{Deserialize, Serialize};

use super::entry::DatasetEntry;
use crate::archive::Archive;
use crate::dataset::{ClassId, Content, Dataset, Group, Options, Sample, SampleIdx};
use crate::error::DataError;
use crate::manifest::Manifest;
use crate::split::Split;

const MANIFEST: &str = include_str!("../../manifests/omniglot.toml");

/// 964 characters of 30 alphabets, for pre-training.
pub(super) const BACKGROUND: DatasetEntry = DatasetEntry {
    name: "omniglot-background",
    summary: "964 handwritten characters of 30 alphabets, 20 images each; for pre-training",
    manifest: MANIFEST,
    open: |data_dir, options| {
        open(
            "omniglot-background",
            "images_background",
            data_dir,
            options,
        )
    },
};

/// 659 characters of 20 other alphabets, for the incremental tasks.
pub(super) const EVALUATION: DatasetEntry = DatasetEntry {
    name: "omniglot-evaluation",
    summary: "659 handwritten characters of 20 alphabets, 20 images each; for incremental tasks",
    manifest: MANIFEST,
    open: |data_dir, options| {
        open(
            "omniglot-evaluation",
            "images_evaluation",
            data_dir,
            options,
        )
    },
};

/// Everyone drew every character once.
const N_DRAWERS: usize = 20;
/// Width and height of every image in pixels.
const SIDE: u32 = 105;
/// Largest accepted image, and all images together, in bytes; those of the release have under 2 KiB and under 5 MiB.
const MAX_MEMBER_BYTES: u64 = 64 * 1024;
const MAX_TOTAL_BYTES: u64 = 256 * 1024 * 1024;

/// Options of the Omniglot sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OmniglotOptions {
    /// Drawers 1 to this one are the training half, the others the test half; from 1 to 20.
    pub train_drawers: usize,
}

impl Default for OmniglotOptions {
    fn default() -> Self {
        Self { train_drawers: 15 }
    }
}

/// One of the two sets of Omniglot.
#[derive(Debug)]
pub struct Omniglot {
    name: String,
    class_names: Vec<String>,
    groups: Vec<Group>,
    archive: Archive,
    train: Half,
    test: Half,
}

/// Archive member of each drawer, by alphabet and character.
type Characters = BTreeMap<(String, String), [Option<usize>; N_DRAWERS]>;

/// Samples of a split and the archive members with their images.
#[derive(Debug, Default)]
struct Half {
    samples: Vec<Sample>,
    members: Vec<usize>,
}

fn open(
    name: &str,
    folder: &str,
    data_dir: &Path,
    options: &Options,
) -> Result<Box<dyn Dataset>, DataError> {
    let options: OmniglotOptions = options.parse(name)?;
    let manifest = Manifest::parse(MANIFEST, name)?;
    let path = manifest.locate(data_dir, Path::new(&format!("{folder}.zip")))?;
    let omniglot = Omniglot::read(name, &path, folder, &options)?;
    if let Some(set) = manifest.set(name) {
        set.verify(&omniglot)?;
    }
    Ok(Box::new(omniglot))
}

impl Omniglot {
    /// Reads a zip whose members lie in `folder`.
    ///
    /// # Errors
    ///
    /// [`DataError::Archive`] for a damaged zip, [`DataError::Member`] for a member of another name, size or kind,
    /// [`DataError::Count`] when drawers of a character are missing.
    pub fn read(
        name: &str,
        path: &Path,
        folder: &str,
        options: &OmniglotOptions,
    ) -> Result<Self, DataError> {
        if !(1..=N_DRAWERS).contains(&options.train_drawers) {
            return Err(DataError::setting(
                "train_drawers",
                options.train_drawers,
                format!("1 to {N_DRAWERS}"),
            ));
        }
        let archive = Archive::read(path, MAX_MEMBER_BYTES, MAX_TOTAL_BYTES)?;
        let mut omniglot = Self {
            name: name.to_owned(),
            class_names: Vec::new(),
            groups: Vec::new(),
            train: Half::default(),
            test: Half::default(),
            archive,
        };
        for ((alphabet, character), drawers) in omniglot.characters(folder)? {
            let class_id = omniglot.class_names.len();
            let class_name = format!("{alphabet}/{character}");
            omniglot.add_to_group(alphabet, class_id);
            for (drawer_idx, member) in drawers.iter().enumerate() {
                let Some(member) = *member else {
                    return Err(DataError::Count {
                        place: format!("character `{class_name}` of `{}`", path.display()),
                        what: "drawers",
                        expected: N_DRAWERS,
                        found: drawers.iter().flatten().count(),
                    });
                };
                let half = if drawer_idx < options.train_drawers {
                    &mut omniglot.train
                } else {
                    &mut omniglot.test
                };
                half.members.push(member);
                half.samples.push(Sample {
                    class_id,
                    name: omniglot.archive.names()[member].clone(),
                });
            }
            omniglot.class_names.push(class_name);
        }
        Ok(omniglot)
    }

    /// Archive members by alphabet and character, then by drawer.
    fn characters(&self, folder: &str) -> Result<Characters, DataError> {
        let archive = &self.archive;
        let mut characters = Characters::new();
        for (member, name) in archive.names().iter().enumerate() {
            let Some((alphabet, character, drawer)) = parse(name, folder) else {
                let expected =
                    format!("is not `{folder}/<Alphabet>/characterNN/<id>_<01 to 20>.png`");
                return Err(archive.member_error(member, expected));
            };
            if let Some(problem) = problem_of_png(archive.bytes(member)) {
                return Err(archive.member_error(member, problem));
            }
            let drawers = characters
                .entry((alphabet.to_owned(), character.to_owned()))
                .or_insert([None; N_DRAWERS]);
            if drawers[drawer - 1].replace(member).is_some() {
                return Err(archive.member_error(member, "is a second image of its drawer"));
            }
        }
        Ok(characters)
    }

    fn add_to_group(&mut self, alphabet: String, class_id: ClassId) {
        match self.groups.last_mut() {
            Some(group) if group.name == alphabet => group.classes.push(class_id),
            _ => self.groups.push(Group {
                name: alphabet,
                classes: vec![class_id],
            }),
        }
    }

    fn half(&self, split: Split) -> &Half {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }
}

/// Alphabet, character and drawer (1 to 20) of a member.
fn parse<'a>(name: &'a str, folder: &str) -> Option<(&'a str, &'a str, usize)> {
    let mut parts = name.split('/');
    if parts.next()? != folder {
        return None;
    }
    let (alphabet, character, file) = (parts.next()?, parts.next()?, parts.next()?);
    let number = character.strip_prefix("character")?;
    let (_, drawer) = file.strip_suffix(".png")?.split_once('_')?;
    let is_number = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
    if alphabet.is_empty() || parts.next().is_some() || !is_number(number) || !is_number(drawer) {
        return None;
    }
    let drawer = drawer.parse().ok()?;
    (1..=N_DRAWERS)
        .contains(&drawer)
        .then_some((alphabet, character, drawer))
}

/// What is wrong with the first bytes of a PNG, if anything; cheap enough for every image when opening.
fn problem_of_png(bytes: &[u8]) -> Option<String> {
    // Signature, then the header chunk: length, "IHDR", width, height (PNG specification, 5.2 and 11.2.2).
    let header = bytes.first_chunk::<24>();
    let Some(header) =
        header.filter(|h| h.starts_with(b"\x89PNG\r\n\x1a\n") && &h[12..16] == b"IHDR")
    else {
        return Some("is not a PNG".to_owned());
    };
    let number = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let (width, height) = (number(16), number(20));
    ((width, height) != (SIDE, SIDE))
        .then(|| format!("has {width}x{height} pixels instead of {SIDE}x{SIDE}"))
}

impl Dataset for Omniglot {
    fn name(&self) -> &str {
        &self.name
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn groups(&self) -> &[Group] {
        &self.groups
    }

    fn samples(&self, split: Split) -> &[Sample] {
        &self.half(split).samples
    }

    fn content(&self, split: Split, idx: SampleIdx) -> Content<'_> {
        let member = self.half(split).members.get(idx);
        member.map_or(Content::Unknown, |&member| {
            Content::Bytes(self.archive.bytes(member))
        })
    }

    fn image(&self, split: Split, idx: SampleIdx) -> Result<Image, DataError> {
        let sample = self.sample(split, idx)?;
        let bytes = self.archive.bytes(self.half(split).members[idx]);
        let name = format!("{} in {}", sample.name, self.archive.path().display());
        Ok(Image::decode(bytes, &name)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_names_are_taken_apart() {
        let parse = |name| parse(name, "images_background");
        assert_eq!(
            parse("images_background/Early_Aramaic/character07/0101_20.png"),
            Some(("Early_Aramaic", "character07", 20))
        );
        for wrong in [
            "images_evaluation/Early_Aramaic/character07/0101_20.png",
            "images_background/Early_Aramaic/character7/0101_20.png",
            "images_background/Early_Aramaic/character07/0101_21.png",
            "images_background/Early_Aramaic/character07/0101_00.png",
            "images_background/Early_Aramaic/character07/0101_+1.png",
            "images_background/Early_Aramaic/character07/0101_01.jpg",
            "images_background//character07/0101_01.png",
            "images_background/a/character07/b/0101_01.png",
            "images_background/a/character07",
            "",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_start_of_a_png_is_checked() {
        let mut header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x69\0\0\0\x69".to_vec();
        assert_eq!(problem_of_png(&header), None);
        header[23] = 28;
        assert!(problem_of_png(&header).is_some_and(|problem| problem.contains("105x28")));
        assert!(problem_of_png(&header[..23]).is_some());
        assert!(problem_of_png(b"GIF89a").is_some());
    }
}
