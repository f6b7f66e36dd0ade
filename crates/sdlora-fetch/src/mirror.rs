//! Another place that has the same files.

use std::path::PathBuf;

use crate::error::FetchError;
use crate::names::{encode, is_below, shown};

/// Where one file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On a server.
    Url(String),
    /// In the file system.
    File(PathBuf),
}

/// A folder, on a server or in the file system, with files under their own names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror(Place);

impl Mirror {
    /// Reads what a user typed: an `http(s)` address, or else a folder.
    pub fn parse(text: &str) -> Self {
        if text.starts_with("http://") || text.starts_with("https://") {
            Self(Place::Url(text.trim_end_matches('/').to_owned()))
        } else {
            Self(Place::File(PathBuf::from(text)))
        }
    }

    /// Where the mirror has the file of an address: the same last name below the mirror.
    ///
    /// # Errors
    ///
    /// [`FetchError::UnsafeName`] when the address ends in no file name.
    pub fn place(&self, url: &str) -> Result<Place, FetchError> {
        let name = file_name(url)?;
        Ok(match &self.0 {
            Place::Url(base) => Place::Url(format!("{base}/{}", encode(&name))),
            Place::File(folder) => Place::File(folder.join(name)),
        })
    }
}

/// The last name of an address.
pub(crate) fn file_name(url: &str) -> Result<String, FetchError> {
    let path = shown(url);
    let name = path.rsplit('/').next().unwrap_or_default();
    if !is_below(name) || !path.trim_end_matches(name).contains("://") || path.ends_with("://") {
        return Err(FetchError::UnsafeName {
            name: name.to_owned(),
            list: path,
        });
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_has_the_file_under_its_own_name() {
        let url = "https://a.example/data/clip%20art.zip?x=1";
        assert!(file_name("https://a.example/..").is_err());
        assert!(file_name("https://a.example/").is_err());
        let folder = Mirror::parse("/mnt/mirror").place(url).unwrap();
        assert_eq!(folder, Place::File("/mnt/mirror/clip%20art.zip".into()));
        let server = Mirror::parse("http://m/x/")
            .place("https://a/real.zip")
            .unwrap();
        assert_eq!(server, Place::Url("http://m/x/real.zip".into()));
    }
}
