//! How a finished run came about: its tasks in order and what was measured, read from its folder.

use std::path::Path;

use sdlora_data::datasets;
use sdlora_metrics::{AccuracyMatrix, Summary};
use serde::Deserialize;
use serde_json::{Value, json};

use super::FinishedRun;
use crate::run_log::RunLog;

/// Results of a run; written last.
const METRICS_FILE: &str = "metrics.json";
/// One line for each event.
const LOG_FILE: &str = "log.jsonl";

/// What the folder of a run says of its past; a run that was stopped before its results has less of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct History {
    /// Version of the program that trained.
    pub version: Option<String>,
    /// Accuracy after each task on each task.
    pub matrix: Option<AccuracyMatrix>,
    /// In their order.
    pub tasks: Vec<Task>,
}

/// A task of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    /// Classes that no earlier task had.
    pub n_new_classes: usize,
    /// Training images.
    pub n_images: usize,
}

#[derive(Deserialize)]
struct Metrics {
    version: String,
    log: RunLog,
}

/// What is read of a line of the log.
#[derive(Deserialize)]
struct Line {
    event: String,
    task: Option<usize>,
    new_classes: Option<usize>,
    images: Option<usize>,
}

impl History {
    /// That of the run in a folder; what is missing or unreadable is left out.
    pub(super) fn read(folder: &Path) -> Self {
        let text = std::fs::read(folder.join(METRICS_FILE)).unwrap_or_default();
        let metrics: Option<Metrics> = serde_json::from_slice(&text).ok();
        let (version, matrix) = metrics.map(|m| (m.version, m.log.matrix)).unzip();
        let log = std::fs::read_to_string(folder.join(LOG_FILE)).unwrap_or_default();
        Self {
            version,
            matrix,
            tasks: tasks(&log),
        }
    }

    /// All metrics, where there are results.
    pub(super) fn summary(&self) -> Option<Summary> {
        self.matrix.as_ref().map(Summary::of)
    }

    /// Tasks in order with names and accuracies, and the metrics.
    pub(super) fn to_json(&self, class_names: &[String]) -> Value {
        let last = self.matrix.as_ref().and_then(AccuracyMatrix::last_seen);
        let mut first = 0;
        let tasks = self.tasks.iter().enumerate().map(|(i, task)| {
            let end = (first + task.n_new_classes).min(class_names.len());
            let classes = &class_names[first.min(end)..end];
            first = end;
            json!({
                "classes": classes,
                "training_images": task.n_images,
                "final_accuracy": last.and_then(|row| row.get(i)),
            })
        });
        json!({
            "tasks": tasks.collect::<Vec<_>>(),
            "matrix": self.matrix,
            "summary": self.summary(),
        })
    }
}

/// The tasks that a log says were started, in their order; a task that was started again stands once.
fn tasks(log: &str) -> Vec<Task> {
    let mut tasks = Vec::new();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    for line in lines.filter(|line: &Line| line.event == "task_started") {
        if let (Some(task), Some(n_new_classes), Some(n_images)) =
            (line.task, line.new_classes, line.images)
            && task == tasks.len()
        {
            tasks.push(Task {
                n_new_classes,
                n_images,
            });
        }
    }
    tasks
}

/// The licence of a model, and that of its images.
pub(super) fn licence(run: &FinishedRun) -> String {
    let data = match manifest(&run.config.dataset) {
        Some((_, licence, _)) => format!("its training images: {licence}"),
        None => "its training images: see their owner".to_owned(),
    };
    match &run.licence {
        Some(licence) => format!("{licence}; {data}"),
        None => format!("not stated by its owner; {data}"),
    }
}

/// Source, licence and citation of a data set that the program knows.
pub(super) fn manifest(name: &str) -> Option<(String, String, String)> {
    let manifest = datasets::find(name).ok()?.manifest().ok()?;
    Some((manifest.source, manifest.licence, manifest.citation))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"{"event":"task_started","images":30,"new_classes":2,"seen_classes":2,"steps":1,"task":0}
{"epoch":0,"event":"step","loss":3.39,"lr":0.03,"step":0,"task":0}
{"event":"task_started","images":30,"new_classes":2,"seen_classes":2,"steps":1,"task":0}
{"event":"task_started","images":45,"new_classes":1,"seen_classes":3,"steps":1,"task":1}
{"event":"task_st"#;

    #[test]
    fn tasks_have_their_classes_in_order_and_the_accuracy_of_the_end() {
        let history = History {
            version: None,
            matrix: Some(AccuracyMatrix::from_rows(vec![vec![0.9], vec![0.7, 0.8]]).unwrap()),
            tasks: tasks(LOG),
        };
        assert_eq!(history.tasks.len(), 2);
        let names = ["oak", "elm", "ash"].map(str::to_owned);
        let json = history.to_json(&names);
        assert_eq!(json["tasks"][0]["classes"], json!(["oak", "elm"]));
        assert_eq!(json["tasks"][1]["classes"], json!(["ash"]));
        assert_eq!(json["tasks"][1]["training_images"], 45);
        assert_eq!(json["tasks"][0]["final_accuracy"], 0.7);
        assert_eq!(json["summary"]["final_average_accuracy"], 0.75);
    }

    #[test]
    fn a_folder_without_results_has_no_history_and_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::read(folder.path());
        assert_eq!(history, History::default());
        assert!(history.to_json(&[])["summary"].is_null());
    }
}
