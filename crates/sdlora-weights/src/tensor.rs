//! Name, number format and shape of a tensor, and the conversion of its bytes to `f32`.

use std::fmt;

use half::{bf16, f16};

/// More axes than any published weight has; a header that claims more is not a header.
pub(crate) const MAX_AXES: usize = 32;

/// Number format of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754, 32 bits.
    F32,
    /// IEEE 754, 16 bits.
    F16,
    /// The upper half of an `F32`.
    BF16,
    /// IEEE 754, 64 bits.
    F64,
    /// Any other, by the name safetensors gives it (`I64`, `BOOL`, ...). It is listed and cannot be read as `f32`.
    Other(String),
}

impl Dtype {
    /// From the name safetensors gives it.
    pub(crate) fn from_name(name: &str) -> Self {
        match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            "F64" => Self::F64,
            other => Self::Other(other.into()),
        }
    }

    /// Bytes of one number; `None` where a number has no whole bytes or the format is unknown.
    pub(crate) fn n_bytes(&self) -> Option<u64> {
        Some(match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F64 => 8,
            Self::Other(name) => match name.as_str() {
                "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ"
                | "F8_E5M2FNUZ" => 1,
                "I16" | "U16" => 2,
                "I32" | "U32" => 4,
                "I64" | "U64" | "C64" => 8,
                "C128" => 16,
                _ => return None,
            },
        })
    }

    /// Why numbers of this format are not read, and what to do, as the end of a sentence; empty for formats that are.
    pub fn why_not_read(&self) -> &'static str {
        let Self::Other(name) = self else {
            return "";
        };
        match name.as_str() {
            name if name.starts_with("F8") || name.starts_with("F6") || name.starts_with("F4") => {
                "floating-point numbers of 8 bits or fewer, which mean little without the scales of their \
                 quantisation: take the model in 16 or 32 bits, or dequantise it and save it again"
            }
            "I8" | "U8" | "I4" | "U4" => {
                "small integers, as quantised weights are: take the model in 16 or 32 bits, or dequantise it and \
                 save it again"
            }
            "C64" | "C128" => "complex numbers, which no weight of a ViT is: save real ones",
            _ => "whole numbers, which are no weights: save it in 16 or 32 bits of floating point",
        }
    }

    /// Appends the little-endian numbers in `bytes` to `out`; `false` for a format that is no float.
    pub(crate) fn widen(&self, bytes: &[u8], out: &mut Vec<f32>) -> bool {
        match self {
            Self::F32 => out.extend(bytes.as_chunks().0.iter().map(|&c| f32::from_le_bytes(c))),
            Self::F16 => out.extend(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&c| f16::from_le_bytes(c).to_f32()),
            ),
            Self::BF16 => out.extend(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&c| bf16::from_le_bytes(c).to_f32()),
            ),
            Self::F64 => out.extend(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&c| f64::from_le_bytes(c) as f32),
            ),
            Self::Other(_) => return false,
        }
        true
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F64 => "F64",
            Self::Other(name) => name,
        })
    }
}

/// What a file says about one of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name as in the file, prefixes kept; names of nested dictionaries are joined by dots.
    pub name: String,
    /// Its number format.
    pub dtype: Dtype,
    /// Its extent along every axis, outermost first; empty for a single number.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// How many numbers it holds. Files whose count does not fit 64 bits are refused when opened.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Product of a shape, `None` when it overflows.
pub(crate) fn n_elements(shape: &[u64]) -> Option<u64> {
    // Zero extents make the product zero, yet the rest must fit too: it is multiplied elsewhere.
    let all = shape
        .iter()
        .filter(|&&extent| extent != 0)
        .try_fold(1_u64, |n, &extent| n.checked_mul(extent))?;
    usize::try_from(all).ok()?;
    Some(if shape.contains(&0) { 0 } else { all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_format_widens_to_the_same_numbers() {
        let numbers = [1.5_f32, -0.25, 0.0];
        let f16s: Vec<u8> = numbers
            .iter()
            .flat_map(|&x| f16::from_f32(x).to_le_bytes())
            .collect();
        let bf16s: Vec<u8> = numbers
            .iter()
            .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
            .collect();
        let f64s: Vec<u8> = numbers
            .iter()
            .flat_map(|&x| f64::from(x).to_le_bytes())
            .collect();
        for (dtype, bytes) in [(Dtype::F16, f16s), (Dtype::BF16, bf16s), (Dtype::F64, f64s)] {
            let mut out = Vec::new();
            assert!(dtype.widen(&bytes, &mut out));
            assert_eq!(out, numbers, "{dtype}");
        }
        assert!(!Dtype::from_name("I64").widen(&[0; 8], &mut Vec::new()));
    }

    #[test]
    fn a_count_that_overflows_is_none_even_beside_a_zero() {
        assert_eq!(n_elements(&[2, 3]), Some(6));
        assert_eq!(n_elements(&[]), Some(1));
        assert_eq!(n_elements(&[0, 5]), Some(0));
        assert_eq!(n_elements(&[u64::MAX, 2]), None);
        assert_eq!(n_elements(&[0, u64::MAX, 2]), None);
    }
}
