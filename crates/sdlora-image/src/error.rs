//! Errors of this crate.

/// What can go wrong between the bytes of an image and an array of numbers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The bytes of one image cannot be decoded.
    #[error("image `{name}` cannot be decoded: replace or remove it")]
    Decode {
        /// Name of the image.
        name: String,
        /// What the decoder said.
        source: image::ImageError,
    },
    /// The bytes are not those of a whole image in a format that is read.
    #[error("image `{name}` {problem}: {action}")]
    Content {
        /// Name of the image.
        name: String,
        /// What is wrong with it, as the end of a sentence.
        problem: String,
        /// What to do next.
        action: &'static str,
    },
    /// The parts of an image do not fit together.
    #[error(
        "an image of {width}x{height} pixels and {channels} channels cannot have {n_bytes} bytes: pass width x height x channels bytes, with 1 or 3 channels"
    )]
    Shape {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Number of channels.
        channels: usize,
        /// Number of bytes that came with it.
        n_bytes: usize,
    },
    /// A setting has a value outside its range.
    #[error("setting `{setting}` is {found}, expected {expected}: correct it in the configuration")]
    Setting {
        /// Dotted name of the setting.
        setting: String,
        /// The value that was given.
        found: String,
        /// The values that are allowed.
        expected: String,
    },
}

impl ImageError {
    /// Whether a setting is at fault rather than an image.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Setting { .. })
    }

    /// Shorthand for [`ImageError::Setting`].
    pub(crate) fn setting(
        setting: impl Into<String>,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Setting {
            setting: setting.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }
}
