//! `cargo xtask lab`: the router at work in a network of namespaces.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::packages::{self, Use};
use crate::verb::Verb;
use crate::{system, toolchain, workspace};

pub(crate) const VERB: Verb = Verb {
    name: "lab",
    about: "demonstrate the router in a network of namespaces, with real traffic (root)",
    // The lab has its own.
    help: None,
    run,
};

/// The name of the router with another layout of its maps, beside the usual one (`OTHER_LAYOUT` of
/// the package `lab`).
pub(crate) const OTHER_LAYOUT: &str = "pls-router-other-layout";

/// Tells the lab and the tests which `pls-router` to run.
pub(crate) const ROUTER_VARIABLE: &str = "PLS_ROUTER_BIN";

/// Tells them which `xtask` deploys.
const XTASK_VARIABLE: &str = "PLS_XTASK_BIN";

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    // Several routers are machines, on which `deploy` installs.
    let is_fleet = arguments.iter().any(|argument| argument.to_string_lossy().starts_with("--routers"));
    become_program("lab", arguments, if is_fleet { &[Use::Lab, Use::Deploy] } else { &[Use::Lab] })
}

/// Builds the router and `program` of the lab's package, and becomes that program. Packages beside
/// the lab's are optional.
pub(crate) fn become_program(program: &str, arguments: &[OsString], uses: &[Use]) -> Result<ExitCode> {
    toolchain::bpf()?;
    if !arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        system::require_root(program, "it makes network namespaces and loads BPF programs")?;
        system::check_kernel()?;
        let shortfalls = packages::install(uses);
        for shortfall in &shortfalls {
            eprintln!("  missing: {shortfall}");
        }
        let needed = shortfalls.iter().any(|shortfall| shortfall.is_for(Use::Lab));
        ensure!(!needed, "the {program} needs packages that could not be installed; see above");
    }
    let mut build = workspace::cargo("build");
    build.args(["--release", "-p", "router-user", "-p", "lab", "--bin", "pls-router", "--bin", program]);
    system::run(&mut build)?;
    let mut command = Command::new(release_binary(program));
    let this = env::current_exe().context("cannot tell which binary this is")?;
    command.args(arguments).env(ROUTER_VARIABLE, release_binary("pls-router")).env(XTASK_VARIABLE, this);
    // In our place, so that Ctrl-C reaches it and its exit code is ours.
    Err(command.exec()).with_context(|| format!("cannot start {}", command.get_program().display()))
}

fn release_binary(name: &str) -> PathBuf {
    workspace::target_dir().join("release").join(name)
}
