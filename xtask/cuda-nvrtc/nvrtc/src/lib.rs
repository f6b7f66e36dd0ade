//! Nothing: this crate exists for the feature its manifest turns on.
