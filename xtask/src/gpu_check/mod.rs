//! `cargo xtask gpu-check`: what a GPU is measured with, packed on one machine and run on another.
//!
//! The machine with the GPU needs neither cargo nor a network: `--pack` writes programs, data and a script into a
//! folder, and `--run` (the script) measures what lies in it. A part that fails, hangs or finds no time left stops no
//! other one, and every result is on the disk before the next part begins.

mod args;
mod limited;
mod pack;
mod parts;
mod report;
mod speed;

use std::process::ExitCode;

use anyhow::bail;

pub use args::Args;

/// Runs the command.
///
/// # Errors
///
/// When a program cannot be built, a file cannot be written, or neither `--pack` nor `--run` is given.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match (&args.pack, args.run) {
        (Some(folder), _) => pack::run(args, folder),
        (None, true) => parts::run(args),
        (None, false) => bail!("give `--pack FOLDER` to build, or `--run` to measure"),
    }
}
