//! The arguments of the bench.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::ends::MAX_SESSIONS;

/// Measures pls-router on this machine, beside nftables and iptables NAT, plain forwarding, and XDP
/// programs that only forward: packets a second of one core by sessions, NICs, lengths, protocols
/// and directions, new sessions a second, two cores beside one, TCP, latency, and the cost of the
/// programs for a packet. Runs in network namespaces, which are removed afterwards.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "cargo xtask bench",
    bin_name = "cargo xtask bench",
    after_help = "Examples:\n  \
        cargo xtask bench                         everything, in about ten minutes\n  \
        cargo xtask bench --quick                 a first impression, in less than two\n  \
        cargo xtask bench --only packets --flows 1,1000,60000 --json bench.json\n  \
        cargo xtask bench --only packets --beside ./pls-router-before\n\n\
        Compare the arms of one run, not one run with another: the speed of a virtual machine changes with time. Nothing else \
        should run meanwhile; the table shows if something did.\n\n\
        Exit codes: 0 measured; 1 not possible; 2 wrong usage."
)]
pub(crate) struct Arguments {
    /// Shorter windows, fewer rounds, and not every combination.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Write the results to a file as well, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Another pls-router program to measure beside the first: shows the effect of a change.
    #[arg(long, value_name = "FILE")]
    pub(crate) beside: Option<PathBuf>,
    /// Rounds of packets; each measures every arm once. Default: 5, or 2 with --quick.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: Option<u16>,
    /// The timed window of each arm in a round. Default: 0.5, or 0.25 with --quick.
    #[arg(long, value_parser = seconds)]
    pub(crate) seconds: Option<f64>,
    /// Numbers of sessions in the first table. Default: 1, 64, 1000, 40000 and 1000000, or 64 and
    /// 40000 with --quick.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SESSIONS)))]
    pub(crate) flows: Option<Vec<u32>>,
    /// Measure only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Option<Vec<Part>>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.1 to 60".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Part {
    /// Nanoseconds a packet of the programs.
    Programs,
    /// Packets a second of one core, by numbers of sessions.
    Packets,
    /// Packets a second with one NIC.
    OneNic,
    /// Packets a second by length, protocol and direction.
    Shapes,
    /// New sessions a second, also where most SNAT ports are taken.
    Sessions,
    /// Packets a second where some open sessions.
    Mixed,
    /// Two cores beside one.
    Cores,
    /// The effect of the generator's pacing. Only on request.
    Pacing,
    /// The time of a packet there and back.
    Latency,
    /// Memory, starts, and what the daemon does with a million sessions.
    Resources,
    /// TCP by iperf3.
    Tcp,
}

impl Part {
    pub(crate) const ALL: [Self; 11] = [
        Self::Programs,
        Self::Packets,
        Self::OneNic,
        Self::Shapes,
        Self::Sessions,
        Self::Mixed,
        Self::Cores,
        Self::Pacing,
        Self::Latency,
        Self::Tcp,
        Self::Resources,
    ];

    pub(crate) fn is_default(self) -> bool {
        self != Self::Pacing
    }
}
