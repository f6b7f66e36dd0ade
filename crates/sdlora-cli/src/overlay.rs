//! Configurations that say `base = "…"` and then only what differs.

use toml::{Table, Value};

use crate::UsageError;

/// The key that names the base.
const BASE: &str = "base";
/// The key of published numbers: those of a base belong to the base alone.
const EXPECTED: &str = "expected";
/// Keys that decide what else a section means: with another value, nothing of the base's section stays.
const DECIDING: [&str; 3] = ["name", "rule", "weights"];

/// A configuration that another one starts from.
pub struct Base<F> {
    /// What tells it apart from others, for finding circles.
    pub id: String,
    /// Its TOML text.
    pub text: String,
    /// Where bases that it names are looked for.
    pub from: F,
}

/// The complete text of a configuration: itself if it has no `base`, otherwise that of its base with its own keys over
/// it. `called` names it in messages, and `find` opens the base that a configuration names.
///
/// # Errors
///
/// Usage errors that name the file: a base that is no text or that does not exist, and bases in a circle.
pub fn complete<F>(
    called: &str,
    text: &str,
    from: F,
    find: &mut dyn FnMut(&str, &F) -> anyhow::Result<Base<F>>,
) -> anyhow::Result<String> {
    // From the one that was asked for to the one without a base.
    let (mut chain, mut seen) = (vec![text.to_owned()], vec![called.to_owned()]);
    let mut from = from;
    loop {
        let last = chain.last().map(String::as_str).unwrap_or_default();
        let Some(name) = base_of(seen.last().map(String::as_str).unwrap_or_default(), last)? else {
            break;
        };
        let asking = seen.last().cloned().unwrap_or_default();
        let base = find(&name, &from)
            .map_err(|e| e.context(format!("`base = \"{name}\"` of {asking} cannot be used")))?;
        if seen.contains(&base.id) {
            seen.push(base.id);
            return Err(UsageError(format!(
                "{asking}: the configurations are bases of each other in a circle ({}): remove one `base`",
                seen.join(" → ")
            ))
            .into());
        }
        seen.push(base.id);
        chain.push(base.text);
        from = base.from;
    }
    let mut whole = chain.pop().unwrap_or_default();
    while let Some(own) = chain.pop() {
        let read = |text: &str| {
            text.parse::<Table>().map_err(|e| {
                anyhow::Error::new(e).context(UsageError(format!("a base of {called} is no TOML")))
            })
        };
        whole = over(&whole, &read(&whole)?, &own, &read(&own)?);
    }
    Ok(whole)
}

/// The value of `base`; `None` also for a text that is no TOML, whose error its reader reports with a line number.
fn base_of(called: &str, text: &str) -> Result<Option<String>, UsageError> {
    let Ok(mut table) = text.parse::<Table>() else {
        return Ok(None);
    };
    match table.remove(BASE) {
        None => Ok(None),
        Some(Value::String(name)) => Ok(Some(name)),
        Some(_) => Err(UsageError(format!(
            "{called}: `base` is no text: write the name of a preset or the path of a file"
        ))),
    }
}

/// The text of `own` over `base`, with the comments of both where the order of keys allows it.
fn over(base_text: &str, base: &Table, own_text: &str, own: &Table) -> String {
    let mut merged = base.clone();
    merged.remove(EXPECTED);
    let mut own = own.clone();
    own.remove(BASE);
    merge(&mut merged, &own);
    match Pieces::of(base_text).zip(Pieces::of(own_text)) {
        Some((base, own)) => {
            let text = base.with(own).text();
            match text.parse::<Table>() {
                Ok(found) if found == merged => text,
                _ => merged.to_string(),
            }
        }
        None => merged.to_string(),
    }
}

/// Puts the keys of `own` over those of `base`, section by section.
fn merge(base: &mut Table, own: &Table) {
    for (key, value) in own {
        match (base.get_mut(key), value) {
            (Some(Value::Table(inner)), Value::Table(own)) if is_section(key, inner, own) => {
                merge(inner, own);
            }
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Whether both are the same section with other keys, and not one value in place of another.
fn is_section(key: &str, base: &Table, own: &Table) -> bool {
    // Each holds one choice with its own keys.
    let is_choice = ["split", "class_order", "schedule", "normalise"].contains(&key);
    let is_another = |key: &str| {
        own.get(key)
            .is_some_and(|value| base.get(key) != Some(value))
    };
    !is_choice && !DECIDING.iter().any(|key| is_another(key))
}

/// A text cut into its head comment and its sections.
struct Pieces {
    head: String,
    sections: Vec<Section>,
}

/// A header with the comments above it and the keys below it; the first section has no header.
#[derive(Clone)]
struct Section {
    /// Comments and blank lines above the header.
    above: String,
    header: String,
    /// Each key with the comments above it and all lines of its value.
    keys: Vec<(String, String)>,
}

impl Section {
    fn get(&self, key: &str) -> Option<Table> {
        let (_, text) = self.keys.iter().find(|(name, _)| name == key)?;
        text.parse().ok()
    }
}

impl Pieces {
    /// The pieces of a text; `None` where a value does not end.
    fn of(text: &str) -> Option<Self> {
        let is_comment = |line: &&str| line.starts_with('#');
        let n_head = text.lines().take_while(is_comment).count();
        let lines: Vec<&str> = text.lines().collect();
        let joined =
            |lines: &[&str]| -> String { lines.iter().map(|line| format!("{line}\n")).collect() };
        let head = joined(&lines[..n_head]);
        let mut sections = vec![Section {
            above: String::new(),
            header: String::new(),
            keys: Vec::new(),
        }];
        let (mut above, mut i) = (String::new(), n_head);
        while i < lines.len() {
            let line = lines[i].trim();
            let first = i;
            i += 1;
            if line.is_empty() || line.starts_with('#') {
                above.push_str(&format!("{}\n", lines[first]));
            } else if line.starts_with('[') {
                sections.push(Section {
                    above: std::mem::take(&mut above),
                    header: lines[first].to_owned(),
                    keys: Vec::new(),
                });
            } else {
                // A value may go over several lines.
                while joined(&lines[first..i]).parse::<Table>().is_err() {
                    (i < lines.len()).then_some(())?;
                    i += 1;
                }
                let (key, _) = line.split_once('=')?;
                let text = std::mem::take(&mut above) + &joined(&lines[first..i]);
                let section = sections.last_mut()?;
                section.keys.push((key.trim().to_owned(), text));
            }
        }
        Some(Self { head, sections })
    }

    /// These with those of `own` over them.
    fn with(mut self, own: Self) -> Self {
        let published = format!("[[{EXPECTED}]]");
        self.sections.retain(|section| section.header != published);
        self.head = own.head;
        for mut section in own.sections {
            section.keys.retain(|(key, _)| key != BASE);
            let is_list = section.header.starts_with("[[");
            let found = self
                .sections
                .iter_mut()
                .find(|s| s.header == section.header && !is_list);
            let Some(found) = found else {
                self.sections.push(section);
                continue;
            };
            let is_other =
                |key: &str| section.get(key).is_some() && section.get(key) != found.get(key);
            let is_replaced =
                !section.header.is_empty() && DECIDING.iter().any(|key| is_other(key));
            if !section.above.trim().is_empty() {
                found.above = section.above;
            }
            if is_replaced {
                found.keys = section.keys;
                continue;
            }
            for (key, text) in section.keys {
                match found.keys.iter_mut().find(|(name, _)| *name == key) {
                    Some((_, old)) => *old = text,
                    None => found.keys.push((key, text)),
                }
            }
        }
        self
    }

    fn text(&self) -> String {
        let mut text = self.head.clone();
        for section in &self.sections {
            text.push_str(&section.above);
            if !section.header.is_empty() {
                text.push_str(&format!("{}\n", section.header));
            }
            for (_, key) in &section.keys {
                text.push_str(key);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Configurations by name, all of one place.
    fn of(name: &str, all: &[(&str, &str)]) -> anyhow::Result<String> {
        let find = |name: &str| {
            let found = all.iter().find(|(other, _)| *other == name);
            found.ok_or_else(|| {
                anyhow::Error::new(UsageError(format!("no preset is called {name}")))
            })
        };
        complete(name, find(name)?.1, (), &mut |name, ()| {
            Ok(Base {
                id: name.to_owned(),
                text: find(name)?.1.to_owned(),
                from: (),
            })
        })
    }

    const WHOLE: &str = "# A stream.\nseed = 1\nn_epochs = 2\n\n[method]\nname = \"sdlora\"\nrank = 10\n\n\
                         # Levels.\n[transform]\nside = 28\n\n[optimizer]\nrule = \"sgd\"\nlr = 0.1\n\
                         momentum = 0.9\n\n[[expected]]\nacc = 70.0\nsource = \"x\"\n";

    #[test]
    fn an_overlay_keeps_comments_and_replaces_what_it_says() {
        let all = [
            ("whole", WHOLE),
            (
                "slow",
                "# Slow.\nbase = \"whole\"\nn_epochs = 9\n\n[optimizer]\nlr = 0.01\n",
            ),
            (
                "lora",
                "# LoRA.\nbase = \"slow\"\n\n[method]\nname = \"lora\"\n\n[optimizer]\nrule = \"adam\"\nlr = 0.5\n\n\
                 [[expected]]\nacc = 60.0\nsource = \"y\"\n",
            ),
        ];
        assert_eq!(of("whole", &all).unwrap(), WHOLE);
        assert_eq!(
            of("slow", &all).unwrap(),
            "# Slow.\nseed = 1\nn_epochs = 9\n\n[method]\nname = \"sdlora\"\nrank = 10\n\n# Levels.\n[transform]\n\
             side = 28\n\n[optimizer]\nrule = \"sgd\"\nlr = 0.01\nmomentum = 0.9\n"
        );
        // Another method and another rule leave no key of the first; published numbers are its own.
        assert_eq!(
            of("lora", &all).unwrap(),
            "# LoRA.\nseed = 1\nn_epochs = 9\n\n[method]\nname = \"lora\"\n\n# Levels.\n[transform]\nside = 28\n\n\
             [optimizer]\nrule = \"adam\"\nlr = 0.5\n\n[[expected]]\nacc = 60.0\nsource = \"y\"\n"
        );
    }

    #[test]
    fn other_spellings_of_a_section_mean_the_same() {
        let own = "base = \"whole\"\noptimizer.lr = 0.3\nmethod = { name = \"lora\" }\n";
        let found = of("own", &[("whole", WHOLE), ("own", own)]).unwrap();
        let table: Table = found.parse().unwrap();
        assert_eq!(table["optimizer"]["lr"].as_float(), Some(0.3));
        assert_eq!(table["optimizer"]["momentum"].as_float(), Some(0.9));
        assert_eq!(table["method"].as_table().unwrap().len(), 1);
        assert!(!table.contains_key("base") && !table.contains_key("expected"));
    }

    #[test]
    fn circles_unknown_names_and_wrong_values_are_refused_by_name() {
        let all = [
            ("a", "base = \"b\"\n"),
            ("b", "base = \"c\"\n"),
            ("c", "base = \"b\"\n"),
            ("d", "base = \"nothing\"\n"),
            ("e", "base = 3\n"),
        ];
        let error = |name| format!("{:#}", of(name, &all).unwrap_err());
        assert!(error("a").contains("a → b → c → b"), "{}", error("a"));
        for (name, part) in [
            ("d", "of d cannot be used"),
            ("d", "nothing"),
            ("e", "e: `base`"),
        ] {
            assert!(error(name).contains(part), "{}", error(name));
        }
    }
}
