//! The Vision Transformer: patches, class token, positions, blocks, final norm, pooling.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::Rng;
use sdlora_core::{Precision, Updates, cast};

use crate::block::Block;
use crate::config::{Pooling, PosEmbed, VitConfig};
use crate::error::VitError;
use crate::layers::{LayerNorm, blank, truncated_normal};
use crate::patch_embed::PatchEmbed;
use crate::prompting::{Prompting, ReadOut};

/// A pre-norm ViT without head; its output is the feature of an image.
#[derive(Module, Debug)]
pub struct Vit {
    /// Patches to tokens.
    pub patch_embed: PatchEmbed,
    /// `[1, 1, d_model]`, in front of the patch tokens.
    pub cls_token: Option<Param<Tensor<3>>>,
    /// `[1, n_registers, d_model]`, between class token and patches.
    pub reg_token: Option<Param<Tensor<3>>>,
    /// `[1, n_positions, d_model]`, in the order of the tokens.
    pub pos_embed: Param<Tensor<3>>,
    /// Before the first block (CLIP).
    pub norm_pre: Option<LayerNorm>,
    /// The transformer blocks.
    pub blocks: Vec<Block>,
    /// After the last block, or on the pooled feature where the shape says `fc_norm`.
    pub norm: LayerNorm,
    #[module(skip)]
    precision: Precision,
    #[module(skip)]
    config: VitConfig,
}

impl Vit {
    /// A model with freshly drawn weights; positions start as sine and cosine of the patch's row
    /// and column, from which small data sets learn faster than from random ones.
    ///
    /// # Errors
    ///
    /// [`VitError::Shape`] when the numbers do not describe a model.
    pub fn init(config: &VitConfig, rng: &mut impl Rng, device: &Device) -> Result<Self, VitError> {
        let mut vit = Self::blank(config, device)?;
        vit.pos_embed = Param::from_tensor(Tensor::from_data(
            TensorData::new(
                sine_cosine_positions(config),
                [1, config.n_positions(), config.d_model],
            ),
            device,
        ));
        vit.patch_embed.proj.draw(rng, device);
        if config.class_token {
            vit.cls_token = Some(truncated_normal([1, 1, config.d_model], rng, device));
        }
        if config.n_registers > 0 {
            let shape = [1, config.n_registers, config.d_model];
            vit.reg_token = Some(truncated_normal(shape, rng, device));
        }
        for block in &mut vit.blocks {
            block.draw(rng, device);
        }
        Ok(vit)
    }

    /// Room for the weights of a file.
    pub(crate) fn blank(config: &VitConfig, device: &Device) -> Result<Self, VitError> {
        config.check()?;
        let (d_model, n_registers) = (config.d_model, config.n_registers);
        let norm = || LayerNorm::init(d_model, config.norm_eps, device);
        Ok(Self {
            patch_embed: PatchEmbed::blank(config, device),
            cls_token: config.class_token.then(|| blank([1, 1, d_model], device)),
            reg_token: (n_registers > 0).then(|| blank([1, n_registers, d_model], device)),
            pos_embed: blank([1, config.n_positions(), d_model], device),
            norm_pre: config.pre_norm.then(norm),
            blocks: (0..config.depth)
                .map(|_| Block::blank(config, device))
                .collect(),
            norm: norm(),
            precision: Precision::F32,
            config: config.clone(),
        })
    }

    /// The shape of the model.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Tokens before the first block, `[batch, n_tokens, d_model]`.
    ///
    /// # Panics
    ///
    /// If the images are not `[batch, n_channels, image_size, image_size]`.
    pub fn embed(&self, images: Tensor<4>) -> Tensor<3> {
        let c = &self.config;
        let [batch, n_channels, height, width] = images.dims();
        assert!(
            n_channels == c.n_channels && height == c.image_size && width == c.image_size,
            "images of {n_channels} x {height} x {width} for a backbone of {} x {} x {}",
            c.n_channels,
            c.image_size,
            c.image_size
        );
        let dtype = self.precision.dtype();
        let mut tokens = self.patch_embed.forward(cast(images, dtype));
        if c.pos_embed == PosEmbed::Patches {
            tokens = tokens + cast(self.pos_embed.val(), dtype);
        }
        let mut parts: Vec<Tensor<3>> = [&self.cls_token, &self.reg_token]
            .into_iter()
            .flatten()
            .map(|token| {
                let [_, n, d_model] = token.lazy_shape().dims();
                cast(token.val(), dtype).expand([batch, n, d_model])
            })
            .collect();
        if !parts.is_empty() {
            parts.push(tokens);
            tokens = Tensor::cat(parts, 1);
        }
        if c.pos_embed == PosEmbed::All {
            tokens = tokens + cast(self.pos_embed.val(), dtype);
        }
        match &self.norm_pre {
            Some(norm) => norm.forward(tokens),
            None => tokens,
        }
    }

    /// Tokens after the last block, `[batch, n_tokens, d_model]`; normed, unless the shape says
    /// `fc_norm`.
    pub fn forward_tokens(&self, images: Tensor<4>, updates: &Updates) -> Tensor<3> {
        self.encode(self.embed(images), updates, &Prompting::default())
    }

    /// The tokens of [`Vit::embed`] through all blocks; normed, unless the shape says `fc_norm`.
    pub(crate) fn encode(
        &self,
        mut tokens: Tensor<3>,
        updates: &Updates,
        prompting: &Prompting,
    ) -> Tensor<3> {
        for (block_idx, block) in self.blocks.iter().enumerate() {
            let prefix = prompting.prefix(block_idx);
            tokens = block.forward_prefixed(tokens, block_idx, updates, prefix);
        }
        self.normed(tokens)
    }

    /// The final norm of tokens, unless it is the pooled feature that is normed.
    fn normed(&self, tokens: Tensor<3>) -> Tensor<3> {
        if self.config.fc_norm {
            tokens
        } else {
            self.norm.forward(tokens)
        }
    }

    /// Features `[batch, d_model]` of what [`Vit::embed`] and then every block of `blocks` make of
    /// images.
    pub fn read_out(&self, tokens: Tensor<3>) -> Tensor<2> {
        self.pool(self.normed(tokens))
    }

    /// The model computing in `precision`; what goes in and comes out, images and features, is `f32`.
    ///
    /// Frozen weights are kept in that type. Trained ones are kept in `f32` and cast where they are
    /// used, and layer norms compute in `f32`.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self.patch_embed = kept(self.patch_embed, precision);
        self.cls_token = kept(self.cls_token, precision);
        self.reg_token = kept(self.reg_token, precision);
        self.pos_embed = kept(self.pos_embed, precision);
        for block in &mut self.blocks {
            block.attn = kept(block.attn.clone(), precision);
            block.mlp = kept(block.mlp.clone(), precision);
            block.scale1 = kept(block.scale1.take(), precision);
            block.scale2 = kept(block.scale2.take(), precision);
        }
        self
    }

    /// The number type of activations.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Features `[batch, d_model]` of `images: [batch, n_channels, image_size, image_size]`, with
    /// the updates of an adapter added to the weights.
    ///
    /// # Panics
    ///
    /// If the images do not have the size of the model.
    pub fn forward(&self, images: Tensor<4>, updates: &Updates) -> Tensor<2> {
        self.pool(self.forward_tokens(images, updates))
    }

    /// Features `[batch, d_model]` as [`Vit::forward`], with the additions of `prompting`. Without
    /// any it is that function, bit for bit.
    ///
    /// # Panics
    ///
    /// If the images do not have the size of the model, or the additions not its width and, unless
    /// their batch is 1, the batch of the images, or one is for a block the model does not have.
    pub fn forward_prompted(
        &self,
        images: Tensor<4>,
        updates: &Updates,
        prompting: &Prompting,
    ) -> Tensor<2> {
        if let Some((&last, _)) = prompting.prefixes.last_key_value() {
            let depth = self.blocks.len();
            assert!(
                last < depth,
                "a prefix for block {last} of a model with {depth} blocks, which count from 0"
            );
        }
        let all = prompting.with_branches(updates);
        let updates = all.as_ref().unwrap_or(updates);
        let tokens = self.embed(images);
        let [batch, n_tokens, d_model] = tokens.dims();
        let Some(front) = &prompting.tokens else {
            return self.pool(self.encode(tokens, updates, prompting));
        };
        let [_, n_front, _] = front.dims();
        let front = cast(front.clone(), tokens.dtype()).expand([batch, n_front, d_model]);
        let tokens = self.encode(Tensor::cat(vec![front, tokens], 1), updates, prompting);
        match prompting.read_out {
            ReadOut::Prompts => {
                let read = cast(tokens.narrow(1, 0, n_front), DType::F32);
                self.finish(read.mean_dim(1))
            }
            ReadOut::Backbone => self.pool(tokens.narrow(1, n_front, n_tokens)),
        }
    }

    /// The feature of the tokens that [`Vit::forward_tokens`] gives, `[batch, n_tokens, d_model]`
    /// to `[batch, d_model]`.
    pub fn pool(&self, tokens: Tensor<3>) -> Tensor<2> {
        let [batch, n_tokens, d_model] = tokens.dims();
        let pooled = match self.config.pooling {
            Pooling::ClassToken => tokens.slice([0..batch, 0..1, 0..d_model]),
            Pooling::Average => {
                let first = self.config.n_prefix_tokens();
                let patches = if first == 0 {
                    tokens
                } else {
                    tokens.slice([0..batch, first..n_tokens, 0..d_model])
                };
                cast(patches, DType::F32).mean_dim(1)
            }
        };
        self.finish(pooled)
    }

    /// What is left to do behind the pooling: `[batch, 1, d_model]` to `[batch, d_model]`.
    pub(crate) fn finish(&self, pooled: Tensor<3>) -> Tensor<2> {
        let [batch, _, d_model] = pooled.dims();
        let pooled = if self.config.fc_norm {
            self.norm.forward(pooled)
        } else {
            pooled
        };
        cast(pooled, DType::F32).reshape([batch, d_model])
    }

    /// The model with the updates inside its weights: the same function at the cost of the plain
    /// backbone.
    pub fn merged(mut self, updates: &Updates) -> Self {
        self.blocks = self
            .blocks
            .into_iter()
            .enumerate()
            .map(|(block_idx, block)| block.merged(block_idx, updates))
            .collect();
        self
    }
}

/// A part with its frozen parameters in a number type.
fn kept<M: Module>(part: M, precision: Precision) -> M {
    struct Keep(DType);
    impl ModuleMapper for Keep {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if param.is_require_grad() {
                return param;
            }
            param.map(|value| cast(value, self.0))
        }
    }
    part.map(&mut Keep(precision.dtype()))
}

/// Base of the geometric sequence of wavelengths (Vaswani et al. 2017, section 3.5).
const WAVELENGTH_BASE: f32 = 10_000.0;

/// Fixed positions `[n_positions, d_model]`: a quarter of the width each for sine and cosine of the
/// row and of the column; 0 for class token and registers and for widths beyond a multiple of 4.
fn sine_cosine_positions(config: &VitConfig) -> Vec<f32> {
    let quarter = config.d_model / 4;
    let mut out = Vec::with_capacity(config.n_positions() * config.d_model);
    if config.pos_embed == PosEmbed::All {
        out.resize(config.n_prefix_tokens() * config.d_model, 0.0);
    }
    for row in 0..config.grid() {
        for column in 0..config.grid() {
            let start = out.len();
            for position in [row, column] {
                let angles: Vec<f32> = (0..quarter)
                    .map(|i| position as f32 / WAVELENGTH_BASE.powf(i as f32 / quarter as f32))
                    .collect();
                out.extend(angles.iter().map(|a| a.sin()));
                out.extend(angles.iter().map(|a| a.cos()));
            }
            out.resize(start + config.d_model, 0.0);
        }
    }
    out
}
