//! What a user types where a library says what is wrong: libraries know of no options.

use std::error::Error;

use sdlora_train::TrainError;
use sdlora_vit::{Untold, VitError};

/// The options that help against an error, as a part of a sentence; `None` where none does.
pub fn hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    match error.downcast_ref::<TrainError>() {
        Some(TrainError::Vit(error)) => of_vit(error),
        Some(error) => of_train(error),
        None => error.downcast_ref::<VitError>().and_then(of_vit),
    }
}

/// A message with its hint.
pub fn with_hint(error: &(dyn Error + 'static)) -> String {
    match hint(error) {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    }
}

fn of_train(error: &TrainError) -> Option<&'static str> {
    Some(match error {
        TrainError::Device { .. } => "`--devices` lists those that compute",
        TrainError::Damaged { .. } => "`sdlora train --resume` continues it",
        TrainError::Locked { .. } => "`--name`, or `--run` or `--runs`, chooses another folder",
        TrainError::FolderGone { .. } => "`--resume` continues it",
        TrainError::LeftOver { .. } | TrainError::WeightsChanged { .. } => {
            "`--name` chooses another folder"
        }
        TrainError::RunExists { .. } => "`--resume` continues it, `--name` chooses another folder",
        TrainError::NoRun { .. } => "leave out `--resume` to start one",
        TrainError::PlanChanged { .. } => "`--name` chooses another folder",
        TrainError::DataChanged {
            keeps_labels: true, ..
        } => "`sdlora train --resume --accept-changed-data` accepts them",
        TrainError::DataChanged { .. } => "`--name` chooses another folder",
        TrainError::Checkpoint { earlier: None, .. } => "`--name` chooses another folder",
        TrainError::NotKept { .. } => "`--only` names the diagnostics to do",
        TrainError::NotFinished { .. } => "`sdlora train --resume` finishes it",
        TrainError::OutputExists { .. } => "`--force` replaces it",
        _ => return None,
    })
}

fn of_vit(error: &VitError) -> Option<&'static str> {
    match error {
        VitError::NotAVit {
            untold: Some(untold),
            ..
        } => Some(match untold {
            Untold::Heads => "`--heads` says it",
            Untold::Activation => "`--activation` says it",
            Untold::Pooling => "`--pooling` says it",
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_option_helps_against_names_it() {
        let path = || std::path::PathBuf::from("run");
        for (error, option) in [
            (TrainError::RunExists { path: path() }, "`--resume`"),
            (TrainError::NoRun { path: path() }, "`--resume`"),
            (TrainError::Locked { path: path() }, "`--name`"),
            (TrainError::OutputExists { path: path() }, "`--force`"),
        ] {
            let text = with_hint(&error);
            assert!(text.contains(option), "{text}");
            assert!(text.starts_with(&error.to_string()), "{text}");
        }
        let untold = VitError::NotAVit {
            path: path(),
            problem: "nothing tells".into(),
            untold: Some(Untold::Heads),
        };
        assert!(with_hint(&untold).contains("`--heads`"));
        assert!(with_hint(&TrainError::Vit(untold)).contains("`--heads`"));
        let other = TrainError::Numbers {
            what: "a mean",
            problem: "a hole",
        };
        assert_eq!(with_hint(&other), other.to_string());
    }
}
