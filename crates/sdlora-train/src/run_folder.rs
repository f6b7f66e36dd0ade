//! The folder of a run: what makes it the folder of this run, and who may write it.
//!
//! | file | what |
//! |---|---|
//! | `plan.toml` | the settings; a folder with it holds a run |
//! | `fingerprint.json` | what data set and backbone were when the run started |
//! | `.lock` | locked as long as a process writes here |
//! | `checkpoints/` | see [`checkpoint`](crate::checkpoint) |

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::checkpoint;
use crate::config::{PLAN_FORMAT, Plan, RunConfig};
use crate::error::TrainError;
use crate::files::{self, create_folders, write_file};
use crate::fingerprint::{Compared, Fingerprint};
use crate::folder_lock::FolderLock;
use crate::run_options::Start;

/// Name of the file that holds the plan of a run.
pub const PLAN_FILE: &str = "plan.toml";

/// Name of the folder of the checkpoints of a run.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// The folder of a run, held until it is dropped.
#[derive(Debug)]
pub struct RunFolder {
    lock: FolderLock,
}

impl RunFolder {
    /// Takes a folder for a run: writes fingerprint and plan of a fresh one, compares those of a resumed one.
    /// What the user should know goes to `notices`.
    pub(crate) fn claim(
        path: &Path,
        plan: &Plan,
        fingerprint: &Fingerprint,
        start: Start,
        notices: &mut Vec<String>,
    ) -> Result<Self, TrainError> {
        let text = plan.to_toml()?;
        let look = || -> Result<(), TrainError> {
            match (start, has_plan(path)?) {
                (Start::Fresh, true) => Err(TrainError::RunExists { path: path.into() }),
                (Start::Fresh, false) => not_left_over(path),
                (_, false) => Err(TrainError::NoRun { path: path.into() }),
                (_, true) => Ok(()),
            }
        };
        // Before anything is written there; and again once nobody else can.
        look()?;
        create_folders(path)?;
        let lock = FolderLock::take(path)?;
        look()?;
        if !lock.is_held() {
            notices.push(format!(
                "the file system of {} knows no locks: see to it that no second process writes there",
                path.display()
            ));
        }
        let folder = Self { lock };
        match start {
            Start::Fresh => {
                fingerprint.write(path)?;
                // Last: a folder with a plan has all the rest.
                write_file(&path.join(PLAN_FILE), text.as_bytes())?;
            }
            Start::Resume | Start::ResumeOnChangedData => {
                check_plan(path, plan)?;
                folder.check_fingerprint(fingerprint, start, notices)?;
            }
        }
        let checkpoints = checkpoint::clean(&folder.checkpoints());
        for back in files::clean(path).iter().chain(&checkpoints) {
            notices.push(format!(
                "a process that was killed had moved {} aside: it is back",
                back.display()
            ));
        }
        Ok(folder)
    }

    fn check_fingerprint(
        &self,
        now: &Fingerprint,
        start: Start,
        notices: &mut Vec<String>,
    ) -> Result<(), TrainError> {
        let path = self.path();
        match now.compare(path)? {
            Compared::Same => return Ok(()),
            Compared::SameSoFar => {}
            Compared::Unknown => notices.push(format!(
                "{} does not say which data and weights it was started with: they are taken as they are, and \
                 kept from now on",
                path.display()
            )),
            Compared::OtherWeights(difference) => {
                return Err(TrainError::WeightsChanged {
                    path: path.into(),
                    difference,
                });
            }
            Compared::OtherData(change)
                if start == Start::ResumeOnChangedData && change.keeps_labels =>
            {
                notices.push(format!(
                    "the data set changed ({}): tasks that are done stay as they are",
                    change.text
                ));
            }
            Compared::OtherData(change) => {
                return Err(TrainError::data_changed(path, change));
            }
        }
        now.write(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.lock.folder()
    }

    /// The folder of its checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path().join(CHECKPOINTS)
    }

    /// Checks that it is still there, before something is written.
    ///
    /// # Errors
    ///
    /// [`TrainError::FolderGone`] when it was moved, removed or replaced.
    pub fn check(&self) -> Result<(), TrainError> {
        self.lock.check()
    }
}

fn has_plan(folder: &Path) -> Result<bool, TrainError> {
    let file = folder.join(PLAN_FILE);
    file.try_exists().map_err(TrainError::io("read", file))
}

/// Refuses a folder with parts of a run whose plan is gone: a later `--resume` would mix both.
fn not_left_over(folder: &Path) -> Result<(), TrainError> {
    let found = ["checkpoints", "model", "metrics.json", "log.jsonl"];
    match found.iter().find(|name| folder.join(name).exists()) {
        None => Ok(()),
        Some(found) => Err(TrainError::LeftOver {
            path: folder.into(),
            found,
        }),
    }
}

/// The settings of the run in a folder.
///
/// # Errors
///
/// [`TrainError::NotFinished`] for a folder without a plan, [`TrainError::Newer`] for one of a later version,
/// and those of [`RunConfig::parse`].
pub fn read_plan(folder: &Path) -> Result<RunConfig, TrainError> {
    let text = plan_text(folder)?.ok_or_else(|| TrainError::NotFinished {
        path: folder.into(),
        missing: folder.join(PLAN_FILE),
    })?;
    RunConfig::parse(&text)
}

/// The text of a plan this version can read; `None` where there is none.
fn plan_text(folder: &Path) -> Result<Option<String>, TrainError> {
    let path = folder.join(PLAN_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(TrainError::io("read", path)(e)),
    };
    match format_of(&text) {
        Some(format) if format > PLAN_FORMAT => Err(TrainError::newer(path, format, PLAN_FORMAT)),
        _ => Ok(Some(text)),
    }
}

/// The format that the first line of a plan names; plans of the first versions name none.
fn format_of(text: &str) -> Option<u32> {
    let line = text.lines().next()?.strip_prefix('#')?;
    line.rsplit_once("format ")?.1.trim().parse().ok()
}

/// Checks that the run in `folder`, finished or not, is one of this plan.
///
/// # Errors
///
/// [`TrainError::NoRun`] for a folder without a plan, [`TrainError::PlanChanged`] for another one.
pub fn check_plan(folder: &Path, plan: &Plan) -> Result<(), TrainError> {
    let earlier = plan_text(folder)?.ok_or_else(|| TrainError::NoRun {
        path: folder.into(),
    })?;
    match difference(&earlier, &plan.to_toml()?) {
        None => Ok(()),
        Some(difference) => Err(TrainError::PlanChanged {
            path: folder.into(),
            difference,
        }),
    }
}

/// The first lines that differ, comments and the cache aside: that changes no number, and the next machine may have
/// another memory.
fn difference(earlier: &str, now: &str) -> Option<String> {
    fn settings(text: &str) -> impl Iterator<Item = &str> {
        // Earlier versions wrote a size as a section.
        let aside = ["#", "cache = ", "[cache]", "megabytes = "];
        text.lines().filter(move |line| {
            !line.is_empty() && !aside.iter().any(|start| line.starts_with(start))
        })
    }
    let (mut a, mut b) = (settings(earlier), settings(now));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return None,
            (x, y) if x == y => {}
            (x, y) => {
                return Some(format!(
                    "`{}` there, `{}` now",
                    x.unwrap_or("nothing"),
                    y.unwrap_or("nothing")
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_differ_in_settings_and_not_in_the_memory_of_a_machine() {
        let plan = |first: &str, cache: &str| {
            format!("# comment\n{first}seed = 1\n\n{cache}[method]\nname = \"ncm\"\n")
        };
        let now = plan("cache = \"2GiB\"\n", "");
        for earlier in [
            plan("", ""),
            plan("cache = \"none\"\n", ""),
            plan("", "[cache]\nmegabytes = 500\n\n"),
        ] {
            assert_eq!(difference(&earlier, &now), None, "{earlier}");
        }
        let other = now.replace("ncm", "lora");
        let found = difference(&now, &other).unwrap();
        assert!(found.contains("ncm") && found.contains("lora"), "{found}");
    }

    #[test]
    fn a_plan_of_a_later_version_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PLAN_FILE);
        let next = PLAN_FORMAT + 1;
        fs::write(
            &path,
            format!("# written by sdlora 9.0.0, format {next}\nnew_key = 1\n"),
        )
        .unwrap();
        let error = read_plan(folder.path()).unwrap_err();
        assert!(matches!(error, TrainError::Newer { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("newer version") && !text.contains("remove"),
            "{text}"
        );
        for (line, format) in [
            ("# written by sdlora 0.1.0", None),
            ("# written by sdlora 0.1.0, format 1", Some(1)),
            ("seed = 1", None),
        ] {
            assert_eq!(format_of(line), format, "{line}");
        }
    }
}
