//! The public items of a crate, a line each: what a caller can name, under the path by which it is named.

use std::collections::{BTreeMap, BTreeSet};

use syn::spanned::Spanned;
use syn::{Fields, ImplItem, Item, TraitItem, Type, UseTree, Visibility};

use super::modules::{Crate, is_hidden};

/// Path of a module or an item, the crate first.
type Path = Vec<String>;

/// A line for every public item, in the order of their paths.
pub fn public(krate: &Crate) -> Vec<String> {
    let mut listing = Listing {
        krate,
        lines: BTreeSet::new(),
        types: BTreeMap::new(),
    };
    let root = vec![krate.name.clone()];
    listing.module(&root, &root);
    listing.impls();
    listing.lines.into_iter().map(|(_, line)| line).collect()
}

struct Listing<'a> {
    krate: &'a Crate,
    /// Sort key and text.
    lines: BTreeSet<(String, String)>,
    /// Public paths of a type, by the module that defines it and its name.
    types: BTreeMap<(Path, String), Vec<String>>,
}

impl Listing<'_> {
    fn line(&mut self, path: &str, text: String) {
        self.lines.insert((path.to_owned(), text));
    }

    /// Lists what the module at `path` offers under the public path `shown`.
    fn module(&mut self, path: &Path, shown: &Path) {
        let Some(items) = self.krate.modules.get(path) else {
            return;
        };
        for item in items.clone() {
            self.item(&item, path, shown, None);
        }
    }

    /// Lists the item if it is public, or if `renamed` says under which name it is re-exported.
    fn item(&mut self, item: &Item, module: &Path, shown: &Path, renamed: Option<&str>) {
        let Some((visibility, name)) = named(item) else {
            if let Item::Use(item) = item
                && is_public(&item.vis)
            {
                self.re_export(&item.tree, module, &[], shown);
            }
            return;
        };
        if renamed.is_none() && !is_public(visibility) {
            return;
        }
        let path = format!("{}::{}", shown.join("::"), renamed.unwrap_or(&name));
        let as_type = |listing: &mut Self| {
            let key = (module.clone(), name.clone());
            listing.types.entry(key).or_default().push(path.clone());
        };
        match item {
            Item::Mod(_) => {
                let inner = [module.as_slice(), std::slice::from_ref(&name)].concat();
                let shown = path.split("::").map(str::to_owned).collect();
                self.line(&path, format!("pub mod {path}"));
                self.module(&inner, &shown);
            }
            Item::Fn(item) => {
                let text = signature(&text(&item.sig), &name, &path);
                self.line(&path, format!("pub {text}"));
            }
            Item::Const(item) => {
                self.line(&path, format!("pub const {path}: {}", text(&item.ty)));
            }
            Item::Static(item) => {
                self.line(&path, format!("pub static {path}: {}", text(&item.ty)));
            }
            Item::Type(item) => {
                let generics = text(&item.generics);
                self.line(
                    &path,
                    format!("pub type {path}{generics} = {}", text(&item.ty)),
                );
            }
            Item::Struct(item) => {
                as_type(self);
                let generics = text(&item.generics);
                let derived = derived(&item.attrs);
                self.line(&path, format!("pub struct {path}{generics}{derived}"));
                for (idx, field) in item.fields.iter().enumerate() {
                    if is_public(&field.vis) {
                        let name = match &field.ident {
                            Some(name) => name.to_string(),
                            None => idx.to_string(),
                        };
                        let path = format!("{path}::{name}");
                        let line = format!("pub {path}: {}", text(&field.ty));
                        self.line(&path, line);
                    }
                }
            }
            Item::Enum(item) => {
                as_type(self);
                let generics = text(&item.generics);
                let derived = derived(&item.attrs);
                self.line(&path, format!("pub enum {path}{generics}{derived}"));
                for variant in &item.variants {
                    let path = format!("{path}::{}", variant.ident);
                    self.line(&path, format!("{path}{}", fields(&variant.fields)));
                }
            }
            Item::Trait(item) => {
                as_type(self);
                let generics = text(&item.generics);
                let supertraits = match item.supertraits.is_empty() {
                    true => String::new(),
                    false => format!(": {}", text(&item.supertraits)),
                };
                self.line(&path, format!("pub trait {path}{generics}{supertraits}"));
                for inner in &item.items {
                    self.trait_item(inner, &path);
                }
            }
            _ => {}
        }
    }

    fn trait_item(&mut self, item: &TraitItem, path: &str) {
        match item {
            TraitItem::Fn(item) => {
                let name = item.sig.ident.to_string();
                let path = format!("{path}::{name}");
                let default = if item.default.is_some() {
                    " { .. }"
                } else {
                    ""
                };
                let text = signature(&text(&item.sig), &name, &path);
                self.line(&path, format!("{text}{default}"));
            }
            TraitItem::Const(item) => {
                let path = format!("{path}::{}", item.ident);
                self.line(&path, format!("const {path}: {}", text(&item.ty)));
            }
            TraitItem::Type(item) => {
                let path = format!("{path}::{}", item.ident);
                self.line(&path, format!("type {path}"));
            }
            _ => {}
        }
    }

    /// Follows one tree of a `pub use` to the items it names.
    fn re_export(&mut self, tree: &UseTree, module: &Path, prefix: &[String], shown: &Path) {
        let deeper = |name: String| [prefix, &[name]].concat();
        match tree {
            UseTree::Path(tree) => {
                let prefix = deeper(tree.ident.to_string());
                self.re_export(&tree.tree, module, &prefix, shown);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.re_export(tree, module, prefix, shown);
                }
            }
            UseTree::Glob(_) => match self.resolve(module, prefix) {
                Some(inner) => self.module(&inner, shown),
                None => {
                    let path = format!("{}::*", prefix.join("::"));
                    self.line(&shown.join("::"), format!("pub use {path}"));
                }
            },
            UseTree::Name(tree) => {
                let name = tree.ident.to_string();
                self.re_export_one(module, prefix, &name, &name, shown);
            }
            UseTree::Rename(tree) => {
                let (name, new) = (tree.ident.to_string(), tree.rename.to_string());
                self.re_export_one(module, prefix, &name, &new, shown);
            }
        }
    }

    fn re_export_one(
        &mut self,
        module: &Path,
        prefix: &[String],
        name: &str,
        new: &str,
        shown: &Path,
    ) {
        let path = format!("{}::{new}", shown.join("::"));
        let source = self.resolve(module, prefix);
        let items = source
            .as_ref()
            .and_then(|source| self.krate.modules.get(source));
        let (Some(source), Some(items)) = (&source, items) else {
            let from = [prefix, &[name.to_owned()]].concat().join("::");
            self.line(&path, format!("pub use {path} = {from}"));
            return;
        };
        let mut is_found = false;
        for item in items.clone() {
            if named(&item).is_some_and(|(_, found)| found == name) {
                is_found = true;
                self.item(&item, source, shown, Some(new));
            }
        }
        // Re-exported once more on the way.
        for item in items.clone() {
            if let Item::Use(item) = &item
                && let Some(prefix) = leaf(&item.tree, name, &[])
                && !is_found
            {
                is_found = true;
                let source = source.clone();
                self.re_export_one(&source, &prefix.0, &prefix.1, new, shown);
            }
        }
        if !is_found {
            self.line(&path, format!("pub use {path}"));
        }
    }

    /// The module of this crate that the path means inside `module`; `None` where it leaves the crate.
    fn resolve(&self, module: &Path, path: &[String]) -> Option<Path> {
        let mut at = module.clone();
        for (idx, name) in path.iter().enumerate() {
            match name.as_str() {
                "crate" => at.truncate(1),
                "self" => {}
                "super" => {
                    at.pop();
                }
                _ => {
                    at.push(name.clone());
                    if !self.krate.modules.contains_key(&at) {
                        // A path of an import may also start at the root of the crate.
                        let from_root = vec![self.krate.name.clone(), name.clone()];
                        if idx > 0 || !self.krate.modules.contains_key(&from_root) {
                            return None;
                        }
                        at = from_root;
                    }
                }
            }
        }
        Some(at)
    }

    /// Lists the methods of public types and the traits they implement.
    fn impls(&mut self) {
        let modules = self.krate.modules.clone();
        for (module, items) in &modules {
            for item in items {
                let Item::Impl(item) = item else { continue };
                let Type::Path(of) = &*item.self_ty else {
                    continue;
                };
                let Some(name) = of.path.segments.last().map(|s| s.ident.to_string()) else {
                    continue;
                };
                for path in self.public_paths(module, items, &name) {
                    if let Some((of_trait, _)) = &item.trait_ {
                        let line = format!("impl {} for {path}", text(of_trait));
                        self.line(&path, line);
                        continue;
                    }
                    for inner in &item.items {
                        self.impl_item(inner, &path);
                    }
                }
            }
        }
    }

    fn impl_item(&mut self, item: &ImplItem, path: &str) {
        match item {
            ImplItem::Fn(item) if is_public(&item.vis) && !item.attrs.iter().any(is_hidden) => {
                let name = item.sig.ident.to_string();
                let path = format!("{path}::{name}");
                let text = signature(&text(&item.sig), &name, &path);
                self.line(&path, format!("pub {text}"));
            }
            ImplItem::Const(item) if is_public(&item.vis) => {
                let path = format!("{path}::{}", item.ident);
                self.line(&path, format!("pub const {path}: {}", text(&item.ty)));
            }
            _ => {}
        }
    }

    /// Public paths of the type that `name` means in a module: its own, or else one that it imports.
    fn public_paths(&self, module: &Path, items: &[Item], name: &str) -> Vec<String> {
        let is_own = items
            .iter()
            .any(|item| named(item).is_some_and(|(_, found)| found == name));
        let mut paths: Vec<String> = self
            .types
            .iter()
            .filter(|((defined_in, of), _)| of == name && (!is_own || defined_in == module))
            .flat_map(|(_, paths)| paths.clone())
            .collect();
        paths.dedup();
        paths
    }
}

/// Prefix and name under which the tree imports something as `name`.
fn leaf(tree: &UseTree, name: &str, prefix: &[String]) -> Option<(Vec<String>, String)> {
    match tree {
        UseTree::Path(tree) => {
            let prefix = [prefix, &[tree.ident.to_string()]].concat();
            leaf(&tree.tree, name, &prefix)
        }
        UseTree::Group(group) => group.items.iter().find_map(|t| leaf(t, name, prefix)),
        UseTree::Name(tree) => (tree.ident == name).then(|| (prefix.to_vec(), name.to_owned())),
        UseTree::Rename(tree) => {
            (tree.rename == name).then(|| (prefix.to_vec(), tree.ident.to_string()))
        }
        UseTree::Glob(_) => None,
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Visibility and name of an item that has both.
fn named(item: &Item) -> Option<(&Visibility, String)> {
    Some(match item {
        Item::Const(item) => (&item.vis, item.ident.to_string()),
        Item::Enum(item) => (&item.vis, item.ident.to_string()),
        Item::Fn(item) => (&item.vis, item.sig.ident.to_string()),
        Item::Mod(item) => (&item.vis, item.ident.to_string()),
        Item::Static(item) => (&item.vis, item.ident.to_string()),
        Item::Struct(item) => (&item.vis, item.ident.to_string()),
        Item::Trait(item) => (&item.vis, item.ident.to_string()),
        Item::Type(item) => (&item.vis, item.ident.to_string()),
        _ => return None,
    })
}

/// The derived traits as a comment in alphabetical order; nothing where there are none.
fn derived(attributes: &[syn::Attribute]) -> String {
    let mut names = Vec::new();
    for attribute in attributes.iter().filter(|a| a.path().is_ident("derive")) {
        if let Ok(list) = attribute.meta.require_list() {
            let all = list.tokens.to_string().replace(' ', "");
            names.extend(all.split(',').filter(|n| !n.is_empty()).map(str::to_owned));
        }
    }
    names.sort_unstable();
    match names.is_empty() {
        true => String::new(),
        false => format!(" // {}", names.join(", ")),
    }
}

/// Fields of a variant, without their comments.
fn fields(fields: &Fields) -> String {
    match fields {
        Fields::Unit => String::new(),
        Fields::Unnamed(fields) => {
            let types: Vec<String> = fields.unnamed.iter().map(|f| text(&f.ty)).collect();
            format!("({})", types.join(", "))
        }
        Fields::Named(fields) => {
            let all: Vec<String> = fields
                .named
                .iter()
                .map(|f| {
                    let name = f.ident.as_ref().map(ToString::to_string);
                    format!("{}: {}", name.unwrap_or_default(), text(&f.ty))
                })
                .collect();
            format!(" {{ {} }}", all.join(", "))
        }
    }
}

/// A signature with the path of the function in place of its name.
fn signature(text: &str, name: &str, path: &str) -> String {
    text.replacen(&format!("fn {name}"), &format!("fn {path}"), 1)
}

/// The source text of a node in one line.
fn text(node: &impl Spanned) -> String {
    let source = node.span().source_text().unwrap_or_default();
    let line = source.split_whitespace().collect::<Vec<_>>().join(" ");
    // What a line break of a long signature leaves.
    line.replace("( ", "(")
        .replace(", )", ")")
        .replace(" )", ")")
        .replace("< ", "<")
        .replace(", >", ">")
}
