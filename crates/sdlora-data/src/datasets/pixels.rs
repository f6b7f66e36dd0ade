//! A data set whose pixels lie one after another in a few files, all of one size; kept in memory.

use sdlora_image::Image;

use super::listed::some_of;
use crate::dataset::{Content, Dataset, Group, Sample, SampleIdx};
use crate::error::DataError;
use crate::split::Split;

/// Order of the samples of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// One plane for each channel.
    Planes,
    /// One plane of gray, columns after columns, as EMNIST has it.
    Columns,
}

/// A data set of small images of one size.
#[derive(Debug)]
pub struct PixelImages {
    pub(super) name: String,
    pub(super) class_names: Vec<String>,
    pub(super) groups: Vec<Group>,
    pub(super) side: [usize; 2],
    pub(super) channels: usize,
    pub(super) order: Order,
    pub(super) train: Pixels,
    pub(super) test: Pixels,
    pub(super) notes: Vec<String>,
}

/// Samples of a half and their pixels, image after image.
#[derive(Debug, Default)]
pub(super) struct Pixels {
    pub(super) samples: Vec<Sample>,
    pub(super) bytes: Vec<u8>,
}

/// What to tell the user of images with labels out of range; nothing when there are none.
pub(super) fn left_out_note(left_out: &[String]) -> Vec<String> {
    if left_out.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "left out {} images with labels out of range: {}",
        left_out.len(),
        some_of(left_out)
    )]
}

impl PixelImages {
    fn half(&self, split: Split) -> &Pixels {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }

    /// The bytes of an image as they were read; nothing when there is no such sample.
    fn bytes(&self, split: Split, idx: SampleIdx) -> Option<&[u8]> {
        let half = self.half(split);
        let len = self.side[0] * self.side[1] * self.channels;
        let start = idx.checked_mul(len)?;
        half.bytes
            .get(start..)?
            .get(..len)
            .filter(|_| idx < half.samples.len())
    }
}

impl Dataset for PixelImages {
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
        self.bytes(split, idx)
            .map_or(Content::Unknown, Content::Bytes)
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn image(&self, split: Split, idx: SampleIdx) -> Result<Image, DataError> {
        let [width, height] = self.side;
        let n_pixels = width * height;
        let bytes = self.bytes(split, idx).ok_or(DataError::OutOfRange {
            what: "sample",
            idx,
            len: self.half(split).samples.len(),
        })?;
        let data = match self.order {
            Order::Planes if self.channels == 1 => bytes.to_vec(),
            Order::Planes => (0..n_pixels)
                .flat_map(|at| bytes[at..].iter().step_by(n_pixels).copied())
                .collect(),
            Order::Columns => (0..n_pixels)
                .map(|at| bytes[at % width * height + at / width])
                .collect(),
        };
        Ok(Image::new(width, height, self.channels, data)?)
    }
}
