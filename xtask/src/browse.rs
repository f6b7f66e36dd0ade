//! `cargo xtask browse`: the pages of the program in a real browser.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::process;

/// Open reports of small runs in headless Chromium: no error, every figure with a text, tables that sort, both colours
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The browser; looked for under its usual names when absent, and without one the check is left out
    #[arg(long)]
    chromium: Option<PathBuf>,
    /// The program that writes the pages; built in release mode when absent
    #[arg(long)]
    sdlora: Option<PathBuf>,
    /// Only this page, instead of those of small runs
    #[arg(long)]
    page: Option<PathBuf>,
}

/// Names of the browser.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];
/// What presses the buttons.
const SCRIPT: &str = include_str!("browse.js");
/// A browser that has not answered by then hangs.
const LONGEST: Duration = Duration::from_secs(120);

/// A screen on which a page is looked at.
struct Screen {
    name: &'static str,
    width: usize,
    is_dark: bool,
}

const SCREENS: [Screen; 3] = [
    Screen {
        name: "desktop, light",
        width: 1280,
        is_dark: false,
    },
    Screen {
        name: "desktop, dark",
        width: 1280,
        is_dark: true,
    },
    Screen {
        name: "phone, light",
        width: 390,
        is_dark: false,
    },
];

/// Headings that the report of a run has, and fewest figures.
const OF_A_RUN: (&[&str], usize) = (
    &[
        "Accuracy after every task",
        "Accuracy matrix",
        "Magnitudes",
        "Training loss",
        "Map of the classes",
        "Confusion",
        "Classes",
        "Tasks",
        "All metrics",
        "Plan",
    ],
    6,
);
/// Those of several runs.
const OF_SEVERAL: (&[&str], usize) = (
    &[
        "Final accuracy",
        "Accuracy after every task",
        "Accuracy and forgetting",
        "All numbers",
    ],
    3,
);

/// Runs the command.
///
/// # Errors
///
/// When the browser or the program cannot be started, or a page cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(browser) = args.chromium.clone().or_else(browser) else {
        eprintln!("browse: SKIPPED, there is no Chromium: install it, or give --chromium PATH");
        return Ok(ExitCode::SUCCESS);
    };
    let root = process::root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let work = root.join(target).join("browse");
    if work.exists() {
        std::fs::remove_dir_all(&work)
            .with_context(|| format!("cannot remove {}", work.display()))?;
    }
    std::fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let pages = match &args.page {
        Some(page) => vec![(page.clone(), (&[][..], 0))],
        None => pages(args, &root, &work)?,
    };
    let mut n_wrong = 0;
    for (page, (headings, n_figures)) in pages {
        let page = std::fs::canonicalize(&page)
            .with_context(|| format!("cannot read {}", page.display()))?;
        for screen in &SCREENS {
            let wanted =
                json!({"headings": headings, "figures": n_figures, "dark": screen.is_dark});
            let found = look(&browser, &work, &page, screen, &wanted)?;
            eprintln!(
                "{} on {}: {} figures, {} tables that sort, {} problems",
                page.display(),
                screen.name,
                found["figures"],
                found["tables"],
                found["wrong"].as_array().map_or(0, Vec::len)
            );
            for problem in found["wrong"].as_array().into_iter().flatten() {
                n_wrong += 1;
                eprintln!("    {}", problem.as_str().unwrap_or("?"));
            }
        }
    }
    Ok(match n_wrong {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn browser() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&paths).collect();
    let places = BROWSERS
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    places.into_iter().find(|place| place.is_file())
}

type Wanted = (&'static [&'static str], usize);

/// Pages of two small runs, and of both side by side.
fn pages(args: &Args, root: &Path, work: &Path) -> anyhow::Result<Vec<(PathBuf, Wanted)>> {
    let sdlora = match &args.sdlora {
        Some(sdlora) => sdlora.clone(),
        None => {
            let mut cargo = process::cargo(["build", "--release", "-p", "sdlora-cli"]);
            if process::run(&mut cargo)? != ExitCode::SUCCESS {
                bail!("the program could not be built, see above");
            }
            let target = std::env::var_os("CARGO_TARGET_DIR");
            let target = target.map_or(root.join("target"), PathBuf::from);
            let name = format!("sdlora{}", std::env::consts::EXE_SUFFIX);
            root.join(target).join("release").join(name)
        }
    };
    let started = |command: &mut Command| match process::run(command)? {
        code if code == ExitCode::SUCCESS => Ok(()),
        _ => bail!("{command:?} failed, see above"),
    };
    let runs = work.join("runs");
    let mut made = Vec::new();
    for (name, method) in [("one", "sdlora"), ("two", "lora")] {
        let mut train = Command::new(&sdlora);
        train.args(["train", "--quiet", "--name", name, "--runs"]);
        train
            .arg(&runs)
            .arg("--data-dir")
            .arg(root.join("datasets"));
        for set in [
            "n_epochs=2",
            "stream.n_tasks=3",
            "stream.split={increment={init_cls=5,increment=5}}",
            &format!("method={{name=\"{method}\"}}"),
        ] {
            train.args(["--set", set]);
        }
        started(&mut train)?;
        made.push(runs.join(name));
    }
    let beside = work.join("beside.html");
    started(
        Command::new(&sdlora)
            .arg("report")
            .args(&made)
            .arg("--out")
            .arg(&beside),
    )?;
    Ok(vec![
        (made[0].join("report.html"), OF_A_RUN),
        (beside, OF_SEVERAL),
    ])
}

/// What the script found on a page, with the errors that the browser told.
fn look(
    browser: &Path,
    work: &Path,
    page: &Path,
    screen: &Screen,
    wanted: &Value,
) -> anyhow::Result<Value> {
    let script = SCRIPT.replace("WANTED", &wanted.to_string());
    let frame = work.join("frame.html");
    let text = format!(
        "<!doctype html><meta charset=\"utf-8\"><pre id=\"found\"></pre>\
         <iframe id=\"page\" style=\"width:{}px;height:900px;border:0\" src=\"file://{}\"></iframe>\
         <script>{script}</script>",
        screen.width,
        page.display()
    );
    std::fs::write(&frame, text).with_context(|| format!("cannot write {}", frame.display()))?;
    let mut command = Command::new(browser);
    command.args([
        "--headless",
        // The page is ours, and a container has no user to be.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        // The frame looks into the page beside it.
        "--disable-web-security",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        "--window-size=1400,1000",
    ]);
    let scheme = if screen.is_dark { 0 } else { 1 };
    command.arg(format!("--blink-settings=preferredColorScheme={scheme}"));
    command.arg(format!(
        "--user-data-dir={}",
        work.join("profile").display()
    ));
    command
        .arg("--dump-dom")
        .arg(format!("file://{}", frame.display()));
    let (dom, told) = output(&mut command)?;
    let found = between(&dom, "<pre id=\"found\">", "</pre>").unwrap_or_default();
    let found = found
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    let mut found: Value = serde_json::from_str(&found)
        .with_context(|| format!("the browser did not finish {}:\n{told}", page.display()))?;
    let errors = told.lines().filter(|line| line.contains("CONSOLE"));
    if let Some(wrong) = found["wrong"].as_array_mut() {
        wrong.extend(errors.map(|line| json!(line)));
    }
    Ok(found)
}

/// What a program prints on both of its outputs; it is ended when it hangs.
fn output(command: &mut Command) -> anyhow::Result<(String, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let read = |from: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What was read before an error is what there is.
            let _ = from.map(|mut from| from.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|out| Box::new(out) as _));
    let stderr = read(child.stderr.take().map(|err| Box::new(err) as _));
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > LONGEST {
            child.kill()?;
            bail!("{command:?} has not answered in {} s", LONGEST.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let joined = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok((joined(stdout), joined(stderr)))
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    Some(rest.split_once(end)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_found_is_taken_out_of_the_page() {
        let page = "<html><pre id=\"found\">{\"a\":1}</pre><pre>x</pre>";
        assert_eq!(
            between(page, "<pre id=\"found\">", "</pre>"),
            Some("{\"a\":1}")
        );
        assert_eq!(between("<html>", "<pre>", "</pre>"), None);
        assert_eq!(SCRIPT.matches("WANTED").count(), 1);
    }
}
