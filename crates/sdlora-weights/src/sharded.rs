//! A checkpoint in several files and the index that says which tensor lies in which.
