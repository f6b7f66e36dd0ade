//! Properties of the adapter on random factors: nothing here uses a zero factor, a zero input or
//! equal magnitudes, which would prove nothing.
#![allow(clippy::unwrap_used)]

use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::{Tensor, TensorData};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sdlora_core::{
    Adapter, ColumnUpdate, Direction, HostFactors, Magnitudes, PastDirections, Site, UpdateForm,
    Variant, adapted_linear, effective_weight,
};
use sdlora_testkit::{Tolerance, assert_close, test_device};

const D: usize = 6;

fn site(name: &str) -> Site {
    Site {
        name: name.into(),
        group: 0,
        d_input: D,
        d_output: D,
    }
}

fn values(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn matrix(rng: &mut ChaCha8Rng, shape: [usize; 2]) -> Tensor<2> {
    let data = TensorData::new(values(rng, shape[0] * shape[1]), shape);
    Tensor::from_data(data, &test_device())
}

fn factors(rng: &mut ChaCha8Rng, rank: usize) -> HostFactors {
    HostFactors {
        a: values(rng, D * rank),
        b: values(rng, rank * D),
        rank,
    }
}

fn direction(f: &HostFactors) -> Direction {
    Direction::from_factors(
        TensorData::new(f.a.clone(), [D, f.rank]),
        TensorData::new(f.b.clone(), [f.rank, D]),
        &test_device(),
    )
}

/// An adapter on one site that went through tasks of the given ranks.
fn trained(variant: Variant, ranks: &[usize], rng: &mut ChaCha8Rng) -> Adapter {
    let mut adapter = Adapter::new(variant.config(), &[site("blocks.0.query")]).unwrap();
    for &rank in ranks {
        let f = factors(rng, rank);
        adapter = adapter
            .begin_task_with(vec![direction(&f)], &test_device())
            .unwrap();
    }
    let alpha: Vec<f64> = ranks.iter().map(|_| rng.random_range(0.5..2.0)).collect();
    adapter.magnitudes = Some(Magnitudes::from_rows(&[alpha], &test_device()));
    adapter
}

fn dense(adapter: &Adapter) -> Tensor<2> {
    adapter.updates().get("blocks.0.query").unwrap().dense()
}

fn host<const N: usize>(tensor: Tensor<N>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}

fn variants() -> impl Strategy<Value = Variant> {
    prop::sample::select(Variant::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn merged_equals_unmerged_in_either_form(
        variant in variants(), ranks in prop::collection::vec(1usize..=D, 1..5), seed: u64,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let adapter = trained(variant, &ranks, &mut rng);
        let updates = adapter.updates();
        let update = updates.get("blocks.0.query").unwrap();
        let columns = [ColumnUpdate { first_column: D, update }];
        let weight = matrix(&mut rng, [D, 3 * D]);
        let x = matrix(&mut rng, [8, D]).reshape([2, 4, D]);
        let merged = effective_weight(weight.clone(), &columns);
        let expected = host(adapted_linear(x.clone(), merged, None, &[], UpdateForm::Auto));
        for form in [UpdateForm::Dense, UpdateForm::Factored] {
            let out = adapted_linear(x.clone(), weight.clone(), None, &columns, form);
            assert_close(out, &expected, Tolerance::RelMax(1e-5), "unmerged");
        }
    }

    #[test]
    fn magnitude_zero_is_the_base(
        variant in variants(), ranks in prop::collection::vec(1usize..=D, 1..5), seed: u64,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut adapter = trained(variant, &ranks, &mut rng);
        prop_assert!(host(dense(&adapter)).iter().any(|v| v.abs() > 1e-3));
        let zeros = vec![vec![0.0; ranks.len()]];
        adapter.magnitudes = Some(Magnitudes::from_rows(&zeros, &test_device()));
        prop_assert!(host(dense(&adapter)).iter().all(|&v| v == 0.0));
    }

    #[test]
    fn the_order_of_past_directions_is_irrelevant(
        ranks in prop::collection::vec(1usize..=D, 2..6), seed: u64, swap in any::<prop::sample::Index>(),
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let all: Vec<_> = ranks.iter().map(|&r| factors(&mut rng, r)).collect();
        let norms: Vec<f64> = all.iter().map(HostFactors::frobenius_norm).collect();
        let alpha: Vec<f64> = ranks.iter().map(|_| rng.random_range(0.5..2.0)).collect();
        let sum = |order: &[usize]| {
            let pick = |i: &usize| all[*i].clone();
            let past = PastDirections::from_host(
                &order.iter().map(pick).collect::<Vec<_>>(),
                &order.iter().map(|&i| norms[i]).collect::<Vec<_>>(),
                &test_device(),
            );
            let alpha: Vec<f32> = order.iter().map(|&i| alpha[i] as f32).collect();
            let alpha = Tensor::<2>::from_data(TensorData::new(alpha, [1, order.len()]), &test_device());
            host((past.a.val() * alpha.matmul(past.spread.val())).matmul(past.b.val()))
        };
        let order: Vec<usize> = (0..ranks.len()).collect();
        let mut other = order.clone();
        other.rotate_left(swap.index(ranks.len()));
        assert_close(sum(&other).as_slice(), sum(&order).as_slice(), Tolerance::RelMax(1e-5), "reordered");
    }

    #[test]
    fn a_record_restores_every_bit(
        variant in variants(), ranks in prop::collection::vec(1usize..=D, 1..5), seed: u64,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let adapter = trained(variant, &ranks, &mut rng);
        let bytes = adapter.clone().into_record().into_bytes().unwrap();
        let empty = Adapter::with_structure(
            variant.config(), &[site("blocks.0.query")], &adapter.structure(), &test_device(),
        ).unwrap();
        let restored = empty.load_record(ModuleRecord::from_bytes(bytes).unwrap());
        prop_assert_eq!(host(dense(&restored)), host(dense(&adapter)));
        prop_assert_eq!(restored.magnitude_rows(), adapter.magnitude_rows());
        prop_assert_eq!(restored.ranks(), ranks);
    }

    #[test]
    fn carry_leaves_the_function_as_it_was_at_a_task_boundary(
        ranks in prop::collection::vec(1usize..=D, 1..4), seed: u64,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let sites = [site("blocks.0.query"), site("blocks.0.value")];
        let mut adapter = Adapter::new(Variant::Carry.config(), &sites).unwrap();
        for &rank in &ranks {
            let (q, v) = (factors(&mut rng, rank), factors(&mut rng, rank));
            adapter = adapter
                .begin_task_with(vec![direction(&q), direction(&v)], &test_device())
                .unwrap();
        }
        let before = adapter.updates();
        let after = adapter.finish_task(&test_device()).updates();
        for projection in ["blocks.0.query", "blocks.0.value"] {
            let expected = host(before.get(projection).unwrap().dense());
            let out = after.get(projection).unwrap().dense();
            assert_close(out, &expected, Tolerance::RelMax(1e-5), "after the boundary");
        }
    }
}

#[test]
fn past_directions_do_not_move_and_have_unit_norm_in_the_paper_variant() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let adapter = trained(Variant::Paper, &[3, 2], &mut rng);
    let first = adapter.sites[0].past.as_ref().unwrap().to_host();
    let adapter = adapter.begin_task(4, &mut rng, &test_device()).unwrap();
    let past = adapter.sites[0].past.as_ref().unwrap();
    assert_eq!(past.to_host()[0], first[0], "bit-equal");
    // eps = 0.1 beside norms of about 2 leaves the norm within half a percent of 1.
    for (f, inverse) in past.to_host().iter().zip(past.inverse_norms()) {
        assert!((f.frobenius_norm() * inverse - 1.0).abs() < 5e-3);
    }
    // A new direction starts at zero and leaves the function as it was.
    assert!(
        host(adapter.sites[0].current.as_ref().unwrap().b.val())
            .iter()
            .all(|&v| v == 0.0)
    );
}

#[test]
fn reference_resets_all_magnitudes_and_paper_keeps_the_learned_ones() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let device = test_device();
    for (variant, expected) in [
        (Variant::Reference, vec![0.8, 0.8, 0.8]),
        (Variant::Paper, vec![1.5, 0.25, 1.0]),
    ] {
        let mut adapter = trained(variant, &[2, 2], &mut rng);
        adapter.magnitudes = Some(Magnitudes::from_rows(&[vec![1.5, 0.25]], &device));
        let adapter = adapter.begin_task(2, &mut rng, &device).unwrap();
        for (found, expected) in adapter.magnitude_rows()[0].iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-6,
                "{variant:?}: {found} for {expected}"
            );
        }
    }
}

#[test]
fn a_rank_that_does_not_fit_names_the_site() {
    let adapter = Adapter::new(Variant::Paper.config(), &[site("blocks.0.value")]).unwrap();
    for rank in [0, D + 1] {
        let message = adapter.check_rank(rank).unwrap_err().to_string();
        assert!(message.contains("blocks.0.value"), "{message}");
    }
}
