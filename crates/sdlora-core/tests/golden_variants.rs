//! The named variants against NumPy: how a task starts, what divides a finished direction, and the gradient
//! through the norm of the running one (golden README, section 7).
#![allow(clippy::unwrap_used)]

use burn::tensor::{Tensor, TensorData};
use sdlora_core::{Adapter, Direction, MagnitudeSharing, Magnitudes, SdLoraConfig, Site, Variant};
use sdlora_testkit::{Compared, Tolerance, assert_close, golden_json_with, test_device_autodiff};
use serde::Deserialize;

/// Relative to the largest value of the tensor, as for the layer of the published code.
const TOLERANCE: Tolerance = Tolerance::RelMax(1e-5);

#[derive(Deserialize)]
struct File {
    d_input: usize,
    d_output: usize,
    variant_sites: Vec<NamedSite>,
    variants: Vec<Case>,
}

#[derive(Deserialize)]
struct NamedSite {
    block: usize,
    projection: String,
}

/// One variant; lists of sites are in the order of the file.
#[derive(Deserialize)]
struct Case {
    name: String,
    /// The variant whose settings these are, sharing aside.
    variant: Option<Variant>,
    settings: SdLoraConfig,
    ranks: Vec<usize>,
    /// `[task][site]`, at the end of the task.
    factors: Vec<Vec<Factors>>,
    /// `[task][group]`, at the end of the task; of all tasks but the last.
    trained_magnitudes: Vec<Vec<Vec<f64>>>,
    cotangents: Vec<Vec<f32>>,
    /// `[group]`: what the last task starts with.
    start_magnitudes: Vec<Vec<f64>>,
    /// `[group]`: where updates and gradients are taken.
    magnitudes: Vec<Vec<f64>>,
    updates: Vec<Vec<f32>>,
    gradients: Vec<Factors>,
    magnitude_gradients: Vec<Vec<f32>>,
}

/// `a: [d_input, rank]`, `b: [rank, d_output]`, row-major.
#[derive(Deserialize)]
struct Factors {
    a: Vec<f32>,
    b: Vec<f32>,
}

#[test]
fn starts_updates_and_gradients_of_every_variant_agree_with_numpy() {
    let mut compared = Compared::new("variants");
    for (path, value) in golden_json_with(&["variants", "variant_sites"]) {
        let file: File = serde_json::from_value(value)
            .unwrap_or_else(|e| panic!("{} has another form: {e}", path.display()));
        for case in &file.variants {
            agrees(&file, case);
            compared.add(&case.name);
        }
    }
}

fn agrees(file: &File, case: &Case) {
    let (device, name) = (test_device_autodiff(), &case.name);
    if let Some(variant) = case.variant {
        let named = SdLoraConfig {
            sharing: case.settings.sharing,
            ..variant.config()
        };
        assert_eq!(named, case.settings, "{name}");
    }
    let sites: Vec<Site> = file
        .variant_sites
        .iter()
        .map(|site| Site {
            name: format!("blocks.{}.{}", site.block, site.projection).into(),
            group: site.block,
            d_input: file.d_input,
            d_output: file.d_output,
        })
        .collect();
    let mut adapter = Adapter::new(case.settings, &sites).unwrap();
    for (task, factors) in case.factors.iter().enumerate() {
        let rank = case.ranks[task];
        let directions = factors.iter().map(|f| {
            Direction::from_factors(
                TensorData::new(f.a.clone(), [file.d_input, rank]),
                TensorData::new(f.b.clone(), [rank, file.d_output]),
                &device,
            )
        });
        adapter = adapter
            .begin_task_with(directions.collect(), &device)
            .unwrap();
        if let Some(trained) = case.trained_magnitudes.get(task) {
            adapter.magnitudes = Some(Magnitudes::from_rows(trained, &device));
        }
    }
    for (found, expected) in adapter.magnitude_rows().iter().zip(&case.start_magnitudes) {
        let narrow = |row: &[f64]| -> Vec<f32> { row.iter().map(|&v| v as f32).collect() };
        let (found, expected) = (narrow(found), narrow(expected));
        let what = format!("{name}: magnitudes at the start of the last task");
        assert_close(found.as_slice(), expected.as_slice(), TOLERANCE, &what);
    }

    adapter.magnitudes = Some(Magnitudes::from_rows(&case.magnitudes, &device));
    let updates = adapter.updates();
    let mut loss: Tensor<1> = Tensor::zeros([1], &device);
    for (i, site) in sites.iter().enumerate() {
        let update = updates.get(&site.name).unwrap().dense();
        let what = format!("{name}: update of {site}");
        assert_close(update.clone(), case.updates[i].as_slice(), TOLERANCE, &what);
        let shape = [file.d_input, file.d_output];
        let cotangent = TensorData::new(case.cotangents[i].clone(), shape);
        loss = loss + (update * Tensor::<2>::from_data(cotangent, &device)).sum();
    }
    let grads = loss.backward();
    for (bank, expected) in adapter.sites.iter().zip(&case.gradients) {
        let current = bank.current.as_ref().unwrap();
        for (factor, param, expected) in [
            ("a", &current.a, &expected.a),
            ("b", &current.b, &expected.b),
        ] {
            let grad = param.val().grad(&grads).unwrap();
            let what = format!("{name}: gradient of {factor} on {}", bank.site());
            assert_close(grad, expected.as_slice(), TOLERANCE, &what);
        }
    }
    let magnitudes = adapter.magnitudes.as_ref().unwrap();
    let past = magnitudes
        .past
        .as_ref()
        .unwrap()
        .val()
        .grad(&grads)
        .unwrap();
    let current = magnitudes.current.val().grad(&grads).unwrap();
    let grad: Vec<f32> = Tensor::cat(vec![past, current], 1)
        .into_data()
        .iter()
        .collect();
    let expected = case.magnitude_gradients.concat();
    let what = format!("{name}: gradient of the magnitudes");
    assert_close(grad.as_slice(), expected.as_slice(), TOLERANCE, &what);
    let n_groups = match case.settings.sharing {
        MagnitudeSharing::Shared => 1,
        MagnitudeSharing::PerGroup => case.magnitude_gradients.len(),
    };
    assert_eq!(case.magnitude_gradients.len(), n_groups, "{name}");
}
