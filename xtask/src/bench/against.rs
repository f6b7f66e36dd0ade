//! `cargo xtask bench --against pytorch`: ours and PyTorch in alternating rounds.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use super::rounds::{Answer, Program, Spread};
use super::{Clock, Comparison};
use crate::{interop, process};

/// The Python programs.
const FOLDER: &str = "crates/sdlora-testkit/python";
/// The page that carries the table.
const PAGE: &str = "docs/performance.md";
const BEGIN: &str = "<!-- bench: begin -->\n";
const END: &str = "<!-- bench: end -->";

/// Name and batch of the models of `crates/sdlora-train/benches/step.rs`.
const MODELS: [(&str, usize); 3] = [("small", 32), ("vit-ti", 16), ("vit-b", 8)];
/// PyTorch two ways.
const VARIANTS: [&str; 2] = ["optimised", "published"];
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
    let ours = build()?;
    let python = match &args.python {
        Some(python) => python.clone(),
        None => interop::environment(&work, "requirements-bench.txt")?,
    };
    let script = root.join(FOLDER).join("bench_pytorch.py");

    let mut table = header(args);
    eprint!("{table}");
    for (model, batch) in models {
        for mode in ["train", "infer"] {
            for &n_past in &args.past {
                let case = [
                    model.to_owned(),
                    mode.to_owned(),
                    n_past.to_string(),
                    args.threads.to_string(),
                ];
                let mut commands = vec![Command::new(&ours)];
                commands[0].args(&case);
                let variants = &VARIANTS[..if n_past > MOST_PUBLISHED { 1 } else { 2 }];
                for variant in variants {
                    let mut command = Command::new(&python);
                    command.arg(&script).args(&case).arg(variant);
                    commands.push(command);
                }
                let answers = measure(commands, args.rounds)?;
                let row = row(&case, batch, &answers, args.clock);
                eprint!("{row}");
                table.push_str(&row);
            }
        }
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
fn build() -> anyhow::Result<PathBuf> {
    let mut cargo = process::cargo([
        "bench",
        "-p",
        "sdlora-train",
        "--bench",
        "step",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
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

fn header(args: &Comparison) -> String {
    let clock = match args.clock {
        Clock::Wall => "time by the clock",
        Clock::Processor => "processor time",
    };
    let threads = match args.threads {
        1 => "one thread".to_owned(),
        n => format!("{n} threads"),
    };
    format!(
        "Ratios of {clock}, {threads} on either side: median over {} alternating rounds, smallest \
         and largest in brackets; above 1 ours is faster. Memory: growth of the process over the \
         finished model, at most.\n\n\
         | model | work | past tasks | ours, images/s | against optimised | against published | \
         ours, MiB | optimised, MiB | published, MiB |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        args.rounds
    )
}

/// A row of the table; the first answers are ours, then those of the variants.
fn row(case: &[String], batch: usize, answers: &[Vec<Answer>], clock: Clock) -> String {
    let seconds = |answer: &Answer| match clock {
        Clock::Wall => answer.wall,
        Clock::Processor => answer.processor,
    };
    let ours = &answers[0];
    let mut row = format!("| {} | {} | {} |", case[0], case[1], case[2]);
    let mut cell = |text: Option<String>| {
        // Writing to a string cannot fail.
        let _ = write!(row, " {} |", text.as_deref().unwrap_or("–"));
    };
    let speed = Spread::of(ours.iter().map(|answer| batch as f64 / seconds(answer)));
    cell(speed.map(|speed| format!("{:.1}", speed.median)));
    for variant in 1..=VARIANTS.len() {
        let ratios = answers.get(variant).and_then(|theirs| {
            let pairs = theirs.iter().zip(ours);
            Spread::of(pairs.map(|(theirs, ours)| seconds(theirs) / seconds(ours)))
        });
        cell(ratios.map(|r| format!("{:.2} ({:.2}–{:.2})", r.median, r.low, r.high)));
    }
    for program in 0..=VARIANTS.len() {
        let peak = answers
            .get(program)
            .and_then(|answers| Spread::of(answers.iter().map(|answer| answer.peak)));
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
        let case = ["small", "train", "20"].map(str::to_owned);
        let answers = [ours, theirs];
        assert_eq!(
            row(&case, 8, &answers, Clock::Wall),
            "| small | train | 20 | 4.0 | 1.50 (1.00–2.00) | – | 2 | 4 | – |\n"
        );
        assert_eq!(
            row(&case, 8, &answers, Clock::Processor),
            "| small | train | 20 | 16.0 | 2.00 (2.00–3.00) | – | 2 | 4 | – |\n"
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
