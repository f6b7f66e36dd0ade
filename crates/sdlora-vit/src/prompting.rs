//! What a caller adds to the tokens of a forward pass: learned tokens in front of the image's, and
//! learned keys and values in front of those of chosen blocks, and branches beside chosen linear maps.
//!
//! Where these come from, and which of many a given image gets, this crate does not know.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use sdlora_core::{GatedFactors, Updates};

/// Keys `P_K` and values `P_V` that the attention of a block reads in front of its own:
/// `softmax(q [P_K; k]ᵀ / √d_head) [P_V; v]`. Queries, and with them the number of tokens, stay.
///
/// Each is `[batch, n_prefix, d_model]`, heads one after another, and stands behind the projection
/// of the block: nothing is multiplied to it. A batch of 1 serves every image.
#[derive(Debug, Clone)]
pub struct Prefix {
    keys: Tensor<3>,
    values: Tensor<3>,
}

impl Prefix {
    /// A prefix of these keys and values.
    ///
    /// # Panics
    ///
    /// If the two differ in shape.
    pub fn new(keys: Tensor<3>, values: Tensor<3>) -> Self {
        assert!(
            keys.dims() == values.dims(),
            "a prefix of keys {:?} and values {:?}: give as many of both",
            keys.dims(),
            values.dims()
        );
        Self { keys, values }
    }

    /// The rows `[batch, n_prefix, 3 · d_model]` that stand in front of a packed projection. Their
    /// queries are 0: every token attends for itself, so what these rows attend to is never read.
    pub(crate) fn packed(&self, batch: usize) -> Tensor<3> {
        let [_, n_prefix, d_model] = self.keys.dims();
        let shape = [batch, n_prefix, d_model];
        let queries = Tensor::zeros(shape, &self.keys.device());
        let keys = self.keys.clone().expand(shape);
        Tensor::cat(vec![queries, keys, self.values.clone().expand(shape)], 2)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        let [_, n_prefix, _] = self.keys.dims();
        n_prefix
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which tokens become the feature when there are tokens in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadOut {
    /// The mean of the tokens in front (L2P, section 4.2).
    #[default]
    Prompts,
    /// The tokens the model pools without them.
    Backbone,
}

/// Additions to one forward pass; the default adds nothing.
#[derive(Debug, Clone, Default)]
pub struct Prompting {
    pub(crate) tokens: Option<Tensor<3>>,
    pub(crate) read_out: ReadOut,
    pub(crate) prefixes: BTreeMap<usize, Prefix>,
    branches: Vec<(String, GatedFactors)>,
}

impl Prompting {
    /// With `tokens: [batch, n_front, d_model]` in front of the first block's, without positions; a
    /// batch of 1 serves every image.
    #[must_use]
    pub fn with_tokens(mut self, tokens: Tensor<3>, read_out: ReadOut) -> Self {
        self.tokens = Some(tokens);
        self.read_out = read_out;
        self
    }

    /// With a prefix for the block of that index, from 0; it takes the place of an earlier one.
    #[must_use]
    pub fn with_prefix(mut self, block_idx: usize, prefix: Prefix) -> Self {
        self.prefixes.insert(block_idx, prefix);
        self
    }

    /// With a branch beside the linear map of the site of that name, which counts differently for every image.
    #[must_use]
    pub fn with_branch(mut self, site: String, branch: GatedFactors) -> Self {
        self.branches.push((site, branch));
        self
    }

    /// Updates together with the branches; `None` where there are none.
    pub fn with_branches(&self, updates: &Updates) -> Option<Updates> {
        if self.branches.is_empty() {
            return None;
        }
        let mut all = updates.clone();
        for (site, branch) in &self.branches {
            all.add_gated(site, branch.clone());
        }
        Some(all)
    }

    pub(crate) fn prefix(&self, block_idx: usize) -> Option<&Prefix> {
        self.prefixes.get(&block_idx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::Attention;
    use crate::config::VitConfig;
    use crate::model::Vit;
    use burn::tensor::{Device, TensorData, activation::softmax};
    use rand::SeedableRng;
    use sdlora_testkit::toy::SplitMix64;
    use sdlora_testkit::{Tolerance, assert_close, test_device, test_device_autodiff};

    const D: usize = 12;

    fn vit(device: &Device) -> Vit {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        Vit::init(&VitConfig::standard(8, 4, D, 3, 2), &mut rng, device).unwrap()
    }

    fn draw<const N: usize>(seed: u64, shape: [usize; N], device: &Device) -> Tensor<N> {
        let values = SplitMix64::new(seed).fill(shape.iter().product(), 1.0);
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn host<const N: usize>(tensor: Tensor<N>) -> Vec<f32> {
        tensor.into_data().iter().collect()
    }

    /// Attention written out: keys and values concatenated before the heads are split.
    fn by_hand(layer: &Attention, x: Tensor<3>, prefix: &Prefix, n_heads: usize) -> Tensor<3> {
        let [batch, n_tokens, d_model] = x.dims();
        let d_head = d_model / n_heads;
        let qkv = layer.project(x, 0, &Updates::default());
        let part = |i: usize| qkv.clone().narrow(2, i * d_model, d_model);
        let keys = Tensor::cat(vec![prefix.keys.clone(), part(1)], 1);
        let values = Tensor::cat(vec![prefix.values.clone(), part(2)], 1);
        let heads = (0..n_heads)
            .map(|head| {
                let of = |x: Tensor<3>| x.narrow(2, head * d_head, d_head);
                let scores = of(part(0)).matmul(of(keys.clone()).transpose());
                let weights = softmax(scores / (d_head as f64).sqrt(), 2);
                weights.matmul(of(values.clone()))
            })
            .collect();
        let attended = Tensor::cat(heads, 2).reshape([batch, n_tokens, d_model]);
        layer.proj.forward(attended, &[])
    }

    #[test]
    fn a_prefix_is_keys_and_values_in_front_by_hand_with_its_gradients() {
        let device = test_device_autodiff();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let layer = Attention::init(&VitConfig::standard(8, 4, D, 1, 2), &mut rng, &device);
        let weights = draw(8, [2, 5, D], &device);
        let run = |is_by_hand: bool| {
            let x = draw(3, [2, 5, D], &device).require_grad();
            let keys = draw(5, [2, 4, D], &device).require_grad();
            let values = draw(6, [2, 4, D], &device).require_grad();
            let prefix = Prefix::new(keys.clone(), values.clone());
            let out = if is_by_hand {
                by_hand(&layer, x.clone(), &prefix, 2)
            } else {
                layer.forward_prefixed(x.clone(), 0, &Updates::default(), Some(&prefix))
            };
            let grads = (out.clone() * weights.clone()).sum().backward();
            let grad = |t: &Tensor<3>| host(t.grad(&grads).unwrap());
            [host(out), grad(&x), grad(&keys), grad(&values)]
        };
        let names = ["output", "input", "keys", "values"];
        for ((name, found), expected) in names.iter().zip(run(false)).zip(run(true)) {
            let n = found.len();
            let found = Tensor::<1>::from_data(TensorData::new(found, [n]), &device);
            assert_close(found, expected.as_slice(), Tolerance::Abs(2e-5), name);
        }
    }

    #[test]
    fn a_prefix_of_one_serves_every_image_and_changes_its_feature() {
        let device = test_device();
        let vit = vit(&device);
        let none = Updates::default();
        let images = draw(1, [3, 3, 8, 8], &device);
        let (keys, values) = (draw(2, [1, 4, D], &device), draw(3, [1, 4, D], &device));
        let forward = |keys: Tensor<3>, values: Tensor<3>| {
            let prompting = Prompting::default().with_prefix(1, Prefix::new(keys, values));
            vit.forward_prompted(images.clone(), &none, &prompting)
        };
        let one = forward(keys.clone(), values.clone());
        let each = host(forward(keys.repeat_dim(0, 3), values.repeat_dim(0, 3)));
        assert_close(one.clone(), each.as_slice(), Tolerance::Abs(0.0), "one");
        let plain = vit.forward(images, &none);
        let largest: f32 = (one - plain).abs().max().into_scalar();
        assert!(largest > 1e-3, "a prefix without effect: {largest}");
    }

    #[test]
    fn nothing_added_changes_no_bit() {
        let device = test_device();
        let vit = vit(&device);
        let none = Updates::default();
        let images = draw(1, [2, 3, 8, 8], &device);
        let expected = host(vit.forward(images.clone(), &none));
        let found = vit.forward_prompted(images, &none, &Prompting::default());
        assert_close(found, expected.as_slice(), Tolerance::Abs(0.0), "feature");
    }

    #[test]
    fn tokens_in_front_are_attended_to_and_read_out_as_asked() {
        let device = test_device();
        let vit = vit(&device);
        let none = Updates::default();
        let images = draw(1, [2, 3, 8, 8], &device);
        let front = draw(2, [1, 3, D], &device);
        let read = |read_out: ReadOut| {
            let prompting = Prompting::default().with_tokens(front.clone(), read_out);
            vit.forward_prompted(images.clone(), &none, &prompting)
        };
        // The same by the blocks alone.
        let front = front.clone().repeat_dim(0, 2);
        let mut tokens = Tensor::cat(vec![front, vit.embed(images.clone())], 1);
        for (block_idx, block) in vit.blocks.iter().enumerate() {
            tokens = block.forward(tokens, block_idx, &none);
        }
        let tokens = vit.norm.forward(tokens);
        let mean = host(tokens.clone().narrow(1, 0, 3).mean_dim(1));
        let class = host(tokens.narrow(1, 3, 1));
        let (prompts, backbone) = (read(ReadOut::Prompts), read(ReadOut::Backbone));
        assert_close(prompts, mean.as_slice(), Tolerance::Abs(1e-6), "prompts");
        assert_close(
            backbone.clone(),
            class.as_slice(),
            Tolerance::Abs(1e-6),
            "class",
        );
        let plain = vit.forward(images, &none);
        let largest: f32 = (backbone - plain).abs().max().into_scalar();
        assert!(largest > 1e-3, "the class token attends to them: {largest}");
    }

    #[test]
    #[should_panic(expected = "block 3 of a model with 3 blocks")]
    fn a_prefix_for_a_block_that_is_not_there_is_refused() {
        let device = test_device();
        let keys: Tensor<3> = draw(2, [1, 4, D], &device);
        let prompting = Prompting::default().with_prefix(3, Prefix::new(keys.clone(), keys));
        let images = draw(1, [2, 3, 8, 8], &device);
        let _ = vit(&device).forward_prompted(images, &Updates::default(), &prompting);
    }
}
