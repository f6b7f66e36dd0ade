//! Which container a file is, and which file of a folder is meant.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::WeightsError;

/// How many bytes of a file are enough for [`ContainerKind::of_head`].
pub(crate) const HEAD: usize = 512;

/// `0x1950a86a20f9469cfc6c` as a pickle of protocol 2 writes it: what `torch.save` began with before zip files.
const LEGACY_MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// The names that a folder of a published model uses, most wanted first.
const FOLDER_NAMES: [&str; 4] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerKind {
    /// One safetensors file.
    Safetensors,
    /// Several safetensors files and an index.
    ShardedSafetensors,
    /// What `torch.save` writes since PyTorch 1.6: a zip file with a pickle; one file, or several and an index.
    PyTorchZip,
    /// What `torch.save` wrote before, a bare pickle or a tar file; recognised and refused.
    PyTorchLegacy,
}

impl fmt::Display for ContainerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::ShardedSafetensors => "sharded safetensors",
            Self::PyTorchZip => "PyTorch zip",
            Self::PyTorchLegacy => "PyTorch legacy",
        })
    }
}

impl ContainerKind {
    /// Recognises a single file by its first 512 bytes (fewer if it is shorter); its name does not matter.
    pub fn of_head(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
            Some(Self::PyTorchZip)
        } else if (head.first() == Some(&0x80) && head.get(2..14) == Some(LEGACY_MAGIC))
            || head.get(257..262) == Some(b"ustar")
        {
            Some(Self::PyTorchLegacy)
        } else if head.get(8) == Some(&b'{') {
            Some(Self::Safetensors)
        } else {
            None
        }
    }
}

/// The file of weights in a folder.
pub(crate) fn file_in(folder: &Path) -> Result<PathBuf, WeightsError> {
    if let Some(path) = FOLDER_NAMES
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
    {
        return Ok(path);
    }
    let io = |source| WeightsError::Io {
        path: folder.into(),
        source,
    };
    let (mut safetensors, mut pytorch) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if !path.is_file() {
            continue;
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => safetensors.push(path),
            Some("pth" | "pt" | "bin") => pytorch.push(path),
            _ => {}
        }
    }
    let mut found = if safetensors.is_empty() {
        pytorch
    } else {
        safetensors
    };
    found.sort();
    let problem = match (found.pop(), found.is_empty()) {
        (Some(path), true) => return Ok(path),
        (None, _) => {
            "holds no *.safetensors, *.pth, *.pt or *.bin: name the folder of a published model, or a file".into()
        }
        (Some(path), false) => format!(
            "holds {} files of weights (`{}` is one): name the one to read",
            found.len() + 1,
            path.display()
        ),
    };
    Err(WeightsError::Folder {
        path: folder.into(),
        problem,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_container() {
        use ContainerKind::*;
        assert_eq!(ContainerKind::of_head(b"PK\x03\x04rest"), Some(PyTorchZip));
        assert_eq!(
            ContainerKind::of_head(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."),
            Some(PyTorchLegacy)
        );
        assert_eq!(
            ContainerKind::of_head(b"\x02\0\0\0\0\0\0\0{}"),
            Some(Safetensors)
        );
        assert_eq!(ContainerKind::of_head(b"\x80\x02}q\0."), None);
    }

    #[test]
    fn a_folder_names_its_file_or_says_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let touch = |name: &str| std::fs::write(folder.path().join(name), b"").unwrap();
        let message = |e: WeightsError| e.to_string();
        assert!(message(file_in(folder.path()).unwrap_err()).contains("holds no *.safetensors"));
        touch("b.pth");
        assert!(file_in(folder.path()).unwrap().ends_with("b.pth"));
        touch("a.bin");
        assert!(message(file_in(folder.path()).unwrap_err()).contains("2 files"));
        touch("odd.safetensors");
        assert!(file_in(folder.path()).unwrap().ends_with("odd.safetensors"));
        touch("model.safetensors");
        touch("pytorch_model.bin");
        assert!(
            file_in(folder.path())
                .unwrap()
                .ends_with("model.safetensors")
        );
    }
}
