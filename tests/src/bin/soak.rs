//! `soak`: what `cargo xtask test --soak MINUTES` runs.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use clap::Parser;
use lab::{
    Router,
    soak::{self, Options},
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Soaks pls-router: very many sessions, others that come and go, TCP streams, lost and reordered
/// packets, and a daemon that is killed again and again. At the end, no data may be lost and no
/// session left. Runs in network namespaces, which are removed afterwards.
#[derive(Debug, Parser)]
#[command(name = "soak", after_help = "Exit codes: 0 passed; 1 failed; 2 wrong usage.")]
struct Arguments {
    /// The duration once all sessions are open. Opening them and expiring them takes two minutes
    /// more.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Sessions that stay all the time.
    #[arg(long, default_value_t = 200_000)]
    sessions: u32,
    /// Sessions a second that come and go.
    #[arg(long, default_value_t = 300)]
    churn: u32,
    /// TCP connections at a time.
    #[arg(long, default_value_t = 100)]
    streams: u32,
    /// The seed of all random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&interrupted)) {
            eprintln!("soak: cannot watch for signals: {error}");
            return ExitCode::FAILURE;
        }
    }
    let Err(error) = run(&arguments) else { return ExitCode::SUCCESS };
    // After an interrupt, errors come from the removal of the namespaces, which ends the process.
    while interrupted.load(Ordering::Relaxed) {
        thread::park();
    }
    eprintln!("soak: {error:#}");
    ExitCode::FAILURE
}

fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { minutes, sessions, churn, streams, seed } = *arguments;
    let duration = Duration::try_from_secs_f64(minutes * 60.0)?;
    let Router::PlsRouter(binary) = Router::find()? else { bail!("what is found is pls-router") };
    soak::run(&Options { binary, duration, sessions, churn, streams, seed })
}
