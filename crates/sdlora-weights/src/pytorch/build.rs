//! What the calls in a pickle mean: dictionaries and tensors are described, everything else stays unbuilt.

use std::collections::BTreeSet;

use sdlora_pickle::{Id, Meaning, Problem, Value};

use crate::tensor::MAX_AXES;

use super::value::{Global, Object, Storage, View};

type Values<'a> = sdlora_pickle::Values<'a, Object>;

/// The calls of PyTorch.
#[derive(Debug, Default)]
pub(super) struct Torch {
    /// Classes and functions that were not called.
    pub(super) unbuilt: BTreeSet<String>,
}

impl Meaning for Torch {
    type Object = Object;

    fn call(&mut self, values: &mut Values<'_>, function: Id, args: Id) -> Result<Id, Problem> {
        let (mut function, mut args) = (function, args);
        if meaning(values, function) == Global::Subclass {
            // Its arguments: the function that makes the tensor, the class, the arguments of that function, attributes.
            if let Some(&[inner, _, inner_args, ..]) = values.items(args) {
                (function, args) = (inner, inner_args);
            }
        }
        let items = values.items(args).unwrap_or_default().to_vec();
        let value = match (meaning(values, function), items.as_slice()) {
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
            _ => return self.instance(values, function),
        };
        values.add(value)
    }

    /// Notes that a class or function was not called.
    fn instance(&mut self, values: &mut Values<'_>, class: Id) -> Result<Id, Problem> {
        let name = values.global_name(class);
        if !name.is_empty() {
            self.unbuilt.insert(name);
        }
        values.add(Value::Unbuilt(class))
    }

    /// The storage that a persistent id stands for: `("storage", class, key, location, length)`.
    fn persistent<'a>(
        &mut self,
        values: &Values<'a>,
        id: Id,
    ) -> Result<Value<'a, Object>, Problem> {
        let Some(&[_, class, key, _, n_elements, ..]) = values.items(id) else {
            return Err("a persistent id that is no storage".into());
        };
        let dtype = match meaning(values, class) {
            Global::Storage(dtype) => Some(dtype),
            Global::UntypedStorage => None,
            _ => {
                return Err(format!(
                    "a storage of the unknown class `{}`",
                    values.global_name(class)
                ));
            }
        };
        let key = match values.get(key) {
            Value::Int(key) => key.to_string(),
            _ => values
                .text(key)
                .ok_or("a storage without a name")?
                .to_owned(),
        };
        let n_elements = values
            .non_negative(n_elements)
            .ok_or("a storage without a length")?;
        Ok(Value::Object(Object::Storage(Box::new(Storage {
            dtype,
            key,
            n_elements,
        }))))
    }
}

/// What a global means here.
fn meaning(values: &Values<'_>, id: Id) -> Global {
    match values.get(id) {
        Value::Global(module, name) => Global::of(module, name),
        _ => Global::Unknown,
    }
}

fn view<'a>(
    values: &Values<'a>,
    storage: Id,
    offset: Id,
    shape: Id,
    strides: Id,
    dtype: Option<Id>,
) -> Result<Value<'a, Object>, Problem> {
    let storage = match values.get(storage) {
        Value::Object(Object::Storage(storage)) => storage.as_ref().clone(),
        Value::Unbuilt(class) => {
            return Err(format!(
                "a tensor on an unknown object `{}`",
                values.global_name(*class)
            ));
        }
        _ => return Err("a tensor without a storage".into()),
    };
    let dtype = match dtype.map(|id| meaning(values, id)) {
        Some(Global::Dtype(dtype)) => Some(dtype),
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
    Ok(Value::Object(Object::Tensor(Box::new(View {
        dtype: dtype.ok_or("a tensor on bytes without a dtype")?,
        storage,
        offset: values
            .non_negative(offset)
            .ok_or("a tensor without an offset")?,
        shape,
        strides,
    }))))
}
