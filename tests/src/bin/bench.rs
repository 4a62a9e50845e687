//! `bench`: packets a second of one core, TCP, and nanoseconds a packet, beside what pls-router
//! replaces.

#[path = "../bench/mod.rs"]
mod bench;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use clap::Parser as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

fn main() -> ExitCode {
    let arguments = bench::arguments::Arguments::parse();
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&interrupted)) {
            eprintln!("bench: cannot watch for signals: {error}");
            return ExitCode::FAILURE;
        }
    }
    let Err(error) = bench::run::run(&arguments) else { return ExitCode::SUCCESS };
    // After an interrupt, errors come from the removal of the namespaces, which ends the process.
    while interrupted.load(Ordering::Relaxed) {
        thread::park();
    }
    eprintln!("bench: {error:#}");
    ExitCode::FAILURE
}
