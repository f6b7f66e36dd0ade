//! What a pickle describes, as data: values in one arena that name each other by position.
//!
//! Positions instead of pointers, so that a value may contain itself and nothing recurses, not even its release.

use crate::tensor::Dtype;

/// Position of a value in the arena.
pub(super) type Id = u32;

/// A value.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// `None`, floats, bytes, sets and numbers beyond 64 bits: nothing a tensor is made of.
    Plain,
    Bool,
    Int(i64),
    Str(Box<str>),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function by name; it is never looked up.
    Global(Global, Box<str>),
    Storage(Box<Storage>),
    Tensor(Box<View>),
    /// What calling or building that global would have given.
    Unbuilt(Id),
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

/// PyTorch's name of a dtype, of its storage class (without `Storage`, empty where there is none), and the name safetensors gives it.
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

/// The arena.
#[derive(Debug, Default)]
pub(super) struct Values(Vec<Value>);

impl Values {
    /// Adds a value, `None` when there are more than any checkpoint needs.
    pub(super) fn add(&mut self, value: Value) -> Option<Id> {
        /// ViT-L with the state of AdamW takes 20,000.
        const MAX_VALUES: usize = 1 << 20;
        (self.0.len() < MAX_VALUES).then(|| {
            self.0.push(value);
            self.0.len() as Id - 1
        })
    }

    pub(super) fn get(&self, id: Id) -> &Value {
        &self.0[id as usize]
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut Value {
        &mut self.0[id as usize]
    }

    /// `module.name` of a global, empty for other values.
    pub(super) fn global_name(&self, id: Id) -> &str {
        match self.get(id) {
            Value::Global(_, name) => name,
            _ => "",
        }
    }

    pub(super) fn non_negative(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Value::Int(x) => u64::try_from(*x).ok(),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub(super) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            Value::List(items) => Some(items),
            _ => None,
        }
    }
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
