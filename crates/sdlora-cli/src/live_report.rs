//! The report of a run that goes on: written again after every task.

use std::path::{Path, PathBuf};

use sdlora_train::files::write_file;
use sdlora_train::{Event, Observer, Plan, RunLog, Tested};

use crate::output::note;
use crate::report::State;
use crate::run_report::{REPORT_FILE, Shown};
use crate::shown::shown;

/// Writes `report.html` after every task and passes events on.
///
/// It is written after the checkpoint of a task, so a run that continues never comes back to what it shows. Everything
/// in it comes from the log of the run, which checkpoints keep, and from the newest evaluation: the page of a run that
/// was stopped and continued is that of one that was not.
pub struct LiveReport<'a> {
    folder: PathBuf,
    plan: &'a Plan,
    device: &'a str,
    /// What was written last.
    newest: Option<(RunLog, Option<Tested>)>,
    /// Whether a page could not be written, which is said once.
    has_failed: bool,
    next: &'a mut dyn Observer,
}

impl<'a> LiveReport<'a> {
    /// For the run of a plan in `folder`.
    pub fn new(folder: &Path, plan: &'a Plan, device: &'a str, next: &'a mut dyn Observer) -> Self {
        Self {
            folder: folder.into(),
            plan,
            device,
            newest: None,
            has_failed: false,
            next,
        }
    }

    /// Says in the page that the run does not go on. Where no task is over in this session, the page is that of an
    /// earlier one, which has said so.
    pub fn stop(&mut self) {
        if let Some((log, tested)) = self.newest.take() {
            self.write(&log, tested.as_ref(), State::Stopped);
        }
    }

    /// The page is for looking at: where it cannot be written, the run goes on.
    fn write(&mut self, log: &RunLog, tested: Option<&Tested>, state: State) {
        let shown_run = Shown {
            folder: &self.folder,
            plan: self.plan,
            log,
            tested,
            device: self.device,
            state,
        };
        let path = self.folder.join(REPORT_FILE);
        let written = shown_run
            .html()
            .and_then(|html| Ok(write_file(&path, html.as_bytes())?));
        if let Err(error) = written
            && !std::mem::replace(&mut self.has_failed, true)
        {
            let reason = shown(&format!("{error:#}"));
            note!("note: the report cannot be written ({reason}); the run goes on");
        }
    }
}

impl Observer for LiveReport<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::TaskDone { log, tested, .. } = event {
            self.write(log, *tested, State::Running);
            self.newest = Some(((*log).clone(), tested.cloned()));
        }
        self.next.event(event);
    }

    fn mark(&mut self) -> Option<u64> {
        self.next.mark()
    }

    fn wants_stop(&self) -> bool {
        self.next.wants_stop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::train::execute;
    use crate::device::Devices;
    use sdlora_train::{RunConfig, Start, TrainError};

    /// Looks at the page after every task, and stops the run after so many of this session.
    struct Look {
        path: PathBuf,
        pages: Vec<String>,
        stops_after: usize,
    }

    impl Observer for Look {
        fn event(&mut self, event: &Event<'_>) {
            if let Event::TaskDone { .. } = event {
                self.pages
                    .push(std::fs::read_to_string(&self.path).unwrap());
            }
        }

        fn wants_stop(&self) -> bool {
            self.pages.len() >= self.stops_after
        }
    }

    fn run(folder: &Path, stops_after: usize, start: Start) -> (anyhow::Result<()>, Vec<String>) {
        let text = include_str!("../presets/omniglot-10x20.toml");
        let mut config: toml::Table = text.parse().unwrap();
        for setting in [
            "stream = { n_tasks = 3, split = { increment = { init_cls = 4, increment = 4 } } }",
            "n_epochs = 1",
        ] {
            config.extend(setting.parse::<toml::Table>().unwrap());
        }
        let plan = RunConfig::parse(&config.to_string()).unwrap();
        let plan = plan.check().unwrap();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
        let devices = Devices::open(&["flex".to_owned()]).unwrap();
        let mut look = Look {
            path: folder.join(REPORT_FILE),
            pages: Vec::new(),
            stops_after,
        };
        let done = execute(&plan, &data, &devices, folder, start, &mut look);
        (done.map(drop), look.pages)
    }

    /// The page without the times, which no two runs share.
    fn page(folder: &Path) -> String {
        let page = std::fs::read_to_string(folder.join(REPORT_FILE)).unwrap();
        let (before, rest) = page.split_once("<h2>Tasks</h2>").unwrap();
        let (_, after) = rest.split_once("</section>").unwrap();
        format!("{before}{after}")
    }

    const RENEWS: &str = "http-equiv=\"refresh\"";

    #[test]
    fn the_page_grows_with_the_run_and_a_stop_in_between_leaves_it_the_same() {
        let home = tempfile::tempdir().unwrap();
        let whole = home.path().join("whole/run");
        let (done, pages) = run(&whole, usize::MAX, Start::Fresh);
        done.unwrap();
        assert_eq!(pages.len(), 3);
        for (i, page) in pages.iter().enumerate() {
            let n = i + 1;
            assert!(
                page.contains(&format!("Running: {n} of 3 tasks are done"))
                    && page.contains(RENEWS)
            );
            assert!(
                page.contains(&format!("Confusion of {} classes", 4 * n)),
                "{n}"
            );
            // One row of the table for every class so far.
            let (_, table) = page.split_once("id=\"classes\"").unwrap();
            let (table, _) = table.split_once("</section>").unwrap();
            assert_eq!(table.matches("<tr><th scope=\"row\"").count(), 4 * n);
        }
        let expected = page(&whole);
        assert!(!expected.contains(RENEWS) && !expected.contains("id=\"state\""));
        assert!(expected.contains("Confusion of 12 classes"));

        let parts = home.path().join("parts/run");
        let (stopped, pages) = run(&parts, 1, Start::Fresh);
        let stopped = stopped.unwrap_err();
        assert!(
            matches!(stopped.downcast_ref(), Some(TrainError::Stopped { .. })),
            "{stopped:#}"
        );
        assert_eq!(pages.len(), 1);
        let at_stop = page(&parts);
        assert!(at_stop.contains("Stopped after 1 of 3 tasks") && !at_stop.contains(RENEWS));
        let (done, pages) = run(&parts, usize::MAX, Start::Resume);
        done.unwrap();
        assert_eq!(pages.len(), 2);
        assert!(pages[0].contains("Running: 2 of 3 tasks are done") && pages[0].contains(RENEWS));
        assert!(
            page(&parts) == expected,
            "the page of a continued run is another"
        );

        // Continued when all tasks are over, it is tested once more, and says the same.
        std::fs::remove_file(parts.join("metrics.json")).unwrap();
        std::fs::remove_file(parts.join(REPORT_FILE)).unwrap();
        let (done, pages) = run(&parts, usize::MAX, Start::Resume);
        done.unwrap();
        assert!(pages.is_empty() && page(&parts) == expected);
    }

    #[test]
    fn a_run_that_is_refused_leaves_the_page_of_another_alone() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("run");
        run(&folder, 1, Start::Fresh).0.unwrap_err();
        let before = std::fs::read(folder.join(REPORT_FILE)).unwrap();
        run(&folder, usize::MAX, Start::Fresh).0.unwrap_err();
        assert_eq!(std::fs::read(folder.join(REPORT_FILE)).unwrap(), before);
    }
}
