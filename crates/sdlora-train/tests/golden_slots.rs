//! Slots and chains against NumPy: forward values, losses, gradients, a step and what follows it (golden README,
//! section 11).

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Gradients, Tensor, TensorData};
use rand::{SeedableRng, TryRng};
use rand_chacha::ChaCha8Rng;
use sdlora_core::{
    Adapter, ColumnUpdate, Direction, Site, Update, UpdateForm, Updates, adapted_linear,
};
use sdlora_testkit::{
    Compared, Tolerance, assert_close, golden_json_with, test_device, test_device_autodiff,
};
use sdlora_train::methods::{
    self, AdapterSpec, LossBatch, Method, StepContext, TaskContext, TaskImages,
};
use sdlora_train::{ColumnStart, HeadConfig, MethodState, Model, Part, Role, TrainError};
use sdlora_vit::{Pooling, Projection, Vit, VitConfig};
use serde_json::Value;

/// What float32 may differ from float64.
const TOLERANCE: Tolerance = Tolerance::RelMax(1e-5);

/// The same behind eigenvectors.
const OF_EIGENVECTORS: Tolerance = Tolerance::RelMax(1e-4);

fn numbers(value: &Value) -> Vec<f32> {
    let values = value.as_array().unwrap().iter();
    values.map(|v| v.as_f64().unwrap() as f32).collect()
}

fn counts(value: &Value) -> Vec<usize> {
    let values = value.as_array().unwrap().iter();
    values.map(|v| v.as_u64().unwrap() as usize).collect()
}

fn count(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// A matrix of rows of some width.
fn matrix(value: &Value, width: usize) -> Tensor<2> {
    let values = numbers(value);
    let shape = [values.len() / width, width];
    Tensor::from_data(TensorData::new(values, shape), &test_device_autodiff())
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}

fn same<const D: usize>(found: Tensor<D>, expected: &Value, what: &str) {
    assert_close(found, numbers(expected).as_slice(), TOLERANCE, what);
}

fn same_number(found: Tensor<1>, expected: &Value, what: &str) {
    assert_close(found, [number(expected) as f32].as_slice(), TOLERANCE, what);
}

/// The largest number of two tensors that differs is within the tolerance of what is behind eigenvectors.
fn near(found: Tensor<2>, expected: &Value, what: &str) {
    assert_close(found, numbers(expected).as_slice(), OF_EIGENVECTORS, what);
}

/// Other values in a parameter, which stays trained or frozen and keeps its id.
fn put<const D: usize>(param: &mut Param<Tensor<D>>, values: Tensor<D>) {
    let is_trained = param.is_require_grad();
    assert_eq!(param.lazy_shape(), values.shape());
    *param = param
        .clone()
        .map(|_| values.detach().set_require_grad(is_trained));
}

/// The gradient of a parameter, and the parameter after a plain step.
fn step(param: &mut Param<Tensor<2>>, gradients: &Gradients, lr: f64) -> Tensor<2> {
    let gradient = param.val().grad(gradients).unwrap();
    let after = param.val().inner() - gradient.clone().mul_scalar(lr);
    put(param, Tensor::from_inner(after));
    gradient
}

fn build(name: &str, options: &str) -> Box<dyn Method> {
    methods::build(name, &options.parse().unwrap()).unwrap()
}

fn task(task_idx: usize, n_new_classes: usize) -> TaskContext {
    TaskContext {
        task_idx,
        n_tasks: 4,
        n_new_classes,
        seed: 1,
        device: test_device_autodiff(),
        head: HeadConfig::named("linear").build().unwrap(),
        start: ColumnStart::Torch,
    }
}

fn at_step(step: usize, n_steps: usize, images: Option<Tensor<4>>) -> StepContext {
    StepContext {
        task_idx: 0,
        step,
        n_steps,
        lr: 0.1,
        seed: 1,
        device: test_device_autodiff(),
        images,
    }
}

/// Images and labels of a task.
struct Given(Tensor<4>, Vec<usize>);

impl TaskImages for Given {
    fn each_batch(&self, see: &mut dyn FnMut(Tensor<4>, &[usize])) -> Result<(), TrainError> {
        see(self.0.clone(), &self.1);
        Ok(())
    }
}

/// A site that is fitted to targets: the mean over rows of half the squared error.
struct Fit {
    x: Tensor<3>,
    w: Tensor<2>,
    y: Tensor<3>,
    site: Site,
}

impl Fit {
    fn new(golden: &Value, name: &str, group: usize) -> Self {
        let (d_input, d_output) = (count(&golden["d_input"]), count(&golden["d_output"]));
        let rows = |key: &str, width: usize| {
            let rows = matrix(&golden[key], width);
            let [n, _] = rows.dims();
            rows.reshape([1, n, width])
        };
        Self {
            x: rows("x", d_input),
            w: matrix(&golden["w"], d_output),
            y: rows("y", d_output),
            site: Site {
                name: name.into(),
                group,
                d_input,
                d_output,
            },
        }
    }

    fn all(golden: &Value) -> Vec<Self> {
        let sites = list(golden).iter().enumerate();
        sites
            .map(|(i, site)| Self::new(site, &format!("site {i}"), i))
            .collect()
    }

    /// The loss with the update that a model has for the site.
    fn loss(&self, updates: &Updates) -> Tensor<1> {
        let update = updates.get(&self.site.name);
        let columns: Vec<_> = update
            .iter()
            .map(|update| ColumnUpdate {
                first_column: 0,
                update,
            })
            .collect();
        let (x, w) = (self.x.clone(), self.w.clone());
        let found = adapted_linear(x, w, None, &columns, UpdateForm::Auto);
        let [_, n, _] = found.dims();
        let error = found - self.y.clone();
        error.square().sum().mul_scalar(0.5 / n as f64)
    }
}

fn dense(update: Option<&Update>) -> Tensor<2> {
    update.unwrap().dense()
}

/// The updates of a model, site by site.
fn updates(model: &Model) -> Vec<Tensor<2>> {
    let updates = model.adapter.updates();
    let banks = model.adapter.sites.iter();
    banks
        .map(|bank| dense(updates.get(&bank.site().name)))
        .collect()
}

/// A model whose method has begun directions on sites that no part of the backbone has.
fn begun(vit: &Vit, method: &dyn Method, fits: &[Fit], rank: usize) -> Model {
    let (spec, device) = (method.adapter().unwrap(), test_device_autodiff());
    let sites: Vec<Site> = fits.iter().map(|fit| fit.site.clone()).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let form = spec.slot.form();
    let directions = sites
        .iter()
        .map(|site| Direction::init_as(form, site, rank, &mut rng, &device));
    let adapter = Adapter::new(spec.settings, &sites)
        .unwrap()
        .begin_task_with(directions.collect(), &device)
        .unwrap()
        .with_current_magnitude_trainable(false);
    Model::new(vit.clone(), adapter)
}

/// A model on the sites of its backbone, before its first task.
fn fresh(vit: &Vit, method: &dyn Method) -> Model {
    let adapter = AdapterSpec::adapter(method.adapter().as_ref(), vit.config()).unwrap();
    Model::new(vit.clone(), adapter)
}

/// A model on one site that the backbone does not have, before its first task.
fn unbegun(vit: &Vit, method: &dyn Method, site: &Site) -> Model {
    let spec = method.adapter().unwrap();
    let adapter = Adapter::new(spec.settings, std::slice::from_ref(site)).unwrap();
    Model::new(vit.clone(), adapter)
}

fn current(model: &mut Model, site: usize) -> &mut Direction {
    model.adapter.sites[site].current.as_mut().unwrap()
}

/// Factors of a running direction with these values.
fn put_factors(direction: &mut Direction, a: &Value, b: &Value) {
    let ([_, width_a], [_, width_b]) = (
        direction.a.lazy_shape().dims(),
        direction.b.lazy_shape().dims(),
    );
    put(&mut direction.a, matrix(a, width_a));
    put(&mut direction.b, matrix(b, width_b));
}

/// Two blocks of which the first adds nothing, and the second has an attention and no MLP.
fn small_vit(golden: &Value) -> Vit {
    let width = count(&golden["width"]);
    let (side, patch) = (count(&golden["side"]), count(&golden["patch"]));
    let config = VitConfig {
        n_channels: 1,
        class_token: false,
        pooling: Pooling::Average,
        ..VitConfig::standard(side, patch, width, 2, count(&golden["n_heads"]))
    };
    let device = test_device_autodiff();
    let mut vit = Vit::init(&config, &mut ChaCha8Rng::seed_from_u64(1), &device).unwrap();
    let vector = |value: &Value| {
        let values = numbers(value);
        let n = values.len();
        Tensor::<1>::from_data(TensorData::new(values, [n]), &device)
    };
    put(
        &mut vit.patch_embed.proj.weight,
        matrix(&golden["patches"], width),
    );
    put(
        vit.patch_embed.proj.bias.as_mut().unwrap(),
        vector(&golden["patch_bias"]),
    );
    let positions = matrix(&golden["positions"], width);
    let [n, _] = positions.dims();
    put(&mut vit.pos_embed, positions.reshape([1, n, width]));
    for (block, norm) in vit.blocks.iter_mut().zip(list(&golden["norm1"])) {
        put(&mut block.norm1.weight, vector(&norm["weight"]));
        put(&mut block.norm1.bias, vector(&norm["bias"]));
        for adding in [&mut block.attn.proj.weight, &mut block.mlp.fc2.weight] {
            let zeros = adding.val().zeros_like();
            put(adding, zeros);
        }
    }
    let attention = &mut vit.blocks[1].attn;
    put(&mut attention.qkv.weight, matrix(&golden["qkv"], 3 * width));
    put(&mut attention.proj.weight, matrix(&golden["proj"], width));
    put(&mut vit.norm.weight, vector(&golden["norm"]["weight"]));
    put(&mut vit.norm.bias, vector(&golden["norm"]["bias"]));
    vit
}

/// Images for the small ViT, without autodiff.
fn images(golden: &Value, vit: &Vit) -> Tensor<4> {
    let side = vit.config().image_size;
    let values = numbers(golden);
    let shape = [values.len() / (side * side), 1, side, side];
    Tensor::from_data(TensorData::new(values, shape), &test_device())
}

/// The golden cases of a method, with the backbone.
fn cases(key: &str) -> Vec<(Vit, Value)> {
    let files = golden_json_with(&["small_vit", key]).into_iter();
    files
        .map(|(_, golden)| (small_vit(&golden["small_vit"]), golden[key].clone()))
        .collect()
}

/// Of a release that shrinks again what it has just shrunk, the values that differ are those between ξ and 2 ξ.
#[test]
fn sora_gates_are_thresholded_and_ranks_at_0_vanish() {
    let mut compared = Compared::new("gates of SoRA");
    for (vit, golden) in cases("sora") {
        let (rank, threshold) = (count(&golden["rank"]), number(&golden["threshold"]));
        let (lr, gate_lr) = (number(&golden["lr"]), number(&golden["gate_lr"]));
        let method = build(
            "sora",
            &format!(
                "rank = {rank}\nthreshold = {threshold:?}\npenalty = {}\ngate_lr = {gate_lr:?}",
                golden["penalty"]
            ),
        );
        assert_eq!(method.lr_factor(Part::Gates), gate_lr);
        let fits = Fit::all(&golden["sites"]);
        let mut model = begun(&vit, method.as_ref(), &fits, rank);
        for (i, site) in list(&golden["sites"]).iter().enumerate() {
            let direction = current(&mut model, i);
            put_factors(direction, &site["a"], &site["b"]);
            let gate = &mut direction.gate.as_mut().unwrap().values;
            put(gate, matrix(&site["gate"], rank));
        }
        let updates = model.adapter.updates();
        let of_sites = fits.iter().map(|fit| fit.loss(&updates));
        let loss = of_sites.fold(method.penalty(&model).unwrap(), |sum, loss| sum + loss);
        same_number(loss.clone(), &golden["loss"], "loss");
        let gradients = loss.backward();
        for (i, site) in list(&golden["sites"]).iter().enumerate() {
            let direction = current(&mut model, i);
            same(
                step(&mut direction.a, &gradients, lr),
                &site["grad_a"],
                "gradient of A",
            );
            same(
                step(&mut direction.b, &gradients, lr),
                &site["grad_b"],
                "gradient of B",
            );
            let gate = &mut direction.gate.as_mut().unwrap().values;
            let gradient = step(gate, &gradients, lr * gate_lr);
            same(gradient, &site["grad_gate"], "gradient of the gate");
            same(gate.val(), &site["gate_stepped"], "gate after the step");
        }
        model = method.after_step(model, &at_step(0, 10, None)).unwrap();
        for (i, site) in list(&golden["sites"]).iter().enumerate() {
            let direction = current(&mut model, i);
            same(direction.a.val(), &site["a_after"], "A");
            same(direction.b.val(), &site["b_after"], "B");
            let gate = direction.gate.as_ref().unwrap().factors_host();
            assert_close(
                gate.as_slice(),
                numbers(&site["gate_after"]).as_slice(),
                TOLERANCE,
                "gate behind the threshold",
            );
            let live = gate.iter().enumerate().filter(|(_, g)| **g != 0.0);
            let live: Vec<usize> = live.map(|(k, _)| k).collect();
            assert_eq!(live, counts(&site["live"]), "exact zeros");
            let released = numbers(&site["gate_after_released"]);
            let stepped = numbers(&site["gate_stepped"]);
            for ((gate, released), stepped) in gate.iter().zip(released).zip(stepped) {
                let size = f64::from(stepped.abs());
                let is_between = threshold < size && size < 2.0 * threshold;
                let expected = if is_between { 0.0 } else { *gate };
                assert!((released - expected).abs() < 1e-5, "{released} {expected}");
            }
        }
        model = method.after_task(model, &task(0, 0)).unwrap();
        for (i, site) in list(&golden["sites"]).iter().enumerate() {
            let direction = current(&mut model, i);
            assert_eq!(direction.rank(), counts(&site["live"]).len());
            assert!(direction.gate.is_none(), "it is inside the factors");
            same(direction.a.val(), &site["a_compacted"], "compacted A");
            same(direction.b.val(), &site["b_compacted"], "compacted B");
        }
        compared.add(format!("{} sites of rank {rank}", fits.len()));
    }
}

#[test]
fn beamlora_exchanges_weak_ranks_for_strong_ones_of_half_a_period_ago() {
    let mut compared = Compared::new("exchanges of BeamLoRA");
    for (vit, golden) in cases("beamlora") {
        let (rank, lr) = (count(&golden["rank"]), number(&golden["lr"]));
        let n_steps = count(&golden["n_steps"]);
        let method = build(
            "beamlora",
            &format!(
                "rank = {rank}\ntemperature = {}\nperiod = {}\nshare = {}",
                golden["temperature"], golden["period"], golden["start_share"]
            ),
        );
        let fits = Fit::all(&golden["sites"]);
        let mut model = begun(&vit, method.as_ref(), &fits, rank);
        let sites = list(&golden["sites"]);
        for (i, site) in sites.iter().enumerate() {
            put_factors(
                current(&mut model, i),
                &site["snapshot_a"],
                &site["snapshot_b"],
            );
        }
        let of_snapshot = at_step(count(&golden["step_of_snapshot"]), n_steps, None);
        model = method.after_step(model, &of_snapshot).unwrap();
        for (i, site) in sites.iter().enumerate() {
            let direction = current(&mut model, i);
            same(
                direction.a.val(),
                &site["snapshot_a"],
                "A, of which a copy is kept",
            );
            put_factors(direction, &site["a"], &site["b"]);
            let gate = direction.gate.as_mut().unwrap();
            put(&mut gate.values, matrix(&site["gate"], rank));
            same(gate.factors(), &site["factors"], "softmax gate");
        }
        let updates = model.adapter.updates();
        let of_sites = fits.iter().map(|fit| fit.loss(&updates));
        let loss = of_sites.reduce(|sum, loss| sum + loss).unwrap();
        same_number(loss.clone(), &golden["loss"], "loss");
        let gradients = loss.backward();
        let mut ids = Vec::new();
        for (i, site) in sites.iter().enumerate() {
            let direction = current(&mut model, i);
            same(
                step(&mut direction.a, &gradients, lr),
                &site["grad_a"],
                "gradient of A",
            );
            same(
                step(&mut direction.b, &gradients, lr),
                &site["grad_b"],
                "gradient of B",
            );
            let gate = direction.gate.as_mut().unwrap();
            let gradient = step(&mut gate.values, &gradients, lr);
            same(gradient, &site["grad_gate"], "gradient of the gate");
            same(gate.factors(), &site["importance"], "importance");
            ids.push((direction.a.id, direction.b.id, gate.values.id));
        }
        let of_exchange = at_step(count(&golden["step_of_exchange"]), n_steps, None);
        model = method.after_step(model, &of_exchange).unwrap();
        for (i, site) in sites.iter().enumerate() {
            let direction = current(&mut model, i);
            same(direction.a.val(), &site["a_after"], "A after the exchange");
            same(direction.b.val(), &site["b_after"], "B after the exchange");
            let gate = direction.gate.as_ref().unwrap();
            same(
                gate.values.val(),
                &site["gate_after"],
                "gate after the exchange",
            );
            // Bit by bit what was kept: a copy that has not moved with its rank.
            let (a, old) = (host(direction.a.val()), numbers(&site["snapshot_a"]));
            let pairs = counts(&site["pruned"])
                .into_iter()
                .zip(counts(&site["copied"]));
            for (to, from) in pairs {
                let column = |values: &[f32], k: usize| -> Vec<f32> {
                    values.iter().skip(k).step_by(rank).copied().collect()
                };
                assert_eq!(
                    column(&a, to),
                    column(&old, from),
                    "{from} in the place of {to}"
                );
            }
            // Moments go by the id: a place keeps them, those of the gates start anew.
            let (of_a, of_b, of_gate) = ids[i];
            assert!(direction.a.id == of_a && direction.b.id == of_b);
            assert!(gate.values.id != of_gate);
        }
        compared.add(format!("{} sites of rank {rank}", fits.len()));
    }
}

/// Columns of shared ranks in reverse order, then the others: the code rotates the other way, which is the same with
/// the ranks counted from the end.
fn reversed(factor: Tensor<2>, dim: usize, n_shared: usize) -> Tensor<2> {
    let n = factor.dims()[dim];
    let shared = factor.clone().narrow(dim, 0, n_shared).flip([dim]);
    match n == n_shared {
        true => shared,
        false => Tensor::cat(
            vec![shared, factor.narrow(dim, n_shared, n - n_shared)],
            dim,
        ),
    }
}

#[test]
fn prolora_expands_rotated_chunks() {
    let mut compared = Compared::new("factors of PRoLoRA");
    for (vit, golden) in cases("prolora") {
        let fits = [Fit::new(&golden["site"], "site", 0)];
        for case in list(&golden["cases"]) {
            let (rank, own, lr) = (
                count(&case["rank"]),
                count(&case["unshared"]),
                number(&case["lr"]),
            );
            let (shared, n_chunks) = (rank - own, count(&case["chunks"]));
            let what = format!("{n_chunks} chunks, {own} of {rank} ranks unshared");
            let method = build(
                "prolora",
                &format!("rank = {rank}\nchunks = {n_chunks}\nunshared = {own}"),
            );
            let mut model = begun(&vit, method.as_ref(), &fits, rank);
            let d_output = fits[0].site.d_output;
            let direction = current(&mut model, 0);
            let [_, width] = direction.b.lazy_shape().dims();
            put(&mut direction.a, matrix(&case["a0"], shared).flip([1]));
            put(&mut direction.b, matrix(&case["b0"], width).flip([0]));
            let chunks = direction.chunks.as_mut().unwrap();
            assert_eq!(chunks.unshared_a.is_some(), own > 0);
            if let (Some(a), Some(b)) = (&mut chunks.unshared_a, &mut chunks.unshared_b) {
                put(a, matrix(&case["unshared_a"], own));
                put(b, matrix(&case["unshared_b"], d_output));
            }
            let (a, b) = direction.factors();
            same(reversed(a, 1, shared), &case["a"], &format!("A, {what}"));
            same(reversed(b, 0, shared), &case["b"], &format!("B, {what}"));
            let loss = fits[0].loss(&model.adapter.updates());
            same_number(loss.clone(), &case["loss"], &format!("loss, {what}"));
            let gradients = loss.backward();
            let direction = current(&mut model, 0);
            let compare = |param: &mut Param<Tensor<2>>, name: &str, dim: Option<usize>| {
                let turned = |x: Tensor<2>| match dim {
                    None => x,
                    Some(dim) => x.flip([dim]),
                };
                let gradient = turned(step(param, &gradients, lr));
                let what = format!("{name}, {what}");
                same(
                    gradient,
                    &case[format!("grad_{name}")],
                    &format!("gradient of {what}"),
                );
                same(turned(param.val()), &case[format!("{name}_after")], &what);
            };
            compare(&mut direction.a, "a0", Some(1));
            compare(&mut direction.b, "b0", Some(0));
            let chunks = direction.chunks.as_mut().unwrap();
            if let (Some(a), Some(b)) = (&mut chunks.unshared_a, &mut chunks.unshared_b) {
                compare(a, "unshared_a", None);
                compare(b, "unshared_b", None);
            }

            // Drawn with the fan-in of the whole factor.
            let bound = number(&case["bound"]) as f32;
            let mut rng = ChaCha8Rng::seed_from_u64(8);
            let (mut largest, mut n_drawn) = (0.0f32, 0);
            let form = method.adapter().unwrap().slot.form();
            for _ in 0..50 {
                let device = test_device_autodiff();
                let drawn = Direction::init_as(form, &fits[0].site, rank, &mut rng, &device);
                assert!(host(drawn.b.val()).iter().all(|v| *v == 0.0));
                let unshared = drawn.chunks.and_then(|chunks| chunks.unshared_a);
                for a in [Some(drawn.a), unshared].into_iter().flatten() {
                    let values = host(a.val());
                    n_drawn += values.len();
                    largest = values.iter().fold(largest, |most, v| most.max(v.abs()));
                }
            }
            // That many numbers come as near to their bound as this but once in e^20.
            let least = bound * (1.0 - 20.0 / n_drawn as f32);
            assert!(largest <= bound && largest > least, "{largest} of {bound}");
            compared.add(what);
        }
    }
}

#[test]
fn prilora_ranks_rise_with_depth_and_the_least_important_entries_go() {
    let mut compared = Compared::new("prunings of PRILoRA");
    for (vit, golden) in cases("prilora") {
        let options = |first: &Value, last: &Value| {
            format!(
                "rank = {first}\nlast_rank = {last}\nevery = {}\nshare = {}\ndecay = {}\nprojections = [\"value\"]",
                golden["every"], golden["share"], golden["decay"]
            )
        };
        for case in list(&golden["ranks_by_depth"]) {
            let slot = build("prilora", &options(&case["first"], &case["last"]))
                .adapter()
                .unwrap()
                .slot;
            let expected = counts(&case["ranks"]);
            let (first, depth) = (count(&case["first"]), expected.len());
            let ranks: Vec<usize> = (0..depth)
                .map(|block| slot.rank(first, block, depth))
                .collect();
            assert_eq!(ranks, expected);
        }
        let method = build(
            "prilora",
            &options(&golden["first_rank"], &golden["last_rank"]),
        );
        let mut model = method
            .before_task(fresh(&vit, method.as_ref()), &task(0, 2))
            .unwrap();
        let sites = list(&golden["sites"]);
        assert_eq!(model.adapter.sites.len(), sites.len());
        for (i, site) in sites.iter().enumerate() {
            assert_eq!(current(&mut model, i).rank(), count(&site["rank"]));
            put_factors(current(&mut model, i), &site["a"], &site["b"]);
        }
        let batches = list(&golden["batches"]).iter().zip(list(&golden["norms"]));
        for (step, (batch, norms)) in batches.enumerate() {
            for (i, site) in sites.iter().enumerate() {
                same(
                    current(&mut model, i).a.val(),
                    &site["a"],
                    "A before the pruning",
                );
            }
            let batch = Tensor::from_inner(images(batch, &vit));
            model = method
                .after_step(model, &at_step(step, 10, Some(batch)))
                .unwrap();
            let found = model.state.get("input_norms.0").unwrap().val();
            same(found, norms, &format!("running norms after step {step}"));
        }
        for (i, site) in sites.iter().enumerate() {
            let direction = current(&mut model, i);
            same(direction.a.val(), &site["a_after"], "A after the pruning");
            same(direction.b.val(), &site["b"], "B");
            let found = host(direction.a.val());
            let gone: Vec<usize> = found.iter().map(|v| usize::from(*v == 0.0)).collect();
            assert_eq!(gone, counts(&site["pruned"]), "exact zeros");
        }
        compared.add(format!("{} blocks", sites.len()));
    }
}

/// Draws masks that were given: an entry is kept by the largest draw and dropped by the smallest.
struct Scripted(std::vec::IntoIter<usize>);

impl TryRng for Scripted {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|word| word as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let is_kept = self.0.next().expect("one draw for an entry");
        Ok(if is_kept == 1 { u64::MAX } else { 0 })
    }

    fn try_fill_bytes(&mut self, _bytes: &mut [u8]) -> Result<(), Infallible> {
        unreachable!("an entry is drawn by a number");
    }
}

#[test]
fn lora_dropout_averages_masks_and_counts_their_mean_outside_training() {
    let mut compared = Compared::new("masks of LoRA Dropout");
    for (vit, golden) in cases("lora_dropout") {
        let (rank, lr) = (count(&golden["rank"]), number(&golden["lr"]));
        let masks = list(&golden["masks"]);
        let method = build(
            "lora-dropout",
            &format!(
                "rank = {rank}\ndropout = {}\nn_masks = {}",
                golden["dropout"],
                masks.len()
            ),
        );
        assert_eq!(method.n_passes(), masks.len());
        let fits = [Fit::new(&golden["site"], "site", 0)];
        let mut model = begun(&vit, method.as_ref(), &fits, rank);
        put_factors(current(&mut model, 0), &golden["a"], &golden["b"]);
        let drawn = masks
            .iter()
            .flat_map(|mask| [counts(&mask["rows"]), counts(&mask["columns"])]);
        let mut rng = Scripted(drawn.flatten().collect::<Vec<_>>().into_iter());
        let mut sum: Option<Tensor<1>> = None;
        for expected in list(&golden["updates"]) {
            let updates = model.adapter.masked_updates(&mut rng);
            same(dense(updates.get("site")), expected, "masked update");
            let loss = fits[0].loss(&updates);
            sum = Some(match sum {
                None => loss,
                Some(sum) => sum + loss,
            });
        }
        assert!(
            rng.0.next().is_none(),
            "every entry of every mask was drawn once"
        );
        let loss = sum.unwrap().div_scalar(masks.len() as f64);
        same_number(loss.clone(), &golden["loss"], "mean loss");
        let gradients = loss.backward();
        let direction = current(&mut model, 0);
        same(
            step(&mut direction.a, &gradients, lr),
            &golden["grad_a"],
            "gradient of A",
        );
        same(
            step(&mut direction.b, &gradients, lr),
            &golden["grad_b"],
            "gradient of B",
        );
        same(direction.a.val(), &golden["a_after"], "A");
        same(direction.b.val(), &golden["b_after"], "B");
        // The mean over all masks, in the running task and behind it.
        let mean = &golden["mean_update"];
        same(
            updates(&model).remove(0),
            mean,
            "what counts outside training",
        );
        model.adapter = model.adapter.finish_task(&test_device_autodiff());
        same(updates(&model).remove(0), mean, "what is kept");
        compared.add(format!("{} masks", masks.len()));
    }
}

#[test]
fn chains_merge_a_round_and_draw_the_next() {
    let mut compared = Compared::new("chains");
    for (vit, golden) in cases("chains") {
        for case in list(&golden) {
            let (options, lr) = (text(&case["options"]), number(&case["lr"]));
            let name = format!("{}, {options}", text(&case["method"]));
            let method = build(text(&case["method"]), options);
            let fit = Fit::new(&case["site"], "site", 0);
            let mut model = unbegun(&vit, method.as_ref(), &fit.site);
            model = method.before_task(model, &task(0, 2)).unwrap();
            let rounds = list(&case["rounds"]);
            let n_steps = rounds.iter().map(|round| list(&round["steps"]).len()).sum();
            let mut n_done = 0;
            for (k, round) in rounds.iter().enumerate() {
                let direction = current(&mut model, 0);
                let frozen = text(&case["frozen"]);
                let is_trained = (direction.a.is_require_grad(), direction.b.is_require_grad());
                assert_eq!(is_trained, (frozen != "a", frozen != "b"), "{name}");
                // One factor is drawn, and the other starts at 0.
                for (factor, expected) in [(&direction.a, &round["a"]), (&direction.b, &round["b"])]
                {
                    let is_zero = numbers(expected).iter().all(|v| *v == 0.0);
                    let found = host(factor.val());
                    assert_eq!(found.iter().all(|v| *v == 0.0), is_zero, "{name}");
                }
                put_factors(direction, &round["a"], &round["b"]);
                for expected in list(&round["steps"]) {
                    let what = |of: &str| format!("{name}: {of} after {n_done} steps");
                    let loss = fit.loss(&model.adapter.updates());
                    same_number(loss.clone(), &expected["loss"], &what("loss"));
                    let gradients = loss.backward();
                    let direction = current(&mut model, 0);
                    for (key, factor) in [("a", &mut direction.a), ("b", &mut direction.b)] {
                        match expected.get(format!("grad_{key}")) {
                            None => {
                                assert!(factor.val().grad(&gradients).is_none(), "{name}: frozen")
                            }
                            Some(gradient) => {
                                let found = step(factor, &gradients, lr);
                                same(found, gradient, &what(&format!("gradient of {key}")));
                            }
                        }
                        same(factor.val(), &expected[format!("{key}_after")], &what(key));
                    }
                    model = method
                        .after_step(model, &at_step(n_done, n_steps, None))
                        .unwrap();
                    n_done += 1;
                }
                if k + 1 == rounds.len() {
                    assert!(
                        model.adapter.is_running(),
                        "the last round is merged after the task"
                    );
                    model = method.after_task(model, &task(0, 2)).unwrap();
                    assert!(!model.adapter.is_running());
                }
                let merged = model.adapter.sites[0].merged.as_ref().unwrap();
                assert!(!merged.is_require_grad());
                same(
                    merged.val(),
                    &round["merged"],
                    &format!("{name}: merged after round {k}"),
                );
            }
            compared.add(name);
        }
    }
}

/// What E2-LoRA keeps in its state.
#[derive(Module, Debug)]
struct Energies {
    energies: Vec<Param<Tensor<2>>>,
}

#[test]
fn e2lora_keeps_as_many_ranks_as_the_released_loop() {
    let mut compared = Compared::new("shares of a pool");
    for (vit, golden) in cases("e2lora") {
        for case in list(&golden["ranks"]) {
            let (pool, ranks) = (count(&case["pool"]), counts(&case["ranks"]));
            let method = build(
                "e2lora",
                &format!("pool = {pool}\nenergy = {}", case["energy"]),
            );
            let site = Site {
                name: "site".into(),
                group: 0,
                d_input: pool,
                d_output: pool,
            };
            let mut model = unbegun(&vit, method.as_ref(), &site);
            let device = test_device_autodiff();
            for &rank in &ranks {
                let direction = Direction::from_factors(
                    TensorData::zeros::<f32, _>([pool, rank]),
                    TensorData::zeros::<f32, _>([rank, pool]),
                    &device,
                );
                model.adapter = model
                    .adapter
                    .begin_task_with(vec![direction], &device)
                    .unwrap();
            }
            let rows = list(&case["energies"]).iter().map(|row| matrix(row, pool));
            let energies = Param::from_tensor(Tensor::cat(rows.collect(), 0).detach());
            let energies = vec![energies.set_require_grad(false)];
            model.state = MethodState::of(&Energies { energies }, |_| Role::Shared);
            let model = method.before_task(model, &task(ranks.len(), 2)).unwrap();
            let bank = &model.adapter.sites[0];
            let kept = counts(&case["kept"]);
            assert_eq!(bank.past.as_ref().unwrap().ranks(), kept);
            let released = pool - kept.iter().sum::<usize>();
            assert_eq!(bank.current.as_ref().unwrap().rank(), released);
            compared.add(format!("{kept:?} of {ranks:?}"));
        }
    }
}

/// Rows with the signs of those of another matrix, and these signs as a row `[1, n]`.
fn with_signs(rows: Tensor<2>, of: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let signs = (rows.clone() * of).sum_dim(1).sign();
    (rows * signs.clone(), signs.transpose())
}

#[test]
fn e2lora_turns_factors_shares_out_the_pool_and_holds_old_logits() {
    let mut compared = Compared::new("tasks of E2-LoRA");
    for (vit, golden) in cases("e2lora") {
        let width = vit.config().d_model;
        let options = format!("{}\nprojections = [\"value\"]", text(&golden["options"]));
        let method = build("e2lora", &options);
        let (sites, lr) = (list(&golden["sites"]), number(&golden["lr"]));
        let distillation = &golden["distillation"];
        let n_old = numbers(&distillation["biases"]).len();
        let first = task(0, n_old);
        let mut model = method
            .before_task(fresh(&vit, method.as_ref()), &first)
            .unwrap();
        for (i, site) in sites.iter().enumerate() {
            put_factors(current(&mut model, i), &site["a"], &site["b"]);
        }
        let seen = images(&golden["images"], &vit);
        let labels = vec![0; seen.dims()[0]];
        model = method.review(model, &first, &Given(seen, labels)).unwrap();
        model = method.after_task(model, &first).unwrap();
        for (i, site) in sites.iter().enumerate() {
            let pool = numbers(&site["energies"]).len();
            let energies = model.state.get(&format!("energies.{i}")).unwrap().val();
            near(energies, &site["energies"], "energies");
            let direction = current(&mut model, i);
            let (a, b) = (direction.a.val(), direction.b.val());
            let (rows, signs) = with_signs(b, matrix(&site["turned_b"], width));
            near(rows, &site["turned_b"], "turned B");
            near(a * signs, &site["turned_a"], "turned A");
            let product = matrix(&site["a"], pool).matmul(matrix(&site["b"], width));
            let expected = host(product);
            let found = updates(&model).remove(i);
            assert_close(found, expected.as_slice(), TOLERANCE, "the product stays");
        }

        let trained = model.head.trained.as_mut().unwrap();
        put(&mut trained.weight, matrix(&distillation["columns"], n_old));
        let biases = matrix(&distillation["biases"], n_old).reshape([n_old]);
        put(trained.bias.as_mut().unwrap(), biases);
        model = method.before_task(model, &task(1, 2)).unwrap();
        let fits = Fit::all(&golden["sites"]);
        for (i, (site, fit)) in sites.iter().zip(&fits).enumerate() {
            let kept = count(&site["kept"]);
            let bank = &model.adapter.sites[i];
            assert_eq!(bank.past.as_ref().unwrap().ranks(), [kept]);
            let direction = bank.current.as_ref().unwrap();
            assert!(host(direction.a.val()).iter().all(|v| *v == 0.0));
            assert!(direction.a.is_require_grad() && !direction.b.is_require_grad());
            let (rest, _) = with_signs(direction.b.val(), matrix(&site["rest"], width));
            near(rest, &site["rest"], "released directions");
            near(
                updates(&model).remove(i),
                &site["old"],
                "what the old task keeps",
            );

            let name = bank.site().name.to_string();
            let all = model.adapter.updates();
            let mut own = Updates::default();
            own.insert(&fit.site, all.get(&name).unwrap().clone());
            let loss = fit.loss(&own);
            let expected = [number(&site["loss"]) as f32];
            assert_close(loss.clone(), expected.as_slice(), OF_EIGENVECTORS, "loss");
            let gradients = loss.backward();
            let direction = current(&mut model, i);
            assert!(direction.b.val().grad(&gradients).is_none(), "B is frozen");
            let gradient = step(&mut direction.a, &gradients, lr);
            let along = gradient.matmul(direction.b.val().inner());
            near(
                along,
                &site["grad_times_rest"],
                "gradient of A in its directions",
            );
            near(
                updates(&model).remove(i),
                &site["update_after"],
                "update after a step",
            );
        }

        // A has moved, and the teacher does not know: it is the model before the task.
        let features = matrix(&distillation["features"], width).require_grad();
        let of_batch = images(&distillation["images"], &vit);
        let labels = vec![n_old; of_batch.dims()[0]];
        let head = HeadConfig::named("linear").build().unwrap();
        let batch = LossBatch {
            images: Some(Tensor::from_inner(of_batch)),
            features: features.clone(),
            labels: &labels,
            task_labels: &[n_old, n_old + 1],
            task_idx: 1,
            step: 0,
            first_row: 0,
            seed: 1,
            head: head.as_ref(),
        };
        let divergence = method.batch_penalty(&model, &batch).unwrap();
        let expected = [number(&distillation["value"]) as f32];
        assert_close(
            divergence.clone(),
            expected.as_slice(),
            OF_EIGENVECTORS,
            "divergence",
        );
        let gradient = features.grad(&divergence.backward()).unwrap();
        near(
            gradient,
            &distillation["gradient"],
            "gradient of the divergence",
        );
        compared.add(options);
    }
}

#[test]
fn sdlora_merge_predicts_with_a_running_mean() {
    let mut compared = Compared::new("running means");
    for (vit, golden) in cases("sdlora_merge") {
        let n_images = counts(&golden["n_images"]);
        for case in list(&golden["cases"]) {
            let (name, lr) = (text(&case["options"]), number(&case["lr"]));
            let method = build("sdlora-merge", name);
            let fit = Fit::new(&case["site"], "site", 0);
            let mut model = unbegun(&vit, method.as_ref(), &fit.site);
            let mut last: Option<[Vec<f32>; 2]> = None;
            for (t, expected) in list(&case["tasks"]).iter().enumerate() {
                let what = |of: &str| format!("{name}: {of} in task {t}");
                model = method.before_task(model, &task(t, 2)).unwrap();
                let direction = current(&mut model, 0);
                let start = [host(direction.a.val()), host(direction.b.val())];
                match (&last, text(&case["start"])) {
                    (Some(last), "previous" | "factors") => {
                        assert!(start == *last, "{name}: the last factors, bit by bit");
                    }
                    _ => assert!(start[1].iter().all(|v| *v == 0.0), "{name}: drawn anew"),
                }
                put_factors(direction, &expected["a"], &expected["b"]);
                let loss = fit.loss(&model.adapter.updates());
                same_number(loss.clone(), &expected["loss"], &what("loss"));
                let gradients = loss.backward();
                let direction = current(&mut model, 0);
                for (key, factor) in [("a", &mut direction.a), ("b", &mut direction.b)] {
                    let gradient = step(factor, &gradients, lr);
                    same(
                        gradient,
                        &expected[format!("grad_{key}")],
                        &what("gradient"),
                    );
                    same(factor.val(), &expected[format!("{key}_after")], &what(key));
                }
                last = Some([host(direction.a.val()), host(direction.b.val())]);
                let side = vit.config().image_size;
                let none = Tensor::zeros([n_images[t], 1, side, side], &test_device());
                let given = Given(none, vec![2 * t; n_images[t]]);
                model = method.review(model, &task(t, 2), &given).unwrap();
                model = method.after_task(model, &task(t, 2)).unwrap();
                same(
                    updates(&model).remove(0),
                    &expected["update"],
                    &what("the mean"),
                );
            }
            compared.add(name);
        }
    }
}

/// Other values in some matrices of a state, by name.
fn put_state(model: &mut Model, values: &BTreeMap<String, &Value>) {
    struct Put {
        next: std::vec::IntoIter<Option<Vec<f32>>>,
    }
    impl ModuleMapper for Put {
        fn map_float<const D: usize>(&mut self, mut param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if let Some(values) = self.next.next().unwrap() {
                let data = TensorData::new(values, param.lazy_shape());
                put(&mut param, Tensor::from_data(data, &test_device_autodiff()));
            }
            param
        }
    }
    let names: Vec<String> = model.state.names().map(String::from).collect();
    assert!(values.keys().all(|name| names.contains(name)), "{names:?}");
    let found = names
        .iter()
        .map(|name| values.get(name).map(|v| numbers(v)));
    let next = found.collect::<Vec<_>>().into_iter();
    model.state = model.state.clone().map(&mut Put { next });
}

/// `Ψᵀ Ψ` of the rows that a task added to the bases of a block.
fn projector(state: &MethodState, task: usize, block: usize) -> Tensor<2> {
    let layout = state.second_pass().unwrap().layout();
    let of_tasks = list(&layout["n_bases"]).iter();
    let n_rows: Vec<usize> = of_tasks.map(|blocks| count(&blocks[block])).collect();
    let bases = state.get(&format!("bases.{block}")).unwrap().val();
    assert_eq!(bases.dims()[0], n_rows.iter().sum::<usize>());
    let first = n_rows[..task].iter().sum();
    let own = bases.narrow(0, first, n_rows[task]);
    own.clone().transpose().matmul(own)
}

#[test]
fn duallora_projects_both_branches_and_weighs_one_of_them_by_image() {
    let mut compared = Compared::new("branches of DualLoRA");
    for (vit, golden) in cases("duallora") {
        let (width, rank) = (vit.config().d_model, count(&golden["rank"]));
        let options = format!("{}\nprojections = [\"value\"]", text(&golden["options"]));
        let method = build("duallora", &options);
        let mut model = fresh(&vit, method.as_ref());
        for (t, expected) in list(&golden["tasks"]).iter().enumerate() {
            let labels = counts(&golden["labels"][t]);
            let n_new = labels.iter().max().unwrap() + 1 - 2 * t;
            let (context, given) = (task(t, n_new), images(&expected["images"], &vit));
            let given = Given(given, labels);
            model = method.before_task(model, &context).unwrap();
            model = method.prepare(model, &context, &given).unwrap();
            let n_blocks = model.adapter.sites.len();
            for block in 0..n_blocks {
                let found = projector(&model.state, t, block);
                near(
                    found,
                    &expected["own"][block],
                    &format!("bases of task {t}"),
                );
                let a = matrix(&expected["a"][block], rank);
                put(&mut current(&mut model, block).a, a);
            }
            let residual = list(&expected["residual_a"]).iter().enumerate();
            let residual = residual.map(|(i, a)| (format!("a.{i}"), a));
            put_state(&mut model, &residual.collect());
            model = method.after_step(model, &at_step(0, 10, None)).unwrap();
            for block in 0..n_blocks {
                let a = current(&mut model, block).a.val();
                near(a, &expected["a_after"][block], "A outside old bases");
                let a = model.state.get(&format!("a.{block}")).unwrap().val();
                near(
                    a,
                    &expected["residual_a_after"][block],
                    "residual A inside its own",
                );
            }
            model = method.review(model, &context, &given).unwrap();
            let similarity = model.state.get("similarity.0").unwrap().val();
            let column = host(similarity.narrow(1, t, 1));
            let moments = [
                number(&expected["mean"]) as f32,
                number(&expected["deviation"]) as f32,
            ];
            assert_close(
                column.as_slice(),
                moments.as_slice(),
                OF_EIGENVECTORS,
                "similarity",
            );
            model = method.after_task(model, &context).unwrap();
        }

        let branch = &golden["branch"];
        let factors = [
            ("past_a.1", "a", 0),
            ("past_b.1", "b", 0),
            ("a.1", "a", 1),
            ("b.1", "b", 1),
        ];
        let factors = factors.map(|(name, key, t)| (name.to_string(), &branch[key][t]));
        put_state(&mut model, &factors.into_iter().collect());
        let (asked, none) = (images(&golden["images"], &vit), Updates::default());
        let asked = Tensor::from_inner(asked);
        let second_pass = model.state.second_pass().unwrap();
        let query = second_pass.query(&model.state, &model.backbone, asked, &none);
        near(query.clone(), &golden["shares"], "shares");
        let shifts = second_pass.shifts(&model.state, &query).unwrap();
        near(shifts, &golden["shifts"], "what is added to the logits");
        let prompting = second_pass.prompting(&model.state, query);
        let updates = prompting.with_branches(&none).unwrap();
        let update = updates.get(&Projection::Value.site(1)).unwrap();
        let gate = update.by_image()[0].gate.clone();
        let [n_images, n_columns] = gate.dims();
        let weights = gate
            .reshape([n_images, n_columns / rank, rank])
            .narrow(2, 0, 1);
        near(
            weights.reshape([n_images, n_columns / rank]),
            &golden["weights"],
            "weights",
        );

        let rows = |value: &Value| {
            let rows = matrix(value, width);
            let [n, _] = rows.dims();
            rows.reshape([n_images, n / n_images, width])
        };
        let zeros = Tensor::zeros([width, width], &test_device_autodiff());
        let columns = [ColumnUpdate {
            first_column: 0,
            update,
        }];
        let added = adapted_linear(
            rows(&branch["inputs"]),
            zeros,
            None,
            &columns,
            UpdateForm::Auto,
        );
        let [_, n_tokens, _] = added.dims();
        let flat = added.clone().reshape([n_images * n_tokens, width]);
        near(flat, &branch["added"], "what the branches add");
        let loss = (added * rows(&branch["cotangent"])).sum();
        let expected = [number(&branch["loss"]) as f32];
        assert_close(loss.clone(), expected.as_slice(), OF_EIGENVECTORS, "loss");
        let gradients = loss.backward();
        for (name, key) in [("a.1", "grad_a"), ("b.1", "grad_b")] {
            let param = model.state.get(name).unwrap();
            near(param.val().grad(&gradients).unwrap(), &branch[key], key);
        }
        let past = model.state.get("past_a.1").unwrap();
        assert!(past.val().grad(&gradients).is_none(), "of an earlier task");
        compared.add(options);
    }
}
