//! The order in which classes are learned: a permutation of the class ids.
//!
//! Published runs draw it from NumPy's legacy generator, `numpy.random.seed(s)` then `numpy.random.permutation(n)`.
//! [`numpy_permutation`] repeats that bit for bit: MT19937 seeded by `init_genrand(s)`, then Fisher-Yates from the
//! end, each index drawn from 32-bit words masked to the smallest `2^k - 1` that covers the range, until one fits.

use serde::{Deserialize, Serialize};

use crate::dataset::ClassId;
use crate::error::DataError;

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
}

impl ClassOrder {
    /// The class ids in order, out of `n_classes`.
    ///
    /// # Errors
    ///
    /// [`DataError::Setting`] when a list is empty, repeats a class or names one outside `0..n_classes`.
    pub fn resolve(&self, n_classes: usize) -> Result<Vec<ClassId>, DataError> {
        match self {
            Self::Natural => Ok((0..n_classes).collect()),
            Self::Numpy { seed } => Ok(numpy_permutation(*seed, n_classes)),
            Self::Listed(classes) => {
                let refuse = |found, expected| {
                    Err(DataError::setting("class_order.listed", found, expected))
                };
                if classes.is_empty() {
                    return refuse("empty".to_owned(), "at least one class id".to_owned());
                }
                let mut seen = vec![false; n_classes];
                for &class in classes {
                    match seen.get_mut(class) {
                        None => {
                            return refuse(
                                class.to_string(),
                                format!("class ids below {n_classes}"),
                            );
                        }
                        Some(true) => {
                            return refuse(
                                format!("{class} twice"),
                                "every class id once".to_owned(),
                            );
                        }
                        Some(slot) => *slot = true,
                    }
                }
                Ok(classes.clone())
            }
        }
    }
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

    #[test]
    fn lists_are_checked() {
        let resolve = |list: &[usize]| ClassOrder::Listed(list.to_vec()).resolve(4);
        assert_eq!(resolve(&[3, 1]).unwrap(), [3, 1]);
        for (list, word) in [(&[0, 4][..], "below 4"), (&[2, 2], "twice"), (&[], "empty")] {
            let message = resolve(list).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
