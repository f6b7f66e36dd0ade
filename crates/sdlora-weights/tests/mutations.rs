//! Damaged and hostile files: whatever happens to a checkpoint, reading it ends, without a panic and within bounds.
//!
//! Deterministic: case `i` is always the same file, and a failure names it. `SDLORA_MUTATIONS` makes more of them.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{Cursor, Read, Write};

use sdlora_testkit::allocator::{Counting, peak_of};
use sdlora_testkit::mutations::{count, survive_codes};
use sdlora_weights::{WeightFile, WeightsError};

/// Far more than reading a file of 1 to 3 KB needs: none of these takes more than 70 KB.
const MAX_BYTES: usize = 1 << 20;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Instructions of pickles, those that make and call things before others.
const CODES: &[u8] = b"Rb\x81\x93Qtosaue}]()0125NKMJ\x85\x86\x87hqr.X\x94\x8a\x95d";

/// Opens and reads everything; `true` when the file was accepted.
fn read_all(file: Result<WeightFile, WeightsError>) -> bool {
    match file {
        Ok(file) => {
            let _ = file.state_prefix();
            for info in file.tensors() {
                if let Ok(values) = file.read_f32(&info.name) {
                    assert_eq!(values.len(), info.n_elements());
                }
            }
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// Opens and reads everything within the bound of memory; `true` when the file was accepted.
fn check(open: impl FnOnce() -> Result<WeightFile, WeightsError>) -> bool {
    let (n_bytes, is_accepted) = peak_of(|| read_all(open()));
    assert!(n_bytes < MAX_BYTES, "it takes {n_bytes} bytes");
    is_accepted
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let folder = sdlora_testkit::repository_dir().join("containers");
    let mut seeds: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e != "json"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    seeds.sort();
    assert!(seeds.len() > 10);
    seeds
}

fn members(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    (0..archive.len())
        .map(|idx| {
            let mut member = archive.by_index(idx).unwrap();
            let name = String::from_utf8(member.name_raw().to_vec()).unwrap();
            let mut data = Vec::new();
            member.read_to_end(&mut data).unwrap();
            (name, data)
        })
        .collect()
}

fn zipped<'a>(members: impl Iterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in members {
        zip.start_file(name, options).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// One test, so that no other shares the count of memory.
#[test]
fn no_mutation_of_a_file_panics_or_takes_memory_beyond_the_bound() {
    let seeds = seeds();
    let (mut n_cases, mut n_accepted) = (0, 0);
    let mut attack =
        |what: &str, n: usize, whole: &[u8], other: &[u8], read: &mut dyn FnMut(&[u8]) -> bool| {
            n_cases += n;
            n_accepted += survive_codes(what, n, whole, other, CODES, read);
        };
    let after = |i: usize, n: usize| (i + 1) % n;

    // Whole files, zip directories included.
    let n = count(15_000 / seeds.len());
    for (i, (name, bytes)) in seeds.iter().enumerate() {
        let other = &seeds[after(i, seeds.len())].1;
        attack(name, n, bytes, other, &mut |bytes| {
            check(|| WeightFile::from_bytes(name, bytes.to_vec()))
        });
    }

    // The pickle alone, in a zip file that is sound.
    let zips: Vec<_> = seeds
        .iter()
        .filter(|(_, bytes)| bytes.starts_with(b"PK"))
        .map(|(name, bytes)| (name, members(bytes)))
        .collect();
    let pickle = |members: &[(String, Vec<u8>)]| {
        let found = members.iter().find(|(name, _)| name.ends_with("/data.pkl"));
        found.unwrap().1.clone()
    };
    let n = count(15_000 / zips.len());
    for (i, (name, members)) in zips.iter().enumerate() {
        let other = pickle(&zips[after(i, zips.len())].1);
        let what = format!("pickle of {name}");
        attack(&what, n, &pickle(members), &other, &mut |mutated| {
            let bytes = zipped(members.iter().map(|(name, data)| {
                let is_pickle = name.ends_with("/data.pkl");
                (name.as_str(), if is_pickle { mutated } else { data })
            }));
            check(|| WeightFile::from_bytes(name, bytes))
        });
    }

    // The header alone, with its length set right.
    let (name, whole) = seeds
        .iter()
        .find(|(name, _)| name.ends_with(".safetensors"))
        .unwrap();
    let n_header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let (header, data) = whole[8..].split_at(n_header);
    attack("header", count(10_000), header, header, &mut |header| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(data);
        check(|| WeightFile::from_bytes(name, bytes))
    });

    // The index of a sharded checkpoint.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shard.safetensors"), whole).unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    let map = br#"{"metadata":{"total_size":44},"weight_map":{"a":"shard.safetensors","b":"shard.safetensors"}}"#;
    std::fs::write(&index, map).unwrap();
    assert!(read_all(WeightFile::open(&index)));
    attack("index", count(500), map, map, &mut |bytes| {
        std::fs::write(&index, bytes).unwrap();
        check(|| WeightFile::open(&index))
    });

    // Mutations that leave most files readable, or none, would test little.
    assert!(
        (n_cases / 20..n_cases / 2).contains(&n_accepted),
        "{n_accepted} of {n_cases} files were accepted"
    );
}
