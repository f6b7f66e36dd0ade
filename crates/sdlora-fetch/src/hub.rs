//! Models of the Hub, by way of the cache.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use ureq::http::Method;

use crate::cache::{ModelCache, is_commit};
use crate::config::HubConfig;
use crate::error::FetchError;
use crate::http::{Client, Follow, Response, read_short, refused};
use crate::names::{encode, encode_path, is_below, shown};
use crate::progress::Progress;
use crate::repo::HubRepo;
use crate::transfer::{Wanted, number, obtain};
use crate::verify::{Sum, is_sha256};

/// One file with all weights.
const WEIGHTS: &str = "model.safetensors";
/// The list of the files that the weights are spread over.
const INDEX: &str = "model.safetensors.index.json";
/// Weights in PyTorch's own format.
const PICKLE: &str = "pytorch_model.bin";
/// Files beside the weights, taken where the model has them.
const BESIDE: [&str; 2] = ["config.json", "preprocessor_config.json"];
/// Largest list of files that is read.
const LIST_LIMIT: u64 = 32 << 20;

/// What the Hub says of a revision.
#[derive(Debug, Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// A client of the Hub.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    client: Client,
}

impl Hub {
    /// A client with these settings.
    pub fn new(config: HubConfig) -> Self {
        let client = Client::new(config.retry, config.proxy_from_env);
        Self { config, client }
    }

    /// A client with the settings of the environment, see [`HubConfig::from_lookup`].
    pub fn from_env() -> Self {
        Self::new(HubConfig::from_env())
    }

    /// Brings the weights of a model into the cache, with `config.json` and
    /// `preprocessor_config.json` where it has them, and returns the folder of the snapshot.
    ///
    /// The weights are `model.safetensors`; or the files of `model.safetensors.index.json`; or
    /// `pytorch_model.bin`, the first that the model has. What is in the cache is not downloaded
    /// again, and a revision that is a commit is then not even looked up. Without network the
    /// state of the last look-up is used.
    ///
    /// # Errors
    ///
    /// [`FetchError::NoRepo`], [`FetchError::NoRevision`] and [`FetchError::NoWeights`] for what
    /// the Hub does not have; [`FetchError::Offline`] when the network is switched off and the
    /// cache is not complete; otherwise those of the network, of answers and of the disk.
    pub fn fetch_model(
        &self,
        repo: &HubRepo,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, FetchError> {
        let cache = ModelCache::new(&self.config.cache, repo);
        let cached = cache
            .commit_of(repo.revision())
            .map(|commit| cache.snapshot(&commit))
            .filter(|snapshot| is_complete(snapshot));
        if self.config.offline {
            return cached.ok_or_else(|| FetchError::Offline {
                repo: repo.id().to_owned(),
                revision: repo.revision().to_owned(),
                cache: self.config.cache.clone(),
            });
        }
        // Python may have taken the weights alone; whether there is more, only the Hub knows.
        if let Some(snapshot) = &cached
            && is_commit(repo.revision())
            && snapshot.join(BESIDE[0]).exists()
        {
            return Ok(snapshot.clone());
        }
        let listing = match (self.listing(repo, progress), cached) {
            (Err(FetchError::Connection { .. }), Some(snapshot)) => return Ok(snapshot),
            (listing, _) => listing?,
        };
        let commit = &listing.sha;
        let has = |name: &str| listing.siblings.iter().any(|s| s.rfilename == name);
        let get = |name: &str, progress: &mut dyn Progress| {
            self.fetch_file(repo, &cache, commit, name, progress)
        };
        for name in BESIDE.into_iter().filter(|name| has(name)) {
            get(name, progress)?;
        }
        if has(WEIGHTS) {
            get(WEIGHTS, progress)?;
        } else if has(INDEX) {
            get(INDEX, progress)?;
            for name in shards(&cache.snapshot(commit).join(INDEX))? {
                get(&name, progress)?;
            }
        } else if has(PICKLE) {
            get(PICKLE, progress)?;
        } else {
            return Err(FetchError::NoWeights {
                repo: repo.id().to_owned(),
                commit: commit.clone(),
                wanted: [WEIGHTS, INDEX, PICKLE].join(", "),
            });
        }
        cache.set_commit(repo.revision(), commit)?;
        Ok(cache.snapshot(commit))
    }

    /// Asks for the commit and the files of a revision.
    fn listing(&self, repo: &HubRepo, progress: &mut dyn Progress) -> Result<Listing, FetchError> {
        let url = format!(
            "{}/api/models/{}/revision/{}",
            self.config.endpoint,
            encode_path(repo.id()),
            encode(repo.revision())
        );
        let response = self.send(&Method::GET, &url, Follow::All, progress)?;
        self.accept(&response, repo, &url)?;
        let unusable = |problem: String| FetchError::Answer {
            url: shown(&url),
            problem,
        };
        let mut body = response.body;
        let bytes = read_short(&mut body, LIST_LIMIT, self.client.retry.pace).map_err(|e| {
            FetchError::Connection {
                url: shown(&url),
                n_attempts: 1,
                source: e.reason(),
            }
        })?;
        let listing: Listing =
            serde_json::from_slice(&bytes).map_err(|e| unusable(e.to_string()))?;
        if !is_commit(&listing.sha) {
            return Err(unusable(format!("`{}` is no commit", listing.sha)));
        }
        Ok(listing)
    }

    /// Brings one file into the snapshot of a commit.
    fn fetch_file(
        &self,
        repo: &HubRepo,
        cache: &ModelCache,
        commit: &str,
        name: &str,
        progress: &mut dyn Progress,
    ) -> Result<(), FetchError> {
        if cache.snapshot(commit).join(name).exists() {
            return Ok(());
        }
        let url = format!(
            "{}/{}/resolve/{commit}/{}",
            self.config.endpoint,
            encode_path(repo.id()),
            encode_path(name)
        );
        let mut head = self.send(&Method::HEAD, &url, Follow::SameOrigin, progress)?;
        if head.is_redirect() && etag_of(&head).is_none() {
            // An endpoint that only leads elsewhere.
            head = self.send(&Method::HEAD, &url, Follow::All, progress)?;
        }
        if !head.is_redirect() {
            self.accept(&head, repo, &url)?;
        }
        // The ETag becomes the name of a file.
        let etag =
            etag_of(&head)
                .filter(|etag| is_etag(etag))
                .ok_or_else(|| FetchError::Answer {
                    url: shown(&url),
                    problem: "it has no ETag that can name a file".into(),
                })?;
        let linked = number(head.first_header("x-linked-size"));
        let own = number(head.header("content-length")).filter(|_| !head.is_redirect());
        let blob = cache.blob(etag);
        let _lock = cache.lock(etag)?;
        if !blob.exists() {
            let wanted = Wanted {
                url: &url,
                token: self.config.token.as_deref(),
                name,
                bytes: linked.or(own),
                // Large files have their SHA-256 as ETag, others that of git, which is not checked.
                sum: Some(etag).filter(|etag| is_sha256(etag)).map(Sum::Sha256),
            };
            let part = cache.blob(&format!("{etag}.incomplete"));
            obtain(
                &self.client,
                &wanted,
                &part,
                &blob,
                &|| blob.exists(),
                progress,
            )?;
        }
        cache.link(commit, name, etag)
    }

    fn send(
        &self,
        method: &Method,
        url: &str,
        follow: Follow,
        progress: &mut dyn Progress,
    ) -> Result<Response, FetchError> {
        let token = self.config.token.as_deref();
        self.client
            .send_retrying(method, url, token, follow, progress)
    }

    /// Turns statuses and the Hub's own error codes into errors.
    fn accept(&self, response: &Response, repo: &HubRepo, url: &str) -> Result<(), FetchError> {
        let status = response.status;
        if (200..300).contains(&status) {
            return Ok(());
        }
        Err(match (status, response.header("x-error-code")) {
            (_, Some("RevisionNotFound")) => FetchError::NoRevision {
                repo: repo.id().to_owned(),
                revision: repo.revision().to_owned(),
            },
            (_, Some("EntryNotFound")) => refused(url, status),
            (401 | 403 | 404, _) => FetchError::NoRepo {
                repo: repo.id().to_owned(),
                who: match self.config.token {
                    Some(_) => "the holder of your token",
                    None => "someone without a token",
                },
                status,
            },
            _ => refused(url, status),
        })
    }
}

/// The ETag of a file, that of the large content where there is one, without quotes.
fn etag_of(head: &Response) -> Option<&str> {
    let raw = head
        .first_header("x-linked-etag")
        .or_else(|| head.header("etag"))?;
    let quoted = raw.strip_prefix("W/").unwrap_or(raw);
    Some(quoted.trim_matches('"'))
}

fn is_etag(etag: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=128).contains(&etag.len()) && etag.bytes().all(is_plain)
}

/// The files an index spreads the weights over, each once.
fn shards(index: &Path) -> Result<Vec<String>, FetchError> {
    let bytes = std::fs::read(index).map_err(FetchError::io("read", index))?;
    let list = || index.display().to_string();
    let parsed: Index = serde_json::from_slice(&bytes).map_err(|e| FetchError::Answer {
        url: list(),
        problem: e.to_string(),
    })?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| !is_below(name)) {
        Some(name) => Err(FetchError::UnsafeName {
            name: name.clone(),
            list: list(),
        }),
        None => Ok(names),
    }
}

/// Whether a snapshot has all files of weights.
fn is_complete(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    has(WEIGHTS)
        || has(PICKLE)
        || (has(INDEX)
            && shards(&snapshot.join(INDEX))
                .is_ok_and(|names| !names.is_empty() && names.iter().all(|name| has(name))))
}
