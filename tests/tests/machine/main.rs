//! The router on a real machine: Debian 12 with its kernel, systemd, sshd and cloud-init, in the
//! place of the lab's router. See `lab::machine`. Needs root.

// Its `#[test]` takes the place of the compiler's.
#[macro_use]
extern crate harness;

mod boot;
mod clients;
mod common;
mod deploy;
mod full;
mod guides;
mod quick;
mod scenes;
mod terraform;
mod versions;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::main(harness::no_root("network namespaces need root"))
}
