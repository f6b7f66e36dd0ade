//! PyTorch files made by hand whose tensors reach where they must not.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{Cursor, Write};

use sdlora_weights::{WeightFile, WeightsError};
use zip::CompressionMethod;

/// Files are put into a zip file, stored or deflated.
fn zipped(members: &[(&str, &[u8], CompressionMethod)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for &(name, data, method) in members {
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        zip.start_file(name, options).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A pickle (protocol 0, so it can be read) of `{name: tensor}` for every name.
fn pickle(names: &[&str], key: &str, n: u64, offset: i64, shape: &str, strides: &str) -> Vec<u8> {
    let mut text = String::from("(d");
    for name in names {
        text += &format!(
            "V{name}\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV{key}\nVcpu\nI{n}\ntQ\
             I{offset}\n({shape}t({strides}tI00\n(dtRs"
        );
    }
    (text + ".").into_bytes()
}

fn open(pickle: &[u8], data: &[u8]) -> Result<WeightFile, WeightsError> {
    let stored = CompressionMethod::Stored;
    let members = [("f/data.pkl", pickle, stored), ("f/data/0", data, stored)];
    WeightFile::from_bytes("f.pth", zipped(&members))
}

#[test]
fn a_view_inside_its_storage_is_read_and_one_beyond_it_refused() {
    let data: Vec<u8> = (0..6_u8).flat_map(|x| f32::from(x).to_le_bytes()).collect();
    // [2, 2] with strides [2, 1] from number 2 on: the last is number 5.
    let file = open(&pickle(&["w"], "0", 6, 2, "I2\nI2\n", "I2\nI1\n"), &data).unwrap();
    assert_eq!(file.read_f32("w").unwrap(), [2.0, 3.0, 4.0, 5.0]);
    // Rows that overlap are a view as any other while they hold fewer numbers than they span.
    let file = open(&pickle(&["w"], "0", 6, 0, "I2\nI2\n", "I3\nI2\n"), &data).unwrap();
    assert_eq!(file.read_f32("w").unwrap(), [0.0, 2.0, 3.0, 5.0]);

    for (n, offset, shape, strides, expected) in [
        (6, 3, "I2\nI2\n", "I2\nI1\n", "leave its storage"),
        (6, 0, "I2\nI2\n", "I5\nI1\n", "leave its storage"),
        (5, 2, "I2\nI2\n", "I2\nI1\n", "leave its storage"),
        (7, 0, "I1\n", "I1\n", "cut off"),
        (i64::MAX as u64, 0, "I1\n", "I1\n", "cut off"),
        (6, i64::MAX, "I2\n", "I1\n", "leave its storage"),
        (
            6,
            0,
            "I9223372036854775807\nI9223372036854775807\n",
            "I0\nI0\n",
            "leave its storage",
        ),
        (6, -1, "I1\n", "I1\n", "offset"),
        (6, 0, "I2\n", "I-1\n", "negative"),
        (6, 0, "I2\nI2\n", "I1\n", "2 extents and 1 strides"),
    ] {
        let message = open(&pickle(&["w"], "0", n, offset, shape, strides), &data)
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{message}");
    }
    // A few stored numbers repeated without end.
    let expanded = open(
        &pickle(&["w"], "0", 6, 0, "I1099511627776\n", "I0\n"),
        &data,
    )
    .unwrap();
    let message = expanded.read_f32("w").unwrap_err().to_string();
    assert!(message.contains("expanded view"), "{message}");
}

#[test]
fn storages_and_names_that_are_missing_or_double_are_named() {
    let data = [0; 24];
    for key in ["1", "../data/0", "/etc/passwd", ""] {
        let message = open(&pickle(&["w"], key, 6, 0, "I1\n", "I1\n"), &data)
            .unwrap_err()
            .to_string();
        assert!(message.contains("missing"), "{message}");
    }
    let message = open(&pickle(&["w", "w"], "0", 6, 0, "I1\n", "I1\n"), &data)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("`w`") && message.contains("twice"),
        "{message}"
    );

    let bare = zipped(&[("f/other", &data, CompressionMethod::Stored)]);
    let message = WeightFile::from_bytes("f.pth", bare)
        .unwrap_err()
        .to_string();
    assert!(message.contains("`data.pkl`"), "{message}");
}

#[test]
fn archives_of_other_programs_say_what_they_are_and_what_would_work() {
    let stored = CompressionMethod::Stored;
    for (members, expected) in [
        (
            &["Transformer/encoderblock_0/kernel.npy"][..],
            "NumPy arrays",
        ),
        (
            &["e/models/model.json", "e/archive_format"],
            "torch.export.load",
        ),
        (&["serialized_exported_program.json"], "torch.export.load"),
        (
            &["t/data.pkl", "t/constants.pkl", "t/code/a.py"],
            "torch.jit.load",
        ),
        (&["model/vit.safetensors"], "`model/vit.safetensors`"),
    ] {
        let members: Vec<_> = members
            .iter()
            .map(|&name| (name, b"N.".as_slice(), stored))
            .collect();
        // The name promises weights of either kind.
        for name in ["f.pt", "f.safetensors"] {
            let error = WeightFile::from_bytes(name, zipped(&members)).unwrap_err();
            assert!(matches!(error, WeightsError::Unknown { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}

/// A tar file of empty members.
fn tarred(names: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for name in names {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(b"00000000004");
        header[257..262].copy_from_slice(b"ustar");
        bytes.extend(header);
        bytes.extend([7; 4]);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    bytes
}

#[test]
fn a_tar_file_is_legacy_only_with_the_members_that_pytorch_wrote() {
    let error = |names: &[&str]| WeightFile::from_bytes("f.pth", tarred(names)).unwrap_err();
    let legacy = error(&["sys_info", "pickle", "storages", "tensors"]);
    assert!(matches!(legacy, WeightsError::Legacy { .. }), "{legacy}");
    let plain = error(&["README.md", "weights/vit.pth"]).to_string();
    assert!(
        plain.contains("tar archive with `weights/vit.pth`"),
        "{plain}"
    );
    assert!(error(&["README.md"]).to_string().contains("unpack it"));
}

#[test]
fn quantised_numbers_are_named_with_what_to_take_instead() {
    for (dtype, expected) in [
        ("F8_E4M3", "8 bits or fewer"),
        ("I8", "quantised"),
        ("I64", "whole"),
    ] {
        let n = if dtype == "I64" { 16 } else { 2 };
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{n}]}}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + n, 0);
        let file = WeightFile::from_bytes("q.safetensors", bytes).unwrap();
        let message = file.read_f32("w").unwrap_err().to_string();
        assert!(
            message.contains(dtype) && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn a_zip_bomb_is_refused_before_it_unpacks() {
    let n_bytes = 20 << 20;
    let zeros = vec![0; n_bytes];
    let n = n_bytes as u64 / 4;
    let sound = pickle(&["w"], "0", n, 0, "I1\n", "I1\n");
    let members = |pickle| {
        [
            ("f/data.pkl", pickle, CompressionMethod::Deflated),
            ("f/data/0", zeros.as_slice(), CompressionMethod::Deflated),
        ]
    };
    let bomb = zipped(&members(&sound));
    assert!(bomb.len() < 100_000);
    let message = WeightFile::from_bytes("f.pth", bomb)
        .unwrap_err()
        .to_string();
    assert!(message.contains("far more than weights would"), "{message}");

    let long = vec![b'N'; (32 << 20) + 1];
    let message = WeightFile::from_bytes("f.pth", zipped(&members(&long)))
        .unwrap_err()
        .to_string();
    assert!(message.contains("unpacks to more than"), "{message}");
}

#[test]
fn pointers_pages_and_bare_pickles_are_told_apart() {
    for (name, bytes, expected) in [
        (
            "a.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n".as_slice(),
            "git lfs pull",
        ),
        ("a.pth", b"<!DOCTYPE html><html>", "web page"),
        ("a.safetensors", b"<!DOCTYPE html><html>", "web page"),
        ("a.safetensors", b"Entry not found", "`Entry not found`"),
        // A brace where a header of safetensors would start.
        ("a.safetensors", b"{\"data\":{\"error\":1}}", "is text"),
        ("a.pth", b"", "empty"),
        ("a.pth", b"\x80\x02}q\0.", "bare pickle"),
        ("a.safetensors", b"abc", "only 3 bytes"),
    ] {
        let message = WeightFile::from_bytes(name, bytes.to_vec())
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{message}");
    }
}
