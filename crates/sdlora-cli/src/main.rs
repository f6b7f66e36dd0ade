//! `sdlora`: train, pretrain, compare and predict from the command line.
//!
//! The only crate that prints, chooses a device and picks an exit code: 0 done, 1 the run failed,
//! 2 the command or its settings are wrong, 130 it was asked to stop and what is done is kept. A reader of
//! the output who leaves early, as `head` does, ends a command that only answers with 0: it has what it asked
//! for.

mod allocator;
mod backbone;
mod commands;
mod config;
mod device;
mod download_bar;
mod hints;
mod image_progress;
mod known;
mod live_report;
#[cfg(test)]
mod mutations;
mod output;
mod overlay;
#[cfg(test)]
mod pages;
mod pilot;
mod preprocess;
mod progress;
mod report;
mod results;
mod run_log;
mod run_report;
mod shown;
mod stop;
mod tensorboard;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use output::{OutputError, answer, note};
use shown::clipped_to;
pub use usage::UsageError;

/// Class-incremental learning on a frozen, pre-trained ViT.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Learn(commands::learn::Args),
    Runs(commands::runs::Args),
    Train(commands::train::Args),
    Pretrain(commands::pretrain::Args),
    Compare(commands::compare::Args),
    Predict(commands::predict::Args),
    Evaluate(commands::evaluate::Args),
    Report(commands::report::Args),
    Inspect(commands::inspect::Args),
    Presets(commands::presets::Args),
    Data(commands::data::Args),
    Export(commands::export::Args),
    Features(commands::features::Args),
    Analyse(commands::analyse::Args),
}

/// Longest message that is printed, in characters: an error may repeat what it found in a file.
const LONGEST_MESSAGE: usize = 10_000;

fn main() -> ExitCode {
    allocator::keep_free_memory();
    let done = match Cli::try_parse() {
        Ok(cli) => run(cli.command),
        Err(asked) if !asked.use_stderr() => {
            answer!("{}", asked.to_string().trim_end()).map_err(anyhow::Error::from)
        }
        Err(mistake) => {
            let text = mistake.to_string();
            note!("{}", clipped_lines(text.trim_end()));
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_unread(&error) => ExitCode::SUCCESS,
        Err(error) if is_stop(&error) => {
            note!("{}", chain(&error));
            ExitCode::from(stop::EXIT_CODE)
        }
        Err(error) => {
            note!("error: {}", chain(&error));
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Learn(args) => commands::learn::run(args),
        Command::Runs(args) => commands::runs::run(args),
        Command::Train(args) => commands::train::run(args),
        Command::Pretrain(args) => commands::pretrain::run(args),
        Command::Compare(args) => commands::compare::run(args),
        Command::Predict(args) => commands::predict::run(args),
        Command::Evaluate(args) => commands::evaluate::run(args),
        Command::Report(args) => commands::report::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Presets(args) => commands::presets::run(args),
        Command::Data(args) => commands::data::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Features(args) => commands::features::run(args),
        Command::Analyse(args) => commands::analyse::run(args),
    }
}

/// The messages of an error and its causes, each said once: many repeat their cause.
fn chain(error: &anyhow::Error) -> String {
    // What was said is compared before line breaks are escaped, which only some messages need.
    let (mut said, mut text) = (String::new(), String::new());
    for cause in error.chain() {
        let raw = cause.to_string();
        if !said.is_empty() && said.contains(raw.trim_end()) {
            continue;
        }
        let message = match has_lines(cause) {
            true => clipped_lines(&raw),
            // A line break in it comes from a name.
            false => clipped_to(&raw, LONGEST_MESSAGE),
        };
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&message);
        if let Some(hint) = hints::hint(cause) {
            text.push_str(&format!(" ({hint})"));
        }
        said.push_str(&raw);
    }
    text
}

/// Whether the user asked for the end.
fn is_stop(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<stop::Stopped>()
            || matches!(
                cause.downcast_ref(),
                Some(sdlora_train::TrainError::Stopped { .. })
            )
    })
}

/// Whether a message is written in several lines.
fn has_lines(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.is::<commands::data_fetch::Steps>()
        || cause.is::<commands::compare::Unfinished>()
        || cause.is::<stop::Stopped>()
        || cause.is::<toml::de::Error>()
        || matches!(
            cause.downcast_ref(),
            Some(sdlora_train::TrainError::Config { .. })
        )
}

fn clipped_lines(text: &str) -> String {
    match text.char_indices().nth(LONGEST_MESSAGE) {
        None => text.to_owned(),
        Some((end, _)) => format!("{} ... and more", &text[..end]),
    }
}

/// Whether a command ended because nobody reads its answer any more.
fn is_unread(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(OutputError::Closed))
}

fn is_usage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<UsageError>()
            || cause
                .downcast_ref::<sdlora_fetch::FetchError>()
                .is_some_and(sdlora_fetch::FetchError::is_usage)
            || cause
                .downcast_ref::<sdlora_image::ImageError>()
                .is_some_and(sdlora_image::ImageError::is_usage)
            || cause
                .downcast_ref::<sdlora_data::DataError>()
                .is_some_and(sdlora_data::DataError::is_usage)
            || cause
                .downcast_ref::<sdlora_vit::VitError>()
                .is_some_and(sdlora_vit::VitError::is_usage)
            || cause
                .downcast_ref::<sdlora_train::TrainError>()
                .is_some_and(sdlora_train::TrainError::is_usage)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_message_neither_breaks_the_line_nor_fills_the_screen() {
        let name = format!("a\nerror: b\u{1b}[2J{}", "x".repeat(1 << 20));
        let error = anyhow::Error::from(sdlora_train::TrainError::Export {
            path: "run".into(),
            problem: name,
        });
        let text = chain(&error);
        assert!(text.contains("a\\nerror: b\\u{1b}[2Jxxx"), "{text:.200}");
        assert!(!text.contains('\n') && text.len() < 2 * LONGEST_MESSAGE);
        // What is written in lines stays so.
        let toml = toml::from_str::<toml::Table>("a = [").unwrap_err();
        let error = anyhow::Error::from(toml).context(UsageError("b\nc".into()));
        let text = chain(&error);
        assert!(
            text.starts_with("b\\nc: TOML parse error") && text.contains("\n1 | a = ["),
            "{text}"
        );
        // A message that repeats its cause is said once, with its lines.
        let error = anyhow::Error::from(sdlora_train::RunConfig::parse("seed = [").unwrap_err());
        let text = chain(&error);
        assert_eq!(text.matches("TOML parse error").count(), 1, "{text}");
        assert!(
            text.contains("\n1 | seed = [") && !text.contains("\\n"),
            "{text}"
        );
    }
}
