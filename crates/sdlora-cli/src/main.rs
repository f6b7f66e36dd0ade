//! `sdlora`: train, pretrain, compare and predict from the command line.
//!
//! The only crate that prints, chooses a device and picks an exit code: 0 done, 1 the run failed,
//! 2 the command or its settings are wrong, 130 it was asked to stop and what is done is kept.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod allocator;
mod backbone;
mod commands;
mod config;
mod device;
mod download_bar;
mod pilot;
mod preprocess;
mod progress;
mod report;
mod results;
mod run_log;
mod stop;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A mistake of the user rather than a failed run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Class-incremental learning on a frozen, pre-trained ViT.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(commands::train::Args),
    Pretrain(commands::pretrain::Args),
    Compare(commands::compare::Args),
    Predict(commands::predict::Args),
    Inspect(commands::inspect::Args),
    Presets(commands::presets::Args),
    Data(commands::data::Args),
    Export(commands::export::Args),
    Features(commands::features::Args),
    Analyse(commands::analyse::Args),
}

fn main() -> ExitCode {
    allocator::keep_free_memory();
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Train(args) => commands::train::run(args),
        Command::Pretrain(args) => commands::pretrain::run(args),
        Command::Compare(args) => commands::compare::run(args),
        Command::Predict(args) => commands::predict::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Presets(args) => commands::presets::run(args),
        Command::Data(args) => commands::data::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Features(args) => commands::features::run(args),
        Command::Analyse(args) => commands::analyse::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_stop(&error) => {
            eprintln!("{}", chain(&error));
            ExitCode::from(stop::EXIT_CODE)
        }
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
    }
}

/// The messages of an error and its causes, each said once: many repeat their cause.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(cause.trim_end()) {
            text = format!("{text}: {cause}");
        }
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

fn is_usage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<UsageError>()
            || cause
                .downcast_ref::<sdlora_fetch::FetchError>()
                .is_some_and(sdlora_fetch::FetchError::is_usage)
            || cause
                .downcast_ref::<sdlora_data::DataError>()
                .is_some_and(sdlora_data::DataError::is_usage)
            || cause
                .downcast_ref::<sdlora_train::TrainError>()
                .is_some_and(sdlora_train::TrainError::is_usage)
    })
}
