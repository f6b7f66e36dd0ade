//! Whether a model is worth keeping: its numbers are numbers of a size that means something, and its
//! loss is one that learns.
//!
//! The loss of a step is read anyway, so a step costs nothing more. What is learned is looked at
//! after the last step of a task and before every checkpoint: one sum over the parameters, one
//! number read.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::heads::HeadState;
use crate::model::Model;

/// Largest norm of what is trained, all of it together: 2²⁴, above which the next `f32` is 2 away.
///
/// Beyond it no step of a usual rate changes a number any more, and logits of that size keep no difference that
/// a softmax could see. No settings that learn come near: for the 8.6·10⁷ numbers of a whole ViT-B it is a root
/// mean square of 1,800, for what an adapter and a head train far more, and they start below 1.
const LARGEST_NORM: f32 = 16_777_216.0;

/// The first part of a model that holds a number which is infinite or not a number, or a trained parameter beyond
/// [`LARGEST_NORM`]. What is frozen, and the arrays that a head keeps, only have to be finite: the inverse norm
/// of a direction that was hardly trained is large. Frozen weights of the backbone are those of a file, which were
/// looked at when it was read.
pub(crate) fn unsound_part(model: &Model) -> Option<String> {
    let mut sum = Look::new(false);
    sum.at(model);
    if sum.ends_sound() {
        return unsound_array(&model.head);
    }
    // Once more, one number read for every parameter, to have its name.
    let mut name = Look::new(true);
    name.at(model);
    Some(
        name.found
            .unwrap_or_else(|| "the parameters together".into()),
    )
}

/// The first parameter of another module that holds such a number.
pub(crate) fn unsound_parameter<M: Module>(module: &M) -> Option<String> {
    let mut name = Look::new(true);
    module.visit(&mut name);
    name.found
}

fn unsound_array(head: &HeadState) -> Option<String> {
    let arrays = head.per_class.iter().chain(&head.shared);
    let is_unsound = |values: &[f32]| values.iter().any(|v| !v.is_finite());
    arrays
        .filter(|(_, array)| is_unsound(&array.values))
        .map(|(name, _)| format!("head.{name}"))
        .next()
}

/// The running sums of the squares of all numbers.
struct Look {
    path: Vec<String>,
    trained_only: bool,
    by_name: bool,
    /// Of what is trained, and of what is frozen.
    sums: [Option<Tensor<1>>; 2],
    found: Option<String>,
}

impl Look {
    fn new(by_name: bool) -> Self {
        Self {
            path: Vec::new(),
            trained_only: false,
            by_name,
            sums: [None, None],
            found: None,
        }
    }

    fn at(&mut self, model: &Model) {
        self.trained_only = true;
        self.part("backbone", &model.backbone);
        self.trained_only = false;
        self.part("adapter", &model.adapter);
        self.part("head", &model.head);
        self.part("state", &model.state);
    }

    fn part<M: Module>(&mut self, name: &str, module: &M) {
        self.path.push(name.to_owned());
        module.visit(self);
        self.path.pop();
    }

    fn ends_sound(self) -> bool {
        let [trained, frozen] = self.sums;
        trained.is_none_or(|sum| is_sound(sum, true))
            && frozen.is_none_or(|sum| is_sound(sum, false))
    }
}

impl ModuleVisitor for Look {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let is_trained = param.is_require_grad();
        if self.found.is_some() || self.trained_only && !is_trained {
            return;
        }
        let squares = param.val().detach().square().sum();
        if !self.by_name {
            let sum = &mut self.sums[usize::from(!is_trained)];
            *sum = Some(match sum.take() {
                Some(sum) => sum + squares,
                None => squares,
            });
        } else if !is_sound(squares, is_trained) {
            self.found = Some(self.path.join("."));
        }
    }
}

/// Whether a sum of squares is finite, and that of a norm within the bound where it is of something trained.
fn is_sound(sum: Tensor<1>, is_trained: bool) -> bool {
    let sum = sum.into_scalar::<f32>();
    sum.is_finite() && (!is_trained || sum <= LARGEST_NORM * LARGEST_NORM)
}

/// The loss that a task is watched against.
///
/// Guessing among n classes costs `ln n`. A run whose loss lies more than [`FACTOR`] times above that,
/// and above its own first loss (penalties and long features are in both), in most of the last
/// [`WINDOW`] steps learns nothing any more, whatever its numbers are. Single steps may lie there:
/// a task that starts badly and comes down is left alone.
///
/// A step shows in the loss of the next one. The last step has none, so its batch is looked at once more
/// ([`lost_at_end`](Self::lost_at_end)): what it leaves is what is kept, and no later step brings it down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LossWatch {
    /// The loss of guessing, or the first one where that is larger.
    guessing: f64,
    limit: f64,
    window: usize,
}

/// How far above guessing a loss is lost.
const FACTOR: f64 = 10.0;
/// Number of recent steps to examine; a shorter task examines all but its first.
const WINDOW: usize = 50;
/// How much of the loss of guessing a task may end with before it counts as a guess: rounding costs less.
const NO_BETTER: f64 = 0.999;
/// Fewest steps of a task whose last epoch is judged; fewer need not have brought the loss down yet.
const FEWEST_JUDGED: usize = 20;

impl LossWatch {
    /// For a task of `n_steps` whose loss compares `n_classes` and begins with `first`.
    pub(crate) fn new(n_classes: usize, n_steps: usize, first: f64) -> Self {
        let guessing = (n_classes.max(2) as f64).ln().max(first);
        Self {
            guessing,
            limit: FACTOR * guessing,
            window: WINDOW.min(n_steps.saturating_sub(1)),
        }
    }

    /// The loss above which steps count.
    pub(crate) fn limit(&self) -> f64 {
        self.limit
    }

    /// The mean loss of the last epoch, of `n_batches` steps, and the loss of guessing, if the task ends no better
    /// than a guess: the adapter is dead, or the rate throws it about.
    ///
    /// Such a task is no failure, because later ones may learn again, but nobody should find it in a table alone.
    pub(crate) fn unlearnt(&self, losses: &[f64], n_batches: usize) -> Option<(f64, f64)> {
        if losses.len() < FEWEST_JUDGED {
            return None;
        }
        let last = &losses[losses.len().saturating_sub(n_batches.max(1))..];
        let mean = last.iter().sum::<f64>() / last.len() as f64;
        (mean >= NO_BETTER * self.guessing).then_some((mean, self.guessing))
    }

    /// How many of the last steps lie above the limit, and how many are looked at, once that is most
    /// of them.
    pub(crate) fn lost(&self, losses: &[f64]) -> Option<(usize, usize)> {
        // A step below the limit cannot be the one that makes it most.
        if losses.last().is_none_or(|&loss| loss <= self.limit) {
            return None;
        }
        let first = losses.len().saturating_sub(self.window).max(1);
        let last = losses.get(first..).unwrap_or_default();
        let n_above = last.iter().filter(|&&loss| loss > self.limit).count();
        (2 * n_above > self.window).then_some((n_above, self.window))
    }

    /// Whether the loss of the last batch after the last step is lost: no number, or above the limit.
    ///
    /// The limit is that of the steps. A model that guesses on the images it has just stepped on has a tenth
    /// of it at most, so one above it is certain of wrong classes.
    pub(crate) fn lost_at_end(&self, after: f64) -> bool {
        after.is_nan() || after > self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use sdlora_core::{Adapter, Variant};
    use sdlora_testkit::test_device_autodiff;
    use sdlora_vit::{Projection, Vit, VitConfig};

    use crate::heads::TrainedHead;

    fn model() -> Model {
        let device = test_device_autodiff();
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let vit = Vit::init(&VitConfig::standard(8, 4, 12, 1, 2), &mut rng, &device).unwrap();
        let sites = vit.config().sites(&[Projection::Query]);
        let adapter = Adapter::new(Variant::Paper.config(), &sites).unwrap();
        let mut model = Model::new(vit, adapter);
        model.adapter = model.adapter.begin_task(2, &mut rng, &device).unwrap();
        model.head.trained = Some(TrainedHead::draw(12, 3, &mut rng, &device));
        model
    }

    fn with_bias(mut model: Model, bias: [f32; 3]) -> Model {
        let device = test_device_autodiff();
        let trained = model.head.trained.take().unwrap();
        let (rows, d_model) = trained.rows();
        let weight = TensorData::new(rows, [d_model, 3]);
        let bias = TensorData::from(bias);
        model.head.trained = Some(TrainedHead::from_data(weight, bias, &device));
        model
    }

    #[test]
    fn a_number_that_is_none_or_too_large_is_named() {
        assert_eq!(unsound_part(&model()), None);
        assert_eq!(unsound_part(&with_bias(model(), [1e7, -1e7, 0.0])), None);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -2e7, 1e20] {
            let found = unsound_part(&with_bias(model(), [0.0, bad, 0.0])).unwrap();
            assert!(found.contains("head") && found.contains("bias"), "{found}");
        }
        // Frozen numbers may be as large as they like: the inverse norm of a direction, for instance.
        for (large, is_sound) in [(1e9, true), (f32::INFINITY, false)] {
            let mut model = with_bias(model(), [large, 0.0, 0.0]);
            let trained = model.head.trained.as_mut().unwrap();
            trained.bias = trained.bias.take().map(|bias| bias.set_require_grad(false));
            assert_eq!(unsound_part(&model).is_none(), is_sound, "{large}");
        }
    }

    #[test]
    fn what_a_fitted_head_holds_is_looked_at_too() {
        let mut model = model();
        model.head.set_rows("sums", vec![1, 2], vec![1.0, 2.0]);
        assert_eq!(unsound_part(&model), None);
        model.head.set_shared("gram", vec![2], vec![1.0, f32::NAN]);
        assert_eq!(unsound_part(&model).as_deref(), Some("head.gram"));
    }

    #[test]
    fn frozen_weights_of_the_backbone_are_left_alone_and_trained_ones_are_not() {
        let device = test_device_autodiff();
        for (is_trained, expected) in [(false, None), (true, Some("backbone.norm.bias"))] {
            let mut model = model();
            let bias = Tensor::from_data([f32::NAN; 12], &device);
            model.backbone.norm.bias = Param::from_tensor(bias).set_require_grad(is_trained);
            assert_eq!(unsound_part(&model).as_deref(), expected);
        }
    }

    #[test]
    fn a_loss_that_stays_far_above_guessing_is_lost() {
        let watch = LossWatch::new(20, 100, 3.5);
        assert_eq!(watch.limit(), 35.0);
        let with = |n_sound: usize, n_lost: usize| {
            [vec![3.5], vec![2.0; n_sound], vec![1e5; n_lost]].concat()
        };
        // 26 of 50 is most of them; what lies further back plays no part.
        assert_eq!(watch.lost(&with(60, 25)), None);
        assert_eq!(watch.lost(&with(60, 26)), Some((26, 50)));
        assert_eq!(watch.lost(&with(0, 26)), Some((26, 50)));
        // One bad start, one bad step in ten, and a step that is sound again.
        assert_eq!(watch.lost(&with(0, 20)), None);
        let spikes: Vec<f64> = (0..90)
            .map(|i| if i % 10 == 9 { 1e6 } else { 1.0 })
            .collect();
        assert_eq!(watch.lost(&spikes), None);
        let back = [with(0, 25), vec![1.0]].concat();
        assert_eq!(watch.lost(&back), None);
    }

    #[test]
    fn a_short_task_is_judged_by_the_steps_it_has() {
        let watch = LossWatch::new(2, 4, 0.7);
        assert_eq!(watch.lost(&[0.7, 1e3]), None);
        assert_eq!(watch.lost(&[0.7, 1e3, 1e3]), Some((2, 3)));
        assert_eq!(LossWatch::new(2, 1, 1e9).lost(&[1e9]), None);
        // A penalty that is large from the start is no sign of anything.
        assert_eq!(LossWatch::new(2, 9, 300.0).lost(&[300.0; 9]), None);
        // One class costs nothing to guess, and never more.
        assert_eq!(LossWatch::new(1, 9, 0.0).lost(&[0.0; 9]), None);
    }

    #[test]
    fn a_task_that_ends_no_better_than_a_guess_is_named() {
        let watch = LossWatch::new(46, 40, 4.06);
        let ends = |last: f64| [vec![4.06], vec![0.5; 34], vec![last; 5]].concat();
        assert_eq!(watch.unlearnt(&ends(4.31), 5), Some((4.31, 4.06)));
        assert_eq!(watch.unlearnt(&ends(4.0), 5), None);
        // Only the last epoch counts, and a task of a few steps is not judged.
        assert_eq!(watch.unlearnt(&ends(4.31), 20), None);
        assert_eq!(watch.unlearnt(&[5.0; 19], 5), None);
        // A first loss below that of guessing is no measure.
        let watch = LossWatch::new(46, 40, 0.1);
        assert_eq!(watch.unlearnt(&[0.2; 40], 5), None);
    }

    #[test]
    fn the_last_step_is_judged_by_its_own_batch() {
        // One step, which no other follows.
        let watch = LossWatch::new(20, 1, 3.1);
        assert_eq!(watch.limit(), 31.0);
        assert!(!watch.lost_at_end(0.0) && !watch.lost_at_end(31.0));
        assert!(watch.lost_at_end(31.1) && watch.lost_at_end(f64::INFINITY));
        assert!(watch.lost_at_end(f64::NAN));
    }
}
