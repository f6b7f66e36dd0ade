//! The errors of this crate.

use std::path::PathBuf;

/// What can go wrong on the way from a server to a file.
///
/// Addresses in messages come without their query: it may hold a signature.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A text that names no model of the Hub.
    #[error(
        "`{spec}` names no model of the Hub ({problem}): write it as `hf:org/name` or `hf:org/name@revision`"
    )]
    Repo {
        /// What was typed.
        spec: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The server knows no such model, or not for this user.
    #[error(
        "the Hub has no model `{repo}` that {who} may read (status {status}): check the name, and set HF_TOKEN if the model is private or asks for consent"
    )]
    NoRepo {
        /// The model, `org/name`.
        repo: String,
        /// Who asked: with or without a token.
        who: &'static str,
        /// Status of the answer.
        status: u16,
    },
    /// The model has no such branch, tag or commit.
    #[error(
        "model `{repo}` has no revision `{revision}`: leave out `@{revision}` for the newest, or look the name up on the model's page"
    )]
    NoRevision {
        /// The model, `org/name`.
        repo: String,
        /// The branch, tag or commit.
        revision: String,
    },
    /// The model has no file that this product reads.
    #[error(
        "model `{repo}` at {commit} has none of {wanted}: choose a model whose page lists one of them"
    )]
    NoWeights {
        /// The model, `org/name`.
        repo: String,
        /// The commit looked at.
        commit: String,
        /// The names looked for.
        wanted: String,
    },
    /// Not in the cache, and the network is switched off.
    #[error(
        "model `{repo}` at `{revision}` is not complete in {cache} and the network is switched off: unset HF_HUB_OFFLINE once, or copy the model's folder there"
    )]
    Offline {
        /// The model, `org/name`.
        repo: String,
        /// The branch, tag or commit.
        revision: String,
        /// The cache.
        cache: PathBuf,
    },
    /// An answer that no correct server gives.
    #[error(
        "the answer of {url} is not usable: {problem}; check HF_ENDPOINT or the address, and proxies on the way"
    )]
    Answer {
        /// The address.
        url: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// A list of files names one outside its folder.
    #[error(
        "`{name}` in {list} points outside the folder of the model: do not use this model, and tell who publishes it"
    )]
    UnsafeName {
        /// The name.
        name: String,
        /// Where it stands.
        list: String,
    },
    /// The server answered with an error.
    #[error("{url} answers with status {status}: {advice}")]
    Status {
        /// The address.
        url: String,
        /// The status.
        status: u16,
        /// What to do.
        advice: &'static str,
    },
    /// The connection cannot be made or broke too often.
    #[error(
        "{url} cannot be reached or broke off, {n_attempts} attempts without a new byte: check the network and repeat the command, it continues where it stopped"
    )]
    Connection {
        /// The address.
        url: String,
        /// Attempts in a row without progress.
        n_attempts: u32,
        /// The last reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is longer or shorter than it must be.
    #[error(
        "{url} has {found} bytes instead of {expected}: the file changed or the server is not the right one; check the address or use another mirror"
    )]
    Size {
        /// The address or file.
        url: String,
        /// The size it must have.
        expected: u64,
        /// The size it has, as far as read: reading stops at the first byte too many.
        found: u64,
    },
    /// The file has the wrong content. What was downloaded is removed.
    #[error(
        "{url} has the {kind} {found} instead of {expected}: the partial file is removed; repeat the command, and use another mirror if it happens again"
    )]
    Checksum {
        /// The address or file.
        url: String,
        /// `SHA-256` or `MD5`.
        kind: &'static str,
        /// The sum it must have, in hexadecimal digits.
        expected: String,
        /// The sum it has.
        found: String,
    },
    /// A checksum that is none.
    #[error("`{sum}` is no {kind}: give {n_digits} hexadecimal digits")]
    NoSum {
        /// What was given.
        sum: String,
        /// `SHA-256` or `MD5`.
        kind: &'static str,
        /// Digits of such a sum.
        n_digits: usize,
    },
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {path}: {source}; check the path, the rights and the free space")]
    Io {
        /// `read`, `write`, `create`, `lock` or `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason given by the system.
        source: std::io::Error,
    },
}

impl FetchError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// Whether what the user typed or set is at fault rather than network, server or disk.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Repo { .. }
                | Self::NoRepo { .. }
                | Self::NoRevision { .. }
                | Self::NoWeights { .. }
                | Self::NoSum { .. }
        )
    }
}
