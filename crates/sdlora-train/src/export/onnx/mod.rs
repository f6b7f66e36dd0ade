//! One ONNX file: preparation of images, merged backbone and classifier as a graph, class names in its metadata.

mod int8;
mod pixels;
mod probe;
mod stored;
mod vit;

use std::path::Path;

use sdlora_image::TransformConfig;
use sdlora_onnx::{Graph, Model, OnnxError, Weights};
use sdlora_vit::Vit;
use serde_json::json;

use self::pixels::{PICTURES, PIXELS};
use self::vit::Layers;
use super::finished_run::FinishedRun;
use super::tensors::named;
use crate::error::TrainError;
use crate::heads::Classifier;

pub use pixels::OnnxPreparation;
pub use probe::OnnxProbe;

/// Settings of an ONNX file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnnxOptions {
    /// How the matrices of the backbone are stored; the graph computes in 32 bits.
    pub weights: Weights,
    /// What of the preparation of images is part of the graph; all of it where operators can do it when absent.
    pub preparation: Option<OnnxPreparation>,
}

impl OnnxOptions {
    /// Weights in 32 bits, and as much of the preparation as operators can do.
    pub const DEFAULT: Self = Self {
        weights: Weights::F32,
        preparation: None,
    };
}

impl Default for OnnxOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Name of the output, `[batch, n_classes]`.
const LOGITS: &str = "logits";

/// The bytes of the file, and what to say about it.
///
/// # Errors
///
/// [`TrainError::Export`] for steps of a transform that were asked for and that operators cannot do, and for a model
/// that the format cannot hold.
pub(super) fn file(
    run: &FinishedRun,
    options: OnnxOptions,
    out: &Path,
) -> Result<(Vec<u8>, Vec<String>), TrainError> {
    if run.classifier.is_quadratic() {
        let problem = "its head is quadratic in the features, and the graph has no such operation yet: use \
                       the format `bundle`, or run with `rank = 0` or another `head`";
        return Err(TrainError::export(out, problem));
    }
    let transform = run.config.transform.for_evaluation();
    let obstacle = pixels::obstacle(&transform);
    if let (Some(OnnxPreparation::Full), Some(obstacle)) = (options.preparation, &obstacle) {
        let problem = format!("{obstacle}; the preparation `normalise` leaves them to the caller");
        return Err(TrainError::export(out, problem));
    }
    let how = chosen(&transform, options);
    let mut notes = vec![said(run, how, obstacle.as_deref())];
    let mut graph = Graph::new("sdlora");
    let pixels = pixels::input(&mut graph, &transform, how);
    let logits = logits(
        &mut graph,
        &run.vit,
        &run.classifier,
        options.weights,
        &pixels,
    )?;
    graph.output(LOGITS, logits);
    let mut model = Model::new(graph, "sdlora", env!("CARGO_PKG_VERSION"));
    model.description = format!(
        "A vision transformer of {} classes. Input: {}.",
        run.n_classes(),
        input_in_words(run, how)
    );
    let text = |value: serde_json::Value| value.to_string();
    let mut metadata = vec![
        ("classes", text(json!(run.class_names))),
        ("sdlora.preparation", how.name().to_owned()),
        ("sdlora.input", input_in_words(run, how)),
        ("sdlora.transform", text(json!(transform))),
        ("sdlora.weights", options.weights.name().to_owned()),
        ("sdlora.method", run.config.method.name.clone()),
        ("sdlora.data", run.config.dataset.clone()),
    ];
    if let Some(head) = &run.config.head {
        metadata.push(("sdlora.head", head.name.clone()));
    }
    if options.weights == Weights::Int8 {
        let measured = int8::measure(run);
        notes.push(match &measured {
            Ok(measured) => measured.to_string(),
            Err(error) => format!(
                "the accuracy of weights in 8 bits is not measured, because test images of the run cannot be read: \
                 {error}"
            ),
        });
        if let Ok(measured) = measured {
            metadata.push(("sdlora.accuracy", text(measured.to_json())));
        }
    }
    let metadata = metadata.into_iter().map(|(key, value)| (key.into(), value));
    model.metadata = metadata.collect();
    let bytes = model.to_bytes().map_err(|error| {
        let advice = match error {
            OnnxError::TooLarge { .. } => ", with weights of `f16` or `int8`",
            _ => "",
        };
        TrainError::export(out, format!("{error}{advice}"))
    })?;
    Ok((bytes, notes))
}

/// What of the preparation of images becomes part of the graph.
fn chosen(transform: &TransformConfig, options: OnnxOptions) -> OnnxPreparation {
    let possible = match pixels::obstacle(transform) {
        Some(_) => OnnxPreparation::Normalise,
        None => OnnxPreparation::Full,
    };
    options.preparation.unwrap_or(possible)
}

/// Adds backbone and classifier of normalised `pixels: [batch, n_channels, side, side]`.
fn logits(
    graph: &mut Graph,
    vit: &Vit,
    classifier: &Classifier,
    weights: Weights,
    pixels: &sdlora_onnx::Value,
) -> Result<sdlora_onnx::Value, TrainError> {
    let tensors = named(vit)?.tensors;
    let mut layers = Layers {
        graph,
        config: vit.config(),
        tensors: &tensors,
        weights,
    };
    let mut features = layers.features(pixels);
    let (projection, weight, bias) = classifier.parts();
    if let Some(projection) = projection {
        let (shape, values) = (&projection.shape, &projection.values);
        let projection = graph.tensor("head.projection", shape, values);
        let random = graph.rows(&features, &projection, None);
        features = graph.relu(&random);
    }
    let rows = graph.tensor("head.weight", &weight.shape, &weight.values);
    let bias = graph.tensor("head.bias", &[bias.len()], bias);
    Ok(graph.rows(&features, &rows, Some(&bias)))
}

/// What a caller gives.
fn input_in_words(run: &FinishedRun, how: OnnxPreparation) -> String {
    let transform = &run.config.transform;
    match how {
        OnnxPreparation::Full => format!(
            "`{PICTURES}` [batch, height, width, 3], bytes of red, green and blue, upright pictures of any one size"
        ),
        OnnxPreparation::Normalise => {
            let (side, n_channels) = (transform.side, transform.channels.count());
            let colours = match n_channels {
                1 => "gray",
                _ => "red, green and blue",
            };
            format!(
                "`{PIXELS}` [batch, {n_channels}, {side}, {side}], levels of {colours} from 0 to 1, resized and cut"
            )
        }
    }
}

/// The same, and why it is not more.
fn said(run: &FinishedRun, how: OnnxPreparation, obstacle: Option<&str>) -> String {
    let input = input_in_words(run, how);
    match (how, obstacle) {
        (OnnxPreparation::Full, _) => {
            format!("the graph prepares pictures itself, its input is {input}")
        }
        (OnnxPreparation::Normalise, None) => {
            format!("the graph normalises and does not resize, its input is {input}")
        }
        (OnnxPreparation::Normalise, Some(obstacle)) => format!(
            "the graph normalises and does not resize, because {obstacle}; its input is {input}, and its metadata \
             `sdlora.transform` say how the run prepares images"
        ),
    }
}
