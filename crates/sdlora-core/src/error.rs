//! The errors of this crate.

/// What can be wrong with settings and shapes.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// A setting has a value that cannot work.
    #[error("setting `{setting}` is {found}: give it {expected}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A rank that does not fit the widths of a projection.
    #[error(
        "rank {rank} does not fit site {site} of width {d_input} to {d_output}: choose a rank from 1 to {max}"
    )]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// Name of the site.
        site: String,
        /// Input width of the site.
        d_input: usize,
        /// Output width of the site.
        d_output: usize,
        /// Largest rank that fits.
        max: usize,
    },
    /// A structure of another adapter.
    #[error("the structure has {found}, and the adapter needs {expected}")]
    Structure {
        /// What there is.
        found: String,
        /// What would fit.
        expected: String,
    },
}
