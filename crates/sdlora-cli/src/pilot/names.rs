//! Names of data sets and backbones, theirs to ours.

use sdlora_vit::BACKBONES;
use toml::Table;

/// Our name of a data set; one that is not known is left for the check to refuse.
pub(super) fn dataset_name(typed: &str) -> String {
    match simple(typed).as_str() {
        "cifar100" | "cifar224" | "icifar224" | "icifar100" => "cifar100",
        "cifar10" | "cifar10224" => "cifar10",
        "imagenetr" | "imgnetr" => "imagenet-r",
        "imageneta" => "imagenet-a",
        "cub" | "cub200" => "cub200",
        "domainnet" => "domainnet",
        "tinyimagenet" => "tiny-imagenet",
        "vtab" => "vtab",
        _ => typed,
    }
    .to_owned()
}

/// The section of a backbone. PILOT adds the method to its name; the weights are the same.
pub(super) fn backbone(typed: &str) -> Table {
    const BASE: &str = "vit_base_patch16_224";
    let name = typed.strip_prefix("pretrained_").unwrap_or(typed);
    let name = name.replace("vit_b16_224", BASE);
    let tag = match name.strip_prefix(BASE) {
        Some(rest)
            if ["dino", "ibot", "moco", "clip", "sam", "mae"]
                .iter()
                .any(|s| rest.contains(s)) =>
        {
            None
        }
        // What timm called `_in21k` when these programs were written.
        Some(rest) if rest.starts_with("_in21k") => Some("augreg_in21k"),
        Some(rest) if rest.is_empty() || rest.starts_with('_') => Some("augreg2_in21k_ft_in1k"),
        Some(rest) => rest.strip_prefix('.'),
        None => None,
    };
    let shape = BACKBONES
        .iter()
        .map(|preset| preset.name)
        .find(|&shape| name.split('.').next() == Some(shape));
    match (tag, shape) {
        (Some(tag), _) => Table::from_iter([
            ("weights".to_owned(), format!("hf:timm/{BASE}.{tag}").into()),
            ("preset".to_owned(), BASE.into()),
        ]),
        (None, Some(shape)) if name.contains('.') => Table::from_iter([
            ("weights".to_owned(), format!("hf:timm/{name}").into()),
            ("preset".to_owned(), shape.into()),
        ]),
        _ => Table::from_iter([("weights".to_owned(), typed.into())]),
    }
}

/// Without case, hyphens and underscores.
pub(super) fn simple(name: &str) -> String {
    name.to_lowercase().replace(['-', '_'], "")
}
