//! `cargo xtask soak`: the daemon upgraded, restarted and killed under traffic that must not
//! notice.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::lab;
use crate::packages::Use;
use crate::verb::Verb;

pub(crate) const VERB: Verb = Verb {
    name: "soak",
    about: "upgrade, restart and kill the daemon under traffic, and count what is lost (root)",
    // The soak has its own.
    help: None,
    run,
};

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    lab::become_program("lifecycle", arguments, &[Use::Lab])
}
