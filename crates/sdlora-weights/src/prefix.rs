//! Under which prefix of a checkpoint the model lies.

use crate::tensor::TensorInfo;

/// Dictionaries and wrappers that training programs put around a model, the one to take first. The averaged model
/// comes before the trained one, as published numbers are its.
const WRAPPERS: [&str; 11] = [
    "teacher",
    "model_ema",
    "ema",
    "state_dict_ema",
    "model_state_dict",
    "state_dict",
    "model",
    "student",
    "module",
    "backbone",
    "encoder",
];

/// The prefix, with its last dot; empty when the names start with the model's own.
pub(crate) fn state_prefix(tensors: &[TensorInfo]) -> &str {
    let mut prefix = "";
    loop {
        let below = || {
            tensors
                .iter()
                .filter_map(move |t| Some((t.name.as_str(), t.name.strip_prefix(prefix)?)))
        };
        let next = WRAPPERS.iter().find_map(|wrapper| {
            below().find_map(|(name, rest)| {
                rest.strip_prefix(wrapper)?.strip_prefix('.')?;
                name.get(..prefix.len() + wrapper.len() + 1)
            })
        });
        match next {
            Some(longer) => prefix = longer,
            None => return prefix,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    fn prefix_of(names: &[&str]) -> String {
        let tensors: Vec<_> = names
            .iter()
            .map(|&name| TensorInfo {
                name: name.into(),
                dtype: Dtype::F32,
                shape: vec![],
            })
            .collect();
        state_prefix(&tensors).into()
    }

    #[test]
    fn wrappers_are_peeled_and_the_teacher_wins() {
        assert_eq!(prefix_of(&["blocks.0.norm1.bias", "head.bias"]), "");
        assert_eq!(
            prefix_of(&["model.cls_token", "optimizer.state.0.exp_avg"]),
            "model."
        );
        assert_eq!(
            prefix_of(&[
                "student.module.backbone.cls_token",
                "teacher.backbone.cls_token",
                "teacher.head.mlp.0.weight",
            ]),
            "teacher.backbone."
        );
        assert_eq!(prefix_of(&["modeling.bias", "model"]), "");
    }
}
