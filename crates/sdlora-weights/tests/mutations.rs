//! Damaged and hostile files: whatever happens to a checkpoint, reading it ends, without a panic and within bounds.
//!
//! Deterministic: case `i` is always the same file, and a failure names it. `SDLORA_MUTATIONS` makes more of them.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{Cursor, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use sdlora_testkit::allocator::{Counting, peak_of};
use sdlora_testkit::mutations::count as count_of;
use sdlora_weights::WeightFile;

/// Far more than reading a file of 1 to 3 KB needs: none of these takes more than 70 KB.
const MAX_BYTES: usize = 1 << 20;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "7",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "99999999999999999999",
    "1e9",
];

/// Instructions of pickles, those that make and call things before others.
const CODES: &[u8] = b"Rb\x81\x93Qtosaue}]()0125NKMJ\x85\x86\x87hqr.X\x94\x8a\x95d";

fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    // Every other file keeps its length, so that what lies behind the damage stays where it is looked for.
    let n_kinds = if rng.below(2) == 0 { 4 } else { 10 };
    for _ in 0..1 + rng.below(3) {
        let at = rng.below(bytes.len());
        match rng.below(n_kinds) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << rng.below(8);
                }
            }
            1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = [0, 0x7f, 0x80, 0xff][rng.below(4)];
                }
            }
            2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = CODES[rng.below(CODES.len())];
                }
            }
            3 => {
                let start = rng.below(other.len());
                let n = rng.below(16).min(other.len() - start).min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&other[start..start + n]);
            }
            4 if rng.below(4) == 0 => bytes.truncate(at),
            5 => {
                let end = (at + 1 + rng.below(16)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            6 => {
                let start = rng.below(other.len());
                let end = (start + rng.below(64)).min(other.len());
                bytes.splice(at..at, other[start..end].iter().copied());
            }
            7 => {
                let start = rng.below(bytes.len());
                let end = (start + rng.below(64)).min(bytes.len());
                let part = bytes[start..end].to_vec();
                bytes.splice(at..at, part);
            }
            8 => {
                // The number after a random place becomes an odd one.
                let from = bytes[at.min(bytes.len())..]
                    .iter()
                    .position(u8::is_ascii_digit);
                if let Some(from) = from.map(|n| n + at) {
                    let n = bytes[from..]
                        .iter()
                        .take_while(|b| b.is_ascii_digit())
                        .count();
                    let number = NUMBERS[rng.below(NUMBERS.len())];
                    bytes.splice(from..from + n, number.bytes());
                }
            }
            _ => bytes.insert(at, CODES[rng.below(CODES.len())]),
        }
    }
}

/// Opens and reads everything; `true` when the file was accepted.
fn read_all(file: Result<WeightFile, sdlora_weights::WeightsError>) -> bool {
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

/// Runs a case and checks the bounds; `true` when the file was accepted.
fn check(what: &str, case: usize, run: impl FnOnce() -> bool) -> bool {
    let (n_bytes, outcome) = peak_of(|| catch_unwind(AssertUnwindSafe(run)));
    assert!(outcome.is_ok(), "{what}, case {case} panics");
    assert!(
        n_bytes < MAX_BYTES,
        "{what}, case {case} takes {n_bytes} bytes"
    );
    outcome.unwrap()
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
    let mut rng = Rng(5);
    let (mut n_cases, mut n_accepted) = (0, 0);
    let mut count = |accepted: bool| {
        n_cases += 1;
        n_accepted += usize::from(accepted);
    };

    // Whole files, zip directories included.
    for case in 0..count_of(15_000) {
        let (name, bytes) = &seeds[case % seeds.len()];
        let other = &seeds[rng.below(seeds.len())].1;
        let mut bytes = bytes.clone();
        mutate(&mut bytes, other, &mut rng);
        count(check(name, case, || {
            read_all(WeightFile::from_bytes(name, bytes))
        }));
    }

    // The pickle alone, in a zip file that is sound.
    let zips: Vec<_> = seeds
        .iter()
        .filter(|(_, bytes)| bytes.starts_with(b"PK"))
        .map(|(name, bytes)| (name, members(bytes)))
        .collect();
    for case in 0..count_of(15_000) {
        let (name, members) = &zips[case % zips.len()];
        let pickle = |members: &[(String, Vec<u8>)]| {
            let found = members.iter().find(|(name, _)| name.ends_with("/data.pkl"));
            found.unwrap().1.clone()
        };
        let mut mutated = pickle(members);
        let other = pickle(&zips[rng.below(zips.len())].1);
        mutate(&mut mutated, &other, &mut rng);
        let bytes = zipped(members.iter().map(|(name, data)| {
            let is_pickle = name.ends_with("/data.pkl");
            (
                name.as_str(),
                if is_pickle { &mutated } else { data }.as_slice(),
            )
        }));
        count(check(name, case, || {
            read_all(WeightFile::from_bytes(name, bytes))
        }));
    }

    // The header alone, with its length set right.
    let (name, whole) = seeds
        .iter()
        .find(|(name, _)| name.ends_with(".safetensors"))
        .unwrap();
    let n_header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let (header, data) = whole[8..].split_at(n_header);
    for case in 0..count_of(10_000) {
        let mut header = header.to_vec();
        let other = header.clone();
        mutate(&mut header, &other, &mut rng);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(data);
        count(check(name, case, || {
            read_all(WeightFile::from_bytes(name, bytes))
        }));
    }

    // The index of a sharded checkpoint.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shard.safetensors"), whole).unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    let map = br#"{"metadata":{"total_size":44},"weight_map":{"a":"shard.safetensors","b":"shard.safetensors"}}"#;
    std::fs::write(&index, map).unwrap();
    assert!(read_all(WeightFile::open(&index)));
    for case in 0..count_of(500) {
        let mut bytes = map.to_vec();
        mutate(&mut bytes, map, &mut rng);
        std::fs::write(&index, bytes).unwrap();
        count(check("index", case, || {
            read_all(WeightFile::open(Path::new(&index)))
        }));
    }

    // Mutations that leave most files readable, or none, would test little.
    assert!(
        (n_cases / 20..n_cases / 2).contains(&n_accepted),
        "{n_accepted} of {n_cases} files were accepted"
    );
}
