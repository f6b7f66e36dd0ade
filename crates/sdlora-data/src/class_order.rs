//! The order in which classes are learned: a permutation of the class ids.
//!
//! Published runs draw it from NumPy's legacy generator, `numpy.random.seed(s)` then `numpy.random.permutation(n)`.
//! [`numpy_permutation`] repeats that bit for bit: MT19937 seeded by `init_genrand(s)`, then Fisher-Yates from the
//! end, each index drawn from 32-bit words masked to the smallest `2^k - 1` that covers the range, until one fits.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::dataset::ClassId;
use crate::error::DataError;
use crate::files::read_file;

/// Largest file of an order, in bytes; that of two million long names.
const MAX_ORDER_BYTES: u64 = 256 << 20;

/// How the classes are ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ClassOrder {
    /// By class id.
    #[default]
    Natural,
    /// NumPy's legacy permutation, as published runs use it.
    Numpy {
        /// Argument of `numpy.random.seed`.
        seed: u32,
    },
    /// As listed; classes that are not in the list are left out.
    Listed(Vec<ClassId>),
    /// By name, as listed; classes that are not in the list are left out.
    Named(Vec<String>),
    /// As a text file lists them, a class id or a name in every line; lines that are empty or begin with `#` are not
    /// read. Relative paths start at the working directory.
    File(PathBuf),
}

impl ClassOrder {
    /// The class ids in order, of the classes called `class_names`.
    ///
    /// # Errors
    ///
    /// [`DataError::Setting`] when a list is empty, repeats a class or names one that does not exist, and those of
    /// [`inlined`](Self::inlined).
    pub fn resolve(&self, class_names: &[String]) -> Result<Vec<ClassId>, DataError> {
        match self {
            Self::Natural => Ok((0..class_names.len()).collect()),
            Self::Numpy { seed } => Ok(numpy_permutation(*seed, class_names.len())),
            Self::Listed(classes) => {
                check_ids(classes, class_names.len())?;
                Ok(classes.clone())
            }
            Self::Named(names) => {
                let mut by_name: HashMap<&str, Vec<ClassId>> = HashMap::new();
                for (id, name) in class_names.iter().enumerate() {
                    by_name.entry(name).or_default().push(id);
                }
                let classes = names
                    .iter()
                    .map(|name| match by_name.get(name.as_str()).map(Vec::as_slice) {
                        Some([id]) => Ok(*id),
                        Some(several) => Err(DataError::setting(
                            "class_order.named",
                            format!("`{name}`"),
                            format!("ids, as classes {several:?} have this name"),
                        )),
                        None => Err(DataError::setting(
                            "class_order.named",
                            format!("`{name}`"),
                            format!(
                                "names of classes, such as `{}`",
                                class_names.first().map_or("", String::as_str)
                            ),
                        )),
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                check_ids(&classes, class_names.len())?;
                Ok(classes)
            }
            Self::File(_) => self.clone().inlined()?.resolve(class_names),
        }
    }

    /// The same order with its file read, so that it no longer depends on it.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] when the file cannot be read.
    pub fn inlined(self) -> Result<Self, DataError> {
        let Self::File(path) = self else {
            return Ok(self);
        };
        let bytes = read_file(&path, MAX_ORDER_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|_| {
            DataError::content(
                format!("`{}`", path.display()),
                "is not UTF-8 text",
                "write an id or a name in every line",
            )
        })?;
        let lines: Vec<&str> = text
            .trim_start_matches('\u{feff}')
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        // Names that are numbers would be read as ids, which is what such a file nearly always means.
        let ids: Result<Vec<ClassId>, _> = lines.iter().map(|line| line.parse()).collect();
        Ok(match ids {
            Ok(ids) => Self::Listed(ids),
            Err(_) => Self::Named(lines.into_iter().map(str::to_owned).collect()),
        })
    }
}

/// Refuses an empty list, ids out of range and repeated ones.
fn check_ids(classes: &[ClassId], n_classes: usize) -> Result<(), DataError> {
    let refuse =
        |found: String, expected: String| Err(DataError::setting("class_order", found, expected));
    if classes.is_empty() {
        return refuse("empty".to_owned(), "at least one class".to_owned());
    }
    let mut seen = vec![false; n_classes];
    for &class in classes {
        match seen.get_mut(class) {
            None => return refuse(class.to_string(), format!("class ids below {n_classes}")),
            Some(true) => return refuse(format!("{class} twice"), "every class once".to_owned()),
            Some(slot) => *slot = true,
        }
    }
    Ok(())
}

/// `numpy.random.seed(seed); numpy.random.permutation(n)` of NumPy's legacy generator.
///
/// ```
/// let order = sdlora_data::numpy_permutation(1993, 100);
/// assert_eq!(order[..5], [68, 56, 78, 8, 23]);
/// ```
pub fn numpy_permutation(seed: u32, n: usize) -> Vec<usize> {
    let mut generator = Mt19937::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, generator.index_up_to(i));
    }
    order
}

/// Length of the generator's state in words (Matsumoto and Nishimura 1998).
const N: usize = 624;
/// Offset of the word that is mixed in.
const M: usize = 397;

/// Mersenne Twister MT19937 (Matsumoto and Nishimura 1998, `mt19937ar.c`).
struct Mt19937 {
    state: [u32; N],
    next: usize,
}

impl Mt19937 {
    /// `init_genrand` of `mt19937ar.c`.
    fn new(seed: u32) -> Self {
        let mut state = [0; N];
        state[0] = seed;
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = 1_812_433_253_u32
                .wrapping_mul(previous ^ (previous >> 30))
                .wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn refill(&mut self) {
        for i in 0..N {
            let word = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if word & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (word >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// A number in `0..=max`, `max` at least 1, by masked rejection: NumPy's `random_interval`.
    ///
    /// NumPy draws 64-bit words above `u32::MAX`; no data set has that many classes.
    fn index_up_to(&mut self, max: usize) -> usize {
        let mask = usize::MAX >> max.leading_zeros();
        loop {
            let value = self.next_u32() as usize & mask;
            if value <= max {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First ten of `numpy.random.seed(seed); numpy.random.permutation(n)`, from NumPy itself.
    #[test]
    fn permutations_equal_numpys() {
        for (seed, n, first) in [
            (1993, 100, [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]),
            (1993, 200, [168, 136, 51, 9, 183, 101, 171, 99, 42, 159]),
            (1995, 200, [146, 198, 169, 126, 142, 183, 108, 86, 79, 35]),
            (1994, 100, [72, 6, 33, 96, 60, 94, 29, 40, 45, 66]),
            (1993, 345, [214, 80, 343, 268, 224, 97, 253, 55, 165, 170]),
        ] {
            assert_eq!(
                numpy_permutation(seed, n)[..10],
                first,
                "seed {seed}, n {n}"
            );
        }
    }

    /// First outputs of `init_genrand(5489)`, the reference implementation's default seed.
    #[test]
    fn twister_equals_the_reference_implementation() {
        let mut generator = Mt19937::new(5489);
        assert_eq!(generator.next_u32(), 3_499_211_612);
        assert_eq!(generator.next_u32(), 581_869_302);
        // The 10,000th output, as the C++ standard fixes it for `std::mt19937`.
        let last = (2..10_000).map(|_| generator.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn small_and_power_of_two_lengths_are_permutations() {
        for n in [0, 1, 2, 3, 4, 5, 8, 9, 64, 65] {
            let mut order = numpy_permutation(7, n);
            order.sort_unstable();
            assert_eq!(order, (0..n).collect::<Vec<_>>());
        }
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|id| format!("class{id}")).collect()
    }

    #[test]
    fn lists_are_checked() {
        let resolve = |list: &[usize]| ClassOrder::Listed(list.to_vec()).resolve(&names(4));
        assert_eq!(resolve(&[3, 1]).unwrap(), [3, 1]);
        for (list, word) in [(&[0, 4][..], "below 4"), (&[2, 2], "twice"), (&[], "empty")] {
            let message = resolve(list).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn names_stand_for_ids() {
        let named = |list: &[&str], class_names: &[String]| {
            ClassOrder::Named(list.iter().map(ToString::to_string).collect()).resolve(class_names)
        };
        assert_eq!(named(&["class2", "class0"], &names(3)).unwrap(), [2, 0]);
        let twice = ["cat".to_owned(), "cat".to_owned(), "dog".to_owned()];
        assert_eq!(named(&["dog"], &twice).unwrap(), [2]);
        for (list, class_names, word) in [
            (&["cat"][..], &names(3)[..], "such as `class0`"),
            (&["cat"], &twice, "[0, 1]"),
            (&["dog", "dog"], &twice, "twice"),
            (&[], &twice, "empty"),
        ] {
            let message = named(list, class_names).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_file_lists_ids_or_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("order.txt");
        let order = ClassOrder::File(path.clone());
        for (text, inlined) in [
            ("# ids\n2\n\n 0 \r\n", ClassOrder::Listed(vec![2, 0])),
            (
                "class2\nclass0",
                ClassOrder::Named(vec!["class2".into(), "class0".into()]),
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(order.clone().inlined().unwrap(), inlined);
            assert_eq!(order.resolve(&names(3)).unwrap(), [2, 0]);
        }
        std::fs::remove_file(&path).unwrap();
        let message = order.resolve(&names(3)).unwrap_err().to_string();
        assert!(message.contains("order.txt"), "{message}");
    }
}
