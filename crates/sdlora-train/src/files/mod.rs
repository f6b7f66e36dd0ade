//! Files of a run, written whole or not at all.
//!
//! | what | how |
//! |---|---|
//! | [`write_file`] | one file: temporary name, sync, rename |
//! | [`NewFile`] | the same, for one that is written piece by piece |
//! | [`NewFolder`] | a folder of files that appears under its name when all of it is there |
//! | [`Appended`] | a file to which lines are added, each of them once |
//! | [`move_new`], [`copy_new`] | a file of the user, to a name that nothing has |
//! | [`sums`] | `SHA256SUMS` of such a folder, checked when its files are read |
//! | [`clean`], [`clean_shared`] | remove what a killed writer left, and put back what it had moved |
//! | [`faults`] | lets a test fail any single operation of the above |
//!
//! What is under construction is called `.tmp-…`, or `.sdlora-export-…` in folders that are not ours, and never read.

mod appended;
mod clean;
pub mod faults;
mod new_file;
mod new_folder;
mod ops;
pub mod sums;
mod to_new;

pub use appended::Appended;
pub use clean::{clean, clean_shared};
pub use new_file::NewFile;
pub use new_folder::{NewFolder, put_back};
pub(crate) use ops::{Scratch, link_over, open_lock, remove_file};
pub use ops::{
    create_folder, create_folders, create_new_folder, remove_empty_folder, remove_folder,
    write_file,
};
pub use to_new::{copy_new, move_new};
