//! What a run started from, so that one that continues notices other images and other weights.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use sdlora_data::{Change, Dataset, Fingerprint as DataFingerprint};
use sdlora_vit::{Vit, VitConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::TrainError;
use crate::files::sums::hexadecimal;
use crate::files::write_file;

/// Name of the file beside the plan.
const FILE: &str = "fingerprint.json";
/// Version of its form.
const FORMAT: u32 = 1;

/// Data set and backbone of a run, as they were when it started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    format: u32,
    data: DataFingerprint,
    /// Pre-training has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backbone: Option<BackboneFingerprint>,
}

/// The weights a run started with, whatever file they came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct BackboneFingerprint {
    /// SHA-256 of all parameters by their names, as they were read for the images of the run.
    sha256: String,
    shape: VitConfig,
}

/// How data and backbone compare with what a run started from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Compared {
    /// Nothing changed.
    Same,
    /// Nothing changed as far as the run says, which is of a version that looked at less.
    SameSoFar,
    /// The run is of a version that kept no fingerprint.
    Unknown,
    /// The data set changed.
    OtherData(Change),
    /// The backbone has other weights.
    OtherWeights(String),
}

impl Fingerprint {
    /// That of a data set, and of the backbone where there is one.
    pub fn of(dataset: &dyn Dataset, backbone: Option<&Vit>) -> Self {
        Self {
            format: FORMAT,
            data: DataFingerprint::of(dataset),
            backbone: backbone.map(|vit| BackboneFingerprint {
                sha256: sha256_of(vit),
                shape: vit.config().clone(),
            }),
        }
    }

    /// Keeps it in the folder of a run.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), TrainError> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| TrainError::setting("fingerprint", "unwritable", e.to_string()))?;
        write_file(&folder.join(FILE), &text)
    }

    /// Compares that of a run folder with this one.
    pub(crate) fn compare(&self, folder: &Path) -> Result<Compared, TrainError> {
        let path = folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Compared::Unknown),
            Err(e) => return Err(TrainError::io("read", path)(e)),
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |e: serde_json::Error| TrainError::Damaged {
            path: path.clone(),
            problem: format!(
                "it is no fingerprint ({e}); remove it to continue without the comparison"
            ),
        };
        let format = serde_json::from_slice::<Format>(&text)
            .map_err(damaged)?
            .format;
        if format > FORMAT {
            return Err(TrainError::newer(path, format, FORMAT));
        }
        let before: Self = serde_json::from_slice(&text).map_err(damaged)?;
        Ok(before.changed(self))
    }

    /// Checks that data and backbone are those of the run in a folder, as far as it says.
    pub(crate) fn check(&self, folder: &Path) -> Result<(), TrainError> {
        match self.compare(folder)? {
            Compared::Same | Compared::SameSoFar | Compared::Unknown => Ok(()),
            Compared::OtherData(change) => Err(TrainError::data_changed(folder, change)),
            Compared::OtherWeights(difference) => Err(TrainError::WeightsChanged {
                path: folder.into(),
                difference,
            }),
        }
    }

    /// Checks that the backbone is that of the run in a folder, whatever became of its data.
    pub(crate) fn check_weights(&self, folder: &Path) -> Result<(), TrainError> {
        match self.compare(folder)? {
            Compared::OtherWeights(difference) => Err(TrainError::WeightsChanged {
                path: folder.into(),
                difference,
            }),
            _ => Ok(()),
        }
    }

    fn changed(&self, now: &Self) -> Compared {
        if let (Some(before), Some(now)) = (&self.backbone, &now.backbone) {
            if before.shape != now.shape {
                return Compared::OtherWeights(format!(
                    "its shape was {:?} and is {:?} now",
                    before.shape, now.shape
                ));
            }
            if before.sha256 != now.sha256 {
                return Compared::OtherWeights(format!(
                    "the SHA-256 of its weights was {} and is {} now",
                    before.sha256, now.sha256
                ));
            }
        }
        match self.data.change(&now.data) {
            None if self.data == now.data => Compared::Same,
            None => Compared::SameSoFar,
            Some(change) => Compared::OtherData(change),
        }
    }
}

/// SHA-256 of the names and values of all parameters, in the order of the names.
fn sha256_of(vit: &Vit) -> String {
    let mut by_name = BTreeMap::new();
    vit.each_tensor(&mut |name, values| {
        let mut digest = Sha256::new();
        for values in values.chunks(1 << 14) {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            digest.update(bytes);
        }
        by_name.insert(name.to_owned(), digest.finalize());
    });
    let mut all = Sha256::new();
    for (name, digest) in by_name {
        all.update((name.len() as u64).to_le_bytes());
        all.update(name);
        all.update(digest);
    }
    hexadecimal(&all.finalize())
}
