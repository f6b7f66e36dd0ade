//! Downloads of weights and data: models of the Hugging Face Hub, and plain files by HTTP.
//!
//! Both ways end in the same transfer: a file grows under a temporary name, a broken connection is
//! resumed where it broke, size and SHA-256 are checked, and only then does the file get its name.
//!
//! | what | where |
//! | --- | --- |
//! | name of a model, `hf:org/name@revision` | [`HubRepo`] |
//! | settings from the environment, as Python's `huggingface_hub` reads them | [`HubConfig`] |
//! | a model in the cache that Python shares | [`Hub`] |
//! | a plain file, of known size and sum where there are any | [`download`], [`Expected`] |
//! | another place with the same files | [`Mirror`] |
//! | what the caller is told meanwhile | [`Progress`] |
//!
//! The crate knows no model and no tensor: it brings files.
//!
//! ```
//! use sdlora_fetch::{HubConfig, HubRepo};
//!
//! let repo = HubRepo::parse("hf:timm/vit_base_patch16_224.augreg2_in21k_ft_in1k")?;
//! assert_eq!(repo.id(), "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k");
//! assert_eq!(repo.revision(), "main");
//!
//! let config = HubConfig::from_lookup(|key| (key == "HF_HOME").then(|| "/data/hf".to_owned()));
//! assert_eq!(config.cache, std::path::Path::new("/data/hf/hub"));
//! # Ok::<(), sdlora_fetch::FetchError>(())
//! ```

#![forbid(unsafe_code)]

mod cache;
mod config;
mod download;
mod error;
mod http;
mod hub;
mod mirror;
mod names;
mod progress;
mod repo;
mod transfer;
mod verify;

pub use config::HubConfig;
pub use download::{Downloader, Expected, download};
pub use error::FetchError;
pub use http::{Pace, Retry};
pub use hub::Hub;
pub use mirror::{Mirror, Place};
pub use progress::{Progress, Silent};
pub use repo::HubRepo;
pub use verify::{is_sha256, sha256_of};
