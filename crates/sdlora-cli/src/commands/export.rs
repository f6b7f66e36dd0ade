//! `sdlora export`: the model of a run in a form other programs read.

use std::path::PathBuf;

use sdlora_train::{FinishedRun, Format};

use crate::backbone::Backbones;
use crate::commands::Common;
use crate::output::{note, say};
use crate::shown::{shown, shown_path};

/// Write the model of a finished run for timm, Hugging Face or peft, or the adapter by itself
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Folder of a finished run
    #[arg(long)]
    run: PathBuf,
    /// timm, hf, peft or safetensors (the adapter by itself), see docs/formats.md
    #[arg(long)]
    format: String,
    /// Folder to write; for timm also a file ending in .safetensors
    #[arg(long)]
    out: PathBuf,
    /// Replace what is there
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let format = Format::from_name(&args.format)?;
    let device = crate::device::open(&args.common.device)?;
    let mut run = FinishedRun::open(&args.run, &args.common.data_dir, &device)?;
    // Merged weights lie in the run; only the others are made from the base.
    if matches!(format, Format::Peft | Format::Safetensors) {
        let mut backbone = run.config().backbone.clone();
        Backbones::default().resolve(&mut backbone, &args.common)?;
        run = run.with_backbone(backbone);
    }
    let notes = sdlora_train::export(&run, format, &args.out, args.force)?;
    // What is lost is said also to those who want no progress.
    for lost in notes {
        note!("note: {}", shown(&lost));
    }
    if !args.common.quiet {
        say!("{}", shown_path(&args.out));
    }
    Ok(())
}
