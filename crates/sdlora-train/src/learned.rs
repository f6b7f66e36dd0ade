//! A run that learns folder after folder, weeks apart: a whole run folder for each, and a file that says which is the
//! present one.
//!
//! ```text
//! runs/products/.lock          held while something is learned, undone or removed
//! runs/products/learned.json   what was learned, in order; the last task is the present one
//! runs/products/task-001/      the run that ended with the first task: plan, checkpoints, model, report
//! runs/products/task-002/      the one that went on from it
//! ```
//!
//! A new task grows in a folder of its own, beside the present one. Writing `learned.json` makes it the present one:
//! one rename, so a kill at any moment leaves the earlier state or the new one. Going back is the same in the other
//! direction.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::files::{self, create_folders, link_over, remove_folder, write_file};
use crate::folder_lock::FolderLock;
use crate::run_folder::PLAN_FILE;

/// Name of the file with the history.
const FILE: &str = "learned.json";
/// Version of its form.
const FORMAT: u32 = 1;

/// A folder of images that was learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedTask {
    /// The folder, zip or tar.
    pub images: PathBuf,
    /// When learning began, as `2026-11-30 21:40`, in UTC.
    pub learned: String,
    /// New classes, in the order of their labels.
    pub classes: Vec<String>,
    /// Classes that were known and have more images now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extended: Vec<String>,
    /// Images that were learned from.
    pub n_train: usize,
    /// Images that were held back to test on.
    pub n_test: usize,
    /// What the model came to; absent while the task is not over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<LearnedResult>,
}

/// What a model came to after a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedResult {
    /// Accuracy over all test images that were measured, a fraction.
    pub accuracy: Option<f64>,
    /// Mean accuracy over the classes that were measured, a fraction.
    pub class_accuracy: Option<f64>,
    /// Tasks whose test images are gone, counted from 1: they were not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_measured: Vec<usize>,
    /// Device that computed.
    pub device: String,
    /// Version of the program.
    pub version: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct History {
    format: u32,
    tasks: Vec<LearnedTask>,
    /// One that began and is not over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unfinished: Option<LearnedTask>,
}

/// A run that learns folder after folder.
#[derive(Debug)]
pub struct Learned {
    folder: PathBuf,
    history: History,
    /// Where it may be changed.
    lock: Option<FolderLock>,
}

/// What was undone.
#[derive(Debug, Clone, PartialEq)]
pub enum Undone {
    /// A task that had begun.
    Unfinished(LearnedTask),
    /// The last task.
    Last(LearnedTask),
}

impl Learned {
    /// Reads the history in a folder, to look at it; `None` where there is none.
    ///
    /// # Errors
    ///
    /// [`TrainError::Newer`] for a later version, [`TrainError::LostHistory`] for a file that is no history.
    pub fn read(folder: &Path) -> Result<Option<Self>, TrainError> {
        let history = history(folder)?;
        Ok(history.map(|history| Self {
            folder: folder.into(),
            history,
            lock: None,
        }))
    }

    /// Holds a folder to change it, and removes what a killed process left; the folder is made where it is missing.
    ///
    /// # Errors
    ///
    /// [`TrainError::Locked`] when another process holds it, [`TrainError::LostHistory`] where only the folders of
    /// tasks are left, and those of [`read`](Self::read).
    pub fn hold(folder: &Path) -> Result<Self, TrainError> {
        create_folders(folder)?;
        let lock = FolderLock::take(folder)?;
        let history = match history(folder)? {
            Some(history) => history,
            // Every task folder would be one that the history does not know, and would be removed.
            None if task_numbers(folder).next().is_some() => {
                return Err(TrainError::LostHistory {
                    path: folder.join(FILE),
                    problem: "is missing, and the folders of its tasks are there".into(),
                });
            }
            None => History {
                format: FORMAT,
                ..History::default()
            },
        };
        let held = Self {
            folder: folder.into(),
            history,
            lock: Some(lock),
        };
        files::clean(folder);
        held.remove_leftovers();
        Ok(held)
    }

    /// The tasks that are over, in order.
    pub fn tasks(&self) -> &[LearnedTask] {
        &self.history.tasks
    }

    /// The task that began and is not over.
    pub fn unfinished(&self) -> Option<&LearnedTask> {
        self.history.unfinished.as_ref()
    }

    /// Names of all classes, in the order of their labels.
    pub fn classes(&self) -> impl Iterator<Item = &str> {
        let tasks = self.history.tasks.iter();
        tasks.flat_map(|task| task.classes.iter().map(String::as_str))
    }

    /// The run folder of the present state; `None` before the first task is over.
    pub fn present(&self) -> Option<PathBuf> {
        let n = self.history.tasks.len();
        (n > 0).then(|| self.task_folder(n))
    }

    /// The run folder of the next task.
    pub fn next(&self) -> PathBuf {
        self.task_folder(self.history.tasks.len() + 1)
    }

    /// Notes that a task begins, in the folder of [`next`](Self::next).
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses.
    pub fn begin(&mut self, task: LearnedTask) -> Result<(), TrainError> {
        self.change(|history| history.unfinished = Some(task))
    }

    /// Makes the unfinished task the present one.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses; the present state is then what it was.
    pub fn end(&mut self, result: LearnedResult) -> Result<(), TrainError> {
        let before = self.present();
        self.change(|history| {
            if let Some(mut task) = history.unfinished.take() {
                task.result = Some(result);
                history.tasks.push(task);
            }
        })?;
        if let Some((before, now)) = before.zip(self.present()) {
            share(&before.join(WEIGHTS), &now.join(WEIGHTS));
        }
        Ok(())
    }

    /// Drops the unfinished task, or where there is none goes back to the state before the last one; `None` where
    /// nothing was learned.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses; the present state is then what it was.
    pub fn undo(&mut self) -> Result<Option<Undone>, TrainError> {
        let mut undone = None;
        self.change(|history| {
            undone = match history.unfinished.take() {
                Some(task) => Some(Undone::Unfinished(task)),
                None => history.tasks.pop().map(Undone::Last),
            };
        })?;
        self.remove_leftovers();
        Ok(undone)
    }

    /// Gives up a folder in which nothing was learned: the history goes, and the folder with it unless files of others
    /// lie there. One in which something was learned or began stays as it is.
    pub fn discard(self) {
        if !self.history.tasks.is_empty() || self.history.unfinished.is_some() {
            return;
        }
        // What cannot be removed only takes space.
        let _ = files::remove_file(&self.folder.join(FILE));
        if let Some(lock) = self.lock {
            lock.remove_empty();
        }
    }

    /// Writes the history after a change, and takes the change over once it is written.
    fn change(&mut self, change: impl FnOnce(&mut History)) -> Result<(), TrainError> {
        if let Some(lock) = &self.lock {
            lock.check()?;
        }
        let mut history = self.history.clone();
        change(&mut history);
        let path = self.folder.join(FILE);
        let text = serde_json::to_vec_pretty(&history)
            .map_err(|e| TrainError::setting(FILE, "unwritable", e.to_string()))?;
        write_file(&path, &text)?;
        self.history = history;
        Ok(())
    }

    fn task_folder(&self, number: usize) -> PathBuf {
        task_folder(&self.folder, number)
    }

    /// Removes folders of tasks that the history does not know. What cannot be removed only takes space.
    fn remove_leftovers(&self) {
        let n_known = self.history.tasks.len() + usize::from(self.history.unfinished.is_some());
        for (number, path) in task_numbers(&self.folder) {
            if number > n_known {
                let _ = remove_folder(&path);
            }
        }
    }
}

/// The weights of a model, in the folder of a task.
const WEIGHTS: &str = "model/vit.safetensors";

/// Keeps equal files once on the disk: a frozen backbone is that of the task before. What fails only takes space.
fn share(before: &Path, now: &Path) {
    if is_same(before, now).unwrap_or(false) {
        let _ = link_over(before, now);
    }
}

/// Whether two files have the same bytes and are not one file already.
fn is_same(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    loop {
        of_a.clear();
        of_b.clear();
        (&mut a).take(CHUNK).read_to_end(&mut of_a)?;
        (&mut b).take(CHUNK).read_to_end(&mut of_b)?;
        match (of_a == of_b, of_a.is_empty()) {
            (false, _) => return Ok(false),
            (true, true) => return Ok(true),
            (true, false) => {}
        }
    }
}

/// Bytes that are compared at once.
const CHUNK: u64 = 1 << 20;

/// Starts the name of the folder of a task.
const TASK: &str = "task-";

fn task_folder(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{TASK}{number:03}"))
}

/// The folders of tasks in a folder, with their numbers.
fn task_numbers(folder: &Path) -> impl Iterator<Item = (usize, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name();
        let number = name.to_str()?.strip_prefix(TASK)?.parse().ok()?;
        Some((number, entry.path()))
    })
}

fn history(folder: &Path) -> Result<Option<History>, TrainError> {
    let path = folder.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(TrainError::io("read", path)(e)),
    };
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let damaged = |e: serde_json::Error| TrainError::LostHistory {
        path: path.clone(),
        problem: format!("is not the history of a run ({e})"),
    };
    let format = serde_json::from_slice::<Format>(&text)
        .map_err(damaged)?
        .format;
    if format > FORMAT {
        return Err(TrainError::newer(path, format, FORMAT));
    }
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

/// The name of a run by its folder, for people: that of the folder, or of the run with the number of the task where it
/// is one folder of several.
pub fn shown_name(folder: &Path) -> String {
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let own = name(folder);
    let number = own
        .strip_prefix(TASK)
        .and_then(|number| number.parse::<usize>().ok());
    match (number, folder.parent()) {
        (Some(number), Some(home)) if home.join(FILE).is_file() => {
            format!("{}, task {number}", name(home))
        }
        _ => own,
    }
}

/// The run folder that a path stands for: the present state of a run that learns folder after folder, or else the
/// path itself.
pub fn present_run(path: &Path) -> PathBuf {
    // A history that cannot be read has nothing to show; what reads the folder then says what is missing.
    let learned = Learned::read(path).ok().flatten();
    let present = learned.and_then(|learned| learned.present());
    present.unwrap_or_else(|| path.into())
}

/// Whether a folder is one of a run: of one that learns folder after folder, or of any other.
pub fn is_run(folder: &Path) -> bool {
    folder.join(FILE).is_file() || folder.join(PLAN_FILE).is_file()
}

/// Now, as `2026-11-30 21:40`, in UTC.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    date(since.map_or(0, |since| since.as_secs()))
}

/// Seconds since 1970 as a date and a time.
fn date(seconds: u64) -> String {
    let (days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
    // Days since 0000-03-01, in cycles of 400 years (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, year) = match month_from_march {
        m @ 0..=9 => (m + 3, year + era * 400),
        m => (m - 9, year + era * 400 + 1),
    };
    let (hour, minute) = (minutes / 60, minutes % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::faults::{self, Kind};

    fn task(name: &str) -> LearnedTask {
        LearnedTask {
            images: name.into(),
            learned: now(),
            classes: vec![format!("{name} a"), format!("{name} b")],
            extended: Vec::new(),
            n_train: 8,
            n_test: 2,
            result: None,
        }
    }

    fn result() -> LearnedResult {
        LearnedResult {
            accuracy: Some(0.5),
            class_accuracy: None,
            not_measured: vec![1],
            device: "flex".into(),
            version: "0".into(),
        }
    }

    fn learn(folder: &Path, name: &str) -> Result<(), TrainError> {
        let mut learned = Learned::hold(folder)?;
        learned.begin(task(name))?;
        let next = learned.next();
        create_folders(&next)?;
        write_file(&next.join(PLAN_FILE), name.as_bytes())?;
        create_folders(&next.join("model"))?;
        write_file(&next.join(WEIGHTS), b"frozen")?;
        learned.end(result())
    }

    /// What the present state says of itself.
    fn present(folder: &Path) -> Option<String> {
        let plan = present_run(folder).join(PLAN_FILE);
        fs::read_to_string(plan).ok()
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00");
        assert_eq!(date(951_782_399), "2000-02-28 23:59");
        assert_eq!(date(951_782_400), "2000-02-29 00:00");
        assert_eq!(date(1_796_083_200), "2026-12-01 00:00");
        assert_eq!(date(4_107_542_340), "2100-02-28 23:59");
        assert_eq!(date(4_107_542_400), "2100-03-01 00:00");
    }

    #[test]
    fn tasks_follow_each_other_and_undo_goes_back_one_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("products");
        assert!(Learned::read(&folder).unwrap().is_none());
        assert_eq!(present_run(&folder), folder);
        for name in ["spring", "summer"] {
            learn(&folder, name).unwrap();
            assert_eq!(present(&folder).as_deref(), Some(name));
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let weights = |task: &str| fs::metadata(folder.join(task).join(WEIGHTS)).unwrap();
            assert_eq!(weights("task-001").ino(), weights("task-002").ino());
            assert_eq!(weights("task-001").nlink(), 2);
        }
        let learned = Learned::read(&folder).unwrap().unwrap();
        let classes: Vec<_> = learned.classes().collect();
        assert_eq!(classes, ["spring a", "spring b", "summer a", "summer b"]);
        let mut held = Learned::hold(&folder).unwrap();
        assert!(matches!(
            Learned::hold(&folder).unwrap_err(),
            TrainError::Locked { .. }
        ));
        // What began comes first.
        held.begin(task("autumn")).unwrap();
        create_folders(&held.next()).unwrap();
        let of = |undone: Option<Undone>| match undone {
            Some(Undone::Unfinished(task)) => format!("began {}", task.images.display()),
            Some(Undone::Last(task)) => format!("last {}", task.images.display()),
            None => "nothing".into(),
        };
        assert_eq!(of(held.undo().unwrap()), "began autumn");
        assert_eq!(present(&folder).as_deref(), Some("summer"));
        assert!(!folder.join("task-003").exists());
        assert_eq!(of(held.undo().unwrap()), "last summer");
        assert_eq!(present(&folder).as_deref(), Some("spring"));
        assert!(!folder.join("task-002").exists());
        assert_eq!(of(held.undo().unwrap()), "last spring");
        assert_eq!(of(held.undo().unwrap()), "nothing");
        assert_eq!(present(&folder), None);
    }

    #[test]
    fn whatever_fails_or_is_the_last_operation_the_present_state_is_the_earlier_or_the_new_one() {
        for kind in [Kind::Error, Kind::Kill] {
            for n in 1.. {
                let root = tempfile::tempdir().unwrap();
                let folder = root.path().join("products");
                learn(&folder, "old").unwrap();
                faults::arm(n, kind);
                let done = learn(&folder, "new");
                let happened = faults::disarm();
                let expected = if done.is_ok() { "new" } else { "old" };
                assert_eq!(present(&folder).as_deref(), Some(expected), "{kind:?} {n}");
                // And back, with a fault at every operation in turn.
                if done.is_ok() && !happened {
                    for n in 1.. {
                        let mut held = Learned::hold(&folder).unwrap();
                        faults::arm(n, kind);
                        let undone = held.undo();
                        let happened = faults::disarm();
                        drop(held);
                        let expected = if undone.is_ok() { "old" } else { "new" };
                        assert_eq!(present(&folder).as_deref(), Some(expected), "{n}");
                        drop(Learned::hold(&folder).unwrap());
                        assert_eq!(folder.join("task-002").exists(), expected == "new");
                        if expected == "old" {
                            learn(&folder, "new").unwrap();
                        }
                        if !happened {
                            assert!(n > 4, "{n}");
                            break;
                        }
                    }
                    assert!(n > 8, "{n}");
                    break;
                }
            }
        }
    }

    #[test]
    fn giving_up_leaves_files_of_others_and_what_was_learned() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("products");
        let give_up = || {
            let mut held = Learned::hold(&folder).unwrap();
            held.begin(task("spring")).unwrap();
            held.undo().unwrap();
            held.discard();
        };
        give_up();
        assert!(!folder.exists());
        create_folders(&folder).unwrap();
        fs::write(folder.join("notes.txt"), "mine").unwrap();
        give_up();
        assert_eq!(
            fs::read_to_string(folder.join("notes.txt")).unwrap(),
            "mine"
        );
        assert!(!folder.join(FILE).exists());
        learn(&folder, "spring").unwrap();
        Learned::hold(&folder).unwrap().discard();
        assert_eq!(present(&folder).as_deref(), Some("spring"));
        let task = folder.join("task-001");
        assert_eq!(shown_name(&task), "products, task 1");
        assert_eq!(shown_name(&folder), "products");
        assert_eq!(shown_name(Path::new("runs/task-001")), "task-001");
    }

    #[test]
    fn tasks_without_their_history_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("products");
        learn(&folder, "spring").unwrap();
        let history = fs::read(folder.join(FILE)).unwrap();
        fs::remove_file(folder.join(FILE)).unwrap();
        let error = Learned::hold(&folder).unwrap_err();
        assert!(matches!(error, TrainError::LostHistory { .. }), "{error}");
        assert!(error.to_string().contains(FILE), "{error}");
        fs::write(folder.join(FILE), history).unwrap();
        drop(Learned::hold(&folder).unwrap());
        assert_eq!(present(&folder).as_deref(), Some("spring"));
    }

    #[test]
    fn a_later_format_and_a_damaged_file_are_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(FILE), r#"{"format": 2, "what": "ever"}"#).unwrap();
        let error = Learned::read(root.path()).unwrap_err();
        assert!(matches!(error, TrainError::Newer { .. }), "{error}");
        fs::write(root.path().join(FILE), "{").unwrap();
        let error = Learned::hold(root.path()).unwrap_err();
        assert!(matches!(error, TrainError::LostHistory { .. }), "{error}");
        assert_eq!(present_run(root.path()), root.path());
    }
}
