//! From nested dictionaries to tensors with dotted names.

use sdlora_pickle::{Id, Pickle, Value};

use super::value::{Object, View};

/// Deeper than checkpoints go; also where a dictionary that contains itself ends.
const MAX_DEPTH: usize = 32;
/// Dictionaries may share parts, so a small pickle can describe endless names.
const MAX_VISITS: usize = 4 << 20;
const MAX_NAME_BYTES: usize = 32 << 20;
/// Name of the tensor in a file that holds a bare one.
const BARE: &str = "tensor";

/// All tensors a pickle ends with; the problem is the end of a sentence.
pub(super) fn flatten<'p>(
    pickle: &'p Pickle<'_, Object>,
) -> Result<Vec<(String, &'p View)>, String> {
    let values = &pickle.values;
    let mut tensors = Vec::new();
    let mut todo: Vec<(Id, String, usize)> = vec![(pickle.top, String::new(), 0)];
    let (mut n_visits, mut n_name_bytes) = (0_usize, 0_usize);
    while let Some((id, name, depth)) = todo.pop() {
        if depth > MAX_DEPTH {
            return Err(format!(
                "its dictionaries are nested more than {MAX_DEPTH} deep, or one contains itself"
            ));
        }
        let mut visit = |id: Id, key: &dyn std::fmt::Display| {
            n_visits += 1;
            let has_parts = matches!(
                values.get(id),
                Value::Dict(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::Object(Object::Tensor(_))
            );
            if has_parts {
                let full = match name.as_str() {
                    "" => key.to_string(),
                    _ => format!("{name}.{key}"),
                };
                n_name_bytes += full.len();
                todo.push((id, full, depth + 1));
            }
            if n_visits > MAX_VISITS || n_name_bytes > MAX_NAME_BYTES {
                return Err(String::from(
                    "its dictionaries unfold beyond any checkpoint",
                ));
            }
            Ok(())
        };
        match values.get(id) {
            Value::Dict(pairs) => {
                for &(key, value) in pairs {
                    match values.get(key) {
                        Value::Str(key) => {
                            let key = std::str::from_utf8(key);
                            visit(value, &key.map_err(|_| "a name that is not UTF-8")?)?;
                        }
                        Value::Int(key) => visit(value, key)?,
                        _ => {}
                    }
                }
            }
            Value::List(items) => {
                for (idx, &item) in items.iter().enumerate() {
                    visit(item, &idx)?;
                }
            }
            Value::Tuple(items) => {
                for (idx, &item) in items.iter().enumerate() {
                    visit(item, &idx)?;
                }
            }
            Value::Object(Object::Tensor(view)) => {
                let name = if depth == 0 { BARE.into() } else { name };
                tensors.push((name, view.as_ref()));
            }
            _ => {}
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::super::build::Torch;
    use super::*;

    #[test]
    fn a_dictionary_in_itself_and_one_that_unfolds_without_end_are_refused() {
        let cyclic = Pickle::read(b"}q\0X\x01\0\0\0ah\0s.", &mut Torch::default()).unwrap();
        assert!(flatten(&cyclic).unwrap_err().contains("contains itself"));

        // 28 lists, each holding the one before it twice.
        let mut bytes = b"]q\0".to_vec();
        for level in 1..29_u8 {
            bytes.extend([
                b']',
                b'q',
                level,
                b'h',
                level - 1,
                b'a',
                b'h',
                level - 1,
                b'a',
            ]);
        }
        bytes.push(b'.');
        let doubling = Pickle::read(&bytes, &mut Torch::default()).unwrap();
        assert!(flatten(&doubling).unwrap_err().contains("unfold"));
    }
}
