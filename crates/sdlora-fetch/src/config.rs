//! Settings of the Hub, under the names Python's `huggingface_hub` gives them.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::http::Retry;

/// The public Hub (`huggingface_hub.constants`).
const ENDPOINT: &str = "https://huggingface.co";

/// Where models come from, where they are kept, and who asks.
#[derive(Clone)]
pub struct HubConfig {
    /// Address of the Hub, without a slash at the end.
    pub endpoint: String,
    /// Folder of the cache, which has one folder per model.
    pub cache: PathBuf,
    /// Token of the user. It is sent to the endpoint and to no other host.
    pub token: Option<String>,
    /// Use only what is in the cache.
    pub offline: bool,
    /// Go through the proxies that the environment names.
    pub proxy_from_env: bool,
    /// How often and when a broken connection is tried again.
    pub retry: Retry,
}

impl HubConfig {
    /// Settings from the environment of the process, and the token `hf auth login` has stored.
    pub fn from_env() -> Self {
        let mut config = Self::from_lookup(|key| std::env::var(key).ok());
        config.proxy_from_env = true;
        config
    }

    /// Settings from a lookup of variables; empty values count as absent, and a stored token is
    /// read from its file.
    ///
    /// | variable | meaning | when absent |
    /// | --- | --- | --- |
    /// | `HF_ENDPOINT` | address of the Hub | the public one |
    /// | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE` | the cache | `$HF_HOME/hub` |
    /// | `HF_HOME` | folder of cache and token | `$XDG_CACHE_HOME/huggingface`, `~/.cache/huggingface` |
    /// | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN` | the token | the content of `HF_TOKEN_PATH` |
    /// | `HF_TOKEN_PATH` | file with the token | `$HF_HOME/token` |
    /// | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | no network when `1`, `on`, `yes` or `true` | with network |
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |key: &str| {
            lookup(key)
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        };
        let user = get("HOME").or_else(|| get("USERPROFILE"));
        let user = PathBuf::from(user.unwrap_or_else(|| ".".to_owned()));
        let path = |key: &str| get(key).map(|value| expand(&value, &user));
        let home = path("HF_HOME").unwrap_or_else(|| {
            path("XDG_CACHE_HOME")
                .unwrap_or_else(|| user.join(".cache"))
                .join("huggingface")
        });
        let token_path = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let is_on = |key: &str| {
            get(key).is_some_and(|value| {
                ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
            })
        };
        Self {
            endpoint: get("HF_ENDPOINT").map_or_else(
                || ENDPOINT.to_owned(),
                |url| url.trim_end_matches('/').to_owned(),
            ),
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            token: get("HF_TOKEN")
                .or_else(|| get("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| stored(&token_path)),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            proxy_from_env: false,
            retry: Retry::default(),
        }
    }
}

/// A path with `~` for the user's folder.
fn expand(value: &str, user: &Path) -> PathBuf {
    match value.strip_prefix("~/") {
        Some(rest) => user.join(rest),
        None => PathBuf::from(value),
    }
}

fn stored(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let token = text.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

/// Says whether there is a token, not which.
impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> HubConfig {
        HubConfig::from_lookup(|key| {
            let found = variables.iter().find(|(name, _)| *name == key);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn folders_are_those_python_uses() {
        for (variables, cache) in [
            (&[("HOME", "/u")][..], "/u/.cache/huggingface/hub"),
            (
                &[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")],
                "/x/huggingface/hub",
            ),
            (&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/h/hub"),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HF_HOME", "~/h"), ("HOME", "/u")], "/u/h/hub"),
            (
                &[("HF_HOME", ""), ("HOME", "/u")],
                "/u/.cache/huggingface/hub",
            ),
        ] {
            assert_eq!(config(variables).cache, Path::new(cache), "{variables:?}");
        }
    }

    #[test]
    fn a_variable_wins_over_the_stored_token() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "stored\n").unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(
            config(&[("HF_HOME", home)]).token.as_deref(),
            Some("stored")
        );
        let both = config(&[("HF_HOME", home), ("HF_TOKEN", "typed")]);
        assert_eq!(both.token.as_deref(), Some("typed"));
        let text = format!("{both:?}");
        assert!(!text.contains("typed"), "{text}");
    }

    #[test]
    fn switches_and_addresses_are_read() {
        assert!(config(&[("HF_HUB_OFFLINE", "1")]).offline);
        assert!(config(&[("HF_HUB_OFFLINE", "True")]).offline);
        assert!(!config(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert_eq!(config(&[("HF_ENDPOINT", "http://m/")]).endpoint, "http://m");
        assert_eq!(config(&[]).endpoint, ENDPOINT);
    }
}
