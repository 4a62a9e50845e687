//! `cargo xtask setup`: the toolchain for BPF, and a look at the kernel.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, anyhow};

use crate::packages::{self, Use};
use crate::verb::Verb;
use crate::{system, toolchain, vm};

pub(crate) const VERB: Verb = Verb {
    name: "setup",
    about: "install the compiler and linker for BPF if they are missing",
    help: Some(HELP),
    run,
};

const HELP: &str = "\
Prepares this machine to build pls-router: finds a Rust compiler for BPF and a bpf-linker that works
with it, and installs them if they are missing. The other verbs do this first, too.

usage: cargo xtask setup [--all]

  --all    also install the system packages of lab, test and bench, fetch those of vm, and install
           Miri for test; a package that cannot be installed is named with the reason

A compiler comes from rustup (a second toolchain, beside yours), or else from Debian's packages by apt-get, which
needs root. The linker comes from crates.io and takes about 90 seconds to compile.

  PLS_ROUTER_BPF_RUSTC=PATH     compile with this rustc, without a search
  PLS_ROUTER_BPF_LINKER=PATH    link with this bpf-linker, without a search
";

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    use lexopt::prelude::*;
    let mut all = false;
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("all") => all = true,
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected().into()),
        }
    }
    let mut lacking = Vec::new();
    let found = toolchain::bpf();
    if all && !install_packages() {
        lacking.push("packages of the lab");
    }
    if all {
        match toolchain::miri() {
            Ok(_) => println!("Miri: there, of Rust {}", toolchain::NIGHTLY),
            Err(reason) => println!("Miri: none, `test` skips its step: {reason:#}"),
        }
    }
    match found {
        Ok(toolchain) => println!("BPF toolchain: {toolchain}"),
        Err(error) => {
            println!("BPF toolchain: none: {error:#}");
            lacking.push("a compiler for BPF");
        }
    }
    // Building works on any kernel, running does not.
    match system::check_kernel() {
        Ok(kernel) => println!("kernel: {kernel}"),
        Err(reason) => {
            println!("kernel: cannot run lab, test, bench and the router itself: {reason}");
        }
    }
    if !system::is_root() {
        println!("user: not root, so lab and bench cannot run, and test skips what needs namespaces");
    }
    if lacking.is_empty() {
        println!("ready");
        return Ok(ExitCode::SUCCESS);
    }
    println!("not ready: missing {}", lacking.join(", and "));
    Ok(ExitCode::FAILURE)
}

/// Installs all system packages, and says which could not be had. Returns `true` if those for the
/// lab are there: without the others a few tests are skipped, without these nearly all.
fn install_packages() -> bool {
    let shortfalls =
        packages::install(&[Use::Lab, Use::Deploy, Use::Dist, Use::Bench, Use::Clients, Use::Fuzz]);
    if shortfalls.is_empty() {
        println!("system packages: all installed");
    } else {
        println!(
            "system packages: all but {} installed; tests that need those are skipped",
            shortfalls.len()
        );
    }
    for shortfall in &shortfalls {
        println!("  {shortfall}");
    }
    match vm::obstacle().map_or_else(vm::Tools::ready, |obstacle| Err(anyhow!(obstacle))) {
        Ok(tools) => println!("virtual machine: {tools}"),
        Err(reason) => println!("virtual machine: none, `vm` cannot run: {reason:#}"),
    }
    !shortfalls.iter().any(|shortfall| shortfall.is_for(Use::Lab))
}
