//! The adapted linear map `h = (W0 + Σ_k α_k D_k) x` (paper, equation 4).
//!
//! `weight` is W0 in burn's layout `[d_input, d_output]` and may be a packed projection: an
//! [`Update`] then covers the columns from `first_column` on (query and value of a fused qkv
//! weight, for instance). Frozen: weight and bias; trained: what the update's factors depend on.

use burn::tensor::{DType, Tensor};
use sdlora_kernels::{GradientPath, LowRank, linear, low_rank_linear};

use crate::precision::cast;
use crate::update::{Update, UpdateForm};

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
    let low_rank: Vec<LowRank> = updates
        .iter()
        .filter(|columns| !columns.update.terms().is_empty())
        .map(|columns| LowRank {
            first_column: columns.first_column,
            pairs: columns
                .update
                .terms()
                .iter()
                .map(|term| (cast(term.a.clone(), dtype), cast(term.b.clone(), dtype)))
                .collect(),
            path: match form.resolve(batch * n_tokens, d_input, columns.update) {
                _ if is_half => GradientPath::Rows,
                UpdateForm::Factored => GradientPath::Rows,
                _ => GradientPath::Weight,
            },
        })
        .collect();
    let gated: Vec<_> = updates
        .iter()
        .filter(|columns| !columns.update.by_image().is_empty())
        .collect();
    let inputs = (!gated.is_empty()).then(|| x.clone());
    let y = match low_rank.is_empty() {
        true => linear(x, weight, bias),
        false => low_rank_linear(x, weight, bias, &low_rank),
    };
    let y = match apart {
        None => y,
        Some(apart) => y + apart,
    };
    match inputs {
        None => y,
        Some(x) => gated
            .into_iter()
            .fold(y, |y, columns| with_gated(y, &x, columns)),
    }
}

/// `y` with what the pairs by image of an update add to its columns.
fn with_gated(y: Tensor<3>, x: &Tensor<3>, columns: &ColumnUpdate<'_>) -> Tensor<3> {
    let ([batch, n_tokens, d_input], [_, _, d_output]) = (x.dims(), y.dims());
    let (first, width) = (columns.first_column, columns.update.d_output());
    let rows = x.clone().reshape([batch * n_tokens, d_input]);
    let added = columns.update.by_image().iter().map(|gated| {
        let (a, b) = (&gated.factors.a, &gated.factors.b);
        let ([_, rank], [n_gates, _]) = (a.dims(), gated.gate.dims());
        let along = rows.clone().matmul(cast(a.clone(), x.dtype()));
        let gate = cast(gated.gate.clone(), x.dtype()).reshape([n_gates, 1, rank]);
        let along = along.reshape([batch, n_tokens, rank]) * gate;
        let along = along.reshape([batch * n_tokens, rank]);
        let added: Tensor<2> = along.matmul(cast(b.clone(), x.dtype()));
        added.reshape([batch, n_tokens, width])
    });
    let own = y.clone().narrow(2, first, width);
    let mut pieces = vec![added.fold(own, |sum, added| sum + added)];
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
    use crate::update::{GatedFactors, ScaledFactors};
    use burn::tensor::{Device, TensorData};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use sdlora_testkit::{Tolerance, assert_close, test_device};

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
