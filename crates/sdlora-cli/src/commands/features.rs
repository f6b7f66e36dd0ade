//! `sdlora features`: features of images, and the tokens between blocks, as a safetensors file.

use std::path::{Path, PathBuf};

use anyhow::Context;
use burn::tensor::Device;
use sdlora_data::open_image;
use sdlora_image::{Channels, ImageReading, Normalise, Transform, TransformConfig, is_image};
use sdlora_train::{
    AdapterFolder, BackboneConfig, Extractor, FinishedRun, TensorFile, extract_features,
};
use sdlora_vit::Vit;

use crate::UsageError;
use crate::backbone::{BackboneArgs, Backbones};
use crate::commands::{Common, check_place, refuse_overwriting};
use crate::output::say;
use crate::shown::shown_path;

/// Write the features of images, and the tokens after chosen blocks
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Folder of a finished run: its backbone and its way to prepare images
    #[arg(
        long,
        required_unless_present = "backbone",
        conflicts_with = "backbone"
    )]
    run: Option<PathBuf>,
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Name of the backbone's shape, when the file does not carry it
    #[arg(long, requires = "backbone")]
    backbone_preset: Option<String>,
    /// Side of the images in pixels, instead of the one the backbone was trained on
    #[arg(long, value_name = "PIXELS", requires = "backbone")]
    side: Option<usize>,
    /// Exported adapter to put on the backbone
    #[arg(long, requires = "backbone")]
    adapter: Option<PathBuf>,
    /// An image, a folder of images, or a safetensors file whose tensor `input`
    /// [n, channels, side, side] is taken as it is
    #[arg(long)]
    input: PathBuf,
    /// Safetensors file to write: `features` [n, width], `block.N` [n, tokens, width]
    #[arg(long)]
    out: PathBuf,
    /// Blocks, from 0, whose tokens are written too
    #[arg(long, value_delimiter = ',')]
    layer: Vec<usize>,
    /// Mean of levels from 0 to 1, one for all channels or one for each
    #[arg(long, value_delimiter = ',', requires = "std", conflicts_with = "run")]
    mean: Vec<f32>,
    /// Standard deviation, as many as means
    #[arg(long, value_delimiter = ',', requires = "mean", conflicts_with = "run")]
    std: Vec<f32>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    refuse_inputs(&args)?;
    let device = crate::device::open(&args.common.device)?;
    let (extractor, transform) = model(&args, &device)?;
    let (names, pixels) = inputs(&args.input, extractor.vit(), &transform.init()?)?;
    let mut file = extract_features(&extractor, &pixels, &args.layer, &device)?;
    file.metadata
        .insert("names".into(), serde_json::to_string(&names)?);
    file.write(&args.out)?;
    if !args.common.quiet {
        say!("{}", shown_path(&args.out));
    }
    Ok(())
}

/// Refuses to write over what is read.
fn refuse_inputs(args: &Args) -> anyhow::Result<()> {
    for given in [Some(&args.input), args.adapter.as_ref()]
        .into_iter()
        .flatten()
    {
        if !given.exists() {
            return Err(
                UsageError(format!("there is no {}: check the path", given.display())).into(),
            );
        }
    }
    let mut inputs = vec![args.input.clone()];
    if args.input.is_dir() {
        inputs.extend(images(&args.input)?);
    }
    if let Some(spec) = &args.backbone.backbone {
        inputs.push(spec.into());
    }
    for folder in [
        args.run.as_ref().map(|run| run.join("model")),
        args.adapter.clone(),
    ] {
        let files = folder
            .map(std::fs::read_dir)
            .into_iter()
            .flatten()
            .flatten();
        inputs.extend(files.flatten().map(|entry| entry.path()));
    }
    for input in &inputs {
        refuse_overwriting(&args.out, input)?;
    }
    Ok(check_place("--out", &args.out)?)
}

/// The backbone, directions inside and prompts beside, and how it wants its images.
fn model(args: &Args, device: &Device) -> anyhow::Result<(Extractor, TransformConfig)> {
    if let Some(run) = &args.run {
        if let Some(option) = args.backbone.known.first() {
            return Err(UsageError(format!(
                "`{option}` is said of `--backbone`, and the backbone of `--run` is known: leave it out"
            ))
            .into());
        }
        let run = FinishedRun::open(run, &args.common.data_dir, device)?;
        return Ok((run.extractor(), run.config().transform.for_evaluation()));
    }
    let mut section = args.backbone.section()?.unwrap_or_default();
    if let Some(name) = &args.backbone_preset {
        section.insert("preset".into(), name.clone().into());
    }
    let mut backbone: BackboneConfig = section
        .try_into()
        .map_err(|e| UsageError(format!("the backbone cannot be read: {e}")))?;
    let mut backbones = Backbones::default();
    backbones.resolve(&mut backbone, &args.common)?;
    let asked = backbones.transform(&backbone, args.side, &args.common)?;
    let side = args.side.or(asked.as_ref().map(|transform| transform.side));
    let mut vit = backbone.load(&args.common.data_dir, side, device)?;
    if let Some(folder) = &args.adapter {
        vit = AdapterFolder::load(folder)?.apply(vit, device)?;
    }
    let channels = match vit.config().n_channels {
        1 => Channels::Gray,
        _ => Channels::Rgb,
    };
    let mut transform = match asked {
        Some(transform) => transform.for_evaluation(),
        None => TransformConfig::new(vit.config().image_size, channels),
    };
    if !args.mean.is_empty() {
        transform.normalise = Some(Normalise {
            mean: args.mean.clone(),
            std: args.std.clone(),
        });
    }
    Ok((vit.into(), transform))
}

/// Names of the inputs and their numbers, one after another.
fn inputs(
    input: &Path,
    vit: &Vit,
    transform: &Transform,
) -> anyhow::Result<(Vec<String>, Vec<f32>)> {
    let c = vit.config();
    let n_values = c.n_channels * c.image_size * c.image_size;
    if input.extension().is_some_and(|e| e == "safetensors") {
        let expected = [c.n_channels, c.image_size, c.image_size];
        let mut file = TensorFile::read(input)?;
        let tensor = file
            .tensors
            .remove("input")
            .ok_or_else(|| UsageError(format!("{} has no tensor `input`", input.display())))?;
        if tensor.shape.len() != 4 || tensor.shape[1..] != expected {
            return Err(UsageError(format!(
                "`input` of {} is {:?}: the backbone takes [n, {}, {}, {}]",
                input.display(),
                tensor.shape,
                expected[0],
                expected[1],
                expected[2]
            ))
            .into());
        }
        let names = (0..tensor.shape[0]).map(|i| i.to_string()).collect();
        return Ok((names, tensor.values));
    }
    if transform.n_values() != n_values {
        return Err(UsageError(format!(
            "images become {:?} and the backbone takes {} channels of {} pixels: give a \
             safetensors file of prepared images",
            transform.shape(),
            c.n_channels,
            c.image_size
        ))
        .into());
    }
    let paths = images(input)?;
    let mut pixels = vec![0.0; paths.len() * n_values];
    for (path, out) in paths.iter().zip(pixels.chunks_exact_mut(n_values)) {
        let image = open_image(path, ImageReading::default())?;
        let base = transform.base_image(image);
        transform.write(&base, None, out);
    }
    let names = paths.iter().map(|p| p.display().to_string()).collect();
    Ok((names, pixels))
}

/// The image itself, or the image files of a folder in the order of their names.
fn images(input: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !input.is_dir() {
        return Ok(vec![input.to_owned()]);
    }
    let mut paths = Vec::new();
    for entry in
        std::fs::read_dir(input).with_context(|| format!("cannot list {}", input.display()))?
    {
        let path = entry?.path();
        if is_image(&path.to_string_lossy()) {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(UsageError(format!(
            "{} holds no image file that is read (PNG, JPEG, WebP, BMP, PNM)",
            input.display()
        ))
        .into());
    }
    Ok(paths)
}
