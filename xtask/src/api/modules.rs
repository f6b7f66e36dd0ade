//! The modules of a crate, read from its files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use syn::{Attribute, Item, ItemUse};

/// A crate: every module outside tests by its path, which starts with the name of the crate.
pub struct Crate {
    /// Name as in a path, `sdlora_core`.
    pub name: String,
    /// Modules by their path.
    pub modules: BTreeMap<Vec<String>, Vec<Item>>,
}

impl Crate {
    /// Reads the crate whose root module is the file `lib`.
    ///
    /// # Errors
    ///
    /// When a file is missing or is not Rust.
    pub fn read(name: &str, lib: &Path) -> anyhow::Result<Self> {
        let mut krate = Self {
            name: name.to_owned(),
            modules: BTreeMap::new(),
        };
        let folder = lib.parent().unwrap_or(lib).to_path_buf();
        let items = parse(lib)?;
        krate.add(vec![name.to_owned()], items, &folder)?;
        Ok(krate)
    }

    fn add(&mut self, path: Vec<String>, items: Vec<Item>, folder: &Path) -> anyhow::Result<()> {
        let mut kept = Vec::new();
        for item in items {
            if attributes(&item).iter().any(is_hidden) {
                continue;
            }
            if let Item::Mod(module) = &item {
                let name = module.ident.to_string();
                let inner = match &module.content {
                    Some((_, items)) => items.clone(),
                    None => parse(&file_of(folder, &name))?,
                };
                let path = [path.as_slice(), std::slice::from_ref(&name)].concat();
                self.add(path, inner, &folder.join(name))?;
            }
            kept.push(item);
        }
        self.modules.insert(path, kept);
        Ok(())
    }
}

/// `folder/name.rs`, or `folder/name/mod.rs`.
fn file_of(folder: &Path, name: &str) -> PathBuf {
    let file = folder.join(format!("{name}.rs"));
    match file.is_file() {
        true => file,
        false => folder.join(name).join("mod.rs"),
    }
}

fn parse(file: &Path) -> anyhow::Result<Vec<Item>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let parsed = syn::parse_file(&text);
    Ok(parsed
        .with_context(|| format!("{} is not Rust", file.display()))?
        .items)
}

/// Whether the attribute takes an item away from callers: `#[cfg(test)]`, `#[cfg(doctest)]`, `#[doc(hidden)]`.
pub fn is_hidden(attribute: &Attribute) -> bool {
    let Ok(list) = attribute.meta.require_list() else {
        return false;
    };
    let inside = list.tokens.to_string();
    (list.path.is_ident("cfg") && ["test", "doctest"].contains(&inside.as_str()))
        || (list.path.is_ident("doc") && inside == "hidden")
}

/// Attributes of the items that can be public or hold something public.
fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(ItemUse { attrs, .. }) => attrs,
        _ => &[],
    }
}
