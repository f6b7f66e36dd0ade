//! The setting `cache`: how much memory prepared images may take.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::machine;

/// How many bytes of prepared images are kept. It changes speed and memory, no number.
///
/// An image takes `channels * (oversample * side)^2` bytes; with a pipeline, one byte for each value of the image after
/// the steps before the first random one, so for a random resized crop the whole decoded image.
///
/// Written as `"auto"`, `"memory"`, `"none"` or `0`, or as a size: `"2GiB"`, `"500MB"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// A quarter of the memory that this process may use, for its share of the processors: of a process that uses
    /// half of them, an eighth.
    #[default]
    Auto,
    /// All of them.
    Memory,
    /// None: an image is decoded each time it is needed.
    None,
    /// As many as fit into so many bytes.
    Bytes(u64),
}

/// Units of a size and their bytes, the largest first.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

impl Cache {
    /// The bytes that are meant on this machine, in the pool of threads that asks.
    pub fn n_bytes(self) -> u64 {
        match self {
            Self::Auto => machine::share_of_memory(),
            Self::Memory => u64::MAX,
            Self::None => 0,
            Self::Bytes(n) => n,
        }
    }

    /// The setting of a text; `None` for a text that is none.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let named = [
            ("auto", Self::Auto),
            ("memory", Self::Memory),
            ("none", Self::None),
            ("0", Self::None),
        ];
        if let Some((_, cache)) = named.iter().find(|(name, _)| *name == text) {
            return Some(*cache);
        }
        let (number, unit) = UNITS.iter().find_map(|(name, unit)| {
            let number = text.strip_suffix(name)?.trim_end();
            number
                .ends_with(|c: char| c.is_ascii_digit())
                .then_some((number, unit))
        })?;
        let is_number = number.bytes().all(|c| c.is_ascii_digit() || c == b'.');
        let n_bytes = number.parse::<f64>().ok().filter(|_| is_number)? * *unit as f64;
        // Beyond 2^53 a number is no longer exact, and no machine has so much.
        (n_bytes <= (1u64 << 53) as f64).then_some(Self::Bytes(n_bytes.round() as u64))
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Auto => f.write_str("auto"),
            Self::Memory => f.write_str("memory"),
            Self::None => f.write_str("none"),
            Self::Bytes(n) => {
                let fits = |(_, unit): &&(&str, u64)| n.is_multiple_of(*unit) && n > 0;
                let (name, unit) = UNITS.iter().find(fits).unwrap_or(&("B", 1));
                write!(f, "{}{name}", n / unit)
            }
        }
    }
}

impl Serialize for Cache {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cache {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

/// What a configuration may say.
struct Written;

impl<'de> Visitor<'de> for Written {
    type Value = Cache;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#""auto", "memory", "none", 0, or a size like "2GiB" or "500MB""#)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Cache, E> {
        Cache::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<Cache, E> {
        match n {
            0 => Ok(Cache::None),
            // Bytes, or megabytes? A number has a unit.
            _ => Err(E::invalid_value(Unexpected::Signed(n), &self)),
        }
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<Cache, E> {
        self.visit_i64(i64::try_from(n).unwrap_or(i64::MAX))
    }

    /// `{ megabytes = 500 }`, as plans of earlier versions have it.
    fn visit_map<M: serde::de::MapAccess<'de>>(self, mut map: M) -> Result<Cache, M::Error> {
        let mut cache = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "megabytes" || cache.is_some() {
                return Err(M::Error::unknown_field(&key, &["megabytes"]));
            }
            cache = Some(Cache::Bytes(
                map.next_value::<u64>()?.saturating_mul(1_000_000),
            ));
        }
        cache.ok_or_else(|| M::Error::missing_field("megabytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Config {
        cache: Cache,
    }

    fn read(text: &str) -> Result<Cache, String> {
        let config: Result<Config, _> = toml::from_str(&format!("cache = {text}"));
        config.map(|config| config.cache).map_err(|e| e.to_string())
    }

    #[test]
    fn sizes_have_units_and_names_mean_what_they_say() {
        for (text, cache) in [
            ("'auto'", Cache::Auto),
            ("'memory'", Cache::Memory),
            ("'none'", Cache::None),
            ("0", Cache::None),
            ("'0'", Cache::None),
            ("'0B'", Cache::Bytes(0)),
            ("'2GiB'", Cache::Bytes(2 << 30)),
            ("'1.5 GiB'", Cache::Bytes(3 << 29)),
            ("'500MB'", Cache::Bytes(500_000_000)),
            ("'7kB'", Cache::Bytes(7_000)),
            ("'12B'", Cache::Bytes(12)),
            ("{ megabytes = 500 }", Cache::Bytes(500_000_000)),
        ] {
            assert_eq!(read(text).as_ref(), Ok(&cache), "{text}");
            let written = toml::to_string(&Config { cache }).unwrap();
            assert!(written.lines().count() == 1, "{written}");
            assert_eq!(
                toml::from_str::<Config>(&written).unwrap().cache,
                cache,
                "{written}"
            );
        }
        assert_eq!(Cache::Bytes(3 << 29).to_string(), "1536MiB");
        for wrong in [
            "7",
            "-1",
            "'2'",
            "'2 G'",
            "'-1GB'",
            "'1e3GB'",
            "'GB'",
            "'1.2.3GB'",
            "'99999999TB'",
            "''",
            "{}",
        ] {
            let error = read(wrong).unwrap_err();
            assert!(wrong == "{}" || error.contains("2GiB"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_default_is_a_share_of_the_machine() {
        let n_bytes = Cache::Auto.n_bytes();
        // Of less than 16 MiB no machine could train, and of none is it without a limit.
        assert!(n_bytes > 1 << 20 && n_bytes < 1 << 50, "{n_bytes}");
        assert_eq!(
            (Cache::None.n_bytes(), Cache::Memory.n_bytes()),
            (0, u64::MAX)
        );
    }
}
