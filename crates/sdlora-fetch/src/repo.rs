//! The name of a model of the Hub.

use std::fmt;

use crate::error::FetchError;
use crate::names::is_below;

/// What a text starts with that names a model of the Hub.
const PREFIX: &str = "hf:";
/// Longest name the Hub accepts, in characters (`huggingface_hub.utils.validate_repo_id`).
const LONGEST: usize = 96;

/// A model of the Hub and the revision of it that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRepo {
    id: String,
    revision: String,
}

impl HubRepo {
    /// Whether a text is meant as a model of the Hub rather than as a path.
    pub fn is_spec(spec: &str) -> bool {
        spec.starts_with(PREFIX)
    }

    /// Reads `hf:org/name` or `hf:org/name@revision`; the revision, `main` when absent, is a
    /// branch, a tag or a commit. Old models have a name without `org/`.
    ///
    /// # Errors
    ///
    /// [`FetchError::Repo`] for anything the Hub would not accept as a name.
    pub fn parse(spec: &str) -> Result<Self, FetchError> {
        let refuse = |problem| FetchError::Repo {
            spec: spec.to_owned(),
            problem,
        };
        let rest = spec
            .strip_prefix(PREFIX)
            .ok_or_else(|| refuse("it does not start with `hf:`"))?;
        let (id, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let parts: Vec<&str> = id.split('/').collect();
        if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
            return Err(refuse("it needs one organisation and one name"));
        }
        if id.len() > LONGEST {
            return Err(refuse("it is longer than 96 characters"));
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_edge = |c: char| c == '-' || c == '.';
        for part in parts {
            if !part.chars().all(is_plain) {
                return Err(refuse("only letters, digits and `-_.` may stand in a name"));
            }
            // `--` would be ambiguous in the names of cache folders.
            if part.starts_with(is_edge) || part.ends_with(is_edge) {
                return Err(refuse("a name may not start or end with `-` or `.`"));
            }
            if part.contains("--") || part.contains("..") {
                return Err(refuse("`--` and `..` may not stand in a name"));
            }
        }
        if !is_below(revision) {
            return Err(refuse("the revision is no name of a branch, tag or commit"));
        }
        Ok(Self {
            id: id.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// `org/name`, or `name` for old models.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Name of its folder in the cache.
    pub(crate) fn folder_name(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
    }
}

impl fmt::Display for HubRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}@{}", self.id, self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_revision_are_told_apart() {
        let repo = HubRepo::parse("hf:timm/vit_base_patch16_224.augreg2_in21k_ft_in1k").unwrap();
        assert_eq!(repo.revision(), "main");
        assert_eq!(
            repo.folder_name(),
            "models--timm--vit_base_patch16_224.augreg2_in21k_ft_in1k"
        );
        let repo = HubRepo::parse("hf:gpt2@refs/pr/1").unwrap();
        assert_eq!((repo.id(), repo.revision()), ("gpt2", "refs/pr/1"));
        assert_eq!(repo.to_string(), "hf:gpt2@refs/pr/1");
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_right_form() {
        for spec in [
            "timm/vit",
            "hf:",
            "hf:/x",
            "hf:a/b/c",
            "hf:../x",
            "hf:a/..",
            "hf:a--b/c",
            "hf:a/b c",
            "hf:-a/b",
            "hf:a/b@",
            "hf:a/b@../x",
            "hf:a/b@/x",
        ] {
            let error = HubRepo::parse(spec).unwrap_err().to_string();
            assert!(error.contains("hf:org/name@revision"), "{spec}: {error}");
        }
    }
}
