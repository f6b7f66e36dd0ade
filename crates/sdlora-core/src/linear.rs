//! The adapted linear map `h = (W0 + Σ_k α_k D_k) x` (paper, equation 4).
//!
//! `weight` is W0 in burn's layout `[d_input, d_output]` and may be a packed projection: an
//! [`Update`] then covers the columns from `first_column` on (query and value of a fused qkv
//! weight, for instance). Frozen: weight and bias; trained: what the update's factors depend on.

use burn::tensor::{DType, IndexingUpdateOp, Tensor};
use sdlora_kernels::{GradientPath, LowRank, is_fused, linear, low_rank_linear};

use crate::precision::cast;
use crate::update::{GatedFactors, KeptRows, Update, UpdateForm};

/// An update and the columns of the weight it belongs to.
#[derive(Debug, Clone, Copy)]
pub struct ColumnUpdate<'a> {
    /// First output column the update covers.
    pub first_column: usize,
    /// The update.
    pub update: &'a Update,
}

/// `x (W0 + ΔW) + bias` for `x: [batch, n_tokens, d_input]`, giving `[batch, n_tokens, d_output]`.
///
/// The updates must be sorted by column and must not overlap.
///
/// Weight and bias are taken in the number type of `x`, and so are the factors. In a half type an
/// update is never added to the weight, whatever the form: what is smaller than the last place of
/// the weight would be lost.
///
/// # Panics
///
/// If an update does not fit into the columns of the weight.
pub fn adapted_linear(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    updates: &[ColumnUpdate<'_>],
    form: UpdateForm,
) -> Tensor<3> {
    let [batch, n_tokens, d_input] = x.dims();
    let [_, d_output] = weight.dims();
    check_columns(updates, d_output);
    let dtype = x.dtype();
    let (weight, bias) = (cast(weight, dtype), bias.map(|bias| cast(bias, dtype)));
    if updates.is_empty() {
        return linear(x, weight, bias);
    }
    let is_half = matches!(dtype, DType::BF16 | DType::F16);
    let merged = merged(updates, d_input, d_output).map(|merged| cast(merged, dtype));
    let (weight, apart) = match (merged, is_half) {
        (None, _) => (weight, None),
        (Some(merged), false) => (weight + merged, None),
        (Some(merged), true) => (weight, Some(linear(x.clone(), merged, None))),
    };
    let n_rows = batch * n_tokens;
    let (is_fused, is_autodiff) = (is_fused(&x), x.is_autodiff());
    let form_of = |update: &Update| match is_fused {
        true => form.resolve(n_rows, d_input, update),
        false => {
            let share = d_output / updates.len();
            form.resolve_unfused(n_rows, [d_input, share], update, is_autodiff)
        }
    };
    let low_rank: Vec<LowRank> = updates
        .iter()
        .filter(|columns| {
            !columns.update.terms().is_empty() && columns.update.kept_rows().is_none()
        })
        .map(|columns| LowRank {
            first_column: columns.first_column,
            pairs: columns
                .update
                .terms()
                .iter()
                .map(|term| (cast(term.a.clone(), dtype), cast(term.b.clone(), dtype)))
                .collect(),
            path: match form_of(columns.update) {
                _ if is_half => GradientPath::Rows,
                UpdateForm::Factored => GradientPath::Rows,
                _ => GradientPath::Weight,
            },
        })
        .collect();
    let apart_by_rows: Vec<_> = updates
        .iter()
        .filter(|columns| {
            let update = columns.update;
            !update.by_image().is_empty() || update.kept_rows().is_some()
        })
        .collect();
    let inputs = (!apart_by_rows.is_empty()).then(|| x.clone());
    let y = match low_rank.is_empty() {
        true => linear(x, weight, bias),
        false => low_rank_linear(x, weight, bias, &low_rank),
    };
    let y = match apart {
        None => y,
        Some(apart) => y + apart,
    };
    let Some(x) = inputs else { return y };
    let rows = x.reshape([batch * n_tokens, d_input]);
    let shape = [batch, n_tokens];
    apart_by_rows.into_iter().fold(y, |y, columns| {
        let update = columns.update;
        let gated = update
            .by_image()
            .iter()
            .map(|gated| through_gate(&rows, shape, gated));
        let kept = update
            .kept_rows()
            .filter(|_| !update.terms().is_empty())
            .map(|kept| through_kept_rows(&rows, update, kept));
        let kept = kept.map(|kept| kept.reshape([batch, n_tokens, update.d_output()]));
        match gated.chain(kept).reduce(|sum, added| sum + added) {
            None => y,
            Some(added) => with_columns(y, columns.first_column, added),
        }
    })
}

/// What a pair by image adds to `rows: [batch · n_tokens, d_input]`, `[batch, n_tokens, d_output]`.
fn through_gate(
    rows: &Tensor<2>,
    [batch, n_tokens]: [usize; 2],
    gated: &GatedFactors,
) -> Tensor<3> {
    let dtype = rows.dtype();
    let (a, b) = (gated.factors.a.clone(), gated.factors.b.clone());
    let ([_, rank], [_, d_output], [n_gates, _]) = (a.dims(), b.dims(), gated.gate.dims());
    let gate = cast(gated.gate.clone(), dtype).reshape([n_gates, 1, rank]);
    let along = rows.clone().matmul(cast(a, dtype));
    let along = along.reshape([batch, n_tokens, rank]) * gate;
    let along: Tensor<2> = along.reshape([batch * n_tokens, rank]);
    let added = along.matmul(cast(b, dtype));
    added.reshape([batch, n_tokens, d_output])
}

/// What the pairs of an update add to `rows: [n_rows, d_input]`, with a gradient through some rows only.
fn through_kept_rows(rows: &Tensor<2>, update: &Update, kept: &KeptRows) -> Tensor<2> {
    let dtype = rows.dtype();
    let through = |rows: Tensor<2>, is_tracked: bool| {
        let of_term = update.terms().iter().map(|term| {
            let [a, b] = [&term.a, &term.b].map(|factor| match is_tracked {
                true => factor.clone(),
                false => factor.clone().detach(),
            });
            rows.clone().matmul(cast(a, dtype)).matmul(cast(b, dtype))
        });
        of_term.reduce(|sum, added| sum + added)
    };
    let selected = rows.clone().select(0, kept.rows.clone());
    let (all, own) = (
        through(rows.clone().detach(), false),
        through(selected, true),
    );
    let (Some(all), Some(own)) = (all, own) else {
        let [n_rows, _] = rows.dims();
        return Tensor::zeros([n_rows, update.d_output()], &rows.device());
    };
    // Exactly 0 forward.
    let gradient = (own.clone() - own.detach()) * cast(kept.scale.clone(), dtype);
    all.select_assign(0, kept.rows.clone(), gradient, IndexingUpdateOp::Add)
}

/// `y` with something added to its columns from `first` on.
fn with_columns(y: Tensor<3>, first: usize, added: Tensor<3>) -> Tensor<3> {
    let ([_, _, d_output], [_, _, width]) = (y.dims(), added.dims());
    let mut pieces = vec![y.clone().narrow(2, first, width) + added];
    if first > 0 {
        pieces.insert(0, y.clone().narrow(2, 0, first));
    }
    let behind = first + width;
    if behind < d_output {
        pieces.push(y.narrow(2, behind, d_output - behind));
    }
    match pieces.len() {
        1 => pieces.remove(0),
        _ => Tensor::cat(pieces, 2),
    }
}

/// The accumulated updates of all columns `[d_input, d_output]`; `None` without any.
fn merged(updates: &[ColumnUpdate<'_>], d_input: usize, d_output: usize) -> Option<Tensor<2>> {
    let of =
        |columns: &ColumnUpdate<'_>| Some((columns.first_column, columns.update.merged()?.clone()));
    let parts: Vec<_> = updates.iter().filter_map(of).collect();
    (!parts.is_empty()).then(|| embed(parts, d_input, d_output))
}

/// `W0 + ΔW`, `[d_input, d_output]`: formed once for all when a model is merged.
///
/// # Panics
///
/// If an update does not fit into the columns of the weight, or two overlap.
pub fn effective_weight(weight: Tensor<2>, updates: &[ColumnUpdate<'_>]) -> Tensor<2> {
    if updates.is_empty() {
        return weight;
    }
    let [d_input, d_output] = weight.dims();
    check_columns(updates, d_output);
    let parts = updates
        .iter()
        .map(|u| (u.first_column, u.update.dense()))
        .collect();
    weight + embed(parts, d_input, d_output)
}

fn check_columns(updates: &[ColumnUpdate<'_>], n_columns: usize) {
    let mut column = 0;
    for u in updates {
        let (first, width) = (u.first_column, u.update.d_output());
        assert!(
            first >= column && first + width <= n_columns,
            "an update of {width} columns at column {first} does not fit after column {column} \
             of {n_columns}"
        );
        column = first + width;
    }
}

/// Sets blocks of columns into a matrix `[n_rows, n_columns]` that is 0 elsewhere.
fn embed(blocks: Vec<(usize, Tensor<2>)>, n_rows: usize, n_columns: usize) -> Tensor<2> {
    let device = blocks[0].1.device();
    let mut pieces = Vec::with_capacity(2 * blocks.len() + 1);
    let mut column = 0;
    for (first, block) in blocks {
        let [_, width] = block.dims();
        if first > column {
            pieces.push(Tensor::zeros([n_rows, first - column], &device));
        }
        pieces.push(block);
        column = first + width;
    }
    if column < n_columns {
        pieces.push(Tensor::zeros([n_rows, n_columns - column], &device));
    }
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    Tensor::cat(pieces, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::ScaledFactors;
    use burn::tensor::Int;
    use burn::tensor::{Device, TensorData};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use sdlora_testkit::{Tolerance, assert_close, test_device, test_device_autodiff};

    fn random(rng: &mut ChaCha8Rng, shape: [usize; 2], device: &Device) -> Tensor<2> {
        let values: Vec<f32> = (0..shape[0] * shape[1])
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn update(rng: &mut ChaCha8Rng, d: usize, ranks: &[usize], device: &Device) -> Update {
        Update::new(
            ranks
                .iter()
                .map(|&r| ScaledFactors {
                    a: random(rng, [d, r], device),
                    b: random(rng, [r, d], device),
                })
                .collect(),
        )
    }

    #[test]
    fn dense_and_factored_agree_on_a_packed_weight() {
        let device = test_device();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (d, n) = (8, 5);
        let weight = random(&mut rng, [d, 3 * d], &device);
        let bias = random(&mut rng, [1, 3 * d], &device).reshape([3 * d]);
        let x = random(&mut rng, [2 * n, d], &device).reshape([2, n, d]);
        let (q, v) = (
            update(&mut rng, d, &[3, 2], &device),
            update(&mut rng, d, &[4], &device),
        );
        let columns = [
            ColumnUpdate {
                first_column: 0,
                update: &q,
            },
            ColumnUpdate {
                first_column: 2 * d,
                update: &v,
            },
        ];
        let run = |form| {
            adapted_linear(
                x.clone(),
                weight.clone(),
                Some(bias.clone()),
                &columns,
                form,
            )
        };
        let (dense, factored) = (run(UpdateForm::Dense), run(UpdateForm::Factored));
        let expected: Vec<f32> = dense.into_data().iter().collect();
        assert_close(
            factored,
            &expected,
            Tolerance::RelMax(1e-5),
            "factored against dense",
        );

        // The key's columns are untouched.
        let base =
            linear(x.clone(), weight.clone(), Some(bias.clone())).slice([0..2, 0..n, d..2 * d]);
        let expected: Vec<f32> = base.into_data().iter().collect();
        let key = run(UpdateForm::Dense).slice([0..2, 0..n, d..2 * d]);
        assert_close(key, &expected, Tolerance::Abs(0.0), "key columns");
    }

    #[test]
    fn in_half_precision_an_update_below_the_last_place_of_the_weight_is_not_lost() {
        let device = test_device();
        let d = 8;
        // 1 + 0.0001 is 1 in either half type. Signs alternate, so that the weight itself gives 0.
        let signs: Vec<f32> = (0..d * d)
            .map(|i| if (i / d) % 2 == 0 { 1.0 } else { -1.0 })
            .collect();
        let weight = Tensor::from_data(TensorData::new(signs, [d, d]), &device);
        let small = Update::new(vec![ScaledFactors {
            a: Tensor::full([d, 1], 1e-4, &device),
            b: Tensor::ones([1, d], &device),
        }]);
        let columns = [ColumnUpdate {
            first_column: 0,
            update: &small,
        }];
        for dtype in [DType::BF16, DType::F16] {
            let x = cast(Tensor::ones([1, 1, d], &device), dtype);
            for form in [UpdateForm::Dense, UpdateForm::Factored, UpdateForm::Auto] {
                let y = adapted_linear(x.clone(), weight.clone(), None, &columns, form);
                assert_eq!(y.dtype(), dtype);
                let y: Vec<f32> = y.into_data().iter().collect();
                let expected = 8.0 * 1e-4;
                assert!(
                    y.iter().all(|y| (y - expected).abs() < 0.02 * expected),
                    "{dtype:?} {form:?}: {y:?}"
                );
            }
        }
    }

    #[test]
    fn a_pair_by_image_is_for_every_image_the_pair_at_its_own_gate() {
        let device = test_device();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (d, n, batch, rank) = (6, 4, 3, 2);
        let weight = random(&mut rng, [d, 3 * d], &device);
        let x = random(&mut rng, [batch * n, d], &device).reshape([batch, n, d]);
        let gate = random(&mut rng, [batch, rank], &device);
        let (own, pair) = (
            update(&mut rng, d, &[2], &device),
            update(&mut rng, d, &[rank], &device).terms()[0].clone(),
        );
        let run = |x: Tensor<3>, update: &Update| {
            let columns = [ColumnUpdate {
                first_column: d,
                update,
            }];
            adapted_linear(x, weight.clone(), None, &columns, UpdateForm::Auto)
        };
        let gated = |gate: Tensor<2>| GatedFactors {
            factors: pair.clone(),
            gate,
        };
        let found = run(x.clone(), &own.clone().with_gated(gated(gate.clone())));
        let mut without = Vec::new();
        for i in 0..batch {
            let scaled = ScaledFactors {
                a: pair.a.clone() * gate.clone().narrow(0, i, 1),
                b: pair.b.clone(),
            };
            let both = Update::new(vec![own.terms()[0].clone(), scaled]);
            let alone = run(x.clone().narrow(0, i, 1), &both);
            let expected: Vec<f32> = alone.into_data().iter().collect();
            let row = found.clone().narrow(0, i, 1);
            assert_close(row, &expected, Tolerance::Abs(1e-5), "an image");
            without.extend(
                run(x.clone().narrow(0, i, 1), &own)
                    .into_data()
                    .iter::<f32>(),
            );
        }
        // Gates of 0 leave the update as it is, to the last bit; so does one gate for all images.
        let zero = gated(Tensor::zeros([1, rank], &device));
        let found = run(x.clone(), &own.clone().with_gated(zero));
        assert_close(found, &without, Tolerance::Abs(0.0), "gates of 0");
        // Nothing of it is in the weight that a model is merged to.
        let alone = Update::of_images(gated(gate));
        assert_eq!(alone.d_output(), d);
        let largest: f32 = alone.dense().abs().max().into_scalar();
        assert_eq!(largest, 0.0);
    }

    /// Output, and gradients of both factors and of the input, with a gradient through some rows.
    fn gradients(kept: Option<KeptRows>) -> [Vec<f32>; 4] {
        let device = test_device_autodiff();
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let (d, batch, n) = (5, 2, 3);
        let weight = random(&mut rng, [d, 2 * d], &device);
        let x = random(&mut rng, [batch * n, d], &device).reshape([batch, n, d]);
        let (a, b) = (
            random(&mut rng, [d, 2], &device).require_grad(),
            random(&mut rng, [2, d], &device).require_grad(),
        );
        let loss_weights = random(&mut rng, [batch * n, 2 * d], &device);
        let x = x.require_grad();
        let mut update = Update::new(vec![ScaledFactors {
            a: a.clone(),
            b: b.clone(),
        }]);
        if let Some(kept) = kept {
            update = update.with_kept_rows(kept);
        }
        let columns = [ColumnUpdate {
            first_column: d,
            update: &update,
        }];
        let y = adapted_linear(x.clone(), weight, None, &columns, UpdateForm::Auto);
        let loss = (y.clone() * loss_weights.reshape([batch, n, 2 * d])).sum();
        let grads = loss.backward();
        let host =
            |grad: Option<Tensor<2>>| -> Vec<f32> { grad.unwrap().into_data().iter().collect() };
        let of_x: Vec<f32> = x.grad(&grads).unwrap().into_data().iter().collect();
        [
            y.into_data().iter().collect(),
            host(a.grad(&grads)),
            host(b.grad(&grads)),
            of_x,
        ]
    }

    /// Rows out of six, each with this scale.
    fn kept(rows: &[i32], scale: f32) -> KeptRows {
        let device = test_device_autodiff();
        KeptRows {
            rows: Tensor::<1, Int>::from_data(
                TensorData::new(rows.to_vec(), [rows.len()]),
                &device,
            ),
            scale: Tensor::full([rows.len(), 1], scale, &device),
        }
    }

    fn farthest(a: &[f32], b: &[f32]) -> f32 {
        a.iter()
            .zip(b)
            .fold(0.0, |far, (a, b)| far.max((a - b).abs()))
    }

    #[test]
    fn gradients_through_drawn_rows_are_right_in_the_mean_and_the_numbers_are_the_same() {
        let whole = gradients(None);
        // All rows: the gradients of the plain update.
        let all = gradients(Some(kept(&[0, 1, 2, 3, 4, 5], 1.0)));
        for (found, expected) in all.iter().zip(&whole) {
            assert!(farthest(found, expected) < 1e-5, "{found:?} {expected:?}");
        }
        // Every half of the rows once: a row is in half of them.
        let mut sums = [0, 1, 2, 3].map(|i: usize| vec![0.0f32; whole[i].len()]);
        let mut n_halves = 0;
        for drawn in (0u32..64).filter(|drawn| drawn.count_ones() == 3) {
            let rows: Vec<i32> = (0..6).filter(|row| drawn >> row & 1 == 1).collect();
            let found = gradients(Some(kept(&rows, 2.0)));
            assert!(
                farthest(&found[0], &whole[0]) < 1e-5,
                "the output is the same"
            );
            assert!(
                farthest(&found[1], &whole[1]) > 1e-2,
                "the gradient is another"
            );
            for (sum, found) in sums.iter_mut().zip(&found) {
                sum.iter_mut().zip(found).for_each(|(sum, v)| *sum += v);
            }
            n_halves += 1;
        }
        assert_eq!(n_halves, 20);
        for (sum, expected) in sums.iter().zip(&whole) {
            let mean: Vec<f32> = sum.iter().map(|v| v / 20.0).collect();
            assert!(farthest(&mean, expected) < 1e-4, "{mean:?} {expected:?}");
        }
        // Without the scale their mean is too small by half.
        let one = gradients(Some(kept(&[0, 2, 4], 1.0)));
        let other = gradients(Some(kept(&[1, 3, 5], 1.0)));
        let mean: Vec<f32> = one[1]
            .iter()
            .zip(&other[1])
            .map(|(a, b)| (a + b) / 2.0)
            .collect();
        let half: Vec<f32> = whole[1].iter().map(|v| v / 2.0).collect();
        assert!(farthest(&mean, &half) < 1e-5 && farthest(&mean, &whole[1]) > 1e-2);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn an_update_past_the_last_column_panics_with_the_numbers() {
        let device = test_device();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let u = update(&mut rng, 4, &[1], &device);
        let weight = random(&mut rng, [4, 6], &device);
        effective_weight(
            weight,
            &[ColumnUpdate {
                first_column: 3,
                update: &u,
            }],
        );
    }
}
