//! The linear maps of a block that an adapter can change, and their names as sites.

use serde::{Deserialize, Serialize};

/// A linear map inside a pre-norm transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Projection {
    /// Query of the attention.
    Query,
    /// Key of the attention.
    Key,
    /// Value of the attention.
    Value,
    /// Output projection of the attention.
    Output,
    /// First layer of the MLP.
    Fc1,
    /// Second layer of the MLP.
    Fc2,
}

impl Projection {
    /// Every projection, in the order of the forward pass.
    pub const ALL: [Self; 6] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Fc1,
        Self::Fc2,
    ];

    /// Short name, used in tensor names and configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::Output => "output",
            Self::Fc1 => "fc1",
            Self::Fc2 => "fc2",
        }
    }

    /// The projection of that [`name`](Self::name), if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Name of the [`Site`](sdlora_core::Site) of this projection in a block, from 0: `blocks.<block>.<projection>`.
    pub fn site(self, block_idx: usize) -> String {
        format!("blocks.{block_idx}.{}", self.name())
    }

    /// Block and projection of a site of that name.
    pub fn of_site(name: &str) -> Option<(usize, Self)> {
        let (block_idx, projection) = name.strip_prefix("blocks.")?.split_once('.')?;
        Some((block_idx.parse().ok()?, Self::from_name(projection)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for projection in Projection::ALL {
            assert_eq!(Projection::from_name(projection.name()), Some(projection));
            let site = projection.site(11);
            assert_eq!(Projection::of_site(&site), Some((11, projection)), "{site}");
        }
        assert_eq!(Projection::from_name("qkv"), None);
        assert_eq!(Projection::of_site("blocks.1.qkv"), None);
    }
}
