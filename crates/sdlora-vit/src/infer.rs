//! The shape of a ViT from the tensors of a file and from what lies beside it.

use crate::activation::Activation;
use crate::architectures;
use crate::config::{Pooling, PosEmbed, VitConfig};
use crate::error::Untold;
use crate::hints::Hints;
use crate::names::{ATTENTION_POOLING, Names, Place, Scheme, Source};
use crate::presets::heads_by_name;
use crate::sidecar::Sidecar;
use crate::strangers::unlike_block;

/// What a file was understood to be.
#[derive(Debug)]
pub(crate) struct Understanding {
    /// The shape of the model, at the size asked for.
    pub config: VitConfig,
    /// How the positions lie in the file.
    pub positions: Positions,
    /// What no tensor tells, and from where it is known: a sentence each.
    pub notes: Vec<String>,
}

/// How the positions lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Positions {
    /// Rows before those of the patches.
    pub n_prefix: usize,
    /// Patches along one side.
    pub grid: usize,
    /// Whether the first row belongs to the class token of a model whose positions are those of
    /// the patches: DINOv2 with registers. It is added to the class token.
    pub first_to_class: bool,
}

/// Shapes of the tensors, by timm name.
pub(crate) struct Shapes<'a> {
    pub names: &'a Names,
    pub shapes: Vec<&'a [usize]>,
}

impl Shapes<'_> {
    /// Shape of a parameter as a file of timm would have it; parts that differ give `None`.
    pub fn get(&self, name: &str) -> Option<Vec<usize>> {
        match self.names.sources.get(name)? {
            Source::Whole(idx) => Some(self.shapes[*idx].to_vec()),
            Source::Parts(parts) => {
                let [q, k, v] = parts.map(|idx| idx.map(|idx| self.shapes[idx]));
                let (q, k, v) = (q?, k?, v?);
                let (first, rest) = q.split_first()?;
                let same = q == k && q == v;
                same.then(|| [&[3 * first], rest].concat())
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.names.sources.contains_key(name)
    }

    fn n_axes<const N: usize>(&self, name: &str) -> Result<[usize; N], String> {
        let shape = self
            .get(name)
            .ok_or_else(|| format!("it has no tensor for `{name}`"))?;
        shape
            .try_into()
            .map_err(|shape| format!("`{name}` is {shape:?}, and {N} axes are expected"))
    }

    fn depth(&self) -> usize {
        self.names
            .sources
            .keys()
            .filter_map(|name| {
                name.strip_prefix("blocks.")?
                    .split_once('.')?
                    .0
                    .parse()
                    .ok()
            })
            .max()
            .map_or(0, |last: usize| last.saturating_add(1))
    }
}

/// The first tensor that this version cannot leave out.
pub(crate) fn foreign(names: &Names, files: &[&str]) -> Option<String> {
    let (name, what) = names
        .places
        .iter()
        .zip(files)
        .find_map(|(place, name)| match place {
            Place::Foreign(what) => Some((name, what)),
            _ => None,
        })?;
    Some(format!("`{name}` is {what}"))
}

/// Where a shape is from that is not found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// The caller names it, and what the file is stays to be seen.
    Caller,
    /// The metadata of the file, which this crate wrote.
    Metadata,
}

/// Why a file is not understood.
#[derive(Debug)]
pub(crate) struct Unclear {
    /// What is missing or odd, and what to do about it.
    pub problem: String,
    /// What the caller can say, where that is enough.
    pub untold: Option<Untold>,
}

impl Unclear {
    fn of(untold: Untold, problem: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            untold: Some(untold),
        }
    }
}

impl From<String> for Unclear {
    fn from(problem: String) -> Self {
        Self {
            problem,
            untold: None,
        }
    }
}

impl From<&str> for Unclear {
    fn from(problem: &str) -> Self {
        problem.to_owned().into()
    }
}

/// Understands a file whose shape is known from elsewhere: only the positions are looked at, and
/// what the `name` of the file tells against it.
pub(crate) fn with_config(
    mut config: VitConfig,
    shapes: &Shapes<'_>,
    hints: &Hints,
    known: Known,
    sidecar: &Sidecar,
    name: &str,
) -> Result<Understanding, Unclear> {
    let note = match known {
        Known::Caller => "shape from the caller",
        Known::Metadata => "shape from the metadata of the file",
    };
    let mut notes = vec![note.to_owned()];
    if known == Known::Caller {
        if let Some(problem) =
            unlike_plain(shapes, sidecar, name).or_else(|| unlike_block(|n| shapes.get(n)))
        {
            return Err(problem.into());
        }
        let (activation, source) = activation(&config, shapes, sidecar, hints, name, true)?;
        config.activation = activation;
        notes.extend(activation_note(activation, &source));
    }
    let n_rows = shapes.n_axes::<3>("pos_embed")?[1];
    let positions = positions(shapes, n_rows, &mut config)?;
    apply(&mut config, hints);
    Ok(Understanding {
        config,
        positions,
        notes,
    })
}

/// Understands a file from its tensors, from `sidecar` and, where neither tells, from `hints` or
/// the `name` of the file.
pub(crate) fn infer(
    shapes: &Shapes<'_>,
    sidecar: &Sidecar,
    hints: &Hints,
    name: &str,
) -> Result<Understanding, Unclear> {
    let mut notes = Vec::new();
    if let Some(kind) = sidecar.kind() {
        notes.push(format!("`{kind}`, by config.json"));
    }
    let [d_model, n_channels, patch, patch_width] =
        shapes.n_axes::<4>("patch_embed.proj.weight")?;
    if patch != patch_width {
        return Err(format!(
            "its patches are {patch} by {patch_width}, and only squares are supported"
        )
        .into());
    }
    if let Some(problem) =
        unlike_plain(shapes, sidecar, name).or_else(|| unlike_block(|n| shapes.get(n)))
    {
        return Err(problem.into());
    }
    let depth = shapes.depth();
    // Each block has tensors of its own, so a larger number is no count.
    if depth == 0 || depth > shapes.shapes.len() {
        return Err(format!(
            "it has {} tensors, and the numbers of its blocks ask for {depth} blocks; give a whole file",
            shapes.shapes.len()
        )
        .into());
    }
    let expected = sidecar.depth().or_else(|| {
        let known = architecture(sidecar, name).and_then(architectures::preset);
        known
            .filter(|known| known.d_model == d_model)
            .map(|known| known.depth)
    });
    if let Some(expected) = expected.filter(|expected| *expected != depth) {
        return Err(format!(
            "it has {depth} blocks, and `{}` has {expected}: fetch the whole file, or, if it is meant to have \
             {depth}, keep it under another name and without that config.json",
            sidecar.kind().unwrap_or(name)
        )
        .into());
    }
    let [d_mlp, _] = shapes.n_axes::<2>("blocks.0.mlp.fc1.weight")?;
    let [_, n_rows, _] = shapes.n_axes::<3>("pos_embed")?;
    let n_registers = match shapes.get("reg_token") {
        Some(shape) => *shape
            .get(1)
            .ok_or("`reg_token` has one axis, and 3 are expected")?,
        None => 0,
    };
    let fc_norm = match (shapes.has("norm.weight"), shapes.has("fc_norm.weight")) {
        (true, true) => {
            return Err("it has both `norm` and `fc_norm`, of which a ViT uses one".into());
        }
        (_, fc_norm) => fc_norm,
    };
    let pre_norm = shapes.has("norm_pre.weight");

    let mut config = VitConfig::standard(patch, patch, d_model, depth, 1);
    config.n_channels = n_channels;
    config.d_mlp = d_mlp;
    config.class_token = shapes.has("cls_token");
    config.patch_bias = shapes.has("patch_embed.proj.bias");
    config.qkv_bias = shapes.has("blocks.0.attn.qkv.bias");
    config.layer_scale = shapes.has("blocks.0.ls1.gamma");
    config.n_registers = n_registers;
    config.pre_norm = pre_norm;
    config.fc_norm = fc_norm;
    config.pos_embed = pos_embed(&config, shapes, sidecar, name, n_rows)?;
    let positions = positions(shapes, n_rows, &mut config)?;
    config.image_size = positions.grid * patch;

    let (n_heads, source) = heads(sidecar, hints, name, d_model)?;
    config.n_heads = n_heads;
    notes.push(format!("{n_heads} heads per block, from {source}"));
    let (pooling, source) = pooling(&config, shapes, sidecar, hints)?;
    config.pooling = pooling;
    notes.push(format!("pooling {}, from {source}", pooling_name(pooling)));
    let (activation, source) = activation(&config, shapes, sidecar, hints, name, false)?;
    config.activation = activation;
    notes.extend(activation_note(activation, &source));
    let (eps, source) = norm_eps(&config, shapes.names.scheme, sidecar, hints);
    config.norm_eps = eps;
    notes.push(format!("layer norm eps {eps:e}, from {source}"));
    apply(&mut config, hints);
    Ok(Understanding {
        config,
        positions,
        notes,
    })
}

/// What the caller says goes over everything else.
fn apply(config: &mut VitConfig, hints: &Hints) {
    if let Some(n_heads) = hints.n_heads {
        config.n_heads = n_heads;
    }
    if let Some(image_size) = hints.image_size {
        config.image_size = image_size;
    }
    if let Some(pooling) = hints.pooling {
        config.pooling = pooling;
    }
    if let Some(eps) = hints.norm_eps {
        config.norm_eps = eps;
    }
    if let Some(activation) = hints.activation {
        config.activation = activation;
    }
}

/// timm's name of the architecture: that of `config.json`, or of a file that keeps it in its own
/// name and has no `config.json`.
fn architecture<'a>(sidecar: &'a Sidecar, name: &'a str) -> Option<&'a str> {
    match sidecar.kind() {
        Some(_) => sidecar.architecture(),
        None => Some(name),
    }
}

/// What makes the model another function of the same tensors than a plain ViT, as the problem with
/// it.
fn unlike_plain(shapes: &Shapes<'_>, sidecar: &Sidecar, name: &str) -> Option<String> {
    if sidecar.pools_prefix() {
        return Some("its pooling includes class token and registers: use another model".into());
    }
    if !matches!(shapes.names.scheme, Scheme::Timm | Scheme::Original) {
        return None;
    }
    let architecture = architecture(sidecar, name)?;
    let what = architectures::unlike_plain(architecture)?;
    let rename = match sidecar.kind() {
        Some(_) => "",
        None => ", or rename the file if it is not that model",
    };
    Some(format!(
        "`{architecture}` has {what}, which this version does not have: use another model{rename}"
    ))
}

/// The tokens with a position of their own, where `n_rows` have one.
fn pos_embed(
    config: &VitConfig,
    shapes: &Shapes<'_>,
    sidecar: &Sidecar,
    name: &str,
    n_rows: usize,
) -> Result<PosEmbed, String> {
    let n_prefix = config.n_prefix_tokens();
    let Some(side) = side_of(n_rows).filter(|_| n_prefix > 0) else {
        return Ok(PosEmbed::All);
    };
    // A square of patches alone; or a rectangle of them, and the class token in front.
    let told = sidecar.pos_embed().or_else(|| {
        let name = architecture(sidecar, name)?;
        architectures::pos_embed(name)
    });
    let is_square = |(height, width): (u64, u64)| {
        let pixels = (side * config.patch_size) as u64;
        height == pixels && width == pixels
    };
    // timm gives registers no position; other schemes always give the class token one.
    let by_tensors = config.n_registers > 0 && shapes.names.scheme == Scheme::Timm;
    if let Some(told) = told {
        return Ok(told);
    }
    if by_tensors || sidecar.input_size().is_some_and(is_square) {
        return Ok(PosEmbed::Patches);
    }
    Err(format!(
        "its {n_rows} positions are {side} x {side} patches, or a rectangle of patches and {n_prefix} tokens before \
         them, and nothing tells which; only squares are supported, so if it is one put its config.json beside it or \
         give `backbone.preset`"
    ))
}

/// The function in the MLP and from where it is known. A shape that the caller names has one
/// already, `is_given`, and only a name that contradicts it is of interest.
fn activation(
    config: &VitConfig,
    shapes: &Shapes<'_>,
    sidecar: &Sidecar,
    hints: &Hints,
    name: &str,
    is_given: bool,
) -> Result<(Activation, String), Unclear> {
    if let Some(activation) = hints.activation {
        return Ok((activation, "the caller".into()));
    }
    match sidecar.activation() {
        Some(Ok(activation)) => return Ok((activation, "config.json".into())),
        Some(Err(name)) => {
            return Err(format!(
                "its MLP uses `{name}`, and this version has {} only: use another model",
                Activation::ALL
                    .map(|(name, _)| format!("`{name}`"))
                    .join(", ")
            )
            .into());
        }
        None => {}
    }
    if is_given && config.activation != Activation::default() {
        return Ok((config.activation, "the shape".into()));
    }
    if let Some(architecture) = sidecar.architecture() {
        // Those that are not told apart by name have timm's default.
        let activation = architectures::activation(architecture).unwrap_or_default();
        return Ok((activation, format!("the architecture `{architecture}`")));
    }
    let named = architecture(sidecar, name).and_then(architectures::activation);
    if let Some(activation) = named {
        return Ok((activation, format!("the name `{name}`")));
    }
    if is_given {
        return Ok((config.activation, "the shape".into()));
    }
    // CLIP and SigLIP exist with either function, and their tensors are the same.
    let is_open = config.pre_norm
        || shapes
            .names
            .places
            .contains(&Place::Unused(ATTENTION_POOLING));
    if is_open {
        let problem = "nothing tells the function in its MLP, and CLIP and SigLIP exist with several: put its \
                       config.json beside it, keep timm's name of the model in its own, or say the activation: gelu, \
                       gelu-tanh or quick-gelu";
        return Err(Unclear::of(Untold::Activation, problem));
    }
    Ok((Activation::Gelu, "the habit of ViTs".into()))
}

/// Said only where the function is not the usual one.
fn activation_note(activation: Activation, source: &str) -> Option<String> {
    let name = activation.name();
    (activation != Activation::Gelu).then(|| format!("activation {name}, from {source}"))
}

/// How `n_rows` positions lie in the file of a model of that shape.
fn positions(
    shapes: &Shapes<'_>,
    n_rows: usize,
    config: &mut VitConfig,
) -> Result<Positions, String> {
    let first_to_class = shapes.names.bare_registers && config.class_token;
    let n_prefix = if first_to_class {
        config.pos_embed = PosEmbed::Patches;
        1
    } else {
        match config.pos_embed {
            PosEmbed::All => config.n_prefix_tokens(),
            PosEmbed::Patches => 0,
        }
    };
    let grid = n_rows.checked_sub(n_prefix).and_then(side_of).ok_or_else(|| {
        format!(
            "`pos_embed` has {n_rows} rows, {n_prefix} of them before the patches, and the rest is \
             no square of patches; only square inputs are supported"
        )
    })?;
    Ok(Positions {
        n_prefix,
        grid,
        first_to_class,
    })
}

/// The side of a square of `n` patches.
fn side_of(n: usize) -> Option<usize> {
    let side = n.isqrt();
    (side > 0 && side * side == n).then_some(side)
}

fn heads(
    sidecar: &Sidecar,
    hints: &Hints,
    name: &str,
    d_model: usize,
) -> Result<(usize, String), Unclear> {
    if let Some(n_heads) = hints.n_heads {
        return Ok((n_heads, "the caller".into()));
    }
    if let Some(n_heads) = sidecar.n_heads() {
        return Ok((n_heads, "config.json".into()));
    }
    let by_architecture = sidecar.architecture().and_then(|a| {
        Some((
            heads_by_name(a, d_model)?,
            format!("the architecture `{a}`"),
        ))
    });
    let by_name = || Some((heads_by_name(name, d_model)?, format!("the name `{name}`")));
    by_architecture.or_else(by_name).ok_or_else(|| {
        let problem = format!(
            "nothing tells the number of heads of its blocks of width {d_model}, and a wrong one \
             loads without complaint: put its config.json beside it, keep the model's name in its own, \
             or say the number of heads that its publication says"
        );
        Unclear::of(Untold::Heads, problem)
    })
}

fn pooling(
    config: &VitConfig,
    shapes: &Shapes<'_>,
    sidecar: &Sidecar,
    hints: &Hints,
) -> Result<(Pooling, &'static str), Unclear> {
    if let Some(pooling) = hints.pooling {
        return Ok((pooling, "the caller"));
    }
    let refuse = |name: &str| {
        let problem = format!(
            "its pooling is `{name}`, which this version does not have: say another pooling, average or \
             class-token, to use its tokens otherwise"
        );
        Err(Unclear::of(Untold::Pooling, problem))
    };
    match sidecar.pooling() {
        // timm keeps the pooling of the head; features without a class token are averaged.
        Some(Ok(Pooling::ClassToken)) if !config.class_token => {}
        Some(Ok(pooling)) => return Ok((pooling, "config.json")),
        Some(Err(name)) => return refuse(&name),
        None => {}
    }
    if shapes
        .names
        .places
        .contains(&Place::Unused(ATTENTION_POOLING))
    {
        return refuse("map");
    }
    Ok(if !config.class_token {
        (Pooling::Average, "the lack of a class token")
    } else if config.fc_norm {
        (Pooling::Average, "the norm behind the pooling")
    } else {
        (Pooling::ClassToken, "the class token")
    })
}

fn norm_eps(
    config: &VitConfig,
    scheme: Scheme,
    sidecar: &Sidecar,
    hints: &Hints,
) -> (f64, &'static str) {
    if let Some(eps) = hints.norm_eps {
        return (eps, "the caller");
    }
    if let Some(eps) = sidecar.norm_eps() {
        return (eps, "config.json");
    }
    match scheme {
        Scheme::HuggingFaceVit => (1e-12, "the default of the scheme"),
        _ if config.pre_norm => (1e-5, "the habit of CLIP, the norm before the blocks"),
        _ => (1e-6, "the default of the scheme"),
    }
}

/// The pooling as settings name it.
pub(crate) fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::ClassToken => "class-token",
        Pooling::Average => "average",
    }
}
