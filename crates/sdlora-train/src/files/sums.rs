//! `SHA256SUMS` of a folder, in the form that `sha256sum --check` reads.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::TrainError;

/// Name of the file.
pub const FILE: &str = "SHA256SUMS";

/// The SHA-256 of every file of a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums(BTreeMap<String, String>);

impl Sums {
    /// Adds a file.
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        self.0.insert(name.to_owned(), sha256(bytes));
    }

    /// Sums that are known; a file without one is not named.
    pub(crate) fn of<const N: usize>(sums: [(&str, Option<String>); N]) -> Self {
        let sums = sums.into_iter();
        Self(
            sums.filter_map(|(name, sum)| Some((name.to_owned(), sum?)))
                .collect(),
        )
    }

    /// Reads those of a folder and checks that every file they name is there; `None` where there are none.
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub fn read(folder: &Path) -> Result<Option<Self>, String> {
        let text = match fs::read(folder.join(FILE)) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| format!("{FILE} is no text"))?,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("{FILE} cannot be read ({e})")),
        };
        let mut sums = BTreeMap::new();
        for (i, line) in text.lines().enumerate() {
            let (sum, name) = line
                .split_once("  ")
                .filter(|(sum, _)| sum.len() == 64)
                .ok_or_else(|| format!("line {} of {FILE} is damaged", i + 1))?;
            if !folder.join(name).is_file() {
                return Err(format!("it has no file {name:?}, which {FILE} names"));
            }
            sums.insert(name.to_owned(), sum.to_owned());
        }
        Ok(Some(Self(sums)))
    }

    /// Checks the bytes of a file.
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub fn check(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        match self.0.get(name) {
            Some(sum) if *sum == sha256(bytes) => Ok(()),
            Some(_) => Err(format!("{name} does not have the hash in {FILE}")),
            None => Err(format!("{FILE} does not name {name}")),
        }
    }

    /// Whether a file is named.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, sum) in &self.0 {
            writeln!(f, "{sum}  {name}")?;
        }
        Ok(())
    }
}

/// Checks files of a folder that has sums; one without is from an earlier version, and taken as it is.
///
/// # Errors
///
/// [`TrainError::Damaged`] that names the file, [`TrainError::Io`] when it cannot be read.
pub fn check_files(folder: &Path, names: &[&str]) -> Result<(), TrainError> {
    let damaged = |problem: String| TrainError::Damaged {
        path: folder.into(),
        problem,
    };
    let Some(sums) = Sums::read(folder).map_err(damaged)? else {
        return Ok(());
    };
    for name in names {
        let path = folder.join(name);
        let bytes = fs::read(&path).map_err(TrainError::io("read", &path))?;
        sums.check(name, &bytes).map_err(damaged)?;
    }
    Ok(())
}

/// The SHA-256 of bytes in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Two digits for each byte.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
