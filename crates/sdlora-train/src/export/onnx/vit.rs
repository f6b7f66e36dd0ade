//! The backbone as operators of ONNX.

use std::collections::BTreeMap;

use sdlora_onnx::{Graph, Value, Weights};
use sdlora_vit::{Activation, Pooling, PosEmbed, VitConfig};

use super::super::adapter::transposed;
use super::super::tensors::HostTensor;

/// Puts the layers of a backbone into a graph.
pub(super) struct Layers<'a> {
    pub(super) graph: &'a mut Graph,
    pub(super) config: &'a VitConfig,
    /// Parameters with timm's names, in PyTorch's layouts.
    pub(super) tensors: &'a BTreeMap<String, HostTensor>,
    /// How the maps of the blocks are stored; the patches are never in less than 16 bits, the rest in 32.
    pub(super) weights: Weights,
}

impl Layers<'_> {
    /// Features `[batch, d_model]` of normalised `pixels: [batch, n_channels, image_size, image_size]`.
    pub(super) fn features(&mut self, pixels: &Value) -> Value {
        let mut tokens = self.embed(pixels);
        for block_idx in 0..self.config.depth {
            tokens = self.block(&tokens, block_idx);
        }
        let norm = if self.config.fc_norm {
            "fc_norm"
        } else {
            "norm"
        };
        if !self.config.fc_norm {
            tokens = self.norm(&tokens, norm);
        }
        let pooled = self.pool(&tokens);
        match self.config.fc_norm {
            true => self.norm(&pooled, norm),
            false => pooled,
        }
    }

    fn embed(&mut self, pixels: &Value) -> Value {
        let kernel = self.known("patch_embed.proj.weight");
        let (shape, values) = (kernel.shape.clone(), kernel.values.clone());
        let name = "patch_embed.proj.weight";
        let kernel = self.graph.weight(name, &shape, &values, self.weights);
        let bias = self.stored("patch_embed.proj.bias");
        let patches = self.graph.patches(pixels, &kernel, bias.as_ref());
        let rows = self.graph.reshape(&patches, &[0, 0, -1]);
        let mut tokens = self.graph.transpose(&rows, &[0, 2, 1]);
        let positions = self.stored("pos_embed");
        let positions = positions.unwrap_or_else(|| panic!("every ViT has positions"));
        if self.config.pos_embed == PosEmbed::Patches {
            tokens = self.graph.add(&tokens, &positions);
        }
        let front = ["cls_token", "reg_token"].map(|name| self.stored(name));
        let front: Vec<Value> = front
            .iter()
            .flatten()
            .map(|token| self.graph.repeat(token, pixels))
            .collect();
        if !front.is_empty() {
            let parts: Vec<&Value> = front.iter().chain([&tokens]).collect();
            tokens = self.graph.concat(&parts, 1);
        }
        if self.config.pos_embed == PosEmbed::All {
            tokens = self.graph.add(&tokens, &positions);
        }
        match self.config.pre_norm {
            true => self.norm(&tokens, "norm_pre"),
            false => tokens,
        }
    }

    fn block(&mut self, x: &Value, block_idx: usize) -> Value {
        let name = |part: &str| format!("blocks.{block_idx}.{part}");
        let normed = self.norm(x, &name("norm1"));
        let attended = self.attention(&normed, &name("attn"));
        let attended = self.scaled(&attended, &name("ls1.gamma"));
        let x = self.graph.add(x, &attended);
        let normed = self.norm(&x, &name("norm2"));
        let hidden = self.linear(&normed, &name("mlp.fc1"));
        let hidden = self.activation(&hidden);
        let mixed = self.linear(&hidden, &name("mlp.fc2"));
        let mixed = self.scaled(&mixed, &name("ls2.gamma"));
        self.graph.add(&x, &mixed)
    }

    fn attention(&mut self, x: &Value, name: &str) -> Value {
        let c = self.config;
        let (n_tokens, n_heads) = (c.n_tokens() as i64, c.n_heads as i64);
        let d_head = (c.d_model / c.n_heads) as i64;
        let qkv = self.linear(x, &format!("{name}.qkv"));
        let apart = self.graph.reshape(&qkv, &[0, n_tokens, 3, n_heads, d_head]);
        let apart = self.graph.transpose(&apart, &[2, 0, 3, 1, 4]);
        let [q, k, v] = [0, 1, 2].map(|i| {
            let start = self.graph.list(&[i]);
            let one = self.graph.part(&apart, 0, &start, 1);
            self.graph.squeeze(&one, &[0])
        });
        let scale = self.graph.number((d_head as f32).sqrt().recip());
        let q = self.graph.mul(&q, &scale);
        let k = self.graph.transpose(&k, &[0, 1, 3, 2]);
        let scores = self.graph.matmul(&q, &k);
        let shares = self.graph.softmax(&scores);
        let mixed = self.graph.matmul(&shares, &v);
        let mixed = self.graph.transpose(&mixed, &[0, 2, 1, 3]);
        let joined = self.graph.reshape(&mixed, &[0, n_tokens, c.d_model as i64]);
        self.linear(&joined, &format!("{name}.proj"))
    }

    fn activation(&mut self, x: &Value) -> Value {
        let graph = &mut *self.graph;
        match self.config.activation {
            Activation::Gelu => {
                let root = graph.number(std::f32::consts::SQRT_2);
                let (one, half) = (graph.number(1.0), graph.number(0.5));
                let scaled = graph.div(x, &root);
                let erf = graph.erf(&scaled);
                let share = graph.add(&erf, &one);
                let doubled = graph.mul(x, &share);
                graph.mul(&doubled, &half)
            }
            Activation::GeluTanh => {
                let scale = graph.number((2.0 / std::f64::consts::PI).sqrt() as f32);
                let (cubic, one) = (graph.number(0.044_715), graph.number(1.0));
                let half = graph.number(0.5);
                let square = graph.mul(x, x);
                let cube = graph.mul(&square, x);
                let cube = graph.mul(&cube, &cubic);
                let inner = graph.add(x, &cube);
                let inner = graph.mul(&inner, &scale);
                let tanh = graph.tanh(&inner);
                let share = graph.add(&tanh, &one);
                let halved = graph.mul(x, &half);
                graph.mul(&halved, &share)
            }
            Activation::QuickGelu => {
                let scale = graph.number(1.702);
                let scaled = graph.mul(x, &scale);
                let share = graph.sigmoid(&scaled);
                graph.mul(x, &share)
            }
        }
    }

    fn pool(&mut self, tokens: &Value) -> Value {
        match self.config.pooling {
            Pooling::ClassToken => {
                let first = self.graph.list(&[0]);
                let token = self.graph.part(tokens, 1, &first, 1);
                self.graph.squeeze(&token, &[1])
            }
            Pooling::Average => {
                let n_front = self.config.n_prefix_tokens();
                let patches = match n_front {
                    0 => tokens.clone(),
                    _ => {
                        let first = self.graph.list(&[n_front as i64]);
                        let n_patches = self.config.n_tokens() - n_front;
                        self.graph.part(tokens, 1, &first, n_patches)
                    }
                };
                self.graph.mean(&patches, 1)
            }
        }
    }

    /// `x W + b`, the matrix stored as the operator multiplies it, `[d_input, d_output]`.
    fn linear(&mut self, x: &Value, name: &str) -> Value {
        let weight = self.known(&format!("{name}.weight"));
        let [d_output, d_input] = [weight.shape[0], weight.shape[1]];
        let values = transposed(&weight.values, d_output, d_input);
        let name_of_weight = format!("{name}.weight");
        let shape = [d_input, d_output];
        let weight = self
            .graph
            .matrix(&name_of_weight, shape, &values, self.weights);
        let product = self.graph.matmul(x, &weight);
        match self.stored(&format!("{name}.bias")) {
            Some(bias) => self.graph.add(&product, &bias),
            None => product,
        }
    }

    fn norm(&mut self, x: &Value, name: &str) -> Value {
        let [scale, shift] = ["weight", "bias"].map(|part| {
            let stored = self.stored(&format!("{name}.{part}"));
            stored.unwrap_or_else(|| panic!("{name} has scale and shift"))
        });
        let eps = self.config.norm_eps as f32;
        self.graph.layer_norm(x, &scale, &shift, eps)
    }

    fn scaled(&mut self, x: &Value, name: &str) -> Value {
        match self.stored(name) {
            Some(scale) => self.graph.mul(x, &scale),
            None => x.clone(),
        }
    }

    /// A parameter as it is, where the backbone has it.
    fn stored(&mut self, name: &str) -> Option<Value> {
        let HostTensor { shape, values } = self.tensors.get(name)?;
        Some(self.graph.tensor(name, shape, values))
    }

    fn known(&self, name: &str) -> &HostTensor {
        let found = self.tensors.get(name);
        found.unwrap_or_else(|| panic!("every ViT has {name}"))
    }
}
