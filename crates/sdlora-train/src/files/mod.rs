//! Files of a run, written whole or not at all.
//!
//! | what | how |
//! |---|---|
//! | [`write_file`] | one file: temporary name, sync, rename |
//! | [`NewFolder`] | a folder of files that appears under its name when all of it is there |
//! | [`Appended`] | a file to which lines are added, each of them once |
//! | [`sums`] | `SHA256SUMS` of such a folder, checked when its files are read |
//! | [`clean`], [`clean_shared`] | remove what a killed writer left, and put back what it had moved |
//! | [`faults`] | lets a test fail any single operation of the above |
//!
//! What is under construction is called `.tmp-…`, or `.sdlora-export-…` in folders that are not ours, and never read.

mod appended;
mod clean;
pub mod faults;
mod new_folder;
mod ops;
pub mod sums;

pub use appended::Appended;
pub use clean::{clean, clean_shared};
pub use new_folder::{NewFolder, put_back};
pub(crate) use ops::open_lock;
pub use ops::{
    create_folder, create_folders, create_new_folder, remove_empty_folder, remove_folder,
    write_file,
};
