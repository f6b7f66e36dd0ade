//! The parameters of a ViT by timm's names, and how PyTorch lays them out.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

use crate::layers::{LayerNorm, Linear};
use crate::model::Vit;

/// A parameter and how a weight file lays it out.
pub(crate) enum Slot<'a> {
    /// `[d_input, d_output]` here, `[d_output, d_input]` in the file.
    Linear(&'a mut Param<Tensor<2>>),
    /// `[n_channels · patch², d_model]` here, `[d_model, n_channels, patch, patch]` in the file.
    Conv(&'a mut Param<Tensor<2>>, [usize; 4]),
    /// The same in both.
    Vector(&'a mut Param<Tensor<1>>),
    /// The same in both.
    Tokens(&'a mut Param<Tensor<3>>),
}

impl Slot<'_> {
    /// Shape of the tensor in a file.
    pub(crate) fn file_shape(&self) -> Vec<usize> {
        match self {
            Self::Linear(p) => {
                let [d_input, d_output] = p.lazy_shape().dims();
                vec![d_output, d_input]
            }
            Self::Conv(_, shape) => shape.to_vec(),
            Self::Vector(p) => p.lazy_shape().to_vec(),
            Self::Tokens(p) => p.lazy_shape().to_vec(),
        }
    }

    /// Sets the parameter from the values of a file.
    pub(crate) fn set(self, values: Vec<f32>, device: &Device) {
        match self {
            Self::Linear(p) | Self::Conv(p, _) => {
                let [d_input, d_output] = p.lazy_shape().dims();
                replace(p, transpose(&values, d_output, d_input), device);
            }
            Self::Vector(p) => replace(p, values, device),
            Self::Tokens(p) => replace(p, values, device),
        }
    }

    /// The values as a file has them.
    pub(crate) fn get(&self) -> Vec<f32> {
        let read = |data: TensorData| data.iter::<f32>().collect::<Vec<_>>();
        match self {
            Self::Linear(p) | Self::Conv(p, _) => {
                let [d_input, d_output] = p.lazy_shape().dims();
                transpose(&read(p.val().into_data()), d_input, d_output)
            }
            Self::Vector(p) => read(p.val().into_data()),
            Self::Tokens(p) => read(p.val().into_data()),
        }
    }
}

fn replace<const D: usize>(param: &mut Param<Tensor<D>>, values: Vec<f32>, device: &Device) {
    let data = TensorData::new(values, param.lazy_shape());
    let tensor = Tensor::from_data(data, device);
    *param = Param::initialized(param.id, tensor.set_require_grad(param.is_require_grad()));
}

/// Rows and columns of the squares in which a matrix is transposed, small enough for the nearest
/// cache: whole columns at once would miss it at every step.
const TILE: usize = 32;

/// Row-major `[n_rows, n_columns]` to `[n_columns, n_rows]`.
fn transpose(values: &[f32], n_rows: usize, n_columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for first_row in (0..n_rows).step_by(TILE) {
        let rows = first_row..(first_row + TILE).min(n_rows);
        for first_column in (0..n_columns).step_by(TILE) {
            for column in first_column..(first_column + TILE).min(n_columns) {
                for row in rows.clone() {
                    out[column * n_rows + row] = values[row * n_columns + column];
                }
            }
        }
    }
    out
}

type Visit<'f> = &'f mut dyn FnMut(String, Slot<'_>);

fn linear(f: Visit<'_>, name: &str, layer: &mut Linear) {
    f(format!("{name}.weight"), Slot::Linear(&mut layer.weight));
    if let Some(bias) = &mut layer.bias {
        f(format!("{name}.bias"), Slot::Vector(bias));
    }
}

fn norm(f: Visit<'_>, name: &str, layer: &mut LayerNorm) {
    f(format!("{name}.weight"), Slot::Vector(&mut layer.weight));
    f(format!("{name}.bias"), Slot::Vector(&mut layer.bias));
}

impl Vit {
    /// Calls `f` for every parameter with its timm name: the one list of names there is.
    pub(crate) fn each_weight(&mut self, f: Visit<'_>) {
        let config = self.config().clone();
        let conv = [
            config.d_model,
            config.n_channels,
            config.patch_size,
            config.patch_size,
        ];
        let proj = &mut self.patch_embed.proj;
        f(
            "patch_embed.proj.weight".into(),
            Slot::Conv(&mut proj.weight, conv),
        );
        if let Some(bias) = &mut proj.bias {
            f("patch_embed.proj.bias".into(), Slot::Vector(bias));
        }
        if let Some(cls_token) = &mut self.cls_token {
            f("cls_token".into(), Slot::Tokens(cls_token));
        }
        if let Some(reg_token) = &mut self.reg_token {
            f("reg_token".into(), Slot::Tokens(reg_token));
        }
        f("pos_embed".into(), Slot::Tokens(&mut self.pos_embed));
        if let Some(norm_pre) = &mut self.norm_pre {
            norm(f, "norm_pre", norm_pre);
        }
        for (i, block) in self.blocks.iter_mut().enumerate() {
            norm(f, &format!("blocks.{i}.norm1"), &mut block.norm1);
            norm(f, &format!("blocks.{i}.norm2"), &mut block.norm2);
            linear(f, &format!("blocks.{i}.attn.qkv"), &mut block.attn.qkv);
            linear(f, &format!("blocks.{i}.attn.proj"), &mut block.attn.proj);
            linear(f, &format!("blocks.{i}.mlp.fc1"), &mut block.mlp.fc1);
            linear(f, &format!("blocks.{i}.mlp.fc2"), &mut block.mlp.fc2);
            for (name, scale) in [("ls1", &mut block.scale1), ("ls2", &mut block.scale2)] {
                if let Some(scale) = scale {
                    f(format!("blocks.{i}.{name}.gamma"), Slot::Vector(scale));
                }
            }
        }
        let name = if config.fc_norm { "fc_norm" } else { "norm" };
        norm(f, name, &mut self.norm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_that_fills_no_whole_tiles_is_transposed() {
        let (n_rows, n_columns) = (TILE + 3, 2 * TILE - 1);
        let values: Vec<f32> = (0..n_rows * n_columns).map(|v| v as f32).collect();
        let out = transpose(&values, n_rows, n_columns);
        assert_eq!(out[5 * n_rows + 33], values[33 * n_columns + 5]);
        assert_eq!(transpose(&out, n_columns, n_rows), values);
    }
}
