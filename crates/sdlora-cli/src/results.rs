//! The files a finished run leaves besides its checkpoints.

use std::collections::BTreeMap;
use std::path::Path;

use sdlora_metrics::Summary;
use sdlora_train::files::write_file;
use sdlora_train::{Finished, Plan, RunLog, write_model};
use serde::{Deserialize, Serialize};

use crate::report::State;
use crate::run_report::{REPORT_FILE, Shown};

/// Name of the file that marks a run as finished.
pub const METRICS_FILE: &str = "metrics.json";

/// What `metrics.json` holds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Metrics {
    /// Version of the program.
    pub version: String,
    /// Device of the run.
    pub device: String,
    /// Metrics over tasks and over images, each by name; fractions.
    pub summary: BTreeMap<String, Option<f64>>,
    /// Matrix, losses, timings, magnitudes, parameter counts.
    pub log: RunLog,
    /// Class ids of the data set in the order they were learned.
    pub class_order: Vec<usize>,
    /// Their names.
    pub class_names: Vec<String>,
}

/// Writes everything; `metrics.json` last, so its presence means the rest is there.
///
/// # Errors
///
/// When the file system refuses.
pub fn write(folder: &Path, plan: &Plan, finished: &Finished, device: &str) -> anyhow::Result<()> {
    let log = &finished.log;
    let summary = Summary::of(&log.matrix);
    finished.folder.check()?;
    write_model(&folder.join("model"), finished)?;
    if let Some(kept) = &finished.kept {
        kept.write(folder)?;
    }
    let csv = sdlora_metrics::to_csv(&log.matrix);
    write_file(&folder.join("accuracy_matrix.csv"), csv.as_bytes())?;
    let report = Shown {
        folder,
        plan,
        log,
        tested: Some(&finished.tested),
        device,
        state: State::Done,
    };
    write_file(&folder.join(REPORT_FILE), report.html()?.as_bytes())?;
    let metrics = Metrics {
        version: env!("CARGO_PKG_VERSION").into(),
        device: device.into(),
        summary: summary
            .metrics()
            .into_iter()
            .map(|m| (m.name.to_owned(), m.value))
            .collect(),
        log: log.clone(),
        class_order: finished.class_order.clone(),
        class_names: finished.class_names.clone(),
    };
    let json = serde_json::to_vec_pretty(&metrics)?;
    write_file(&folder.join(METRICS_FILE), &json)?;
    Ok(())
}

/// Reads `metrics.json` of a finished run.
///
/// # Errors
///
/// When it is missing or damaged.
pub fn read(folder: &Path) -> anyhow::Result<Metrics> {
    use anyhow::Context;
    let path = folder.join(METRICS_FILE);
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is damaged; remove it and run again", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device;
    use sdlora_train::files::faults::{self, Kind};
    use sdlora_train::files::sums::Sums;
    use sdlora_train::{RunConfig, RunOptions, Silent};

    /// The files of a run folder but for its checkpoints, by their path.
    fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for part in ["", "model"] {
            for entry in std::fs::read_dir(folder.join(part)).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let name = path
                        .strip_prefix(folder)
                        .unwrap()
                        .to_string_lossy()
                        .into_owned();
                    found.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    #[test]
    fn whichever_operation_fails_or_is_the_last_every_result_is_the_old_or_the_new_one() {
        let text = include_str!("../presets/omniglot-10x20.toml");
        let mut config: toml::Table = text.parse().unwrap();
        for setting in [
            "method = { name = \"ncm\" }",
            "stream = { n_tasks = 2, split = { increment = { init_cls = 3, increment = 3 } } }",
        ] {
            config.extend(setting.parse::<toml::Table>().unwrap());
        }
        let plan = RunConfig::parse(&config.to_string())
            .unwrap()
            .check()
            .unwrap();
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("run");
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
        let options = RunOptions::new(&data, &test_device(), &folder);
        let finished = sdlora_train::run(&plan, &options, &mut Silent).unwrap();

        // Two results that differ in the name of the device.
        write(&folder, &plan, &finished, "new").unwrap();
        let new = files(&folder);
        write(&folder, &plan, &finished, "old").unwrap();
        let old = files(&folder);
        assert_eq!(
            old.keys().collect::<Vec<_>>(),
            new.keys().collect::<Vec<_>>()
        );
        assert!(
            ["metrics.json", "report.html"]
                .iter()
                .all(|name| old[*name] != new[*name])
        );
        for exchanges in [true, false] {
            faults::set_exchange(exchanges);
            for kind in [Kind::Error, Kind::Kill] {
                for n in 1.. {
                    faults::arm(n, kind);
                    let written = write(&folder, &plan, &finished, "new");
                    let happened = faults::disarm();
                    let what = format!("{exchanges} {kind:?} {n}: {written:?}");
                    // What the next start does.
                    sdlora_train::files::clean(&folder);
                    let found = files(&folder);
                    assert_eq!(
                        found.keys().collect::<Vec<_>>(),
                        old.keys().collect::<Vec<_>>(),
                        "{what}"
                    );
                    for (name, bytes) in &found {
                        let is_new = *bytes == new[name];
                        assert!(
                            is_new || (written.is_err() && *bytes == old[name]),
                            "{what}: {name}"
                        );
                    }
                    // It comes last, so that where it is new the rest is.
                    assert_eq!(
                        found[METRICS_FILE] == new[METRICS_FILE],
                        written.is_ok(),
                        "{what}"
                    );
                    Sums::read(&folder.join("model")).unwrap().unwrap();
                    write(&folder, &plan, &finished, "old").unwrap();
                    if !happened {
                        assert!(n > 20, "{n}");
                        break;
                    }
                }
            }
        }
        faults::set_exchange(true);
    }
}
