//! What may be written on the command line, and its help.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Forwards a Private Link Service to the firewall, in XDP.
///
/// The router takes what arrives at its ports, rewrites destination and source, and sends it on,
/// without the kernel's network stack. `run` is the daemon that sets this up and answers the load
/// balancer's probe; the other commands ask it what it does, or check what it would do.
#[derive(Debug, Parser)]
#[command(
    name = "pls-router",
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        pls-router check                      is the configuration good, and this machine too?\n  \
        systemctl start pls-router            start forwarding\n  \
        pls-router status                     does it forward, and if not, why?\n  \
        pls-router counters --watch           what is forwarded and dropped right now, and why\n  \
        pls-router flows --client 10.0.2.70   this client's sessions\n\n\
        Exit codes: 0 good; 1 the answer is bad (unhealthy, invalid, would fail); 2 wrong usage."
)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Args, Debug)]
pub(super) struct Global {
    /// The configuration file
    #[arg(long, global = true, help_heading = "Everywhere", hide_env_values = true, value_name = "FILE", env = "PLS_ROUTER_CONFIG", default_value = crate::config::defaults::PATH)]
    pub(super) config: PathBuf,
    /// The daemon's socket [default: the configuration's, else /run/pls-router/api.sock]
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        hide_env_values = true,
        value_name = "PATH",
        env = "PLS_ROUTER_SOCKET"
    )]
    pub(super) socket: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start forwarding: load the programs, attach them, and serve probe, metrics and API
    #[command(
        long_about = "Start forwarding: load the programs, attach them, and serve probe, metrics and API.\n\n\
        Stays in the foreground; the service runs this. Stopped by SIGTERM or Ctrl-C, it detaches the programs and \
        forgets all sessions. After a crash they stay and go on forwarding, and the next start takes them over \
        with all sessions.\n\n\
        Logs go to standard error; in the journal, times and colours are left to it. PLS_ROUTER_LOG sets what is logged: error, warn, info (the default), debug, or e.g. \
        info,router_user::daemon=debug."
    )]
    Run(RunArguments),
    /// Check the configuration and this machine, or the sessions of a running daemon, without
    /// changing anything
    #[command(after_help = "Examples:\n  \
        pls-router check --config new.toml --config-only   before rolling a file out, on any machine\n  \
        sudo pls-router check                              on the router itself, before a restart\n  \
        sudo pls-router check --live                       is every session whole, and no SNAT port lost?")]
    Check(CheckArguments),
    /// Say whether this router forwards, and if not, why
    #[command(after_help = "Exits with 1 if it does not: `pls-router status >/dev/null || alarm`.")]
    Status(OutputArguments),
    /// Show what is forwarded, passed and dropped, and for which reason
    #[command(after_help = "Examples:\n  \
        pls-router counters --watch           totals and rates, every second\n  \
        pls-router counters --watch 10 -o json | jq -c .rules   a line every ten seconds")]
    Counters(CountersArguments),
    /// List sessions
    #[command(after_help = "Examples:\n  \
        pls-router flows --rule https --limit 20\n  \
        pls-router flows --client 10.0.2.70 -o json | jq '.[].target'")]
    Flows(FlowsArguments),
    /// List the rules in force, where they lead now, and what they have forwarded
    Rules(OutputArguments),
    /// Stop forwarding: detach the programs and forget all sessions
    #[command(
        long_about = "Stop forwarding: detach the programs from all interfaces and remove what is pinned.\n\n\
        For what a daemon has left behind that crashed or was killed; one that is stopped does this itself. All \
        sessions are lost."
    )]
    Detach(DetachArguments),
}

#[derive(Args, Debug)]
pub(super) struct OutputArguments {
    /// Aligned text for people, or JSON with stable field names for programs
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

#[derive(Args, Debug)]
pub(super) struct RunArguments {
    /// How to log: lines for people, or one JSON object a line
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub(super) log_format: LogFormat,
    /// Log from inside the XDP programs too, from this level on. Slow: for finding a fault
    #[arg(long, value_name = "LEVEL")]
    pub(super) bpf_log: Option<BpfLevel>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Human,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum BpfLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Args, Debug)]
pub(super) struct CheckArguments {
    /// Check only the file, not whether this machine can run it
    #[arg(long)]
    pub(super) config_only: bool,
    /// Ask the running daemon instead: whether every session in its table is whole
    #[arg(long, conflicts_with = "config_only")]
    pub(super) live: bool,
    #[command(flatten)]
    pub(super) output: OutputArguments,
}

#[derive(Args, Debug)]
pub(super) struct CountersArguments {
    /// Repeat every SECONDS, with rates
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(super) watch: Option<u32>,
    /// Show reasons that no packet had, too
    #[arg(long)]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) output: OutputArguments,
}

#[derive(Args, Debug)]
pub(super) struct FlowsArguments {
    /// Only sessions of this rule
    #[arg(long, value_name = "NAME")]
    pub(super) rule: Option<String>,
    /// Only sessions of this protocol
    #[arg(long, value_name = "PROTOCOL", value_parser = ["tcp", "udp", "icmp"])]
    pub(super) protocol: Option<String>,
    /// Only sessions of the client with this address
    #[arg(long, value_name = "IP")]
    pub(super) client: Option<IpAddr>,
    /// At most so many; 0 for all
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    pub(super) limit: usize,
    #[command(flatten)]
    pub(super) output: OutputArguments,
}

#[derive(Args, Debug)]
pub(super) struct DetachArguments {
    /// Even while a daemon is running
    #[arg(long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) output: OutputArguments,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }
}
