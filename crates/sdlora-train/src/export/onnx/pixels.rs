//! From what a caller gives to the numbers that the backbone reads.

use sdlora_image::{Channels, Drawing, Fit, Normalise, Polarity, Process, TransformConfig};
use sdlora_onnx::{Dim, Element, Graph, Resize, Value};

use super::super::preparation::{Filter, Preparation, Resized, normalisation};

/// How much of the preparation of an image is part of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnnxPreparation {
    /// All of it: the graph takes pictures of any size as bytes.
    Full,
    /// The normalisation: the graph takes levels from 0 to 1 of prepared images.
    Normalise,
}

impl OnnxPreparation {
    /// Both with the name that the command line and metadata give them.
    pub const ALL: [(&'static str, Self); 2] =
        [("full", Self::Full), ("normalise", Self::Normalise)];

    /// Its name, as in [`OnnxPreparation::ALL`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Normalise => "normalise",
        }
    }
}

/// Length of an axis that the caller chooses.
const BATCH: Dim = Dim::named("batch");

/// Name of the input of prepared images.
pub(super) const PIXELS: &str = "pixels";
/// Name of the input of pictures.
pub(super) const PICTURES: &str = "pictures";

/// Why operators cannot prepare images as the run does; `None` where they can.
pub(super) fn obstacle(transform: &TransformConfig) -> Option<String> {
    match &transform.process {
        Process::Drawing(_) => None,
        Process::Pipeline(_) => Preparation::of(transform).lost.into_iter().next(),
    }
}

/// Adds the input, and gives normalised pixels `[batch, n_channels, side, side]`.
pub(super) fn input(graph: &mut Graph, transform: &TransformConfig, how: OnnxPreparation) -> Value {
    let (side, n_channels) = (transform.side, transform.channels.count());
    match how {
        OnnxPreparation::Normalise => {
            let shape = [
                BATCH,
                Dim::Known(n_channels),
                Dim::Known(side),
                Dim::Known(side),
            ];
            let levels = graph.input(PIXELS, Element::F32, &shape);
            let (mean, std) = normalisation(transform);
            normalised(graph, &levels, &narrow(&mean), &narrow(&std))
        }
        OnnxPreparation::Full => {
            let shape = [
                BATCH,
                Dim::named("height"),
                Dim::named("width"),
                Dim::Known(3),
            ];
            let pictures = graph.input(PICTURES, Element::U8, &shape);
            let planes = graph.transpose(&pictures, &[0, 3, 1, 2]);
            let bytes = match &transform.process {
                Process::Drawing(drawing) => {
                    let levels = coloured(graph, &planes, transform);
                    let levels = match levels.element() {
                        Element::F32 => levels,
                        _ => graph.cast(&levels, Element::F32),
                    };
                    averaged(graph, &levels, side, drawing)
                }
                Process::Pipeline(_) => {
                    let levels = coloured(graph, &planes, transform);
                    let bytes = match levels.element() {
                        Element::U8 => levels,
                        _ => graph.cast(&levels, Element::U8),
                    };
                    let cut = resized(graph, &bytes, &Preparation::of(transform));
                    graph.cast(&cut, Element::F32)
                }
            };
            let most = graph.number(255.0);
            let levels = graph.div(&bytes, &most);
            // Levels are inverted already.
            match &transform.normalise {
                None => levels,
                Some(Normalise { mean, std }) => {
                    let each = |of: &[f32]| -> Vec<f32> {
                        (0..n_channels).map(|i| of[i % of.len()]).collect()
                    };
                    normalised(graph, &levels, &each(mean), &each(std))
                }
            }
        }
    }
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// `(levels - mean) / std` by channel.
fn normalised(graph: &mut Graph, levels: &Value, mean: &[f32], std: &[f32]) -> Value {
    let shape = [1, mean.len(), 1, 1];
    let mean = graph.tensor("mean", &shape, mean);
    let std = graph.tensor("std", &shape, std);
    let centred = graph.sub(levels, &mean);
    graph.div(&centred, &std)
}

/// Gray where the run has gray, inverted where it inverts: the planes as they are, or whole numbers from 0 to 255 in
/// 32 bits.
fn coloured(graph: &mut Graph, planes: &Value, transform: &TransformConfig) -> Value {
    let mut levels = planes.clone();
    if transform.channels == Channels::Gray {
        // Sums of whole numbers below 2^24: exact in every order.
        let weights = graph.tensor("luma", &[1, 3, 1, 1], &[19_595.0, 38_470.0, 7_471.0]);
        let half = graph.tensor("luma.half", &[1], &[32_768.0]);
        let whole = graph.number(65_536.0);
        let floating = graph.cast(planes, Element::F32);
        let sum = graph.patches(&floating, &weights, Some(&half));
        let luma = graph.div(&sum, &whole);
        levels = graph.floor(&luma);
    }
    if transform.polarity == Polarity::Inverted {
        if levels.element() != Element::F32 {
            levels = graph.cast(&levels, Element::F32);
        }
        let most = graph.number(255.0);
        levels = graph.sub(&most, &levels);
    }
    levels
}

/// The resize and the crop of a pipeline, of bytes: one axis after the other, each rounded to bytes, in Pillow's order.
fn resized(graph: &mut Graph, x: &Value, preparation: &Preparation) -> Value {
    let side = preparation.side;
    let filter = match preparation.filter {
        Filter::Bilinear | Filter::Area => sdlora_onnx::Filter::Linear,
        Filter::Bicubic => sdlora_onnx::Filter::Cubic,
    };
    let (height, width) = (graph.length(x, 2), graph.length(x, 3));
    let (rows, columns, known) = match preparation.resized {
        Resized::Square(n) => {
            let size = graph.list(&[n as i64]);
            (size.clone(), size, Some(n))
        }
        Resized::Shorter(n) => {
            let size = graph.list(&[n as i64]);
            let shorter = graph.min(&height, &width);
            let [rows, columns] = [&height, &width].map(|length| {
                let product = graph.mul(length, &size);
                // Cut to a whole number, as torchvision does; exact for the shorter side.
                graph.div(&product, &shorter)
            });
            (rows, columns, None)
        }
    };
    // Rows of pixels are resized first, unless the height loses more than twice what the width loses: then the
    // height is brought to its size before, and stays as it is afterwards.
    let (two, zero) = (graph.list(&[2]), graph.list(&[0]));
    let lost_height = graph.sub(&height, &rows);
    let lost_width = graph.sub(&width, &columns);
    let twice = graph.mul(&lost_width, &two);
    let least = graph.max(&twice, &zero);
    let is_tall = graph.greater(&lost_height, &least);
    let first = graph.choose(&is_tall, &rows, &height);
    let on = |axis| Resize { axis, filter };
    let x = graph.resize(x, on(2), &first, None);
    let x = graph.resize(&x, on(3), &columns, known);
    let mut x = graph.resize(&x, on(2), &rows, known);
    if preparation.resized == Resized::Square(side) {
        return x;
    }
    for (axis, length) in [(2, &rows), (3, &columns)] {
        // Halves to even, as torchvision rounds.
        let (whole, half) = (graph.number(side as f32), graph.number(0.5));
        let length = graph.cast(length, Element::F32);
        let spare = graph.sub(&length, &whole);
        let start = graph.mul(&spare, &half);
        let start = graph.round(&start);
        let start = graph.cast(&start, Element::I64);
        x = graph.part(&x, axis, &start, side);
    }
    x
}

/// The drawing transform without augmentation, of levels from 0 to 255: shrunk by area to bytes, then sampled. Both
/// are products with matrices, of which the graph computes one for each axis from the size of the picture.
fn averaged(graph: &mut Graph, x: &Value, side: usize, drawing: &Drawing) -> Value {
    let lengths = [2, 3].map(|axis| {
        let length = graph.length(x, axis);
        let length = graph.squeeze(&length, &[0]);
        graph.cast(&length, Element::F32)
    });
    let (one, half) = (graph.number(1.0), graph.number(0.5));
    let base = graph.number((side * drawing.oversample) as f32);
    let sizes = match drawing.fit {
        Fit::Stretch => [base.clone(), base],
        Fit::CropCentre { fraction } => {
            let fraction = graph.number(fraction);
            let whole = graph.div(&base, &fraction);
            let shorter = graph.min(&lengths[0], &lengths[1]);
            let factor = graph.div(&whole, &shorter);
            lengths.clone().map(|length| {
                let size = graph.mul(&length, &factor);
                let size = graph.add(&size, &half);
                graph.floor(&size)
            })
        }
    };
    let [rows, columns] = [0, 1].map(|axis| {
        // A side that would grow keeps its length.
        let size = graph.max(&sizes[axis], &one);
        graph.min(&size, &lengths[axis])
    });
    let down = shares(graph, &lengths[0], &rows);
    let across = shares(graph, &lengths[1], &columns);
    let small = both(graph, x, &down, &across);
    let small = graph.add(&small, &half);
    let bytes = graph.floor(&small);

    let windows = match drawing.fit {
        Fit::Stretch => [None, None],
        Fit::CropCentre { fraction } => {
            let fraction = graph.number(fraction);
            let shorter = graph.min(&rows, &columns);
            let window = graph.mul(&shorter, &fraction);
            [&rows, &columns].map(|length| Some(graph.div(&window, length)))
        }
    };
    let [down, across] = windows;
    let down = samples(graph, side, &rows, down.as_ref());
    let across = samples(graph, side, &columns, across.as_ref());
    both(graph, &bytes, &down, &across)
}

/// `down · x · acrossᵀ`.
fn both(graph: &mut Graph, x: &Value, down: &Value, across: &Value) -> Value {
    let across = graph.transpose(across, &[1, 0]);
    let narrow = graph.matmul(x, &across);
    graph.matmul(down, &narrow)
}

/// `[n_out, n_in]`: the part of each new pixel that an old one covers.
fn shares(graph: &mut Graph, n_in: &Value, n_out: &Value) -> Value {
    let (zero, one) = (graph.number(0.0), graph.number(1.0));
    let factor = graph.div(n_in, n_out);
    let new = graph.count(n_out);
    let new = graph.unsqueeze(&new, 1);
    let start = graph.mul(&new, &factor);
    let next = graph.add(&new, &one);
    let end = graph.mul(&next, &factor);
    let old = graph.count(n_in);
    let after = graph.add(&old, &one);
    let end = graph.min(&end, &after);
    let start = graph.max(&start, &old);
    let overlap = graph.sub(&end, &start);
    let overlap = graph.max(&overlap, &zero);
    graph.div(&overlap, &factor)
}

/// `[side, n]`: what each of `side` points, evenly spread over the middle `window` of an axis, has of the two pixels
/// beside it.
fn samples(graph: &mut Graph, side: usize, n: &Value, window: Option<&Value>) -> Value {
    let (zero, one, half) = (graph.number(0.0), graph.number(1.0), graph.number(0.5));
    let name = format!("places.{}", n.name());
    let step = 1.0 / side as f32;
    let places: Vec<f32> = (0..side).map(|i| (i as f32 + 0.5) * step - 0.5).collect();
    let mut places = graph.tensor(&name, &[side, 1], &places);
    if let Some(window) = window {
        places = graph.mul(&places, window);
    }
    let places = graph.add(&places, &half);
    let places = graph.mul(&places, n);
    // Centres of pixels lie at halves.
    let places = graph.sub(&places, &half);
    let last = graph.sub(n, &one);
    let places = graph.max(&places, &zero);
    let places = graph.min(&places, &last);
    let pixels = graph.count(n);
    let apart = graph.sub(&places, &pixels);
    let apart = graph.abs(&apart);
    let near = graph.sub(&one, &apart);
    graph.max(&near, &zero)
}
