//! `sdlora presets`: the configurations inside the binary.

use crate::UsageError;

/// A configuration that ships with the program.
pub struct Preset {
    /// Name that `--preset` takes.
    pub name: &'static str,
    /// One line on what it is.
    pub summary: &'static str,
    /// Its TOML text.
    pub text: &'static str,
}

/// Every preset of `sdlora train`; the first is the main job.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "omniglot-10x20",
        summary: "10 tasks of 20 unseen characters",
        text: include_str!("../../presets/omniglot-10x20.toml"),
    },
    Preset {
        name: "omniglot-alphabets",
        summary: "20 tasks of one unseen alphabet each",
        text: include_str!("../../presets/omniglot-alphabets.toml"),
    },
    Preset {
        name: "omniglot-100x5",
        summary: "100 tasks of 5 unseen characters: a long stream",
        text: include_str!("../../presets/omniglot-100x5.toml"),
    },
    Preset {
        name: "omniglot-shift",
        summary: "10 tasks of 20 unseen characters whose appearance changes with the task",
        text: include_str!("../../presets/omniglot-shift.toml"),
    },
    Preset {
        name: "cifar100-10x10",
        summary: "10 tasks of 10 classes of CIFAR-100 on the small natural-image backbone",
        text: include_str!("../../presets/cifar100-10x10.toml"),
    },
    Preset {
        name: "tiny-imagenet-10x10",
        summary: "10 tasks of 10 unseen classes of Tiny-ImageNet on the same backbone",
        text: include_str!("../../presets/tiny-imagenet-10x10.toml"),
    },
];

/// The preset of that name.
///
/// # Errors
///
/// A usage error that lists the names.
pub fn find(name: &str) -> Result<&'static Preset, UsageError> {
    PRESETS.iter().find(|p| p.name == name).ok_or_else(|| {
        let known: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
        UsageError(format!(
            "no preset is called `{name}`: choose one of {}",
            known.join(", ")
        ))
    })
}

/// List the presets, or print one
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Preset to print
    name: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.name {
        Some(name) => print!("{}", find(&name)?.text),
        None => {
            for preset in PRESETS {
                println!("{:<20} {}", preset.name, preset.summary);
            }
        }
    }
    Ok(())
}
