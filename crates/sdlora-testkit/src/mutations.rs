//! Damaged files, the same in every run: case `i` of a seed is always the same file.
//!
//! How many are made is a matter of time: few in the tests of every day, and as many as the
//! environment variable [`COUNT`] says where `cargo xtask torture` has hours.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::toy::SplitMix64;

/// Environment variable with the number of mutations of every file.
pub const COUNT: &str = "SDLORA_MUTATIONS";

/// The number in the environment, or `default`.
///
/// # Panics
///
/// If the variable holds no number: a long run must not silently be a short one.
pub fn count(default: usize) -> usize {
    match std::env::var(COUNT) {
        Err(_) => default,
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{COUNT} is `{text}`: give a number of mutations")),
    }
}

/// Runs `read` on `n` damaged forms of `whole` and returns how many it accepted.
///
/// `other` lends its bytes to some of them. `read` says whether it took the file; what it does with a
/// damaged one is its own affair, but it returns.
///
/// # Panics
///
/// If `read` panics: with `what` and the number of the case, and the damaged file is left in the
/// folder for temporary files.
pub fn survive(
    what: &str,
    n: usize,
    whole: &[u8],
    other: &[u8],
    read: impl FnMut(&[u8]) -> bool,
) -> usize {
    survive_codes(what, n, whole, other, &[], read)
}

/// As [`survive`], for a format of positions and instructions: half of the damaged forms keep their length, so that
/// what lies behind the damage stays where it is looked for, and `codes` take the place of other bytes.
///
/// # Panics
///
/// Those of [`survive`].
#[allow(clippy::print_stderr, reason = "figures of a long run")]
pub fn survive_codes(
    what: &str,
    n: usize,
    whole: &[u8],
    other: &[u8],
    codes: &[u8],
    mut read: impl FnMut(&[u8]) -> bool,
) -> usize {
    let mut rng = SplitMix64::new(0x005e_edf0);
    let mut n_accepted = 0;
    for case in 0..n {
        let mut bytes = whole.to_vec();
        match !codes.is_empty() && below(&mut rng, 2) == 0 {
            true => overwrite(&mut bytes, other, codes, &mut rng),
            false => mutate(&mut bytes, other, codes, &mut rng),
        }
        match catch_unwind(AssertUnwindSafe(|| read(&bytes))) {
            Ok(accepted) => n_accepted += usize::from(accepted),
            Err(panic) => {
                let name = what.replace(|c: char| !c.is_alphanumeric(), "-");
                let kept = std::env::temp_dir().join(format!("sdlora-{name}-{case}"));
                let _ = std::fs::write(&kept, &bytes);
                eprintln!("{what}, case {case} panics: {}", kept.display());
                std::panic::resume_unwind(panic);
            }
        }
    }
    // Reported, so that a long run has its figures.
    eprintln!("{what}: {n} mutations, {n_accepted} accepted");
    n_accepted
}

/// Numbers at which arithmetic or allocation goes wrong.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "7",
    "256",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "99999999999999999999",
    "1e9",
    "1e400",
    "-0.0",
    "nan",
    "0.5",
];

/// Words and marks that texts of every format are made of.
const WORDS: &[&str] = &[
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "=",
    "\"",
    "\n",
    "\\u0000",
    "\u{feff}",
    "..",
    "/",
    "\u{202e}",
    "\u{1b}[2J",
];

/// One to four changes that leave the length: bits, bytes, codes, parts of `other`.
fn overwrite(bytes: &mut [u8], other: &[u8], codes: &[u8], rng: &mut SplitMix64) {
    if bytes.is_empty() {
        return;
    }
    for _ in 0..1 + below(rng, 4) {
        let at = below(rng, bytes.len());
        match below(rng, 4) {
            0 => bytes[at] ^= 1 << below(rng, 8),
            1 => bytes[at] = [0, 0x7f, 0x80, 0xff][below(rng, 4)],
            2 => bytes[at] = codes[below(rng, codes.len())],
            _ => {
                let (start, end) = part(other.len(), 16, rng);
                let n = (end - start).min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&other[start..start + n]);
            }
        }
    }
}

/// One to four changes: bits, bytes, numbers, words, codes, parts that move, double or vanish.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], codes: &[u8], rng: &mut SplitMix64) {
    let n_kinds = if codes.is_empty() { 11 } else { 12 };
    for _ in 0..1 + below(rng, 4) {
        if bytes.is_empty() {
            bytes.push(rng.next_u64() as u8);
        }
        let at = below(rng, bytes.len());
        match below(rng, n_kinds) {
            0 => bytes[at] ^= 1 << below(rng, 8),
            1 => bytes[at] = [0, 0x7f, 0x80, 0xff][below(rng, 4)],
            2 => bytes[at] = rng.next_u64() as u8,
            3 => {
                let end = (at + 1 + below(rng, 24)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let (start, end) = part(other.len(), 64, rng);
                bytes.splice(at..at, other[start..end].iter().copied());
            }
            5 => {
                let (start, end) = part(bytes.len(), 64, rng);
                let copy = bytes[start..end].to_vec();
                bytes.splice(at..at, copy);
            }
            6 => {
                let word = WORDS[below(rng, WORDS.len())];
                bytes.splice(at..at, word.bytes());
            }
            7 if below(rng, 3) == 0 => bytes.truncate(at),
            8 => {
                // A line or field moves to another place.
                let (start, end) = part(bytes.len(), 40, rng);
                let moved: Vec<u8> = bytes.drain(start..end).collect();
                let at = at.min(bytes.len());
                bytes.splice(at..at, moved);
            }
            11 => bytes.insert(at, codes[below(rng, codes.len())]),
            _ => {
                let is_digit = |b: &u8| b.is_ascii_digit();
                let Some(from) = bytes[at..].iter().position(is_digit).map(|n| n + at) else {
                    continue;
                };
                let n = bytes[from..].iter().take_while(|b| is_digit(b)).count();
                let number = NUMBERS[below(rng, NUMBERS.len())];
                bytes.splice(from..from + n, number.bytes());
            }
        }
    }
}

/// A part of at most `longest` of `n` items.
fn part(n: usize, longest: usize, rng: &mut SplitMix64) -> (usize, usize) {
    let start = below(rng, n);
    (start, (start + below(rng, longest)).min(n))
}

fn below(rng: &mut SplitMix64, n: usize) -> usize {
    (rng.next_u64() % n.max(1) as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_cases_every_time_and_most_of_them_damaged() {
        let whole = b"{\"a\": 17, \"b\": [1, 2]}";
        let collect = || {
            let mut all = Vec::new();
            survive("toy", 200, whole, b"other", |bytes| {
                all.push(bytes.to_vec());
                true
            });
            all
        };
        let cases = collect();
        assert_eq!(cases, collect());
        let n_same = cases.iter().filter(|bytes| *bytes == whole).count();
        assert!(n_same < 20, "{n_same} of 200 are undamaged");
    }

    #[test]
    fn with_codes_half_of_the_cases_keep_their_length() {
        let whole = vec![b'x'; 100];
        let mut n_codes = 0;
        let n_same = survive_codes("toy", 400, &whole, b"other", b"#", |bytes| {
            n_codes += usize::from(bytes.contains(&b'#'));
            bytes.len() == whole.len()
        });
        assert!((180..280).contains(&n_same), "{n_same} of 400");
        assert!(n_codes > 100, "{n_codes} of 400");
    }

    #[test]
    #[should_panic(expected = "too long")]
    fn a_reader_that_panics_is_found() {
        survive("toy", 1000, b"12345678", b"", |bytes| {
            assert!(bytes.len() < 12, "too long");
            true
        });
    }
}
