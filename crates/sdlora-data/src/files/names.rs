//! Names of files: how errors quote them, and what they tell.

use std::path::Path;

/// Endings of the archives that can be read.
pub(crate) const ARCHIVES: [&str; 4] = [".zip", ".tar", ".tar.gz", ".tgz"];

/// A path as errors name it.
pub(crate) fn place_of(path: &Path) -> String {
    format!("`{}`", path.display())
}

/// True for what operating systems leave behind.
pub(crate) fn is_litter(part: &str) -> bool {
    (part.starts_with('.') && part != "." && part != "..") || part == "__MACOSX"
}

/// A name that is not UTF-8, with its bytes as they can be typed, as the place of a problem.
pub(super) fn place_of_bytes(name: &[u8], path: &Path) -> String {
    format!("`{}` in `{}`", name.escape_ascii(), path.display())
}
