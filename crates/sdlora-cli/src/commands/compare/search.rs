//! The best setting of every entry of a search.

use super::rows::Row;
use crate::commands::suites::Suite;

/// What a search found for one entry.
#[derive(Debug, Clone, PartialEq)]
struct Choice<'a> {
    label: &'a str,
    /// The setting of the highest final accuracy; of equal ones that of the highest anytime accuracy, of
    /// equal ones there the first of the grid.
    setting: &'a str,
    /// Final and anytime accuracy with it.
    accuracies: (f64, Option<f64>),
    /// How many settings have a finished run.
    n_tried: usize,
    n_settings: usize,
    /// Whether it is the first or the last of the grid, beyond which may be a better one.
    is_at_an_end: bool,
}

/// The choice for every entry with a grid that has a finished run.
fn choices<'a>(suite: &'a Suite, rows: &[Row]) -> Vec<Choice<'a>> {
    let tried = suite.entry.iter().filter_map(|entry| {
        let tried = entry.tried.as_ref()?;
        let row = rows.iter().find(|row| row.label() == entry.label);
        Some((tried, row.and_then(Row::accuracies)))
    });
    let tried: Vec<_> = tried.collect();
    tried
        .chunk_by(|(a, _), (b, _)| a.label == b.label)
        .filter_map(|settings| {
            let mut best: Option<(usize, (f64, Option<f64>))> = None;
            for (i, (_, accuracies)) in settings.iter().enumerate() {
                let Some(accuracies) = *accuracies else {
                    continue;
                };
                if best.is_none_or(|(_, so_far)| accuracies > so_far) {
                    best = Some((i, accuracies));
                }
            }
            let (place, accuracies) = best?;
            Some(Choice {
                label: &settings[0].0.label,
                setting: &settings[place].0.setting,
                accuracies,
                n_tried: settings.iter().filter(|(_, a)| a.is_some()).count(),
                n_settings: settings.len(),
                is_at_an_end: place == 0 || place + 1 == settings.len(),
            })
        })
        .collect()
}

/// The best of every entry that was searched, one a line; `None` where nothing was.
pub fn best_of(suite: &Suite, rows: &[Row]) -> Option<String> {
    let choices = choices(suite, rows);
    let width = choices.iter().map(|choice| choice.label.len()).max()?;
    let mut text = String::from("best of each search, by final accuracy, then anytime accuracy:\n");
    for choice in &choices {
        let (last, anytime) = choice.accuracies;
        let anytime =
            anytime.map_or_else(|| "–".into(), |anytime| format!("{:.2} %", 100.0 * anytime));
        text.push_str(&format!(
            "{:<width$}  {}  Acc {:.2} %  AAA {anytime}{}{}\n",
            choice.label,
            choice.setting,
            100.0 * last,
            match choice.is_at_an_end {
                true => "  (at an end of the grid)",
                false => "",
            },
            match choice.n_tried < choice.n_settings {
                true => format!("  ({} of {} tried)", choice.n_tried, choice.n_settings),
                false => String::new(),
            },
        ));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use sdlora_metrics::Summary;
    use sdlora_train::RunConfig;

    use super::*;
    use crate::backbone::BackboneArgs;
    use crate::commands::compare::records::{Key, Records};
    use crate::commands::suites::Entry;
    use crate::config::with_settings;

    fn row(label: &str, accuracies: &[(f64, f64)]) -> Row {
        let mut row = Row::new(label);
        for (seed, &(last, anytime)) in accuracies.iter().enumerate() {
            let summary = Summary {
                final_average_accuracy: Some(last),
                average_anytime_accuracy: Some(anytime),
                ..Summary::default()
            };
            row.push(seed as u32, summary, 1.0);
        }
        row
    }

    /// A row of joint training, which has no anytime accuracy.
    fn joint(label: &str, last: f64) -> Row {
        let mut row = Row::new(label);
        let summary = Summary {
            final_average_accuracy: Some(last),
            ..Summary::default()
        };
        row.push(0, summary, 1.0);
        row
    }

    #[test]
    fn the_best_is_that_of_the_highest_mean_and_equal_ones_go_by_the_anytime_accuracy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.toml");
        let text = "name = \"own\"\nbase = \"omniglot-10x20\"\n\
                    [grid]\nrates = [\"a=1\", \"a=2\", \"a=3\"]\n\
                    [[entry]]\nlabel = \"lora\"\nset = []\ngrid = \"rates\"\n\
                    [[entry]]\nlabel = \"olora\"\nset = []\ngrid = \"rates\"\n\
                    [[entry]]\nlabel = \"slca\"\nset = []\ngrid = \"rates\"\n\
                    [[entry]]\nlabel = \"joint\"\nset = []\ngrid = \"rates\"\n\
                    [[entry]]\nlabel = \"ncm\"\nset = []\n";
        std::fs::write(&path, text).unwrap();
        let suite = Suite::find(path.to_str().unwrap()).unwrap();
        let rows = [
            row("lora, a=1", &[(0.5, 0.9), (0.7, 0.9)]),
            row("lora, a=2", &[(0.9, 0.9), (0.2, 0.9)]),
            row("lora, a=3", &[(0.6, 0.95), (0.6, 0.9)]),
            // One diverged, one is missing.
            row("olora, a=1", &[]),
            row("olora, a=2", &[(0.4, 0.4)]),
            joint("joint, a=1", 0.7),
            joint("joint, a=2", 0.8),
            row("ncm", &[(0.9, 0.9)]),
        ];
        let found = choices(&suite, &rows);
        let found: Vec<_> = found
            .iter()
            .map(|c| (c.label, c.setting, c.n_tried, c.is_at_an_end))
            .collect();
        assert_eq!(
            found,
            [
                ("lora", "a=3", 3, true),
                ("olora", "a=2", 1, false),
                ("joint", "a=2", 2, false)
            ]
        );
        let text = best_of(&suite, &rows).unwrap();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("1 of 3 tried"), "{text}");
        assert!(text.contains("Acc 80.00 %  AAA –"), "{text}");
        assert_eq!(best_of(&suite, &rows[7..]), None);
    }

    /// The configuration of an entry of another suite in the search.
    fn config(search: &Suite, set: &[String]) -> RunConfig {
        let base = search.bases().unwrap()[0];
        let settings = [&search.set, set].concat();
        let none = BackboneArgs::default();
        with_settings(base.text, &none, &settings, &mut |_| Ok(None)).unwrap()
    }

    /// The entries of the search that a row of `paper` is one of: a whole grid, or the one without.
    fn family<'a>(search: &'a Suite, row: &Entry) -> Vec<&'a Entry> {
        let wanted = config(search, &row.set);
        let is_row = |entry: &&Entry| config(search, &entry.set) == wanted;
        let found: Vec<_> = search.entry.iter().filter(is_row).collect();
        assert_eq!(found.len(), 1, "`{}` in the search", row.label);
        match &found[0].tried {
            None => found,
            Some(own) => {
                let is_of =
                    |entry: &&Entry| entry.tried.as_ref().is_some_and(|t| t.label == own.label);
                search.entry.iter().filter(is_of).collect()
            }
        }
    }

    #[test]
    fn every_row_of_the_paper_is_searched_by_the_same_number_of_runs() {
        let (paper, search) = (
            Suite::find("paper").unwrap(),
            Suite::find("tune-paper").unwrap(),
        );
        let sizes: Vec<usize> = search.grid.values().map(Vec::len).collect();
        assert!(sizes.windows(2).all(|pair| pair[0] == pair[1]), "{sizes:?}");
        // What makes no step has no rate.
        let mut free: Vec<&str> = Vec::new();
        for row in &paper.entry {
            match family(&search, row).len() {
                1 => free.push(&row.label),
                n => assert_eq!(n, sizes[0], "`{}`", row.label),
            }
        }
        let expected = [
            "simplecil",
            "frozen + ncm",
            "frozen + ridge",
            "frozen + ridge on 2,000 random features",
        ];
        assert_eq!(free, expected);
        for key in ["hold_out=3", "stream.n_tasks=6"] {
            assert!(search.set.iter().any(|set| set == key), "{key}");
        }
        assert!(search.seeds.iter().all(|seed| !paper.seeds.contains(seed)));
    }

    /// The records of the search, and the sentence of docs/reproducing.md while they are missing.
    const RECORDS: &str = "docs/results/search.jsonl";
    const NOT_YET: &str = "The rates of `paper` are not yet those that this search found";

    #[test]
    fn every_row_of_the_paper_takes_the_setting_that_the_search_found() {
        let repository: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let page = std::fs::read_to_string(repository.join("docs/reproducing.md")).unwrap();
        let path = repository.join(RECORDS);
        // The page and the file agree on whether there is a search at all.
        assert_eq!(page.contains(NOT_YET), !path.exists(), "{RECORDS}");
        if !path.exists() {
            return;
        }
        let (paper, search) = (
            Suite::find("paper").unwrap(),
            Suite::find("tune-paper").unwrap(),
        );
        let records = Records::open(&path).unwrap();
        let stream = search.bases().unwrap()[0].name;
        let rows: Vec<Row> = search
            .entry
            .iter()
            .map(|entry| {
                let mut row = Row::new(&entry.label);
                for &seed in &search.seeds {
                    let key = Key {
                        suite: search.name.clone(),
                        stream: stream.to_owned(),
                        entry: entry.label.clone(),
                        seed,
                    };
                    if let Some(record) = records.of_run(&key) {
                        row.push_record(record);
                    }
                }
                row
            })
            .collect();
        let choices = choices(&search, &rows);
        for row in &paper.entry {
            let family = family(&search, row);
            let Some(own) = &family[0].tried else {
                continue;
            };
            // Rates that are too large for a method end without a record: they are the last of the grid.
            let is_there = |entry: &&Entry| {
                let row = rows.iter().find(|row| row.label() == entry.label);
                row.is_some_and(|row| row.n_runs() == search.seeds.len())
            };
            let n_first = family.iter().take_while(|entry| is_there(entry)).count();
            let n_tried = family.iter().filter(|entry| is_there(entry)).count();
            assert!(
                n_first == n_tried && n_tried >= 3,
                "the search of `{}` is not whole: {n_tried} settings, the first {n_first}",
                own.label
            );
            let choice = choices
                .iter()
                .find(|choice| choice.label == own.label)
                .unwrap_or_else(|| panic!("the search of `{}` has no best", own.label));
            let best = family
                .iter()
                .find(|entry| {
                    entry
                        .tried
                        .as_ref()
                        .is_some_and(|t| t.setting == choice.setting)
                })
                .unwrap();
            assert_eq!(
                config(&search, &row.set),
                config(&search, &best.set),
                "`{}` does not take `{}`, the best of the search",
                row.label,
                choice.setting
            );
        }
    }
}
