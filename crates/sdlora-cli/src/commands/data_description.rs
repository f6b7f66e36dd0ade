//! The numbers of a data set as `sdlora data` prints them.

use sdlora_data::{Dataset, Split};

use crate::output::say;
use crate::shown::shown;

/// Prints the numbers of a data set and its notes.
pub fn describe(dataset: &dyn Dataset) {
    let mut counts = vec![[0usize; 2]; dataset.class_names().len()];
    for (half, split) in [Split::Train, Split::Test].into_iter().enumerate() {
        for sample in dataset.samples(split) {
            counts[sample.class_id][half] += 1;
        }
    }
    say!("classes  {}", counts.len());
    if !dataset.groups().is_empty() {
        say!("groups   {}", dataset.groups().len());
    }
    for (half, split) in [Split::Train, Split::Test].into_iter().enumerate() {
        let of_half = counts.iter().map(|counts| counts[half]);
        say!(
            "{:<8} {} images, {} to {} a class",
            split.to_string(),
            dataset.samples(split).len(),
            of_half.clone().min().unwrap_or(0),
            of_half.max().unwrap_or(0)
        );
    }
    for note in dataset.notes() {
        say!("note     {}", shown(note));
    }
}
