//! The output of `pls-router support-bundle -o json`.

use serde::{Deserialize, Serialize};

/// A support bundle that was written.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SupportBundle {
    /// The file.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// `false` if addresses and names of machines were replaced.
    pub addresses: bool,
    /// The files in it.
    pub contents: Vec<SupportFile>,
    /// The parts that could not be had.
    pub missing: Vec<SupportMissing>,
}

/// A file in a support bundle.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SupportFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its content, in words.
    pub what: String,
}

/// Something that a support bundle has not.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SupportMissing {
    /// The name that it would have.
    pub name: String,
    /// Why it could not be had, in words.
    pub why: String,
}
