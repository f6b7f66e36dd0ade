//! Published orders of methods beside what came out here.

use sdlora_metrics::Spread;
use serde::Deserialize;

use super::table::{cell_text, markdown, spread};

/// A published order of two entries by their final accuracy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Label of the entry that is said to be better.
    pub higher: String,
    /// Label of the other.
    pub lower: String,
    /// Where it is said.
    pub source: String,
    /// By how much, in points; none where the source has only the order.
    #[serde(default)]
    pub points: Option<f64>,
}

/// What became of a claim: the differences of the seeds that both entries were run with.
#[derive(Debug, Clone)]
pub struct Outcome<'a> {
    claim: &'a Claim,
    /// Final accuracy of the entry said to be higher minus that of the other, in points, by seed.
    differences: Vec<f64>,
}

impl<'a> Outcome<'a> {
    /// Pairs the final accuracies of two entries, in percent, by their seeds: the same seed is the same
    /// order of classes, so that what a stream gives to both is not counted as a difference.
    pub fn of(claim: &'a Claim, higher: &[(u32, f64)], lower: &[(u32, f64)]) -> Self {
        let other = |seed: u32| lower.iter().find(|(other, _)| *other == seed);
        let difference = |(seed, value): &(u32, f64)| Some(value - other(*seed)?.1);
        Self {
            claim,
            differences: higher.iter().filter_map(difference).collect(),
        }
    }

    /// Whether the order came out too. Only differences above two standard errors say something.
    fn verdict(&self) -> &'static str {
        let Ok(spread) = Spread::of(&self.differences) else {
            return "no seed in common";
        };
        match spread.standard_error {
            None if spread.mean > 0.0 => "agrees, one seed",
            None if spread.mean < 0.0 => "contradicts, one seed",
            Some(error) if spread.mean > 2.0 * error => "agrees",
            Some(error) if spread.mean < -2.0 * error => "contradicts",
            _ => "undecided",
        }
    }
}

/// Markdown table with one line per claim.
pub fn claims_table(outcomes: &[Outcome]) -> String {
    let header = ["Claim", "Source", "Claimed", "Here", "Verdict"];
    let mut rows = vec![header.map(String::from)];
    rows.extend(outcomes.iter().map(|outcome| {
        let claim = outcome.claim;
        [
            cell_text(&format!("{} > {}", claim.higher, claim.lower)),
            cell_text(&claim.source),
            claim
                .points
                .map_or_else(|| "higher".to_owned(), |points| format!("{points:+.2}")),
            spread(Some(&outcome.differences), 2),
            outcome.verdict().to_owned(),
        ]
    }));
    markdown(&rows)
        + "\nDifferences of Acc in points, the mean over the seeds of both ± its standard error. A claim agrees or is \
           contradicted where the difference is more than two standard errors from zero.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(points: Option<f64>) -> Claim {
        Claim {
            higher: "a".into(),
            lower: "b".into(),
            source: "Table 1".into(),
            points,
        }
    }

    #[test]
    fn seeds_are_paired_before_they_are_compared() {
        let claim = claim(Some(2.5));
        // Seeds differ by 20 points and the entries by 1 to 2: unpaired, nothing could be said.
        let higher = [(1, 51.0), (2, 71.5), (3, 92.0)];
        let lower = [(3, 90.0), (1, 50.0), (2, 70.0), (4, 0.0)];
        let outcome = Outcome::of(&claim, &higher, &lower);
        assert_eq!(outcome.differences, [1.0, 1.5, 2.0]);
        assert_eq!(outcome.verdict(), "agrees");
        assert_eq!(
            Outcome::of(&claim, &lower, &higher).verdict(),
            "contradicts"
        );
        let table = claims_table(&[outcome]);
        assert!(table.contains("| a > b |"), "{table}");
        assert!(table.contains(" +2.50 |"), "{table}");
        assert!(table.contains(" 1.50 ± 0.29 |"), "{table}");
    }

    #[test]
    fn a_difference_within_its_spread_says_nothing() {
        let claim = claim(None);
        let verdict = |higher: &[(u32, f64)]| {
            Outcome::of(&claim, higher, &[(1, 50.0), (2, 50.0), (3, 50.0)]).verdict()
        };
        assert_eq!(verdict(&[(1, 49.0), (2, 52.0), (3, 50.0)]), "undecided");
        assert_eq!(verdict(&[(1, 50.0), (2, 50.0)]), "undecided");
        assert_eq!(verdict(&[(1, 52.0)]), "agrees, one seed");
        assert_eq!(verdict(&[(1, 48.0)]), "contradicts, one seed");
        assert_eq!(verdict(&[(9, 48.0)]), "no seed in common");
        assert!(claims_table(&[Outcome::of(&claim, &[], &[])]).contains(" higher |"));
    }
}
