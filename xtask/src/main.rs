//! The tasks of this repository: `cargo xtask <verb>`, with one file for each verb.

mod bench;
mod deploy;
mod dist;
mod lab;
mod packages;
mod program;
mod setup;
mod soak;
mod system;
mod terraform;
mod test;
mod toolchain;
mod verb;
mod vm;
mod workspace;

use std::process::ExitCode;

use verb::Verb;

const VERBS: &[Verb] =
    &[setup::VERB, lab::VERB, test::VERB, bench::VERB, soak::VERB, vm::VERB, dist::VERB, deploy::VERB];

const HELP: &str = "\
Builds, runs, tests and measures pls-router.

usage: cargo xtask VERB [OPTIONS]        `cargo xtask VERB --help` has the details
";

const HELP_AFTER: &str = "
Start with `cargo xtask lab` (a demonstration) or `cargo xtask test` (all tests), as root: both make
network namespaces. Each verb installs the programs that it needs and are missing, and says so first:

  a Rust compiler for BPF   from rustup, or else from Debian's packages      10 to 60 s
  bpf-linker                by cargo install, into cargo's bin directory     90 s
  system packages           by apt-get, for lab, test, bench, soak 10 to 60 s
  Miri                      from rustup, with a nightly Rust, for test       30 s
  Rust's library for musl   from rustup, for dist and deploy                 10 s
  kernels and qemu          by apt-get, unpacked below target, for vm        10 s

A package that cannot be installed is named with the reason, and tests that need it are skipped. No
installed package is removed. A network service that comes with a package is neither started nor
enabled. Nothing else outside the repository changes. Tests and labs run in separate network
namespaces without a route to the outside.
";

fn main() -> ExitCode {
    match dispatch() {
        Ok(code) => code,
        Err(error) => {
            let usage = error.downcast_ref::<lexopt::Error>().is_some();
            if usage {
                // Its text has the cause's in it already.
                eprintln!("error: {error}");
            } else {
                eprintln!("error: {error:#}");
            }
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn dispatch() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let Some(name) = arguments.next() else {
        print_help();
        return Ok(ExitCode::SUCCESS);
    };
    if ["--help", "-h", "help"].iter().any(|help| name == *help) {
        print_help();
        return Ok(ExitCode::SUCCESS);
    }
    let Some(verb) = VERBS.iter().find(|verb| name == verb.name) else {
        let names: Vec<_> = VERBS.iter().map(|verb| verb.name).collect();
        eprintln!("error: no verb {name:?}; there are {}", names.join(", "));
        return Ok(ExitCode::from(2));
    };
    let arguments: Vec<_> = arguments.collect();
    if let Some(help) = verb.help
        && arguments.iter().any(|argument| argument == "--help" || argument == "-h")
    {
        print!("{help}");
        return Ok(ExitCode::SUCCESS);
    }
    (verb.run)(&arguments)
}

fn print_help() {
    println!("{HELP}");
    for Verb { name, about, help: _, run: _ } in VERBS {
        println!("  {name:<8}{about}");
    }
    print!("{HELP_AFTER}");
}
