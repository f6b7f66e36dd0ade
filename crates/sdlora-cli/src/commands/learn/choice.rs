//! What `learn` chooses where nobody says: a short rule on the number of classes and images, and why.
//!
//! | of the smallest class | head on frozen features | evidence in docs/results.md |
//! |---|---|---|
//! | fewer than 100 images | `ncm`, class means | best or within 0.8 points of the best of all rows on three streams with 15 images a class |
//! | 100 or more | `ridge`, ridge regression | with 500 images a class 3.1 points above class means on CIFAR-100, 1.2 below on Tiny-ImageNet |
//!
//! Both learn one class at a time, take more images of a class they know, and go on for any number of tasks.

use std::path::Path;

use sdlora_data::Survey;
use sdlora_image::{Channels, TransformConfig};
use sdlora_train::{LossWeights, Plan};
use toml::{Table, Value};

/// Images of the smallest class from which ridge regression is chosen.
const MANY: usize = 100;
/// How many times as many images the largest class may have as the smallest before a loss balances them.
const UNEQUAL: usize = 5;
/// Most images of a class that are held out to calibrate, and at most one in so many.
const CALIBRATE: (usize, usize) = (3, 5);
/// The backbone that ships.
pub const SHIPPED: &str = "omniglot/vit_omniglot_patch7_28.safetensors";

/// The head for so many images of the smallest class.
fn head(smallest: usize) -> (&'static str, &'static str) {
    match smallest {
        0..MANY => ("ncm", "class means: right from the first image of a class"),
        _ => (
            "ridge",
            "ridge regression: pays off with many images of every class",
        ),
    }
}

/// Images of every class that are held out to calibrate: one in five of the smallest class, and three at most.
pub fn calibrate_on(smallest: usize) -> usize {
    let (most, one_in) = CALIBRATE;
    (smallest / one_in).min(most)
}

/// A configuration without backbone, transform and folders, as TOML.
pub fn configuration(survey: &Survey) -> Table {
    let (smallest, _) = survey.train_range();
    let mut table = Table::new();
    let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
    set("seed", Value::Integer(1993));
    set("dataset", "folders".into());
    set("n_epochs", Value::Integer(10));
    set("batch_size", Value::Integer(32));
    set(
        "calibrate_on",
        Value::Integer(calibrate_on(smallest) as i64),
    );
    set("head", head(smallest).0.into());
    let section = |pairs: &[(&str, Value)]| {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()));
        Value::Table(pairs.collect())
    };
    set("method", section(&[("name", "ncm".into())]));
    set("backbone", section(&[("weights", SHIPPED.into())]));
    let natural = section(&[("order", "natural".into())]);
    let split = section(&[("per_domain", natural)]);
    set("stream", section(&[("split", split)]));
    // For methods that take steps; the rate of the main job.
    let optimizer = [
        ("rule", "sgd".into()),
        ("lr", Value::Float(0.03)),
        ("momentum", Value::Float(0.9)),
    ];
    set("optimizer", section(&optimizer));
    table
}

/// What balances the loss of a method that has one.
pub fn loss_weights(plan: &Plan, survey: &Survey) -> LossWeights {
    let (smallest, largest) = survey.train_range();
    let method = plan.method();
    let has_loss = method.takes_steps() && !method.replaces_loss() && plan.config().mix.is_none();
    match has_loss && largest > UNEQUAL * smallest {
        true => LossWeights::Balanced,
        false => plan.config().loss_weights,
    }
}

/// The rows of the table of what was chosen: what, which, why. `is_later` says that folders were learned before.
pub fn rows(plan: &Plan, survey: &Survey, is_later: bool) -> Vec<[String; 3]> {
    let config = plan.config();
    let (smallest, largest) = survey.train_range();
    let row = |what: &str, which: String, why: String| [what.to_owned(), which, why];
    let weights = config.backbone.weights.to_string_lossy();
    let mut rows = vec![row(
        "backbone",
        weights.clone().into_owned(),
        match weights == SHIPPED {
            true => "ships with sdlora; made for drawn characters".into(),
            false => "as asked for".into(),
        },
    )];
    rows.push(row(
        "images",
        images(&config.transform),
        "as the backbone was trained".into(),
    ));
    let own = plan.method();
    if own.takes_steps() {
        rows.push(row("method", config.method.name.clone(), "as set".into()));
        rows.push(row(
            "training",
            format!("{} epochs, rate {}", config.n_epochs, config.optimizer.lr),
            "change with --set n_epochs=N and --set optimizer.lr=X".into(),
        ));
    } else {
        rows.push(row(
            "method",
            "frozen backbone".into(),
            "nothing is forgotten, and nothing is trained: no rate, no epochs".into(),
        ));
    }
    let why = match head(smallest) {
        (name, why) if name == plan.head_name() => why.to_owned(),
        _ => "as set".into(),
    };
    rows.push(row("head", plan.head_name().to_owned(), why));
    if config.loss_weights == LossWeights::Balanced {
        rows.push(row(
            "loss",
            "balanced".into(),
            format!("classes have {smallest} to {largest} images"),
        ));
    }
    rows.push(match config.calibrate_on {
        0 if is_later => row(
            "calibration",
            "as before".into(),
            "too few images to hold any back".into(),
        ),
        0 => row(
            "calibration",
            "none".into(),
            "too few images to hold any back: `predict --reject` needs 5 a class in the first folder".into(),
        ),
        n => row(
            "calibration",
            format!("{n} images a class"),
            "held back: they make probabilities right and tell strangers apart".into(),
        ),
    });
    rows
}

/// The input of a transform in a few words.
fn images(transform: &TransformConfig) -> String {
    let colours = match transform.channels {
        Channels::Gray => "grey",
        Channels::Rgb => "colour",
    };
    format!("{0} x {0} pixels, {colours}", transform.side)
}

/// What to say where a backbone does not fit the images.
pub fn mismatch(plan: &Plan, survey: &Survey) -> Option<String> {
    let config = plan.config();
    let is_gray = config.transform.channels == Channels::Gray;
    if !is_gray || !survey.is_coloured() {
        return None;
    }
    let which = match config.backbone.weights == Path::new(SHIPPED) {
        true => "the backbone that ships knows drawn characters in grey",
        false => "this backbone sees grey only",
    };
    Some(format!(
        "{which}, and these images are coloured: expect little of it. A backbone for photographs is one option away: \
         --backbone hf:timm/vit_small_patch16_224.augreg_in21k"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_depends_on_the_smallest_class() {
        assert_eq!(head(1).0, "ncm");
        assert_eq!(head(99).0, "ncm");
        assert_eq!(head(100).0, "ridge");
        let held: Vec<usize> = [1, 4, 5, 9, 10, 15, 500].map(calibrate_on).into();
        assert_eq!(held, [0, 0, 1, 1, 2, 3, 3]);
    }
}
