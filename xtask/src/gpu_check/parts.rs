//! `--run`: the parts, one after another, the most telling first.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::args::{Args, Variant};
use super::limited::{self, Said};
use super::report;
use super::speed::Speed;

/// Results, a JSON object a line.
const RESULTS: &str = "results.jsonl";
/// The page.
const PAGE: &str = "gpu-check.md";
/// Time below which a part is not begun.
const LEAST: Duration = Duration::from_secs(5);

/// Runs what has no result yet.
///
/// # Errors
///
/// When the folder lacks the programs or results cannot be written. A part that fails is a result.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut check = Check::new(args)?;
    check.machine();
    let has_torch = check.torch();
    let Some(main) = args.device.first() else {
        bail!("`--device` is empty");
    };
    let there: Vec<Variant> = args
        .variant
        .iter()
        .copied()
        .filter(|v| check.has(*v))
        .collect();
    let Some(&first) = there.first() else {
        bail!(
            "{} has no folder of programs: unpack what `gpu-check --pack` wrote with its `run.sh`",
            check.folder.display()
        );
    };
    for device in &args.device {
        check.golden(device, first);
    }
    check.products(main, first, has_torch);
    let (model, batches) = match args.small {
        true => ("small", [4, 8]),
        false => ("vit-b", [128, 256]),
    };
    let speed = |batch, precision, mode, n_past, by| Speed {
        device: main.clone(),
        variant: first,
        model,
        mode,
        batch,
        precision,
        n_past,
        by,
    };
    let sides = |check: &mut Check, batch, precision, mode, n_past| {
        check.speed(&speed(batch, precision, mode, n_past, "ours"));
        for by in ["optimised", "compiled"].into_iter().filter(|_| has_torch) {
            check.speed(&speed(batch, precision, mode, n_past, by));
        }
    };
    for precision in ["bf16", "f32"] {
        for n_past in [20, 0] {
            sides(&mut check, batches[0], precision, "train", n_past);
        }
    }
    // Upstream has faults with fusion: a speed counts only beside the golden tests of the same programs.
    for &variant in &there[1..] {
        check.golden(main, variant);
        for precision in ["bf16", "f32"] {
            check.speed(&Speed {
                variant,
                ..speed(batches[0], precision, "train", 20, "ours")
            });
        }
    }
    for precision in ["bf16", "f32"] {
        sides(&mut check, batches[0], precision, "infer", 20);
    }
    for device in &args.device[1..] {
        check.speed(&Speed {
            device: device.clone(),
            ..speed(batches[0], "f32", "train", 20, "ours")
        });
    }
    check.main_job(main, first);
    for precision in ["bf16", "f32"] {
        sides(&mut check, batches[0], precision, "infer", 0);
        for (mode, n_past) in [("train", 20), ("train", 0), ("infer", 20), ("infer", 0)] {
            sides(&mut check, batches[1], precision, mode, n_past);
        }
    }
    check.finish()
}

/// What the parts share.
struct Check<'a> {
    args: &'a Args,
    folder: PathBuf,
    /// With the data sets, the golden files and the Python programs.
    checkout: PathBuf,
    until: Instant,
    file: File,
    /// Results by part, those of an earlier run too.
    results: BTreeMap<String, Value>,
    n_left: usize,
}

impl<'a> Check<'a> {
    fn new(args: &'a Args) -> anyhow::Result<Self> {
        let folder = std::fs::canonicalize(&args.folder)
            .with_context(|| format!("cannot open {}", args.folder.display()))?;
        let checkout = match &args.checkout {
            None => folder.clone(),
            Some(checkout) => std::fs::canonicalize(checkout)
                .with_context(|| format!("cannot open {}", checkout.display()))?,
        };
        let path = folder.join(RESULTS);
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        // Kernels that one program has compiled serve the next.
        let settings = folder.join("cubecl.toml");
        std::fs::write(&settings, "[compilation]\ncache = true\n")
            .with_context(|| format!("cannot write {}", settings.display()))?;
        Ok(Self {
            args,
            folder,
            checkout,
            until: Instant::now() + Duration::from_secs_f64(args.minutes.max(0.0) * 60.0),
            file,
            results: stored(&known),
            n_left: 0,
        })
    }

    fn has(&self, variant: Variant) -> bool {
        self.folder.join(variant.name()).is_dir()
    }

    fn program(&self, variant: Variant, name: &str) -> Command {
        let mut command = Command::new(self.folder.join(variant.name()).join(name));
        command.current_dir(&self.folder);
        command
    }

    fn in_checkout(&self, path: &str) -> PathBuf {
        self.checkout.join(path)
    }

    /// Does a part, unless it has been done, within its limit and the time that is left, and keeps what it gives.
    fn part(
        &mut self,
        name: &str,
        limit: u64,
        work: impl FnOnce(&Self, Duration) -> anyhow::Result<Value>,
    ) -> Option<&Value> {
        let is_done = |result: &Value| result["ok"] == true;
        if self.results.get(name).is_some_and(is_done) {
            return self.results.get(name);
        }
        let left = self.until.saturating_duration_since(Instant::now());
        if left < LEAST {
            self.n_left += 1;
            return None;
        }
        eprintln!("{name}, {:.0} s are left", left.as_secs_f64());
        let start = Instant::now();
        let mut result = work(self, left.min(Duration::from_secs(limit)))
            .unwrap_or_else(|error| json!({ "ok": false, "error": format!("{error:#}") }));
        result["part"] = name.into();
        result["took"] = start.elapsed().as_secs_f64().into();
        if result["ok"] != true {
            eprintln!("  {}", result["error"].as_str().unwrap_or("failed"));
        }
        // On the disk before the next part begins. A full disk must not end the measurement.
        let kept = writeln!(self.file, "{result}").and_then(|()| self.file.sync_data());
        if let Err(error) = kept {
            eprintln!("cannot write {RESULTS}: {error}; this result is only here: {result}");
        }
        self.results.insert(name.to_owned(), result);
        self.results.get(name)
    }

    /// The card, its driver, and the commit's programs.
    fn machine(&mut self) {
        self.part("machine", 20, |_, limit| {
            let query = "--query-gpu=name,driver_version,memory.total,compute_cap";
            let mut smi = Command::new("nvidia-smi");
            let said = limited::run(smi.args([query, "--format=csv,noheader"]), "", limit);
            let card = match said {
                Ok(said) if said.is_ok => said.output.trim().to_owned(),
                _ => "no NVIDIA driver".to_owned(),
            };
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            Ok(json!({ "ok": true, "card": card, "processors": processors }))
        });
    }

    /// Whether PyTorch can be imported and computes where we do.
    fn torch(&mut self) -> bool {
        let on = torch_device(&self.args.device[0]);
        let result = self.part("torch", 60, |check, limit| {
            let script = "import torch; print(torch.__version__, torch.cuda.is_available())";
            let mut python = Command::new(&check.args.python);
            let said = limited::run(python.args(["-c", script]), "", limit)?;
            if !said.is_ok {
                return Ok(json!({ "ok": false, "error": said.problem() }));
            }
            let is_there = on == "cpu" || said.output.contains("True");
            Ok(json!({ "ok": is_there, "version": said.output.trim(), "error": "torch sees no GPU" }))
        });
        result.is_some_and(|result| result["ok"] == true)
    }

    /// The golden tests of a variant on a device.
    fn golden(&mut self, device: &str, variant: Variant) {
        let name = format!("golden/{device}/{}", variant.name());
        self.part(&name, 150, |check, limit| {
            let mut tests = check.program(variant, "every_golden");
            tests.env("SDLORA_TEST_DEVICE", device);
            tests.env(
                "SDLORA_GOLDEN",
                check.in_checkout("crates/sdlora-testkit/golden"),
            );
            Ok(tested(&limited::run(&mut tests, "", limit)?))
        });
    }

    /// The rate of a product, ours and PyTorch's.
    fn products(&mut self, device: &str, variant: Variant, has_torch: bool) {
        let n = if self.args.small { 256 } else { 8192 };
        for precision in ["bf16", "f32"] {
            for by in ["ours", "optimised"] {
                if by == "ours" || has_torch {
                    self.speed(&Speed {
                        device: device.to_owned(),
                        variant,
                        model: "product",
                        mode: "train",
                        batch: n,
                        precision,
                        n_past: 0,
                        by,
                    });
                }
            }
        }
    }

    /// Steps a second of one side.
    fn speed(&mut self, speed: &Speed) {
        let limit = if speed.by == "compiled" { 120 } else { 75 };
        self.part(&speed.part(), limit, |check, limit| {
            let case = [
                speed.model.to_owned(),
                speed.mode.to_owned(),
                speed.n_past.to_string(),
                std::thread::available_parallelism()
                    .map_or(1, usize::from)
                    .to_string(),
                speed.batch.to_string(),
                speed.precision.to_owned(),
            ];
            let mut command = match speed.by {
                "ours" => check.program(speed.variant, "step"),
                by => {
                    let script = "crates/sdlora-testkit/python/bench_pytorch.py";
                    let mut python = Command::new(&check.args.python);
                    python.arg(check.in_checkout(script)).args(&case);
                    python.args([torch_device(&speed.device), by]);
                    python
                }
            };
            if speed.by == "ours" {
                command.args(&case).env("SDLORA_TEST_DEVICE", &speed.device);
            }
            // The first answer warms up: kernels are compiled, memory is taken.
            let said = limited::run(&mut command, "2\n3\n3\n3\n", limit)?;
            Ok(timed(&said, speed.batch))
        });
    }

    /// The main job of the README with the shipped data.
    fn main_job(&mut self, device: &str, variant: Variant) {
        self.part(
            &format!("train/{device}/{}", variant.name()),
            90,
            |check, limit| {
                let mut sdlora = check.program(variant, "sdlora");
                sdlora.args(["train", "--device", device, "--data-dir"]);
                sdlora.arg(check.in_checkout("datasets"));
                let said = limited::run(&mut sdlora, "", limit)?;
                let last: Vec<&str> = said.output.lines().rev().take(12).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                let mut result =
                    json!({ "ok": said.is_ok, "seconds": said.seconds, "output": last });
                if !said.is_ok {
                    result["error"] = said.problem().into();
                }
                Ok(result)
            },
        );
    }

    /// The table and the page.
    fn finish(self) -> anyhow::Result<ExitCode> {
        let page = report::page(&self.results);
        eprintln!("\n{page}");
        if self.n_left > 0 {
            eprintln!(
                "{} parts found no time left: run again to continue",
                self.n_left
            );
        }
        let path = self.folder.join(PAGE);
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
        let is_whole = self.n_left == 0 && self.results.values().all(|result| result["ok"] == true);
        Ok(match is_whole {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

/// Results of an earlier run by part; of several the last. A line that was cut off is left out.
fn stored(text: &str) -> BTreeMap<String, Value> {
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|result| Some((result["part"].as_str()?.to_owned(), result)))
        .collect()
}

/// Where PyTorch computes beside one of our backends.
fn torch_device(device: &str) -> &'static str {
    match device {
        "wgpu" | "cuda" => "cuda",
        _ => "cpu",
    }
}

/// What a program of tests said: how many passed, and the names of the others.
fn tested(said: &Said) -> Value {
    let ends = |end: &str| -> Vec<String> {
        let lines = said.output.lines().filter(|line| line.starts_with("test "));
        let of_end = lines.filter_map(|line| line.strip_suffix(end));
        of_end
            .map(|line| line["test ".len()..].trim_end().to_owned())
            .collect()
    };
    let (passed, failed) = (ends("... ok"), ends("... FAILED"));
    let is_ok = said.is_ok && failed.is_empty() && !passed.is_empty();
    let mut result = json!({ "ok": is_ok, "passed": passed.len(), "failed": failed });
    if !is_ok {
        let panics = said
            .output
            .lines()
            .filter(|line| line.contains("panicked at") || line.contains("differs"));
        let panics: Vec<&str> = panics.take(8).collect();
        result["error"] = said.problem().into();
        result["messages"] = panics.into();
    }
    result
}

/// What `step` or its counterpart answered: seconds of a step, the median of the answers but the first.
fn timed(said: &Said, batch: usize) -> Value {
    let answers: Vec<Vec<f64>> = said
        .output
        .lines()
        .filter(|line| line.trim() != "ready")
        .filter_map(|line| line.split_whitespace().map(|n| n.parse().ok()).collect())
        .filter(|numbers: &Vec<f64>| numbers.len() == 3)
        .collect();
    let mut times: Vec<f64> = answers.iter().skip(1).map(|numbers| numbers[0]).collect();
    times.sort_by(f64::total_cmp);
    let peak = answers.iter().map(|numbers| numbers[2]).fold(0.0, f64::max);
    let Some(&median) = times.get(times.len() / 2) else {
        return json!({ "ok": false, "error": said.problem() });
    };
    let mut result = json!({
        "ok": said.is_ok,
        "seconds": median,
        "times": times,
        "images_per_second": batch as f64 / median,
        "peak_mib": peak / f64::from(1 << 20),
        "first_step": answers[0][0],
    });
    if !said.is_ok {
        result["error"] = said.problem().into();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(output: &str, is_ok: bool) -> Said {
        Said {
            output: output.to_owned(),
            error: "out of memory".to_owned(),
            is_ok,
            is_late: false,
            seconds: 1.0,
        }
    }

    #[test]
    fn a_step_takes_the_median_of_the_answers_after_the_first() {
        let found = timed(
            &said(
                "ready\n9.0 1 1048576\n0.5 1 2097152\n0.25 1 0\n1.0 1 0\n",
                true,
            ),
            128,
        );
        assert_eq!(
            (&found["seconds"], &found["peak_mib"]),
            (&json!(0.5), &json!(2.0))
        );
        assert_eq!(found["images_per_second"], 256.0);
        // Ended early: what was measured is kept and measured again.
        let found = timed(&said("ready\n9.0 1 0\n0.5 1 0\n", false), 128);
        assert_eq!(
            (&found["ok"], &found["seconds"]),
            (&json!(false), &json!(0.5))
        );
        // Cut off after the first: nothing was measured.
        let found = timed(&said("ready\n9.0 1 0\n", false), 128);
        assert_eq!(found["ok"], false);
        assert!(found["error"].as_str().unwrap().contains("out of memory"));
    }

    #[test]
    fn tests_are_counted_and_a_program_without_any_is_not_ok() {
        let found = tested(&said(
            "test core::a ... ok\ntest core::b ... FAILED\ntest result: FAILED.\n",
            false,
        ));
        assert_eq!(
            (&found["passed"], &found["failed"]),
            (&json!(1), &json!(["core::b"]))
        );
        assert_eq!(tested(&said("test core::a ... ok\n", true))["ok"], true);
        assert_eq!(tested(&said("", true))["ok"], false);
    }

    #[test]
    fn a_line_that_was_cut_off_is_measured_again() {
        let known = stored(
            "{\"part\":\"a\",\"ok\":false}\n{\"part\":\"a\",\"ok\":true}\n{\"part\":\"b\",\"o",
        );
        assert_eq!(known.len(), 1);
        assert_eq!(known["a"]["ok"], true);
    }
}
