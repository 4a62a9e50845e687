//! The options of a run.

use std::path::PathBuf;

/// The options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config_path: PathBuf,
    /// The level of the programs' own log; `None` has the verifier remove the code.
    pub bpf_log: Option<log::Level>,
    /// `true` to take the place of a daemon that is running.
    pub take_over: bool,
}
