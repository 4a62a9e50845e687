//! The parts of a verb of `cargo xtask`.

use std::ffi::OsString;
use std::process::ExitCode;

/// A verb.
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    /// Its line in the list of verbs.
    pub(crate) about: &'static str,
    /// The answer to `--help`. Without one, the program that the verb starts has its own.
    pub(crate) help: Option<&'static str>,
    /// Does what the verb says, with the arguments after it.
    pub(crate) run: fn(&[OsString]) -> anyhow::Result<ExitCode>,
}
