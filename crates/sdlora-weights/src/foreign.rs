//! Files that are no weights, told by their first bytes, by the members of an archive or by their name.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::place::Source;

/// The first bytes of formats that are read nowhere here, and what they are, as the end of "it ...".
const MAGIC: [(&[u8], &str); 13] = [
    (
        b"\x89HDF\r\n\x1a\n",
        "is an HDF5 file (Keras): save its weights as safetensors",
    ),
    (
        b"GGUF",
        "is a GGUF file, whose weights are quantised: take the safetensors of the same model",
    ),
    (
        b"\x93NUMPY",
        "is one NumPy array: save the tensors by name as safetensors",
    ),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"BZh", "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ\x00", "is compressed with xz: unpack it first"),
    (
        b"\x28\xb5\x2f\xfd",
        "is compressed with zstd: unpack it first",
    ),
    (
        b"7z\xbc\xaf\x27\x1c",
        "is a 7z archive: unpack it and give the weights in it",
    ),
    (
        b"Rar!",
        "is a RAR archive: unpack it and give the weights in it",
    ),
    (b"%PDF", "is a PDF document: fetch the weights themselves"),
    (b"\x89PNG", "is a PNG image: give a file of weights"),
    (b"\xff\xd8\xff", "is a JPEG image: give a file of weights"),
    (
        b"\x7fELF",
        "is a program or library: give a file of weights",
    ),
];

/// Longest piece of a text that is quoted, in characters.
const QUOTED: usize = 60;

/// What a file certainly is instead of weights, whatever its name: the end of the sentence "it ...", with what to do.
pub(crate) fn certain(head: &[u8]) -> Option<String> {
    if head.is_empty() {
        return Some("is empty: fetch it again".into());
    }
    if let Some((_, what)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Some((*what).into());
    }
    // A header of safetensors starts with its length, whose upper bytes are zero; a text has none.
    if head.len() < 8 || head.contains(&0) {
        return None;
    }
    let lower = head.to_ascii_lowercase();
    let text = lower.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&lower);
    let starts = |words: &[&str]| {
        let text = text.trim_ascii_start();
        words.iter().any(|word| text.starts_with(word.as_bytes()))
    };
    if starts(&["version https://git-lfs", "version https://hawser"]) {
        return Some(
            "is a Git LFS pointer: run `git lfs pull` where it was cloned, or fetch the file itself".into(),
        );
    }
    if starts(&["<!doctype", "<html", "<head", "<body", "<!--", "<?xml"]) {
        return Some(
            "is a web page: fetch the file behind it (on the Hub its address has `/resolve/` where that of the page \
             has `/blob/`)"
                .into(),
        );
    }
    let text = std::str::from_utf8(match std::str::from_utf8(head) {
        Ok(text) => text.as_bytes(),
        // The last character may be cut.
        Err(error) if error.valid_up_to() + 4 > head.len() => &head[..error.valid_up_to()],
        Err(_) => return None,
    })
    .ok()?;
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    if text.contains("\"weight_map\"") {
        return Some(
            "is the index of a sharded checkpoint: give it with its name ending in .json, or the folder".into(),
        );
    }
    let line = text.trim().lines().next().unwrap_or_default();
    let quoted: String = line.chars().take(QUOTED).collect();
    Some(format!(
        "is text that starts with `{}`: a server may have answered with it instead of the weights; fetch them again, \
         with a token where the model asks for one",
        quoted.escape_debug()
    ))
}

/// What a file of unknown bytes seems to be: the end of the sentence "it ...", with what to do.
pub(crate) fn likely(head: &[u8], path: &Path) -> String {
    let extension = path
        .extension()
        .map(|e| e.to_string_lossy().to_ascii_lowercase());
    let by_name = match extension.as_deref() {
        Some("onnx") => "is an ONNX graph: take the PyTorch or safetensors weights of the model",
        Some("tflite" | "pb") => {
            "is a TensorFlow graph: take the PyTorch or safetensors weights of the model"
        }
        Some("msgpack") => {
            "holds the weights of Flax: take the PyTorch or safetensors weights of the model"
        }
        Some("gguf" | "ggml") => "holds quantised weights: take the safetensors of the same model",
        Some("engine" | "plan" | "trt") => {
            "is an engine of TensorRT: take the PyTorch or safetensors weights of the model"
        }
        _ if matches!(head, [0x80, 2..=5, ..]) => {
            "is a bare pickle, which is a program and not data: load it in Python and save its tensors as safetensors"
        }
        _ => "is neither safetensors nor a PyTorch zip file: save it as one of them",
    };
    by_name.into()
}

/// What a zip file without `data.pkl` is, by the names of its members.
pub(crate) fn zip_without_pickle(names: &[&str]) -> String {
    let find = |ends: &[&str]| {
        names
            .iter()
            .find(|name| ends.iter().any(|end| name.ends_with(end)))
    };
    if find(&[".npy"]).is_some() {
        return "is an archive of NumPy arrays (.npz, as the JAX releases are): open it with timm \
                (`timm.create_model(NAME, checkpoint_path=FILE)`) and save `model.state_dict()` as safetensors"
            .into();
    }
    if find(&["archive_format", "serialized_exported_program.json"]).is_some() {
        return "is a program of `torch.export` (.pt2): load it with `torch.export.load` and save \
                `program.state_dict` as safetensors"
            .into();
    }
    match find(&[
        ".safetensors",
        ".pth",
        ".pt",
        ".bin",
        ".ckpt",
        ".npz",
        ".h5",
    ]) {
        Some(name) => format!(
            "is a zip archive with `{}` in it: unpack it and give that file",
            name.escape_debug()
        ),
        None => "is a zip archive without `data.pkl`, so `torch.save` did not write it: give a file of weights".into(),
    }
}

/// Members of a tar file that are looked at.
const MAX_MEMBERS: usize = 64;

/// What a tar file is if it is not what PyTorch wrote before 0.1.10; `None` when it is.
pub(crate) fn tar(source: &Source) -> Option<String> {
    let names = tar_names(source).unwrap_or_default();
    let is = |wanted: &str| {
        names
            .iter()
            .any(|name| name.trim_start_matches("./") == wanted)
    };
    if is("pickle") || is("tensors") || is("storages") {
        return None;
    }
    let weights = names.iter().find(|name| {
        let name = name.to_ascii_lowercase();
        [".safetensors", ".pth", ".pt", ".bin"]
            .iter()
            .any(|end| name.ends_with(end))
    });
    Some(match weights {
        Some(name) => format!(
            "is a tar archive with `{}` in it: unpack it and give that file",
            name.escape_debug()
        ),
        None => "is a tar archive: unpack it and give the weights in it".into(),
    })
}

/// Names of the first members of a tar file, as far as it can be followed.
fn tar_names(source: &Source) -> Option<Vec<String>> {
    let mut file = source.open().ok()?;
    let n_file = source.len().ok()?;
    let mut names = Vec::new();
    let mut start = 0_u64;
    while names.len() < MAX_MEMBERS && start.checked_add(512)? <= n_file {
        let mut header = [0; 512];
        file.seek(SeekFrom::Start(start)).ok()?;
        file.read_exact(&mut header).ok()?;
        let text = |field: &[u8]| {
            let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let name = text(&header[..100]);
        if name.is_empty() {
            break;
        }
        names.push(name);
        let Ok(size) = u64::from_str_radix(text(&header[124..136]).trim(), 8) else {
            break;
        };
        start = start.checked_add(512 + size.div_ceil(512).checked_mul(512)?)?;
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(head: &[u8]) -> String {
        certain(head).unwrap_or_default()
    }

    #[test]
    fn pages_pointers_texts_and_archives_are_named_by_their_bytes() {
        for (head, expected) in [
            (b"".as_slice(), "empty"),
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                "git lfs pull",
            ),
            (b"\n  <!DOCTYPE html>", "web page"),
            (b"\xef\xbb\xbf<html><head>", "web page"),
            (b"<?xml version='1.0'?><Error>", "web page"),
            (b"Entry not found", "`Entry not found`"),
            (b"{\"error\":\"restricted\"}", "a token"),
            (b"{\"data\":{\"a\":1}}", "is text"),
            (b"{\"metadata\":{},\"weight_map\":{}}", "index of a sharded"),
            (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"\x93NUMPY\x01\0", "NumPy"),
        ] {
            assert!(said(head).contains(expected), "{}", said(head));
        }
        // Headers of safetensors, pickles and noise are not certain.
        for head in [
            b"\x40\0\0\0\0\0\0\0{\"a\":1}".as_slice(),
            b"\x80\x02}q\0X\x01\0\0\0a",
            b"\x01\x02\x03\x04\x05\x06\x07\x08\x0e",
            b"abc",
        ] {
            assert_eq!(certain(head), None);
        }
    }

    #[test]
    fn a_quoted_text_cannot_reach_the_terminal_raw() {
        assert!(
            said(b"\tgone \x7f\x1b[2J").is_empty(),
            "control characters are no text"
        );
        let long = "é".repeat(200);
        let message = said(long.as_bytes());
        assert!(message.contains(&"é".repeat(QUOTED)) && message.chars().count() < 250);
    }
}
