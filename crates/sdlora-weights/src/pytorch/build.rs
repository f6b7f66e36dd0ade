//! What the calls in a pickle mean: dictionaries and tensors are described, everything else stays unbuilt.

use std::collections::BTreeSet;

use crate::tensor::MAX_AXES;

use super::value::{Global, Id, Storage, Value, Values, View};

/// Why a call could not be followed.
pub(super) type Problem = String;

/// What `function(*args)` gives, as a new value or an old one.
pub(super) fn call(
    values: &mut Values,
    unbuilt: &mut BTreeSet<String>,
    function: Id,
    args: Id,
) -> Result<Id, Problem> {
    let (mut function, mut args) = (function, args);
    if let Value::Global(Global::Subclass, _) = values.get(function) {
        // Its arguments: the function that makes the tensor, the class, the arguments of that function, attributes.
        if let Some(&[inner, _, inner_args, ..]) = values.items(args) {
            (function, args) = (inner, inner_args);
        }
    }
    let global = match values.get(function) {
        Value::Global(global, _) => global.clone(),
        _ => Global::Unknown,
    };
    let items = values.items(args).unwrap_or_default().to_vec();
    let value = match (global, items.as_slice()) {
        (Global::Dict, items) => {
            let pairs = items.first().and_then(|&list| values.items(list));
            let pairs = pairs.unwrap_or_default().iter();
            let pairs = pairs.filter_map(|&pair| match values.items(pair) {
                Some(&[key, value]) => Some((key, value)),
                _ => None,
            });
            Value::Dict(pairs.collect())
        }
        (Global::Tensor, &[storage, offset, shape, strides, ..]) => {
            view(values, storage, offset, shape, strides, None)?
        }
        (Global::TypedTensor, &[storage, offset, shape, strides, _, _, dtype, ..]) => {
            view(values, storage, offset, shape, strides, Some(dtype))?
        }
        (Global::Tensor | Global::TypedTensor, _) => {
            return Err("a tensor with too few arguments".into());
        }
        (Global::Parameter, &[data, ..]) => return Ok(data),
        (Global::Size, &[shape, ..]) => return Ok(shape),
        _ => return leave(values, unbuilt, function),
    };
    values.add(value).ok_or_else(too_many)
}

/// Notes that a class or function was not called.
pub(super) fn leave(
    values: &mut Values,
    unbuilt: &mut BTreeSet<String>,
    function: Id,
) -> Result<Id, Problem> {
    let name = values.global_name(function);
    if !name.is_empty() && !unbuilt.contains(name) {
        unbuilt.insert(name.into());
    }
    values.add(Value::Unbuilt(function)).ok_or_else(too_many)
}

/// The storage that a persistent id stands for: `("storage", class, key, location, length)`.
pub(super) fn storage(values: &Values, persistent_id: Id) -> Result<Value, Problem> {
    let Some(&[_, class, key, _, n_elements, ..]) = values.items(persistent_id) else {
        return Err("a persistent id that is no storage".into());
    };
    let dtype = match values.get(class) {
        Value::Global(Global::Storage(dtype), _) => Some(dtype.clone()),
        Value::Global(Global::UntypedStorage, _) => None,
        _ => {
            return Err(format!(
                "a storage of the unknown class `{}`",
                values.global_name(class)
            ));
        }
    };
    let key = match values.get(key) {
        Value::Str(key) => key.to_string(),
        Value::Int(key) => key.to_string(),
        _ => return Err("a storage without a name".into()),
    };
    let n_elements = values
        .non_negative(n_elements)
        .ok_or("a storage without a length")?;
    Ok(Value::Storage(Box::new(Storage {
        dtype,
        key,
        n_elements,
    })))
}

fn view(
    values: &Values,
    storage: Id,
    offset: Id,
    shape: Id,
    strides: Id,
    dtype: Option<Id>,
) -> Result<Value, Problem> {
    let storage = match values.get(storage) {
        Value::Storage(storage) => storage.as_ref().clone(),
        Value::Unbuilt(class) => {
            return Err(format!(
                "a tensor on an unknown object `{}`",
                values.global_name(*class)
            ));
        }
        _ => return Err("a tensor without a storage".into()),
    };
    let dtype = match dtype.map(|id| values.get(id)) {
        Some(Value::Global(Global::Dtype(dtype), _)) => Some(dtype.clone()),
        Some(_) => return Err("a tensor of an unknown dtype".into()),
        None => storage.dtype.clone(),
    };
    let numbers = |id| -> Result<Vec<u64>, Problem> {
        let items = values
            .items(id)
            .filter(|items| items.len() <= MAX_AXES)
            .ok_or_else(|| format!("a tensor without a shape of at most {MAX_AXES} axes"))?;
        let numbers: Option<_> = items.iter().map(|&x| values.non_negative(x)).collect();
        numbers.ok_or_else(|| "a tensor with a negative extent or stride".into())
    };
    let (shape, strides) = (numbers(shape)?, numbers(strides)?);
    if shape.len() != strides.len() {
        return Err(format!(
            "a tensor with {} extents and {} strides",
            shape.len(),
            strides.len()
        ));
    }
    Ok(Value::Tensor(Box::new(View {
        dtype: dtype.ok_or("a tensor on bytes without a dtype")?,
        storage,
        offset: values
            .non_negative(offset)
            .ok_or("a tensor without an offset")?,
        shape,
        strides,
    })))
}

/// The message when the arena is full.
pub(super) fn too_many() -> Problem {
    "it describes more values than any checkpoint".into()
}
