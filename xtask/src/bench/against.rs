//! `cargo xtask bench --against pytorch`: ours and PyTorch in alternating rounds.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use super::comparison::{Clock, Comparison};
use super::rounds::{Answer, Program, Spread};
use crate::{cuda, interop, process};

/// The Python programs.
const FOLDER: &str = "crates/sdlora-testkit/python";
/// The page that carries the table.
const PAGE: &str = "docs/performance.md";
const BEGIN: &str = "<!-- bench: begin -->\n";
const END: &str = "<!-- bench: end -->";

/// Name and batch of the models of `crates/sdlora-train/benches/step.rs`.
const MODELS: [(&str, usize); 3] = [("small", 32), ("vit-ti", 16), ("vit-b", 8)];
/// PyTorch in the ways that a column stands for.
const VARIANTS: [&str; 2] = ["optimised", "published"];
/// One more on demand.
const COMPILED: &str = "compiled";
/// Past tasks beyond which the published way is left out: its memory grows with each of them, and
/// ViT-B would need more than 10 GB.
const MOST_PUBLISHED: usize = 20;

/// Runs the comparison and prints the table.
///
/// # Errors
///
/// When a program cannot be built or started, or stops before it has answered.
pub(super) fn run(args: &Comparison) -> anyhow::Result<ExitCode> {
    let models = models(&args.models)?;
    if args.rounds == 0 || args.threads == 0 {
        bail!("`--rounds` and `--threads` are at least 1");
    }
    let root = process::root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let work = root.join(&target).join("bench");
    std::fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let ours = build(&args.device)?;
    let python = match &args.python {
        Some(python) => python.clone(),
        None => interop::environment(&work, "requirements-bench.txt")?,
    };
    let script = root.join(FOLDER).join("bench_pytorch.py");

    let variants = variants(args);
    let mut table = header(args, &variants);
    eprint!("{table}");
    for case in cases(args, models) {
        let mut ours = Command::new(&ours);
        ours.args(case.arguments(args));
        ours.env("SDLORA_TEST_DEVICE", &args.device);
        let mut commands = vec![ours];
        let is_measured = |variant: &str| variant != "published" || case.n_past <= MOST_PUBLISHED;
        for variant in variants.iter().filter(|variant| is_measured(variant)) {
            let mut command = Command::new(&python);
            command.arg(&script).args(case.arguments(args));
            command.args([torch_device(&args.device), variant]);
            commands.push(command);
        }
        let mut answers = measure(commands, args.rounds)?.into_iter();
        let ours = answers.next().unwrap_or_default();
        let theirs: Vec<_> = variants
            .iter()
            .map(|variant| is_measured(variant).then(|| answers.next()).flatten())
            .collect();
        let row = row(&case, &ours, &theirs, args.clock);
        eprint!("{row}");
        table.push_str(&row);
    }
    let stored = work.join("table.md");
    std::fs::write(&stored, &table)
        .with_context(|| format!("cannot write {}", stored.display()))?;
    if args.write {
        let page = root.join(PAGE);
        let text = std::fs::read_to_string(&page)
            .with_context(|| format!("cannot read {}", page.display()))?;
        let text = process::with_table(&text, &table, BEGIN, END)
            .with_context(|| format!("{PAGE} has lost the marks around its table"))?;
        std::fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The columns of PyTorch.
fn variants(args: &Comparison) -> Vec<&'static str> {
    let more = args.compiled.then_some(COMPILED);
    VARIANTS.into_iter().chain(more).collect()
}

/// Where PyTorch computes beside one of our backends.
fn torch_device(device: &str) -> &'static str {
    match device {
        "wgpu" | "cuda" => "cuda",
        _ => "cpu",
    }
}

/// A row of the table.
struct Case {
    /// The model, and its batch where that is not the usual one.
    label: String,
    model: &'static str,
    mode: &'static str,
    n_past: usize,
    batch: usize,
}

impl Case {
    /// What both programs are told.
    fn arguments(&self, args: &Comparison) -> [String; 6] {
        [
            self.model.to_owned(),
            self.mode.to_owned(),
            self.n_past.to_string(),
            args.threads.to_string(),
            self.batch.to_string(),
            args.precision.clone(),
        ]
    }
}

/// Every case in the order of the table.
fn cases(args: &Comparison, models: Vec<(&'static str, usize)>) -> Vec<Case> {
    let mut cases = Vec::new();
    for (model, usual) in models {
        let batches = match args.batch.is_empty() {
            true => vec![usual],
            false => args.batch.clone(),
        };
        for batch in batches {
            for mode in ["train", "infer"] {
                cases.extend(args.past.iter().map(|&n_past| Case {
                    label: match args.batch.is_empty() {
                        true => model.to_owned(),
                        false => format!("{model}, {batch} images"),
                    },
                    model,
                    mode,
                    n_past,
                    batch,
                }));
            }
        }
    }
    cases
}

fn models(named: &[String]) -> anyhow::Result<Vec<(&'static str, usize)>> {
    if named.is_empty() {
        return Ok(MODELS.to_vec());
    }
    named
        .iter()
        .map(|name| {
            let found = MODELS.into_iter().find(|(model, _)| model == name);
            found.with_context(|| format!("no model `{name}`: take small, vit-ti or vit-b"))
        })
        .collect()
}

/// Builds our program and finds where cargo put it.
fn build(device: &str) -> anyhow::Result<PathBuf> {
    let mut cargo = process::cargo([
        "bench",
        "-p",
        "sdlora-train",
        "--bench",
        "step",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    if device != "flex" {
        cargo.args(["-p", "sdlora-testkit", "--features"]);
        cargo.arg(format!("sdlora-testkit/{device}"));
    }
    if device == "cuda" {
        cuda::build_there(&mut cargo)?;
    }
    let output = cargo
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {cargo:?}; is cargo installed?"))?;
    if !output.status.success() {
        bail!("the benchmark could not be built, see above");
    }
    executable(&String::from_utf8_lossy(&output.stdout))
        .context("cargo did not say where it put the benchmark")
}

/// The program in cargo's messages, one JSON object a line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "step")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// The answers of every program, round by round; a first one warms up.
fn measure(commands: Vec<Command>, n_rounds: usize) -> anyhow::Result<Vec<Vec<Answer>>> {
    let mut programs = commands
        .into_iter()
        .map(Program::start)
        .collect::<anyhow::Result<Vec<_>>>()?;
    for program in &mut programs {
        program.ask(1)?;
    }
    let mut answers = vec![Vec::with_capacity(n_rounds); programs.len()];
    for _ in 0..n_rounds {
        for (program, answers) in programs.iter_mut().zip(&mut answers) {
            answers.push(program.ask(1)?);
        }
    }
    Ok(answers)
}

fn header(args: &Comparison, variants: &[&str]) -> String {
    let clock = match args.clock {
        Clock::Wall => "time by the clock",
        Clock::Processor => "processor time",
    };
    let threads = match args.threads {
        1 => "one thread".to_owned(),
        n => format!("{n} threads"),
    };
    let mut text = format!(
        "Ratios of {clock}, {threads} on either side: median over {} alternating rounds, smallest \
         and largest in brackets; above 1 ours is faster. Memory: growth of the process over the \
         finished model, at most.\n\n",
        args.rounds
    );
    if (&args.device[..], &args.precision[..]) != ("flex", "f32") || !args.batch.is_empty() {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "Ours on `{}`, PyTorch on `{}`, {}; memory of a GPU is all that is reserved on it.\n",
            args.device,
            torch_device(&args.device),
            args.precision
        );
    }
    text.push_str("| model | work | past tasks | ours, images/s |");
    for variant in variants {
        let _ = write!(text, " against {variant} |");
    }
    text.push_str(" ours, MiB |");
    for variant in variants {
        let _ = write!(text, " {variant}, MiB |");
    }
    let _ = writeln!(text, "\n|{}", "---|".repeat(5 + 2 * variants.len()));
    text
}

/// A row of the table; `None` for what was not measured.
fn row(case: &Case, ours: &[Answer], theirs: &[Option<Vec<Answer>>], clock: Clock) -> String {
    let seconds = |answer: &Answer| match clock {
        Clock::Wall => answer.wall,
        Clock::Processor => answer.processor,
    };
    let mut row = format!("| {} | {} | {} |", case.label, case.mode, case.n_past);
    let mut cell = |text: Option<String>| {
        // Writing to a string cannot fail.
        let _ = write!(row, " {} |", text.as_deref().unwrap_or("–"));
    };
    let speed = Spread::of(
        ours.iter()
            .map(|answer| case.batch as f64 / seconds(answer)),
    );
    cell(speed.map(|speed| format!("{:.1}", speed.median)));
    for theirs in theirs {
        let ratios = theirs.as_ref().and_then(|theirs| {
            let pairs = theirs.iter().zip(ours);
            Spread::of(pairs.map(|(theirs, ours)| seconds(theirs) / seconds(ours)))
        });
        cell(ratios.map(|r| format!("{:.2} ({:.2}–{:.2})", r.median, r.low, r.high)));
    }
    let peak = |answers: &[Answer]| Spread::of(answers.iter().map(|answer| answer.peak));
    let peaks = theirs.iter().map(|theirs| theirs.as_deref().and_then(peak));
    for peak in std::iter::once(peak(ours)).chain(peaks) {
        cell(peak.map(|peak| format!("{:.0}", peak.high / f64::from(1 << 20))));
    }
    row.push('\n');
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(wall: f64, processor: f64, peak: f64) -> Answer {
        Answer {
            wall,
            processor,
            peak,
        }
    }

    #[test]
    fn a_ratio_is_taken_within_a_round() {
        let mib = 1048576.0;
        let ours = vec![
            answer(1.0, 0.5, mib),
            answer(2.0, 0.5, 2.0 * mib),
            answer(4.0, 0.5, mib),
        ];
        let theirs = vec![
            answer(2.0, 1.0, 4.0 * mib),
            answer(3.0, 1.0, 4.0 * mib),
            answer(4.0, 1.5, 4.0 * mib),
        ];
        let case = Case {
            label: "small".into(),
            model: "small",
            mode: "train",
            n_past: 20,
            batch: 8,
        };
        let theirs = [Some(theirs), None];
        assert_eq!(
            row(&case, &ours, &theirs, Clock::Wall),
            "| small | train | 20 | 4.0 | 1.50 (1.00–2.00) | – | 2 | 4 | – |\n"
        );
        assert_eq!(
            row(&case, &ours, &theirs, Clock::Processor),
            "| small | train | 20 | 16.0 | 2.00 (2.00–3.00) | – | 2 | 4 | – |\n"
        );
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        bench: super::super::Args,
    }

    fn comparison(line: &str) -> Comparison {
        use clap::Parser as _;
        let line = format!("bench --against pytorch {line}");
        Line::parse_from(line.split_whitespace()).bench.comparison
    }

    #[test]
    fn batches_give_rows_and_compiled_gives_columns() {
        let args = comparison("");
        let all = cases(&args, vec![("vit-b", 8)]);
        assert_eq!(all.len(), 4);
        assert_eq!(all[0].arguments(&args).join(" "), "vit-b train 0 2 8 f32");
        let plain = header(&args, &variants(&args));
        assert!(plain.ends_with(
            "| model | work | past tasks | ours, images/s | against optimised | against published | \
             ours, MiB | optimised, MiB | published, MiB |\n|---|---|---|---|---|---|---|---|---|\n"
        ));
        assert_eq!(plain.matches("\n\n").count(), 1);

        let args =
            comparison("--device cuda --precision bf16 --batch 128,256 --past 20 --compiled");
        let all = cases(&args, vec![("vit-b", 8)]);
        let labels: Vec<_> = all.iter().map(|case| &case.label[..]).collect();
        let (small, large) = ("vit-b, 128 images", "vit-b, 256 images");
        assert_eq!(labels, [small, small, large, large]);
        assert_eq!(
            all[3].arguments(&args).join(" "),
            "vit-b infer 20 2 256 bf16"
        );
        let text = header(&args, &variants(&args));
        assert!(
            text.contains("against compiled") && text.contains("`cuda`, bf16"),
            "{text}"
        );
    }

    #[test]
    fn the_program_is_found_among_the_messages_of_cargo() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"rand"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"step"},"executable":"/t/step-1"}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/step-1")));
        assert_eq!(executable("{}"), None);
    }

    #[test]
    fn unknown_models_are_refused_with_those_there_are() {
        assert_eq!(models(&[]).unwrap().len(), MODELS.len());
        let error = models(&["vit-h".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("vit-h") && error.contains("vit-b"),
            "{error}"
        );
    }

    #[test]
    fn the_page_has_a_place_for_the_table_and_the_models_are_those_of_the_benchmark() {
        let read = |path: &str| std::fs::read_to_string(process::root().join(path)).unwrap();
        process::with_table(&read(PAGE), "", BEGIN, END).unwrap();
        for program in [
            "crates/sdlora-train/benches/step.rs",
            "crates/sdlora-testkit/python/bench_pytorch.py",
        ] {
            let text = read(program);
            for (model, _) in MODELS {
                assert!(
                    text.contains(&format!("\"{model}\"")),
                    "{model} in {program}"
                );
            }
        }
    }
}
