//! The suites of `sdlora compare`: which runs stand in one table, and on which streams.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;

use crate::UsageError;
use crate::commands::presets::{self, Preset};
use crate::commands::read_text;
use crate::report::Claim;

/// A list of runs to compare.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Name; runs of different suites lie in different folders.
    pub name: String,
    /// The presets that all entries start from: one table each.
    base: Bases,
    /// Keys set in every entry.
    #[serde(default)]
    pub set: Vec<String>,
    /// Seeds where the command names none.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u32>,
    /// Settings to choose from, in order, by a name that entries refer to.
    #[serde(default)]
    pub grid: BTreeMap<String, Vec<String>>,
    /// The runs; one with a grid stands for as many as the grid has settings.
    pub entry: Vec<Entry>,
    /// Orders of two entries that somebody has published.
    #[serde(default)]
    pub claim: Vec<Claim>,
}

/// One preset, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Bases {
    One(String),
    Several(Vec<String>),
}

/// One row of the table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name in the table.
    pub label: String,
    /// Keys that differ from the base.
    pub set: Vec<String>,
    /// The bases on which it is run; all where none is named.
    #[serde(default)]
    pub on: Vec<String>,
    /// The grid whose settings are tried; none where nothing is searched.
    #[serde(default)]
    grid: Option<String>,
    /// What it was made of, of an entry that came out of a grid.
    #[serde(skip)]
    pub tried: Option<Tried>,
}

/// A setting that is tried for an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// Label of the entry.
    pub label: String,
    /// The setting, one of the grid.
    pub setting: String,
}

/// The seeds of the tables.
fn default_seeds() -> Vec<u32> {
    vec![1993, 1994, 1995]
}

impl Entry {
    /// One entry for each setting of its grid; itself where it has none.
    fn expanded(
        self,
        grids: &BTreeMap<String, Vec<String>>,
        source: &str,
    ) -> Result<Vec<Self>, UsageError> {
        let Some(name) = &self.grid else {
            return Ok(vec![self]);
        };
        let grid = grids.get(name).filter(|grid| !grid.is_empty());
        let settings = grid.ok_or_else(|| {
            UsageError(format!(
                "suite `{source}` is not usable: entry `{}` has the grid `{name}`, which has no settings \
                 in `[grid]`",
                self.label
            ))
        })?;
        let with = |setting: &String| Self {
            label: format!("{}, {setting}", self.label),
            set: [&self.set[..], std::slice::from_ref(setting)].concat(),
            on: self.on.clone(),
            grid: None,
            tried: Some(Tried {
                label: self.label.clone(),
                setting: setting.clone(),
            }),
        };
        Ok(settings.iter().map(with).collect())
    }

    /// Whether it is run on this base.
    pub fn is_on(&self, base: &str) -> bool {
        self.on.is_empty() || self.on.iter().any(|on| on == base)
    }
}

impl Suite {
    /// The suite of that name inside the binary, or that of a file.
    ///
    /// # Errors
    ///
    /// A usage error for a text that is no suite, or that names a preset there is not.
    pub fn find(name_or_file: &str) -> anyhow::Result<Self> {
        let text = match presets::suites().find(|(name, _)| *name == name_or_file) {
            Some((_, text)) => text.to_owned(),
            None => read_text(name_or_file.as_ref()).with_context(|| {
                let known: Vec<_> = presets::suites().map(|(name, _)| name).collect();
                format!(
                    "no suite is called `{name_or_file}`: choose one of {}, or a file",
                    known.join(", ")
                )
            })?,
        };
        Self::parse(name_or_file, &text)
    }

    /// The suite of a text; `source` is for messages.
    ///
    /// # Errors
    ///
    /// Those of [`find`](Self::find).
    pub fn parse(source: &str, text: &str) -> anyhow::Result<Self> {
        let mut suite: Self = toml::from_str(text)
            .with_context(|| UsageError(format!("suite `{source}` is not usable")))?;
        if suite.seeds.is_empty() {
            return Err(UsageError(format!(
                "suite `{source}` is not usable: `seeds` is empty: name at least one, or leave it out"
            ))
            .into());
        }
        let written = std::mem::take(&mut suite.entry).into_iter();
        let expanded = written.map(|entry| entry.expanded(&suite.grid, source));
        suite.entry = expanded.collect::<Result<Vec<_>, _>>()?.concat();
        let bases = suite.bases()?;
        for entry in &suite.entry {
            if let Some(on) = entry
                .on
                .iter()
                .find(|&on| bases.iter().all(|base| base.name != on))
            {
                return Err(UsageError(format!(
                    "suite `{source}` is not usable: entry `{}` is `on` `{on}`, which is none of \
                     its bases",
                    entry.label
                ))
                .into());
            }
        }
        let is_entry = |label: &String| suite.entry.iter().any(|entry| entry.label == *label);
        if let Some(label) = suite
            .claim
            .iter()
            .flat_map(|claim| [&claim.higher, &claim.lower])
            .find(|label| !is_entry(label))
        {
            return Err(UsageError(format!(
                "suite `{source}` is not usable: a claim is about `{label}`, which is none of its \
                 entries"
            ))
            .into());
        }
        Ok(suite)
    }

    /// The presets its entries start from.
    ///
    /// # Errors
    ///
    /// A usage error for a preset there is not.
    pub fn bases(&self) -> Result<Vec<&'static Preset>, UsageError> {
        match &self.base {
            Bases::One(name) => Ok(vec![presets::find(name)?]),
            Bases::Several(names) => names.iter().map(|name| presets::find(name)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::BackboneArgs;
    use crate::config::with_settings;

    #[test]
    fn every_entry_of_every_suite_is_a_plan() {
        for (name, text) in presets::suites() {
            let suite = Suite::parse(name, text).unwrap();
            assert_eq!(suite.name, name, "runs of two suites would share a folder");
            for base in suite.bases().unwrap() {
                for entry in suite.entry.iter().filter(|entry| entry.is_on(base.name)) {
                    let settings = [suite.set.as_slice(), &entry.set].concat();
                    let none = BackboneArgs::default();
                    with_settings(base.text, &none, &settings, &mut |_| Ok(None))
                        .and_then(|config| Ok(config.check()?))
                        .unwrap_or_else(|e| panic!("{name}, {}: {e:#}", entry.label));
                }
            }
        }
    }

    #[test]
    fn an_entry_with_a_grid_stands_for_one_run_a_setting() {
        let text = |grid: &str| {
            format!(
                "name = \"own\"\nbase = \"omniglot-10x20\"\nseeds = [7]\n\
                 [grid]\nrates = [\"optimizer.lr=0.1\", \"optimizer.lr=0.3\"]\nnone = []\n\
                 [[entry]]\nlabel = \"lora\"\nset = [\"a=1\"]\ngrid = \"{grid}\"\n\
                 [[entry]]\nlabel = \"ncm\"\nset = []\n"
            )
        };
        let suite = Suite::parse("own.toml", &text("rates")).unwrap();
        assert_eq!(suite.seeds, [7]);
        let entries: Vec<_> = suite
            .entry
            .iter()
            .map(|entry| {
                (
                    entry.label.as_str(),
                    entry.set.join(" "),
                    entry.tried.is_some(),
                )
            })
            .collect();
        let expected = [
            ("lora, optimizer.lr=0.1", "a=1 optimizer.lr=0.1", true),
            ("lora, optimizer.lr=0.3", "a=1 optimizer.lr=0.3", true),
            ("ncm", "", false),
        ];
        let expected = expected.map(|(label, set, tried)| (label, set.to_owned(), tried));
        assert_eq!(entries, expected);
        for grid in ["none", "rate"] {
            let error = Suite::parse("own.toml", &text(grid))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(&format!("`{grid}`")) && error.contains("lora"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_entry_may_be_limited_to_bases_the_suite_has() {
        let text = |on: &str| {
            format!(
                "name = \"own\"\nbase = [\"omniglot-10x20\", \"omniglot-100x5\"]\n\
                 [[entry]]\nlabel = \"ncm\"\nset = []\non = [\"{on}\"]\n"
            )
        };
        let suite = Suite::parse("own.toml", &text("omniglot-100x5")).unwrap();
        assert!(suite.entry[0].is_on("omniglot-100x5") && !suite.entry[0].is_on("omniglot-10x20"));
        let error = Suite::parse("own.toml", &text("omniglot-shift")).unwrap_err();
        assert!(error.to_string().contains("`omniglot-shift`"), "{error}");
    }

    #[test]
    fn a_claim_is_about_entries_of_the_suite() {
        let text = |lower: &str| {
            format!(
                "name = \"own\"\nbase = \"omniglot-10x20\"\n\
                 [[entry]]\nlabel = \"ncm\"\nset = []\n[[entry]]\nlabel = \"lora\"\nset = []\n\
                 [[claim]]\nhigher = \"ncm\"\nlower = \"{lower}\"\nsource = \"Table 9\"\n"
            )
        };
        let suite = Suite::parse("own.toml", &text("lora")).unwrap();
        assert_eq!(suite.claim[0].points, None);
        let error = Suite::parse("own.toml", &text("lara")).unwrap_err();
        assert!(error.to_string().contains("`lara`"), "{error}");
    }
}
