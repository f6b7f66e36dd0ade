//! From the numbers of a run to text: terminal tables, a markdown comparison, and a self-contained HTML page.
//!
//! Nothing here reads a file, trains or prints; every function takes plain data and returns a string. Accuracies
//! come in as fractions and leave as percentages.
//!
//! | file | what |
//! |---|---|
//! | `table.rs` | growing accuracy table, summary block, comparison of methods |
//! | `claims.rs` | published orders of methods beside those that came out |
//! | `expected.rs` | published numbers beside those of the run |
//! | `html.rs` | the page `report.html` |
//! | `side_by_side.rs` | the page of several runs or methods |
//! | `page.rs` | the frame of both: style, script, tables that sort |
//! | `charts.rs` | figures of a run: accuracy curve, matrix heat map, magnitudes, loss |
//! | `classes.rs` | its classes: the table, the confusion |
//! | `class_map.rs` | a map of their mean features |
//! | `figure.rs` | figures that are files of their own |
//! | `svg.rs` | what the figures are drawn with: axes, ticks, lines, escaped text |
//! | `encode.rs` | pictures and data inside a page |

mod charts;
mod claims;
mod class_map;
mod classes;
mod encode;
pub mod figure;
mod html;
mod page;
mod published;
mod side_by_side;
mod svg;
mod table;

pub use claims::{Claim, Outcome, claims_table};
pub use classes::{Classes, Mistake, PICTURE_SIDE};
pub use html::report_html;
pub use published::{published_block, published_numbers};
pub use side_by_side::{Entry, side_by_side};
pub use table::{
    AccuracyTable, Comparison, class_accuracy_line, compare_table, grouped, stored, summary_block,
};

use sdlora_metrics::{AccuracyMatrix, Summary};

/// Everything the HTML page shows. An empty slice leaves its section out.
#[derive(Debug, Clone, Copy)]
pub struct ReportInput<'a> {
    /// Heading, such as the name of the run.
    pub title: &'a str,
    /// Short facts under the heading as name and value: method, data set, backbone, device, version.
    pub facts: &'a [(String, String)],
    /// The checked configuration, as it was written to `plan.toml`.
    pub plan_toml: &'a str,
    /// Accuracies of the run.
    pub matrix: &'a AccuracyMatrix,
    /// Metrics of `matrix`.
    pub summary: &'a Summary,
    /// Learned magnitudes: row t has the value of every direction after task t, direction i made by task i. Rows may
    /// differ in length.
    pub magnitudes: &'a [Vec<f64>],
    /// Training loss as (step counted over the whole run, loss), in order of steps.
    pub losses: &'a [(usize, f64)],
    /// First step of each task in `losses`.
    pub task_starts: &'a [usize],
    /// Name of each task; tasks without one are shown by number.
    pub task_names: &'a [String],
    /// Wall-clock time of each trained task.
    pub timings: &'a [TaskTiming],
    /// Whether the run goes on.
    pub state: State,
    /// Answers on test images, class by class, where they are known.
    pub classes: Option<Classes<'a>>,
}

/// What has become of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It goes on, and the page is written again after every task.
    Running,
    /// It ended before its last task, and can be continued.
    Stopped,
    /// All tasks are over.
    Done,
}

/// Wall-clock time of one task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TaskTiming {
    /// Seconds without evaluation.
    pub train_seconds: f64,
    /// Seconds of testing on all seen tasks.
    pub eval_seconds: f64,
}

/// Duration for readers: `0.42 s`, `12.3 s`, `4 min 05 s`, `2 h 03 min`; an en dash if negative or not finite.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".into();
    }
    // Rounded before it is split, so that 59.97 s does not become `60.0 s`.
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 9.995 => format!("{seconds:.2} s"),
        _ if seconds < 59.95 => format!("{seconds:.1} s"),
        0..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => {
            let minutes = (seconds / 60.0).round() as u64;
            format!("{} h {:02} min", minutes / 60, minutes % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_change_their_unit() {
        for (seconds, text) in [
            (0.0, "0.00 s"),
            (9.99, "9.99 s"),
            (9.999, "10.0 s"),
            (59.97, "1 min 00 s"),
            (245.4, "4 min 05 s"),
            (3599.6, "1 h 00 min"),
            (7380.0, "2 h 03 min"),
            (f64::NAN, "–"),
            (-1.0, "–"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
