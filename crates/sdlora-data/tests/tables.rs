//! Tables of images as programs write them: read, or refused with the cause.

#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

mod common;

use common::{encoded, open, write};
use image::ImageFormat;
use sdlora_data::{Dataset, Options, Split};

/// Opens a folder of `cat/1.png`, `cat/2.png` and `dog/1.png` by a table.
fn table(bytes: &[u8]) -> Result<Box<dyn Dataset>, String> {
    let dir = tempfile::tempdir().unwrap();
    for (value, name) in ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
        .iter()
        .enumerate()
    {
        let png = encoded(value as u8, ImageFormat::Png);
        write(dir.path(), &format!("mine/{name}"), &png);
    }
    write(dir.path(), "mine/labels.csv", bytes);
    let options = Options::none()
        .with("root", "mine")
        .with("csv", "labels.csv");
    open("folder", dir.path(), &options)
}

/// Names of the images of a half, with their classes.
fn half(dataset: &dyn Dataset, split: Split) -> Vec<String> {
    let samples = dataset.samples(split).iter();
    samples
        .map(|sample| format!("{}={}", sample.name, dataset.class_names()[sample.class_id]))
        .collect()
}

#[test]
fn tables_of_other_programs_are_read() {
    let utf16 = |text: &str| -> Vec<u8> {
        let units = "\u{feff}".encode_utf16().chain(text.encode_utf16());
        units.flat_map(u16::to_le_bytes).collect()
    };
    let rows = "cat/1.png,Cat,train\ncat/2.png,Cat,test\n";
    for (what, bytes) in [
        ("no headings", rows.into()),
        ("file_name", format!("file_name,label,split\n{rows}").into_bytes()),
        ("filename and class", format!("Filename,Class,Split\n{rows}").into_bytes()),
        ("image and category", format!("image,category,subset\n{rows}").into_bytes()),
        (
            "image_id without endings, in another order",
            b"split,label,image_id\ntrain,Cat,cat/1\ntest,Cat,cat/2\n".to_vec(),
        ),
        ("semicolons", rows.replace(',', ";").into_bytes()),
        ("semicolons and headings", format!("path,label,split\n{rows}").replace(',', ";").into_bytes()),
        ("Excel", format!("sep=;\r\n{}", rows.replace(',', ";").replace('\n', "\r\n")).into_bytes()),
        ("tabs in UTF-16", utf16(&format!("path,label,split\n{rows}").replace(',', "\t"))),
        ("pandas", b",path,width,label,split\n0,cat/1.png,6,Cat,train\n1,cat/2.png,6,Cat,test\n".to_vec()),
        (
            "pandas again",
            b"Unnamed: 0,label,path,split\n0,Cat,cat/1.png,train\n1,Cat,cat/2.png,test\n".to_vec(),
        ),
        ("Windows", b"cat\\1.png,Cat,Train\n.\\cat\\2.png,Cat,TEST\n".to_vec()),
        (
            "absolute",
            b"path,label,split\nC:\\data\\mine\\cat\\1.png,Cat,train\n/home/me/mine/cat/2.png,Cat,test\n".to_vec(),
        ),
        ("upwards", b"dog/../cat/1.png,Cat,train\n./cat/./2.png,Cat,val\n".to_vec()),
    ] {
        let found = table(&bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(half(found.as_ref(), Split::Train), ["cat/1.png=Cat"], "{what}");
        assert_eq!(half(found.as_ref(), Split::Test), ["cat/2.png=Cat"], "{what}");
    }
}

#[test]
fn validation_rows_beside_test_rows_are_held_out() {
    let rows = "cat/1.png,c,train\ncat/2.png,c,val\ndog/1.png,c,test\n";
    let found = table(rows.as_bytes()).unwrap();
    assert_eq!(half(found.as_ref(), Split::Train), ["cat/1.png=c"]);
    assert_eq!(half(found.as_ref(), Split::Test), ["dog/1.png=c"]);
    let notes = found.notes().join("\n");
    assert!(notes.contains("(1 images) are held out"), "{notes}");
}

#[test]
fn tables_that_cannot_be_read_are_refused_with_the_cause() {
    for (bytes, parts) in [
        (
            &b"name,kind\ncat/1.png,cat\n"[..],
            &["name", "kind", "image_id", "category"][..],
        ),
        (b"path,kind\ncat/1.png,cat\n", &["category"]),
        (
            b"path,label\ncat/1.png,cat,train\n",
            &["line 2", "3 fields", "headings 2"],
        ),
        (
            b"cat/1.png,cat,fold 1\n",
            &["line 1", "`fold 1`", "train, val or test"],
        ),
        (
            b"cat/1.png,cat\ncat/9.png,cat\n",
            &["`cat/9.png`", "line 2"],
        ),
        (b"cat/1.png,cat\ncat\\1.png,cat\n", &["lines 1 and 2"]),
        (b"cat/1.png,caf\xe9\n", &["not UTF-8", "line 1"]),
        (b"c\0a\0t\0", &["UTF-16"]),
        (b"../../cat/1.png,cat\n", &["`../../cat/1.png`"]),
        (b"cat/1.png,\"cat\n", &["quote"]),
        (
            b"cat/1.png,cat,train\ncat/2.png,cat,\n",
            &["line 2", "split"],
        ),
    ] {
        let error = table(bytes).err().unwrap();
        for part in [&["labels.csv"], parts].concat() {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
