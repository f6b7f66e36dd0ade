//! What torchvision makes of small images, for the tests of the transforms; see `sdlora-testkit/golden/transform`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::crop::Size;
use crate::image::Image;
use crate::resample::Interpolation;

/// One line of `cases.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) op: String,
    pub(crate) input: String,
    pub(crate) output: String,
    pub(crate) size: Option<Size>,
    pub(crate) interpolation: Option<Interpolation>,
    /// Left, top, width, height.
    pub(crate) window: Option<[usize; 4]>,
    pub(crate) resize: Option<usize>,
    pub(crate) corner: Option<Vec<f32>>,
    /// Strength of a change of colour or shape.
    pub(crate) value: Option<f64>,
}

impl Case {
    pub(crate) fn input(&self) -> Image {
        read(&self.input)
    }

    pub(crate) fn expected(&self) -> Image {
        read(&self.output)
    }

    pub(crate) fn side(&self) -> usize {
        match self.size.unwrap() {
            Size::Shorter(side) => side,
            Size::Exact(_) => panic!("{self:?}"),
        }
    }

    /// Asserts that every byte is as torchvision makes it.
    pub(crate) fn assert_equal(&self, found: &Image) {
        let expected = self.expected();
        let (largest, mean) = difference(found, &expected);
        assert!(
            largest == 0,
            "{self:?}: bytes differ by up to {largest}, {mean} in the mean"
        );
    }
}

/// Largest and mean difference of the bytes of two images.
pub(crate) fn difference(found: &Image, expected: &Image) -> (u8, f64) {
    assert_eq!(
        [found.width(), found.height(), found.channels()],
        [expected.width(), expected.height(), expected.channels()]
    );
    let differences = found
        .data()
        .iter()
        .zip(expected.data())
        .map(|(a, b)| a.abs_diff(*b));
    let sum: f64 = differences.clone().map(f64::from).sum();
    (
        differences.max().unwrap_or(0),
        sum / found.data().len() as f64,
    )
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdlora-testkit/golden/transform")
}

fn read(name: &str) -> Image {
    Image::decode(&std::fs::read(folder().join(name)).unwrap(), name).unwrap()
}

/// All cases of one operation; at least one.
pub(crate) fn cases(op: &str) -> Vec<Case> {
    #[derive(Deserialize)]
    struct Cases {
        case: Vec<Case>,
    }
    let text = std::fs::read_to_string(folder().join("cases.toml")).unwrap();
    let mut cases = toml::from_str::<Cases>(&text).unwrap().case;
    cases.retain(|case| case.op == op);
    assert!(!cases.is_empty(), "no golden case of {op}");
    cases
}
