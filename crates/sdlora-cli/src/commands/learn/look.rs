//! What a folder holds, in one table before anything is learned from it.

use std::path::Path;

use sdlora_data::datasets::{FoldersOptions, LearnedFolder};
use sdlora_data::{Dataset, Options, Survey, datasets};
use toml::Value;

use crate::UsageError;
use crate::output::note;
use crate::progress::{Progress, can_draw};
use crate::shown::{clipped, shown, shown_path};

/// Classes that the table names; of more, the smallest ones.
const MOST_NAMED: usize = 12;

/// A folder that was looked at.
pub struct Seen {
    pub survey: Survey,
    /// The folder as an entry of the data set `folders`; classes in the order of their names.
    pub folder: LearnedFolder,
}

/// What happens to a folder in which something is odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Odd {
    /// What cannot be used is an error, other things are said.
    Say,
    /// What cannot be used is left out.
    SkipBad,
    /// Anything is an error.
    Refuse,
}

/// Looks at every image of a folder once, and prints what there is; `typed` is the folder as the user calls it.
///
/// # Errors
///
/// Usage errors for a folder without images, and for what is odd, as `odd` says.
pub fn look(
    (root, typed): (&Path, &Path),
    options: &FoldersOptions,
    data_dir: &Path,
    odd: Odd,
    progress: &Progress,
) -> anyhow::Result<Seen> {
    let mut folder = LearnedFolder {
        root: root.to_owned(),
        classes: Vec::new(),
        listing: None,
        skip_bad: true,
    };
    if can_draw() {
        // Of many photographs that takes minutes.
        note!("looking at every image of {} ...", shown_path(typed));
    }
    let set = open(options, &folder, data_dir)?;
    let survey = Survey::of(set.as_ref());
    progress.println(&table(typed, &survey));
    let quoted = |is_wanted: &dyn Fn(bool) -> bool| -> Vec<String> {
        let findings = survey.findings.iter().filter(|f| is_wanted(f.is_bad));
        findings.map(|finding| finding.text.clone()).collect()
    };
    let (all, bad) = (quoted(&|_| true), quoted(&|is_bad| is_bad));
    for text in &all {
        note!("note: {}", shown(text));
    }
    match odd {
        Odd::Refuse if !all.is_empty() => {
            return Err(UsageError(format!(
                "`--strict` takes a folder in which nothing is odd, and there are {} notes above: nothing was learned",
                all.len()
            ))
            .into());
        }
        Odd::Say if !bad.is_empty() => {
            return Err(UsageError(format!(
                "{} holds what cannot be used (see above): mend or remove it, or give `--skip-bad` to go on without; \
                 nothing was learned",
                typed.display()
            ))
            .into());
        }
        _ => {}
    }
    folder.skip_bad = !bad.is_empty();
    folder.classes = set.class_names().to_vec();
    folder.listing = Some(LearnedFolder::listing_of(set.as_ref()));
    Ok(Seen { survey, folder })
}

fn open(
    options: &FoldersOptions,
    folder: &LearnedFolder,
    data_dir: &Path,
) -> anyhow::Result<Box<dyn Dataset>> {
    let Value::Table(table) = Value::try_from(options.one(folder))? else {
        anyhow::bail!("options of a folder have no TOML form");
    };
    Ok(datasets::open("folder", data_dir, &Options(table))?)
}

/// The table of a folder.
fn table(root: &Path, survey: &Survey) -> String {
    let mut lines = vec![format!("{}:", shown_path(root))];
    let width = survey
        .classes
        .iter()
        .map(|class| clipped(&class.name).chars().count())
        .max()
        .unwrap_or(0)
        .clamp(12, 40);
    lines.push(format!(
        "  {:<width$}  {:>7} {:>7}",
        "class", "learn", "test"
    ));
    let mut classes: Vec<_> = survey.classes.iter().collect();
    let n_more = classes.len().saturating_sub(MOST_NAMED);
    if n_more > 0 {
        // The smallest ones: they are what may be too small.
        classes.sort_by_key(|class| class.train);
        classes.truncate(MOST_NAMED);
    }
    for class in classes {
        let name = clipped(&class.name);
        lines.push(format!(
            "  {name:<width$}  {:>7} {:>7}",
            class.train, class.test
        ));
    }
    if n_more > 0 {
        lines.push(format!(
            "  and {n_more} classes with as many images or more"
        ));
    }
    let n = survey.classes.len();
    let total = format!("{n} {}", if n == 1 { "class" } else { "classes" });
    lines.push(format!(
        "  {total:<width$}  {:>7} {:>7}",
        survey.n_train(),
        survey.n_test()
    ));
    if let Some((shortest, longest)) = survey.sides {
        let colour = match survey.n_colour {
            0 => "grey".to_owned(),
            n if n == survey.n_looked_at => "coloured".to_owned(),
            n => format!("{n} coloured and {} grey", survey.n_looked_at - n),
        };
        lines.push(match shortest == longest {
            true => format!("  images of {shortest} x {shortest} pixels, {colour}"),
            false => format!("  images with sides of {shortest} to {longest} pixels, {colour}"),
        });
    }
    if let Some(share) = survey.drawn {
        lines.push(format!(
            "  no test half: {:.0} % of the images of every class are held back to test on, the same ones each time",
            100.0 * share
        ));
    }
    lines.join("\n")
}
