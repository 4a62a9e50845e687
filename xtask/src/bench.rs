//! `cargo xtask bench`: packets a second of one core, and TCP, against what the router replaces.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::lab;
use crate::packages::Use;
use crate::verb::Verb;

pub(crate) const VERB: Verb = Verb {
    name: "bench",
    about: "measure the router beside nftables and a no-op redirect on this machine (root)",
    // The bench has its own.
    help: None,
    run,
};

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    lab::become_program("bench", arguments, &[Use::Lab, Use::Bench])
}
