//! Absorbing a direction: against NumPy, and that the function changes by the residual only.
#![allow(clippy::unwrap_used)]

use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sdlora_core::{
    Adapter, AdapterStructure, Coefficients, CurrentForm, Direction, HostFactors, MagnitudeStart,
    Magnitudes, PastNorm, ResidualNorm, SdLoraConfig, Site, Variant,
};
use sdlora_testkit::{Compared, Tolerance, assert_close, golden_json_with, test_device};

const NAMES: [&str; 3] = ["query", "key", "value"];

fn sites(d_input: usize, d_output: usize) -> [Site; 3] {
    NAMES.map(|name| Site {
        name: name.into(),
        group: 0,
        d_input,
        d_output,
    })
}

fn direction(site: &Site, f: &HostFactors) -> Direction {
    Direction::from_factors(
        TensorData::new(f.a.clone(), [site.d_input, f.rank]),
        TensorData::new(f.b.clone(), [f.rank, site.d_output]),
        &test_device(),
    )
}

/// An adapter whose tasks have the given factors on every site, and the given magnitudes.
fn adapter(
    config: SdLoraConfig,
    sites: &[Site],
    tasks: &[Vec<HostFactors>],
    magnitudes: &[f64],
) -> Adapter {
    let mut adapter = Adapter::new(config, sites).unwrap();
    for task in tasks {
        let directions = sites
            .iter()
            .zip(task)
            .map(|(site, f)| direction(site, f))
            .collect();
        adapter = adapter.begin_task_with(directions, &test_device()).unwrap();
    }
    adapter.magnitudes = Some(Magnitudes::from_rows(
        &[magnitudes.to_vec()],
        &test_device(),
    ));
    adapter
}

fn dense(adapter: &Adapter) -> Vec<Vec<f32>> {
    let updates = adapter.updates();
    NAMES
        .iter()
        .map(|name| {
            let dense: Tensor<2> = updates.get(name).unwrap().dense();
            dense.into_data().iter().collect()
        })
        .collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(a - b).powi(2))
        .sum::<f64>()
        .sqrt()
}

fn random(rng: &mut ChaCha8Rng, site: &Site, rank: usize) -> HostFactors {
    let mut values = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
    HostFactors {
        a: values(site.d_input * rank),
        b: values(rank * site.d_output),
        rank,
    }
}

/// `Σ w_k A_k B_k`, its factors side by side.
fn combined(site: &Site, parts: &[(f32, &HostFactors)]) -> HostFactors {
    let rank = parts.iter().map(|(_, f)| f.rank).sum();
    let mut a = Vec::new();
    for i in 0..site.d_input {
        for (w, f) in parts {
            a.extend(f.a[i * f.rank..(i + 1) * f.rank].iter().map(|v| w * v));
        }
    }
    let b = parts.iter().flat_map(|(_, f)| f.b.clone()).collect();
    HostFactors { a, b, rank }
}

#[test]
fn residuals_and_coefficients_agree_with_numpy() {
    let mut compared = Compared::new("absorbed directions");
    for (path, golden) in golden_json_with(&["sites", "d_input", "d_output"]) {
        agrees_with_numpy(&golden);
        compared.add(path.display().to_string());
    }
}

fn agrees_with_numpy(golden: &serde_json::Value) {
    let count = |key: &str| golden[key].as_u64().unwrap() as usize;
    let sites = sites(count("d_input"), count("d_output"));
    let numbers = |value: &serde_json::Value| -> Vec<f64> {
        let values = value.as_array().unwrap().iter();
        values.map(|v| v.as_f64().unwrap()).collect()
    };
    let factors = |value: &serde_json::Value| {
        let narrow = |key: &str| -> Vec<f32> {
            numbers(&value[key]).into_iter().map(|v| v as f32).collect()
        };
        let a = narrow("a");
        HostFactors {
            rank: a.len() / sites[0].d_input,
            b: narrow("b"),
            a,
        }
    };
    let on_sites: Vec<&serde_json::Value> = golden["sites"].as_array().unwrap().iter().collect();
    let n_past = on_sites[0]["past"].as_array().unwrap().len();
    let mut tasks: Vec<Vec<HostFactors>> = (0..n_past)
        .map(|k| on_sites.iter().map(|s| factors(&s["past"][k])).collect())
        .collect();
    tasks.push(on_sites.iter().map(|s| factors(&s["current"])).collect());
    // Plain unit directions; resetting magnitudes leaves all coefficients in the offsets.
    let config = SdLoraConfig {
        past_norm: PastNorm::Frobenius,
        current: CurrentForm::Raw,
        start: MagnitudeStart::Reset { value: 0.8 },
        ..Variant::Reference.config()
    };
    for (norm, key) in [
        (ResidualNorm::Fro, "fro"),
        (ResidualNorm::Fro2, "fro2"),
        (ResidualNorm::Relative, "fro"),
        (ResidualNorm::Rms, "rms"),
    ] {
        let magnitudes = [vec![0.8; n_past], vec![2.0]].concat();
        let before = adapter(config, &sites, &tasks, &magnitudes);
        let (after, found) =
            before.absorb_current(norm, 1.0, Coefficients::Trained, &test_device());
        let found = found.unwrap();
        assert!(found.is_absorbed);
        for (i, site) in on_sites.iter().enumerate() {
            let expected = site[key].as_f64().unwrap();
            // A residual of rounding is the root of a rounding error.
            let tolerance = if key == "fro2" { 1e-6 } else { 1e-5 };
            let residual = found.residuals[i];
            assert!(
                (residual - expected).abs() < tolerance,
                "{key}, site {i}: {residual} for {expected}"
            );
            let offsets = after.sites[i].past.as_ref().unwrap().offsets_host();
            for (offset, c) in offsets.iter().zip(numbers(&site["coefficients"])) {
                assert!((offset - 2.0 * c).abs() < 1e-5, "{offset} for {c}, twice");
            }
        }
    }
}

/// Tasks of three sites as a golden file has them, the running one last.
fn golden_tasks(golden: &serde_json::Value, d_input: usize) -> Vec<Vec<HostFactors>> {
    let numbers = |value: &serde_json::Value| -> Vec<f32> {
        let values = value.as_array().unwrap().iter();
        values.map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let factors = |value: &serde_json::Value| {
        let (a, b) = (numbers(&value["a"]), numbers(&value["b"]));
        let rank = a.len() / d_input;
        HostFactors { a, b, rank }
    };
    let sites = golden["sites"].as_array().unwrap();
    let n_past = sites[0]["past"].as_array().unwrap().len();
    let mut tasks: Vec<Vec<HostFactors>> = (0..n_past)
        .map(|k| sites.iter().map(|s| factors(&s["past"][k])).collect())
        .collect();
    tasks.push(sites.iter().map(|s| factors(&s["current"])).collect());
    tasks
}

#[test]
fn the_coefficients_of_the_paper_are_one_fit_for_all_sites_and_are_added_as_they_are() {
    let mut compared = Compared::new("directions absorbed by equation 8");
    for (path, golden) in golden_json_with(&["sites", "d_input", "d_output", "together"]) {
        let count = |key: &str| golden[key].as_u64().unwrap() as usize;
        let sites = sites(count("d_input"), count("d_output"));
        let tasks = golden_tasks(&golden, count("d_input"));
        let expected = |key: &str| -> Vec<f64> {
            let values = golden["together"][key].as_array().unwrap().iter();
            values.map(|v| v.as_f64().unwrap()).collect()
        };
        let n_past = tasks.len() - 1;
        // Whatever the magnitude of the running direction: it does not count.
        for (start, is_reset) in [
            (MagnitudeStart::Keep { value: 1.0 }, false),
            (MagnitudeStart::Reset { value: 0.8 }, true),
        ] {
            let config = SdLoraConfig {
                past_norm: PastNorm::Frobenius,
                current: CurrentForm::Raw,
                start,
                ..Variant::Reference.config()
            };
            let magnitudes = [vec![0.7; n_past], vec![2.0]].concat();
            let before = adapter(config, &sites, &tasks, &magnitudes);
            let kind = Coefficients::Paper;
            let (after, found) =
                before.absorb_current(ResidualNorm::Fro, 2.0, kind, &test_device());
            let found = found.unwrap();
            assert!(found.is_absorbed);
            for (found, expected) in found.residuals.iter().zip(expected("fro")) {
                assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
            }
            let rows = after.magnitude_rows();
            for (k, delta) in expected("coefficients").into_iter().enumerate() {
                let added = rows[0][k] - 0.7;
                let of_magnitude = if is_reset { 0.0 } else { delta };
                assert!((added - of_magnitude).abs() < 1e-5, "{added} for {delta}");
                for site in &after.sites {
                    let offset = site.past.as_ref().unwrap().offsets_host()[k];
                    // A magnitude that is reset would forget it.
                    let of_offset = delta - of_magnitude;
                    assert!((offset - of_offset).abs() < 1e-5, "{offset} for {delta}");
                }
            }
        }
        compared.add(path.display().to_string());
    }
}

#[test]
fn what_is_absorbed_as_kept_enters_the_next_task_as_the_direction_would_have() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let (device, sites) = (test_device(), sites(6, 5));
    let mut tasks: Vec<Vec<HostFactors>> = [2, 3]
        .iter()
        .map(|&rank| sites.iter().map(|s| random(&mut rng, s, rank)).collect())
        .collect();
    // Spanned by the two, with other weights on every site.
    let last = sites.iter().enumerate().map(|(i, s)| {
        let w = 0.2 + 0.5 * i as f32;
        combined(s, &[(w, &tasks[0][i]), (0.3 - w, &tasks[1][i])])
    });
    let last = last.collect();
    tasks.push(last);
    for variant in Variant::ALL {
        let before = adapter(variant.config(), &sites, &tasks, &[0.7, 1.2, 0.9]);
        // The next task starts with a direction of 0.
        let next = |adapter: Adapter| {
            let mut rng = ChaCha8Rng::seed_from_u64(13);
            dense(&adapter.begin_task(2, &mut rng, &device).unwrap())
        };
        let absorbed = |kind: Coefficients| {
            let norm = ResidualNorm::Fro;
            let (after, found) = before.clone().absorb_current(norm, 1e-3, kind, &device);
            assert!(found.unwrap().is_absorbed, "{variant:?}");
            assert_eq!(after.ranks(), [2, 3]);
            next(after)
        };
        let expected = next(before.clone());
        let far = |found: Vec<Vec<f32>>| -> f64 {
            let pairs = found.iter().zip(&expected);
            pairs.map(|(a, b)| distance(a, b)).fold(0.0, f64::max)
        };
        let (kept, trained) = (
            far(absorbed(Coefficients::Kept)),
            far(absorbed(Coefficients::Trained)),
        );
        assert!(kept < 1e-4, "{variant:?}: {kept}");
        // Where nothing jumps, a direction goes on as it was trained.
        let jumps = variant == Variant::Reference;
        assert_eq!(trained > 0.1, jumps, "{variant:?}: {trained}");
        assert_eq!(trained < 1e-4, !jumps, "{variant:?}: {trained}");
    }
}

#[test]
fn a_direction_the_others_span_is_absorbed_and_the_function_stays() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let sites = sites(6, 5);
    for variant in Variant::ALL {
        let mut tasks: Vec<Vec<HostFactors>> = [2, 3]
            .iter()
            .map(|&rank| sites.iter().map(|s| random(&mut rng, s, rank)).collect())
            .collect();
        // Other weights on every site: one shared magnitude alone could not take them up.
        let last = sites.iter().enumerate().map(|(i, s)| {
            let w = 0.2 + 0.5 * i as f32;
            combined(s, &[(w, &tasks[0][i]), (0.3 - w, &tasks[1][i])])
        });
        let last = last.collect();
        tasks.push(last);
        let before = adapter(variant.config(), &sites, &tasks, &[0.7, 1.2, 0.9]);
        let expected = dense(&before);
        let (after, found) = before.absorb_current(
            ResidualNorm::Fro,
            1e-3,
            Coefficients::Trained,
            &test_device(),
        );
        assert!(found.unwrap().is_absorbed, "{variant:?}");
        assert_eq!(after.ranks(), [2, 3]);
        for (found, expected) in dense(&after).iter().zip(&expected) {
            let found = Tensor::<1>::from_data(
                TensorData::new(found.clone(), [found.len()]),
                &test_device(),
            );
            assert_close(found, expected, Tolerance::RelMax(1e-5), "after absorbing");
        }
        // The next task goes on from there: the function is still the same where nothing resets.
        let next = after.begin_task(2, &mut rng, &test_device()).unwrap();
        assert_eq!(next.ranks(), [2, 3, 2]);
        if variant != Variant::Reference {
            for (found, expected) in dense(&next).iter().zip(&expected) {
                assert!(distance(found, expected) < 1e-4, "{variant:?}");
            }
        }
    }
}

#[test]
fn what_is_not_spanned_changes_the_function_by_the_residual_or_is_kept() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let sites = sites(6, 5);
    let mut tasks: Vec<Vec<HostFactors>> = [2, 1]
        .iter()
        .map(|&rank| sites.iter().map(|s| random(&mut rng, s, rank)).collect())
        .collect();
    tasks.push(sites.iter().map(|s| random(&mut rng, s, 2)).collect());
    let alpha = 0.9;
    let before = adapter(Variant::Carry.config(), &sites, &tasks, &[0.7, 1.2, alpha]);
    let expected = dense(&before);

    let (kept, found) = before.clone().absorb_current(
        ResidualNorm::Fro,
        0.1,
        Coefficients::Trained,
        &test_device(),
    );
    let found = found.unwrap();
    assert!(!found.is_absorbed && found.residuals.iter().all(|&r| r > 0.1));
    assert_eq!(dense(&kept), expected, "bit-equal");
    assert_eq!(kept.ranks(), [2, 1, 2]);

    let (dropped, found) = before.absorb_current(
        ResidualNorm::Fro,
        1.0,
        Coefficients::Trained,
        &test_device(),
    );
    let residuals = found.unwrap().residuals;
    for (i, (after, before)) in dense(&dropped).iter().zip(&expected).enumerate() {
        let length = alpha * tasks[2][i].frobenius_norm();
        let changed = distance(after, before) / length;
        assert!(
            (changed - residuals[i]).abs() < 1e-5,
            "site {i}: {changed} for {}",
            residuals[i]
        );
    }
}

#[test]
fn there_is_nothing_to_absorb_in_the_first_task_or_between_tasks() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let (device, sites) = (test_device(), sites(6, 5));
    let empty = Adapter::new(Variant::Carry.config(), &sites).unwrap();
    let (empty, found) =
        empty.absorb_current(ResidualNorm::Fro, 1.0, Coefficients::Trained, &device);
    assert!(found.is_none());
    let first = empty.begin_task(2, &mut rng, &device).unwrap();
    let (first, found) =
        first.absorb_current(ResidualNorm::Fro, 1.0, Coefficients::Trained, &device);
    assert!(found.is_none());
    assert_eq!(first.ranks(), [2]);
    let between = first.finish_task(&device);
    assert!(
        between
            .absorb_current(ResidualNorm::Fro, 1.0, Coefficients::Trained, &device)
            .1
            .is_none()
    );
}

#[test]
fn a_record_keeps_the_offsets() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (device, sites) = (test_device(), sites(6, 5));
    let tasks: Vec<Vec<HostFactors>> = (0..3)
        .map(|_| sites.iter().map(|s| random(&mut rng, s, 2)).collect())
        .collect();
    let config = Variant::Carry.config();
    let full = adapter(config, &sites, &tasks, &[0.7, 1.2, 0.9]);
    let (adapter, _) = full.absorb_current(ResidualNorm::Fro, 1.0, Coefficients::Trained, &device);
    let offsets = adapter.sites[1].past.as_ref().unwrap().offsets_host();
    assert!(offsets.iter().any(|offset| offset.abs() > 1e-3));
    let bytes = adapter.clone().into_record().into_bytes().unwrap();
    let restored = Adapter::with_structure(
        config,
        &sites,
        &AdapterStructure::uniform(sites.len(), &[2, 2], None),
        &device,
    )
    .unwrap()
    .load_record(ModuleRecord::from_bytes(bytes).unwrap());
    assert_eq!(dense(&restored), dense(&adapter));
}
