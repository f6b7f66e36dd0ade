//! `sdlora export`: the model of a run in a form other programs read.

use std::path::PathBuf;

use sdlora_train::{FinishedRun, Format, OnnxPreparation, OnnxProbe, Weights};

use crate::UsageError;
use crate::backbone::Backbones;
use crate::commands::export_verify::verify;
use crate::commands::{Common, run_parser};
use crate::output::{note, say};
use crate::shown::{shown, shown_path};

/// Write the model of a finished run as one file, for ONNX, timm, Hugging Face or peft, or the adapter by itself
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Folder or name of a finished run
    #[arg(long, value_name = "RUN|DIR", value_parser = run_parser())]
    run: PathBuf,
    /// bundle (for `sdlora predict --model`), onnx, timm, hf, peft or safetensors (the adapter by itself), see
    /// docs/formats.md
    #[arg(long)]
    format: String,
    /// Folder to write; for bundle a file ending in .safetensors, for onnx one ending in .onnx, for timm a
    /// folder or a .safetensors file
    #[arg(long)]
    out: PathBuf,
    /// Replace what is there
    #[arg(long)]
    force: bool,
    /// Licence of the model, for bundles and model cards: an identifier such as Apache-2.0, or a text
    #[arg(long, value_name = "TEXT")]
    licence: Option<String>,
    /// Numbers in which an ONNX file keeps the matrices: f32, f16 or int8
    #[arg(long, value_parser = weights, value_name = "f32|f16|int8")]
    weights: Option<Weights>,
    /// What an ONNX file does to images: `full`, from pictures of any size, or `normalise`. As much as it can when
    /// absent
    #[arg(long, value_parser = preparation, value_name = "full|normalise")]
    preprocess: Option<OnnxPreparation>,
    /// Run an ONNX file with ONNX Runtime of this Python, and compare logits
    #[arg(long, value_name = "PYTHON")]
    verify: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut format = Format::from_name(&args.format)?;
    match &mut format {
        Format::Onnx(options) => {
            options.weights = args.weights.unwrap_or(options.weights);
            options.preparation = args.preprocess;
        }
        _ if args.weights.is_some() || args.preprocess.is_some() || args.verify.is_some() => {
            let problem =
                "--weights, --preprocess and --verify are for `--format onnx`: leave them out";
            return Err(UsageError(problem.to_owned()).into());
        }
        _ => {}
    }
    let device = crate::device::open(&args.common.device)?;
    let mut run =
        FinishedRun::open(&args.run, &args.common.data_dir, &device)?.with_licence(args.licence);
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
    if let (Some(python), Format::Onnx(options)) = (&args.verify, format) {
        let probe = OnnxProbe::of(&run, options)?;
        let largest = verify(python, &args.out, &probe)?;
        note!("ONNX Runtime gives the logits of the run, up to {largest:.1e}");
    }
    if !args.common.quiet {
        say!("{}", shown_path(&args.out));
    }
    Ok(())
}

fn weights(text: &str) -> Result<Weights, String> {
    named(&Weights::ALL, text)
}

fn preparation(text: &str) -> Result<OnnxPreparation, String> {
    named(&OnnxPreparation::ALL, text)
}

/// The one of that name.
fn named<T: Copy>(all: &[(&str, T)], text: &str) -> Result<T, String> {
    let found = all.iter().find(|(name, _)| *name == text);
    found.map(|&(_, value)| value).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        format!("expected {}", names.join(" or "))
    })
}
