//! The SD-LoRA layer against PyTorch: every file of the golden folder that holds one, with whatever
//! number of layers, tasks and ranks, and magnitudes shared as the shape of `alpha` says.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Tensor, TensorData};
use sdlora_core::{
    Adapter, ColumnUpdate, Direction, MagnitudeSharing, Magnitudes, Site, UpdateForm, Variant,
    adapted_linear, effective_weight,
};
use sdlora_testkit::{
    Compared, Golden, Tolerance, assert_close, golden_with, test_device_autodiff,
};

/// Relative to the largest value of the tensor (golden README, section 2).
const TOLERANCE: Tolerance = Tolerance::RelMax(1e-5);

/// The letter in the file, which ends the name of a site, and the position in the packed projection.
const PROJECTIONS: [(&str, usize); 2] = [("q", 0), ("v", 2)];

fn name(block_idx: usize, letter: &str) -> String {
    format!("blocks.{block_idx}.{letter}")
}

fn letter(site: &Site) -> &str {
    site.name.rsplit('.').next().unwrap()
}

struct Case {
    golden: Golden,
    n_layers: usize,
    d_model: usize,
    ranks: Vec<usize>,
    alpha: Vec<Vec<f64>>,
    sharing: MagnitudeSharing,
}

impl Case {
    fn open(golden: Golden) -> Self {
        // `[n_tasks]` for the whole model, `[n_layers, n_tasks]` for each layer.
        let sharing = match golden.shape("alpha").len() {
            1 => MagnitudeSharing::Shared,
            _ => MagnitudeSharing::PerGroup,
        };
        let n_layers = (0..)
            .take_while(|l| golden.has(&format!("layer{l}.x")))
            .count();
        assert!(n_layers > 0, "{}: no layer0.x", golden.path().display());
        let ranks: Vec<usize> = golden.i64("ranks").0.iter().map(|&r| r as usize).collect();
        let (alpha, _) = golden.f32("alpha");
        let alpha = alpha
            .chunks_exact(ranks.len())
            .map(|row| row.iter().map(|&v| f64::from(v)).collect())
            .collect();
        Self {
            d_model: golden.shape("layer0.x")[2],
            n_layers,
            ranks,
            alpha,
            sharing,
            golden,
        }
    }

    /// The adapter of the case: earlier tasks finished, the last one running.
    fn adapter(&self) -> Adapter {
        let device = test_device_autodiff();
        let mut config = Variant::Reference.config();
        config.sharing = self.sharing;
        let sites: Vec<Site> = (0..self.n_layers)
            .flat_map(|block_idx| {
                PROJECTIONS.map(|(letter, _)| Site {
                    name: name(block_idx, letter).into(),
                    group: block_idx,
                    d_input: self.d_model,
                    d_output: self.d_model,
                })
            })
            .collect();
        let mut adapter = Adapter::new(config, &sites).unwrap();
        for task in 0..self.ranks.len() {
            let directions = sites
                .iter()
                .map(|site| {
                    let letter = letter(site);
                    let name = |f| format!("layer{}.task{task}.{f}_{letter}", site.group);
                    Direction::from_factors(
                        self.transposed(&name("A")),
                        self.transposed(&name("B")),
                        &device,
                    )
                })
                .collect();
            adapter = adapter.begin_task_with(directions, &device).unwrap();
        }
        adapter.magnitudes = Some(Magnitudes::from_rows(&self.alpha, &device));
        adapter
    }

    fn transposed(&self, name: &str) -> TensorData {
        self.golden
            .tensor::<2>(name, &test_device_autodiff())
            .transpose()
            .into_data()
    }

    fn run(&self, form: UpdateForm) {
        let device = test_device_autodiff();
        let adapter = self.adapter();
        let updates = adapter.updates();
        let g = &self.golden;
        let mut loss: Tensor<1> = Tensor::zeros([1], &device);
        let mut inputs = Vec::new();
        for l in 0..self.n_layers {
            let name = |n: &str| format!("layer{l}.{n}");
            let x = g.tensor::<3>(&name("x"), &device).require_grad();
            let weight = g.tensor::<2>(&name("qkv.weight"), &device).transpose();
            let bias = g.tensor::<1>(&name("qkv.bias"), &device);
            let columns: Vec<_> = PROJECTIONS
                .iter()
                .map(|&(letter, part)| ColumnUpdate {
                    first_column: part * self.d_model,
                    update: updates.get(&self::name(l, letter)).unwrap(),
                })
                .collect();

            let merged = effective_weight(weight.clone(), &columns).transpose();
            assert_close(
                merged,
                g.f32(&name("merged_weight")),
                TOLERANCE,
                &name("merged_weight"),
            );

            let out = adapted_linear(x.clone(), weight, Some(bias), &columns, form);
            assert_close(out.clone(), g.f32(&name("out")), TOLERANCE, &name("out"));
            loss = loss + (out * g.tensor::<3>(&name("g"), &device)).sum();
            inputs.push(x);
        }
        assert_close(loss.clone(), g.f32("loss"), TOLERANCE, "loss");

        let grads = loss.backward();
        for (l, x) in inputs.into_iter().enumerate() {
            let name = format!("grad.layer{l}.x");
            assert_close(x.grad(&grads).unwrap(), g.f32(&name), TOLERANCE, &name);
        }
        for bank in &adapter.sites {
            let (l, current) = (bank.site().group, bank.current.as_ref().unwrap());
            let letter = letter(bank.site());
            for (factor, param) in [("A", &current.a), ("B", &current.b)] {
                let name = format!("grad.layer{l}.{factor}_{letter}");
                let grad = param.val().grad(&grads).unwrap().transpose();
                assert_close(grad, g.f32(&name), TOLERANCE, &name);
            }
            if let Some(past) = &bank.past {
                assert!(
                    past.a.val().grad(&grads).is_none(),
                    "past factors are frozen"
                );
            }
        }
        let magnitudes = adapter.magnitudes.as_ref().unwrap();
        let mut parts = Vec::new();
        if let Some(past) = &magnitudes.past {
            parts.push(past.val().grad(&grads).unwrap());
        }
        parts.push(magnitudes.current.val().grad(&grads).unwrap());
        let grad = Tensor::cat(parts, 1).into_data();
        let grad: Vec<f32> = grad.iter().collect();
        assert_close(
            grad.as_slice(),
            g.f32("grad.alpha").0.as_slice(),
            TOLERANCE,
            "grad.alpha",
        );
    }
}

#[test]
fn outputs_merged_weights_and_gradients_agree_with_pytorch() {
    let mut compared = Compared::new("SD-LoRA layers");
    for golden in golden_with(&["ranks", "alpha", "layer0.x", "layer0.qkv.weight"]) {
        let name = golden.stem();
        let case = Case::open(golden);
        for form in [UpdateForm::Dense, UpdateForm::Factored] {
            case.run(form);
        }
        compared.add(name);
    }
}
