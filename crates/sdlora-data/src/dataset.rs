//! What every data set offers: classes, groups of classes, samples and their images.

use sdlora_image::Image;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::split::Split;

/// Position of a class in its data set, fixed by the data set (usually the rank of its name).
///
/// Not the label: a label is the position of a class in the class order of a stream.
pub type ClassId = usize;

/// Position of a sample in [`Dataset::samples`] of its split.
pub type SampleIdx = usize;

/// Classes that belong together: an alphabet, a superclass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name of the group.
    pub name: String,
    /// Its classes, ascending.
    pub classes: Vec<ClassId>,
}

/// One image of a data set, without its pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The class it shows.
    pub class_id: ClassId,
    /// Its name in the files of the data set; errors cite it.
    pub name: String,
}

/// What is known of the content of a sample once the data set is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// Nothing but its name.
    Unknown,
    /// Bytes of its file.
    Size(u64),
    /// All of it: its pixels or its packed file are in memory.
    Bytes(&'a [u8]),
}

/// What a look at one image told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// SHA-256 of the bytes of its file.
    pub digest: [u8; 32],
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Whether any pixel has a colour.
    pub has_colour: bool,
}

/// What listing the files of a data set told besides its samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ListingFacts<'a> {
    /// Images and classes that cannot be used and were left out: one sentence each, which is also among the
    /// [notes](Dataset::notes).
    pub left_out: &'a [String],
    /// The share of every class that was drawn for testing, where the files have no test half.
    pub drawn: Option<f64>,
}

/// A labelled set of images with a training and a test half.
///
/// Opening a data set reads what is needed to list it; [`image`](Self::image) may read and decode on every call, so
/// callers cache (see [`ImageSource`](crate::ImageSource)).
pub trait Dataset: Send + Sync {
    /// Name under which it was opened.
    fn name(&self) -> &str;

    /// Name of every class; the position is the class id.
    fn class_names(&self) -> &[String];

    /// Groups that split the classes, or nothing when the data set has none.
    fn groups(&self) -> &[Group];

    /// All samples of a half, in a fixed order.
    fn samples(&self, split: Split) -> &[Sample];

    /// Sample `idx` of a half.
    ///
    /// # Errors
    ///
    /// [`DataError::OutOfRange`] when there is no such sample.
    fn sample(&self, split: Split, idx: SampleIdx) -> Result<&Sample, DataError> {
        let samples = self.samples(split);
        samples.get(idx).ok_or(DataError::OutOfRange {
            what: "sample",
            idx,
            len: samples.len(),
        })
    }

    /// Names of the domains its images come from (photographs, sketches), or nothing when they are not told apart.
    fn domains(&self) -> &[String] {
        &[]
    }

    /// Position in [`domains`](Self::domains) of the domain of sample `idx` of a half; `None` when there is none.
    fn domain_of(&self, _split: Split, _idx: SampleIdx) -> Option<usize> {
        None
    }

    /// What is known of the content of sample `idx` of a half without reading a file; it tells a changed data set
    /// (see [`Fingerprint`](crate::Fingerprint)).
    fn content(&self, _split: Split, _idx: SampleIdx) -> Content<'_> {
        Content::Unknown
    }

    /// Reads the file of sample `idx` of a half as it is stored, of which [`content`](Self::content) gives the size.
    ///
    /// Nothing where samples are no files of their own, or are in memory. An error when the file cannot be read.
    fn stored(&self, _split: Split, _idx: SampleIdx) -> Option<Result<Vec<u8>, DataError>> {
        None
    }

    /// What opening told of sample `idx` of a half; `None` where it did not decode the image.
    fn look(&self, _split: Split, _idx: SampleIdx) -> Option<Look> {
        None
    }

    /// What listing the files told; nothing where there was nothing to list.
    fn listing(&self) -> ListingFacts<'_> {
        ListingFacts::default()
    }

    /// Classes of a domain whose images are gone: a run learned them and goes on without. A stream has them all the
    /// same, so that every label keeps its meaning.
    fn absent_classes(&self, _domain: usize) -> &[ClassId] {
        &[]
    }

    /// The part that has to stay as it is while a run goes on; `None` where that is all of it.
    fn compared_part(&self) -> Option<&dyn Dataset> {
        None
    }

    /// What was left out when opening, or differs from the original: one sentence each, for the user.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// Decodes the image of sample `idx` of a half.
    ///
    /// # Errors
    ///
    /// [`DataError::OutOfRange`] when there is no such sample, and whatever reading and decoding runs into.
    fn image(&self, split: Split, idx: SampleIdx) -> Result<Image, DataError>;
}

/// Options of one data set, as written in a configuration; each data set knows its own names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Options(pub toml::Table);

impl Options {
    /// No options: every data set has defaults.
    pub fn none() -> Self {
        Self::default()
    }

    /// These options with `name` set to `value`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<toml::Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// Reads the options as the type of the data set `dataset`, which should deny unknown fields.
    ///
    /// # Errors
    ///
    /// [`DataError::Options`] for unknown names and wrong types.
    pub fn parse<T: DeserializeOwned>(&self, dataset: &str) -> Result<T, DataError> {
        self.0
            .clone()
            .try_into()
            .map_err(|source| DataError::Options {
                dataset: dataset.to_owned(),
                source: Box::new(source),
            })
    }
}
