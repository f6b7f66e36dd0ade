//! The files of a crate use each other without circles: what a file needs can be read before the file.
//!
//! A file uses another one when a path in its code leads to an item of the other file. A `pub use` is a
//! signpost and not a use, and paths through it lead to where the item is. Code of tests may use anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::process;

/// How an attribute starts that keeps an item for tests.
const TESTS: [&str; 2] = ["#[cfg(test)]", "#[cfg(all(test,"];

/// Position of a module in its crate: `["files", "zip"]`.
type Module = Vec<String>;

/// The code of a file without comments, texts, tests and the limits of visibility: `pub(in path)` uses nothing.
fn code_of(text: &str) -> String {
    let code = without_tests(&bare(text));
    let mut parts = code.split("pub(in ");
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.map(|part| part.split_once(')').map_or(part, |(_, rest)| rest));
    rest.fold(first, |code, rest| code + "pub() " + rest)
}

/// The code without comments, and with every text and character empty.
fn bare(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let starts = |at: usize, what: &str| {
        what.chars()
            .enumerate()
            .all(|(i, c)| chars.get(at + i) == Some(&c))
    };
    let find = |from: usize, what: &str| (from..chars.len()).find(|&at| starts(at, what));
    let mut code = String::new();
    let mut at = 0;
    while at < chars.len() {
        let follows_name = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
        let n_hashes = |from: usize| chars[from..].iter().take_while(|&&c| c == '#').count();
        if starts(at, "//") {
            at = find(at, "\n").unwrap_or(chars.len());
        } else if starts(at, "/*") {
            at = find(at, "*/").map_or(chars.len(), |end| end + 2);
        } else if chars[at] == 'r'
            && !follows_name
            && chars.get(at + 1 + n_hashes(at + 1)) == Some(&'"')
        {
            let n = n_hashes(at + 1);
            let end = format!("\"{}", "#".repeat(n));
            at = find(at + n + 2, &end).map_or(chars.len(), |found| found + 1 + n);
        } else if chars[at] == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if chars[at] == '\'' && chars.get(at + 1) == Some(&'\\') {
            at = find(at + 3, "'").map_or(chars.len(), |end| end + 1);
        } else if chars[at] == '\'' && chars.get(at + 2) == Some(&'\'') {
            at += 3;
        } else {
            code.push(chars[at]);
            at += 1;
        }
    }
    code
}

/// The code without the items that are for tests.
fn without_tests(code: &str) -> String {
    let mut rest = code;
    let mut kept = String::new();
    let first = |rest: &str| TESTS.iter().filter_map(|test| rest.find(test)).min();
    while let Some(start) = first(rest) {
        kept.push_str(&rest[..start]);
        rest = &rest[start..];
        let mut depth = 0;
        let end = rest.char_indices().find(|&(_, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0 && matches!(c, ';' | '}')
        });
        rest = end.map_or("", |(at, _)| &rest[at + 1..]);
    }
    kept + rest
}

/// The paths of a `use`: `a::{b, c::d}` has two.
fn paths(tree: &str, prefix: &[&str]) -> Vec<Module> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in tree.char_indices().chain([(tree.len(), ',')]) {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            parts.push(tree[start..at].trim());
            start = at + 1;
        }
    }
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts
        .flat_map(|part| {
            let (path, inner) = part.split_once('{').map_or((part, None), |(path, inner)| {
                (path, inner.rsplit_once('}').map(|(inner, _)| inner))
            });
            let path = path.split(" as ").next().unwrap_or_default();
            let names = path
                .split("::")
                .map(str::trim)
                .filter(|name| !name.is_empty());
            let whole: Vec<&str> = prefix.iter().copied().chain(names).collect();
            match inner {
                Some(inner) => paths(inner, &whole),
                None => vec![whole.into_iter().map(str::to_owned).collect()],
            }
        })
        .collect()
}

/// One file of a crate.
#[derive(Default)]
struct File {
    /// Modules that it declares in files of their own.
    declares: BTreeSet<String>,
    /// Paths that it imports for itself.
    imports: Vec<Module>,
    /// Paths that it hands on with `pub use`.
    hands_on: Vec<Module>,
    /// Names and paths in the rest of its code.
    mentions: BTreeSet<String>,
}

impl File {
    fn parse(text: &str) -> Self {
        let code = code_of(text);
        let mut file = Self::default();
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        // Attributes and visibility stand before the keyword, in the same statement.
        let mut rest = String::new();
        for statement in code.split_inclusive([';', '{', '}']) {
            let declared = statement
                .strip_suffix(';')
                .and_then(|statement| statement.rsplit_once("mod "))
                .filter(|(_, name)| name.chars().all(is_name));
            match declared {
                Some((_, name)) => drop(file.declares.insert(name.to_owned())),
                None => rest.push_str(statement),
            }
        }
        let mut rest = rest.as_str();
        let mut other = String::new();
        while let Some(start) = rest.find("use ") {
            let is_keyword = !rest[..start].ends_with(is_name);
            let (before, after) = rest.split_at(start);
            other.push_str(before);
            if !is_keyword {
                other.push_str("use ");
                rest = &after[4..];
                continue;
            }
            let (tree, next) = after[4..].split_once(';').unwrap_or((&after[4..], ""));
            let is_public = before.trim_end().ends_with("pub") || before.trim_end().ends_with(')');
            let list = match is_public {
                true => &mut file.hands_on,
                false => &mut file.imports,
            };
            let tree = tree.split_whitespace().collect::<Vec<_>>().join(" ");
            list.extend(paths(&tree, &[]));
            rest = next;
        }
        other.push_str(rest);
        let words = other.split(|c: char| !is_name(c) && c != ':');
        file.mentions = words
            .map(|word| word.trim_matches(':').to_owned())
            .collect();
        file
    }
}

/// The files of a crate by their module.
struct Crate(BTreeMap<Module, File>);

impl Crate {
    fn read(folder: &Path) -> Self {
        let mut texts = BTreeMap::new();
        let mut folders = vec![(folder.to_owned(), Module::new())];
        while let Some((folder, module)) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
                let mut below = module.clone();
                let is_root = module.is_empty() && matches!(stem.as_str(), "lib" | "main");
                if !is_root && stem != "mod" {
                    below.push(stem);
                }
                if path.is_dir() {
                    folders.push((path, below));
                } else if path.extension().is_some_and(|e| e == "rs") {
                    texts.insert(below, std::fs::read_to_string(&path).unwrap());
                }
            }
        }
        Self::of(texts)
    }

    fn of(texts: impl IntoIterator<Item = (Module, String)>) -> Self {
        let files = texts
            .into_iter()
            .map(|(module, text)| (module, File::parse(&text)));
        let mut files: BTreeMap<Module, File> = files.collect();
        // Modules of tests are declared by nobody that was parsed.
        let all: Vec<Module> = files.keys().cloned().collect();
        for module in all {
            if let Some((name, parent)) = module.split_last()
                && !files
                    .get(parent)
                    .is_some_and(|file| file.declares.contains(name))
            {
                files.remove(&module);
            }
        }
        Self(files)
    }

    /// A path as it is seen from the root of the crate; nothing for paths that lead out of it.
    fn to_root(&self, module: &[String], path: &[String]) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        let start = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.to_vec(),
            "super" => {
                let parent = module.split_last().map(|(_, parent)| parent)?;
                if rest.first().is_some_and(|next| next == "super") {
                    return self.to_root(parent, rest);
                }
                parent.to_vec()
            }
            name if self.0[module].declares.contains(name) => {
                [module, std::slice::from_ref(first)].concat()
            }
            _ => return None,
        };
        Some([start.as_slice(), rest].concat())
    }

    /// The module in which the item at the end of a path is.
    fn home(&self, path: &[String], n_hops: usize) -> Module {
        let n = (0..=path.len())
            .rev()
            .find(|&n| self.0.contains_key(&path[..n]));
        let (module, rest) = path.split_at(n.unwrap_or(0));
        let Some(file) = self.0.get(module) else {
            return Module::new();
        };
        if let Some((name, inner)) = rest.split_first()
            && n_hops > 0
            && let Some(there) = file
                .hands_on
                .iter()
                .find(|there| there.last() == Some(name))
            && let Some(there) = self.to_root(module, there)
            && there != path
        {
            return self.home(&[there.as_slice(), inner].concat(), n_hops - 1);
        }
        module.to_vec()
    }

    /// Which modules each module uses.
    fn uses(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let of_module = |(module, file): (&'_ Module, &File)| {
            let own = file.hands_on.iter().filter(|path| {
                let name = path.last();
                name.is_some_and(|name| file.mentions.contains(name))
            });
            let mentions = file.mentions.iter().filter(|path| path.contains("::"));
            let mentions = mentions.map(|path| path.split("::").map(str::to_owned).collect());
            let all = file.imports.iter().chain(own).cloned().chain(mentions);
            let homes = all.filter_map(|path: Module| {
                let path = self.to_root(module, &path)?;
                Some(self.home(&path, 8))
            });
            homes.filter(|home| home != module).collect()
        };
        let files = self.0.iter();
        files
            .map(|(module, file)| (module, of_module((module, file))))
            .collect()
    }

    /// Groups of files that use each other in a circle, each as sorted names.
    fn circles(&self) -> Vec<Vec<String>> {
        let uses = self.uses();
        let reached: BTreeMap<&Module, BTreeSet<&Module>> = uses
            .keys()
            .map(|&module| (module, reached(&uses, module)))
            .collect();
        let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
        for (&module, from) in &reached {
            if from.contains(module) {
                let circle = from.iter().filter(|other| reached[*other].contains(module));
                circles.insert(circle.map(|other| name(other)).collect());
            }
        }
        circles.into_iter().collect()
    }
}

/// The modules that `start` uses, and those that these use.
fn reached<'a>(
    uses: &'a BTreeMap<&Module, BTreeSet<Module>>,
    start: &'a Module,
) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut open = vec![start];
    while let Some(module) = open.pop() {
        let next = uses.get(module).into_iter().flatten();
        open.extend(next.filter(|&next| reached.insert(next)));
    }
    reached
}

fn name(module: &[String]) -> String {
    match module {
        [] => "lib".to_owned(),
        parts => parts.join("/"),
    }
}

/// Every crate of the workspace with its folder of sources.
fn crates() -> Vec<(String, Crate)> {
    let folders = std::fs::read_dir(process::root().join("crates")).unwrap();
    let mut folders: Vec<_> = folders.map(|entry| entry.unwrap().path()).collect();
    folders.push(process::root().join("xtask"));
    folders.sort();
    let name = |folder: &Path| folder.file_name().unwrap().to_string_lossy().into_owned();
    let folders = folders.iter().filter(|folder| folder.join("src").is_dir());
    folders
        .map(|folder| (name(folder), Crate::read(&folder.join("src"))))
        .collect()
}

#[test]
fn files_do_not_use_each_other_in_a_circle() {
    let mut wrong = String::new();
    for (name, files) in crates() {
        let circles = files.circles();
        for circle in circles {
            wrong += &format!("{name}: {}\n", circle.join(", "));
        }
    }
    assert!(
        wrong.is_empty(),
        "{wrong}move what both ends of a circle need to a file of its own"
    );
}

fn toy(files: &[(&str, &str)]) -> Crate {
    let files = files.iter().map(|&(name, text)| {
        let parts = name.split('/').filter(|part| !part.is_empty());
        (parts.map(str::to_owned).collect(), text.to_owned())
    });
    Crate::of(files.collect::<Vec<_>>())
}

#[test]
fn a_circle_is_found_through_imports_paths_and_signposts() {
    let lib = "mod a; mod b; pub use a::Item;";
    for (a, b) in [
        (
            "use crate::b::Other; pub struct Item;",
            "use crate::a::Item; pub struct Other;",
        ),
        (
            "use crate::{b::{self, Other}}; pub struct Item;",
            "use super::a::Item; pub struct Other;",
        ),
        (
            "pub struct Item; fn f() { crate::b::g() }",
            "pub fn g() { let _ = crate::Item; }",
        ),
    ] {
        assert_eq!(
            toy(&[("", lib), ("a", a), ("b", b)]).circles(),
            [["a", "b"]],
            "{a} {b}"
        );
    }
    let parent = toy(&[
        ("", "mod child; pub struct Item; fn f() { child::g() }"),
        ("child", "use super::Item; pub fn g() {}"),
    ]);
    assert_eq!(parent.circles(), [["lib", "child"]]);
}

#[test]
fn tests_comments_texts_and_signposts_make_no_circle() {
    let lib = "mod a; mod b; pub use a::Item; #[cfg(test)] mod c;";
    let a = "pub struct Item; #[cfg(test)] mod tests { use crate::b::Other; fn f() {} }";
    let b = r##"//! use crate::a
        use crate::Item; pub(in crate::c) struct Other; const T: &str = "use crate::c;"; const R: &str = r#"crate::c"#;"##;
    let c = "use crate::b::Other; use crate::a::Item;";
    let files = toy(&[("", lib), ("a", a), ("b", b), ("c", c)]);
    assert!(files.circles().is_empty());
    assert_eq!(
        files.uses()[&vec!["b".to_owned()]],
        BTreeSet::from([vec!["a".to_owned()]])
    );
}
