//! Rows of the table: one entry each, with all its runs.

use sdlora_metrics::Summary;
use sdlora_train::heads::FloatsStored;

use super::records::Record;
use crate::report::{Claim, Comparison, Entry, Outcome, claims_table, compare_table};

/// One entry; seeds, metrics and seconds of a task in the order of the runs.
pub struct Row {
    label: String,
    seeds: Vec<u32>,
    summaries: Vec<Summary>,
    n_parameters: usize,
    stored: Option<FloatsStored>,
    seconds: Vec<f64>,
}

impl Row {
    /// A row without runs.
    pub fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            seeds: Vec::new(),
            summaries: Vec::new(),
            n_parameters: 0,
            stored: None,
            seconds: Vec::new(),
        }
    }

    /// Label of the entry.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Final and anytime accuracy, mean over the runs; `None` without runs. Joint training has no anytime accuracy.
    pub fn accuracies(&self) -> Option<(f64, Option<f64>)> {
        let mean = |metric: fn(&Summary) -> Option<f64>| -> Option<f64> {
            let values: Option<Vec<f64>> = self.summaries.iter().map(metric).collect();
            let values = values.filter(|values| !values.is_empty())?;
            Some(values.iter().sum::<f64>() / values.len() as f64)
        };
        Some((
            mean(|s| s.final_average_accuracy)?,
            mean(|s| s.average_anytime_accuracy),
        ))
    }

    /// Number of runs.
    pub fn n_runs(&self) -> usize {
        self.seeds.len()
    }

    /// Adds a run.
    pub fn push(&mut self, seed: u32, summary: Summary, seconds_per_task: f64) {
        self.seeds.push(seed);
        self.summaries.push(summary);
        self.seconds.push(seconds_per_task);
    }

    /// Adds a run with what its record knows beside the metrics.
    pub fn push_record(&mut self, record: Record) {
        self.n_parameters = record.n_parameters;
        self.stored = record.head_keeps;
        self.push(record.key.seed, record.summary, record.seconds_per_task);
    }

    /// The row of a page; `curve_of` gives the accuracies after every task of the run of a seed, where they are at
    /// hand.
    pub fn entry(&self, curve_of: impl Fn(u32) -> Option<Summary>) -> Entry {
        let mut summaries = self.summaries.clone();
        for (&seed, summary) in self.seeds.iter().zip(&mut summaries) {
            // Of another run in the place of this one, the end is another.
            let is_same =
                |found: &Summary| found.final_average_accuracy == summary.final_average_accuracy;
            if let Some(found) = curve_of(seed).filter(is_same) {
                summary.accuracy_curve = found.accuracy_curve;
            }
        }
        Entry {
            name: self.label.clone(),
            summaries,
            seconds_per_task: self.seconds.clone(),
            n_parameters: Some(self.n_parameters),
            facts: Vec::new(),
        }
    }

    fn comparison(&self) -> Comparison<'_> {
        Comparison {
            method: &self.label,
            summaries: &self.summaries,
            n_parameters: Some(self.n_parameters),
            stored: self.stored,
            seconds_per_task: &self.seconds,
        }
    }
}

/// The last row where it is of that entry, or else a new one after it.
pub fn row_of<'a>(rows: &'a mut Vec<Row>, entry: &str) -> &'a mut Row {
    let place = match rows.last() {
        Some(row) if row.label == entry => rows.len() - 1,
        _ => {
            rows.push(Row::new(entry));
            rows.len() - 1
        }
    };
    &mut rows[place]
}

/// The table of one stream, with what becomes of the claims there.
pub fn table_of(rows: &[Row], claims: &[Claim]) -> String {
    let comparisons: Vec<Comparison> = rows.iter().map(Row::comparison).collect();
    let mut text = compare_table(&comparisons);
    let accuracies = |label: &str| {
        let row = rows.iter().find(|row| row.label == label)?;
        let accuracy = |(&seed, summary): (&u32, &Summary)| {
            Some((seed, 100.0 * summary.final_average_accuracy?))
        };
        let all = row.seeds.iter().zip(&row.summaries).map(accuracy);
        all.collect::<Option<Vec<_>>>()
    };
    let outcomes: Vec<_> = claims
        .iter()
        .filter_map(|claim| {
            let (higher, lower) = (accuracies(&claim.higher)?, accuracies(&claim.lower)?);
            Some(Outcome::of(claim, &higher, &lower))
        })
        .collect();
    if !outcomes.is_empty() {
        text.push('\n');
        text.push_str(&claims_table(&outcomes));
    }
    text
}
