//! What the globals and objects of a PyTorch pickle are.

use crate::tensor::Dtype;

/// What a known call or persistent id gives.
#[derive(Debug, Clone)]
pub(super) enum Object {
    Storage(Box<Storage>),
    Tensor(Box<View>),
}

/// The globals with a meaning here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict` and `defaultdict`.
    Dict,
    /// `torch._utils._rebuild_tensor`, `_v2`.
    Tensor,
    /// `torch._utils._rebuild_tensor_v3`, which names the dtype.
    TypedTensor,
    /// `torch._utils._rebuild_parameter`, `_with_state`.
    Parameter,
    /// `torch._tensor._rebuild_from_type_v2`: a tensor with attributes.
    Subclass,
    /// `torch.Size`.
    Size,
    /// `torch.FloatStorage` and its kin.
    Storage(Dtype),
    /// `torch.storage.UntypedStorage`: counts bytes.
    UntypedStorage,
    /// `torch.float32` and its kin.
    Dtype(Dtype),
    /// Anything else.
    Unknown,
}

impl Global {
    /// The meaning of `module.name`.
    pub(super) fn of(module: &str, name: &str) -> Self {
        match (module, name) {
            ("collections", "OrderedDict" | "defaultdict") => Self::Dict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::Tensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::TypedTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Self::Parameter
            }
            ("torch._tensor", "_rebuild_from_type_v2") => Self::Subclass,
            ("torch", "Size") => Self::Size,
            ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => {
                Self::UntypedStorage
            }
            ("torch", name) => {
                let class = name
                    .strip_suffix("Storage")
                    .filter(|class| !class.is_empty());
                let found = DTYPES
                    .iter()
                    .find(|row| row.0 == name || class == Some(row.1));
                match found {
                    Some(&(_, _, known)) if class.is_some() => {
                        Self::Storage(Dtype::from_name(known))
                    }
                    Some(&(_, _, known)) => Self::Dtype(Dtype::from_name(known)),
                    None => Self::Unknown,
                }
            }
            _ => Self::Unknown,
        }
    }
}

/// PyTorch's name of a dtype, of its storage class (without `Storage`, empty where there is none), and the
/// name safetensors gives it.
const DTYPES: [(&str, &str, &str); 17] = [
    ("float32", "Float", "F32"),
    ("float16", "Half", "F16"),
    ("bfloat16", "BFloat16", "BF16"),
    ("float64", "Double", "F64"),
    ("int64", "Long", "I64"),
    ("int32", "Int", "I32"),
    ("int16", "Short", "I16"),
    ("int8", "Char", "I8"),
    ("uint8", "Byte", "U8"),
    ("bool", "Bool", "BOOL"),
    ("complex64", "ComplexFloat", "C64"),
    ("complex128", "ComplexDouble", "C128"),
    ("uint16", "", "U16"),
    ("uint32", "", "U32"),
    ("uint64", "", "U64"),
    ("float8_e4m3fn", "", "F8_E4M3"),
    ("float8_e5m2", "", "F8_E5M2"),
];

/// A run of numbers in a member of the zip file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    /// `None` for bytes that the tensors interpret.
    pub(super) dtype: Option<Dtype>,
    /// Name of the member below `data/`.
    pub(super) key: String,
    /// Length in numbers, in bytes without a dtype.
    pub(super) n_elements: u64,
}

/// A tensor: a strided view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub(super) storage: Storage,
    pub(super) dtype: Dtype,
    /// In numbers, as `strides`.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listed_globals_have_a_meaning() {
        assert_eq!(
            Global::of("torch", "HalfStorage"),
            Global::Storage(Dtype::F16)
        );
        assert_eq!(Global::of("torch", "float32"), Global::Dtype(Dtype::F32));
        for (module, name) in [
            ("os", "system"),
            ("torch", "load"),
            ("torch", "Storage"),
            ("torch", "Float"),
            ("builtins", "eval"),
        ] {
            assert_eq!(Global::of(module, name), Global::Unknown, "{module}.{name}");
        }
    }
}
