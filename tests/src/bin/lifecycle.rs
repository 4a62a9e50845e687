//! `lifecycle`: what `cargo xtask soak` runs.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use lab::{
    Router,
    soak::lifecycle::{self, Lost, Options},
};

/// Upgrades, restarts and kills the daemon over and over, under iperf3, long-lived TCP connections
/// with checked content, a stream of numbered datagrams and the load balancer's probe, and says
/// what was lost. Runs in network namespaces, which are removed afterwards.
#[derive(Debug, Parser)]
#[command(
    name = "soak",
    bin_name = "cargo xtask soak",
    after_help = "Every datagram has to arrive exactly once, no connection may break, and every probe has to be answered with \
                  200 within 5 s (but for probes while no daemon runs after a kill). Before anything happens, the rate of the \
                  datagrams is lowered until this machine's own wires lose none.\n\n\
                  Exit codes: 0 nothing was lost; 1 something was, or the run was broken off; 2 wrong usage."
)]
struct Arguments {
    /// Upgrades in place: a second daemon takes over from the one that runs.
    #[arg(long, value_name = "N", default_value_t = 100)]
    upgrades: u32,
    /// Restarts by a service manager that keeps the daemon's sockets.
    #[arg(long, value_name = "N", default_value_t = 100)]
    restarts: u32,
    /// Crashes (SIGKILL), after which the service manager starts the daemon again.
    #[arg(long, value_name = "N", default_value_t = 100)]
    crashes: u32,
    /// Long-lived TCP connections.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    connections: u32,
    /// Numbered datagrams a second, if the machine can carry them.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    rate: u32,
    /// The seed of the times at which things happen.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let lost = match run(&Arguments::parse()) {
        Ok(lost) => lost,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    println!("{lost}");
    if lost.is_nothing() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(arguments: &Arguments) -> Result<Lost> {
    let Arguments { upgrades, restarts, crashes, connections, rate, seed } = *arguments;
    let Router::PlsRouter(binary) = Router::find()? else { bail!("what is found is pls-router") };
    lifecycle::run(&Options { binary, upgrades, restarts, crashes, connections, rate, seed })
}
