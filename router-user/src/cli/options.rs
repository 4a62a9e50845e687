//! The command line's options and help.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;

/// Forwards a Private Link Service to the firewall, in XDP.
///
/// The router rewrites the destination and source of packets that arrive at its ports, and forwards
/// them without the kernel's network stack. `run` is the daemon: it loads the programs and answers
/// the load balancer's probe. The other commands ask the daemon, or check a configuration.
#[derive(Debug, Parser)]
#[command(
    name = "pls-router",
    version = crate::VERSION,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        pls-router check                      check the configuration and this machine\n  \
        systemctl start pls-router            start forwarding\n  \
        pls-router status                     show if it forwards, and the reasons if it does not\n  \
        pls-router counters --watch           watch what is forwarded and dropped, by reason\n  \
        pls-router flows --client 10.0.2.70   list the sessions of one client\n\n\
        Exit codes: 0 good; 1 bad (unhealthy, invalid, would fail); 2 usage error."
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
    #[arg(long, global = true, help_heading = "Global options", hide_env_values = true, value_name = "FILE", env = "PLS_ROUTER_CONFIG", default_value = crate::config::defaults::PATH)]
    pub(super) config: PathBuf,
    /// The daemon's socket [default: the configuration's, else /run/pls-router/api.sock]
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
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
        Runs in the foreground, as the service does. When it ends, on SIGTERM or Ctrl-C or by a crash, the programs \
        keep forwarding, and the next start takes them over with all sessions. `pls-router detach` takes them \
        off.\n\n\
        Logs go to standard error, in the journal without times and colours. PLS_ROUTER_LOG sets the level: error, \
        warn, info (the default), debug, or e.g. info,router_user::daemon=debug."
    )]
    Run(RunArguments),
    /// Check the configuration and this machine, or the sessions of a running daemon, without
    /// changing anything
    #[command(after_help = "Examples:\n  \
        pls-router check --config new.toml --config-only   before rolling a file out, on any machine\n  \
        sudo pls-router check                              on the router itself, before a reload\n  \
        sudo pls-router check --live                       look for incomplete sessions and lost SNAT ports")]
    Check(CheckArguments),
    /// Show if this router forwards, and the reasons if it does not
    #[command(after_help = "Exits with 1 if it does not forward: `pls-router status >/dev/null || alarm`.")]
    Status(OutputArguments),
    /// Show counters of forwarded, passed and dropped packets, by reason
    #[command(after_help = "Examples:\n  \
        pls-router counters --watch           totals and rates, every second\n  \
        pls-router counters --watch 10 -o json | jq -c .rules   a line every ten seconds")]
    Counters(CountersArguments),
    /// List sessions
    #[command(after_help = "Examples:\n  \
        pls-router flows --rule https --limit 20\n  \
        pls-router flows --client 10.0.2.70 -o json | jq '.[].target'")]
    Flows(FlowsArguments),
    /// List the rules in force, their resolved targets and their counters
    Rules(OutputArguments),
    /// Put a changed configuration file in force, without losing a session
    #[command(
        long_about = "Put a changed configuration file in force, without losing a session.\n\n\
        The daemon reads its file again, checks all of it and this machine, prints what differs from what is in \
        force, and puts it in force all at once. If anything is wrong, nothing changes. Sessions of rules that \
        are removed or changed go on until they end, unless they are cut. SIGHUP to the daemon does the same.\n\n\
        Another `interfaces.mode`, or an interface that is left out, can end sessions; a warning says so, also with \
        --dry-run.",
        after_help = "Examples:\n  \
        pls-router reload --dry-run     show what would change\n  \
        pls-router reload               change it\n  \
        pls-router reload --cut         and end the sessions that the new rules would not open"
    )]
    Reload(ReloadArguments),
    /// Have the load balancer send no new connections, and forward all the same
    #[command(
        long_about = "Have the load balancer send no new connections: the probe answers 503 from now on.\n\n\
        Everything is forwarded as before, new sessions of who still comes as well. A drain goes on when the daemon \
        is restarted or upgraded. It ends with `pls-router undrain`, or when the machine boots.",
        after_help = "Examples:\n  \
        pls-router drain                begin, and show how many sessions are left\n  \
        pls-router drain --wait 10m     return when all have ended (exit code 0), or after ten minutes (1)\n  \
        pls-router drain --wait 5m && shutdown now"
    )]
    Drain(DrainArguments),
    /// Take `drain` back: the probe answers 200 again, if this router forwards
    Undrain(OutputArguments),
    /// Show what this router can carry, how much of it is in use, and when to add what
    #[command(
        long_about = "Show what this router can carry, how much of it is in use, and when to add a VM, an address or a \
        larger size.\n\n\
        Without a daemon it says what follows from the configuration alone. Rates are measured for a second. Limits of \
        the processor were measured on another machine (docs/performance.md), and limits of Azure are from its \
        documentation; docs/capacity.md has the arithmetic.",
        after_help = "Examples:\n  \
        pls-router capacity                                  what is in use now\n  \
        pls-router capacity --config new.toml --pls-addresses 4   what a configuration is good for\n  \
        pls-router capacity --bandwidth 12500                with the bandwidth of the VM size, in Mbit/s\n\n\
        Exit code 1: something is at 80 % of its limit or above."
    )]
    Capacity(CapacityArguments),
    /// Print a configuration made from another router's rules
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Import(ImportArguments),
    /// Write all that is known of this router and its machine into one file, to ask for help
    #[command(
        long_about = "Write all that is known of this router and its machine into one file (.tar.gz), for somebody who \
        helps from afar.\n\n\
        In it: version, machine, network, configuration, status, counters, rules, findings of `check`, and log lines. \
        Not in it: packets and sessions. What looks like a secret is taken out. It works without a daemon, and says \
        what it could not get; root gets most. Nothing is sent anywhere, and nothing is changed.",
        after_help = "Examples:\n  \
        sudo pls-router support-bundle\n  \
        sudo pls-router support-bundle --no-addresses --file /tmp/bundle.tar.gz"
    )]
    SupportBundle(SupportBundleArguments),
    /// Stop forwarding: detach the programs and forget all sessions
    #[command(
        long_about = "Stop forwarding: detach the programs from all interfaces and remove the pins.\n\n\
        A daemon that has ended, in whatever way, leaves the programs forwarding: this takes them off. All \
        sessions are lost. Removing the package does this as well."
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
    /// The format of the log: text for people, or one JSON object per line
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub(super) log_format: LogFormat,
    /// Take the place of the daemon that is running, which ends once this one forwards. No packet
    /// is lost. (Under systemd, use `systemctl restart pls-router`: that loses none either)
    #[arg(long)]
    pub(super) take_over: bool,
    /// Also log from inside the XDP programs, at this level and above. Slow: for debugging
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
    /// Check only the file, not this machine
    #[arg(long)]
    pub(super) config_only: bool,
    /// Check the session table of the running daemon instead
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
    /// Show reasons without packets, too
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
    /// The most sessions to list; 0 for all
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    pub(super) limit: usize,
    #[command(flatten)]
    pub(super) output: OutputArguments,
}

#[derive(Args, Debug)]
pub(super) struct ReloadArguments {
    /// Only show what would change
    #[arg(long)]
    pub(super) dry_run: bool,
    /// End the sessions of rules that are gone, or that no longer have the session's client, port
    /// or target, also if that was changed earlier. Both ends of a TCP connection get a reset. If a
    /// target is a name now, sessions to other targets are found only if it was changed while this
    /// daemon ran: addresses that the name had earlier are not told from them
    #[arg(long)]
    pub(super) cut: bool,
    #[command(flatten)]
    pub(super) output: OutputArguments,
}

#[derive(Args, Debug)]
pub(super) struct DrainArguments {
    /// Wait until the sessions have ended, for this time at most, such as 90s or 10m. Of UDP and
    /// ICMP, that is when they have been idle for their timeout
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(super) wait: Option<Duration>,
    #[command(flatten)]
    pub(super) output: OutputArguments,
}

#[derive(Args, Debug)]
pub(super) struct CapacityArguments {
    /// The NAT addresses of the Private Link Service: 1 to 8
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=8))]
    pub(super) pls_addresses: u64,
    /// The network bandwidth of the VM size, as Azure lists it, in Mbit/s
    #[arg(long, value_name = "MBITS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(super) bandwidth: Option<u64>,
    /// The cores that forward [default: those of this machine]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(super) cores: Option<u64>,
    #[command(flatten)]
    pub(super) output: OutputArguments,
}

#[derive(Args, Debug)]
pub(super) struct SupportBundleArguments {
    /// The file to write, which must not exist [default: pls-router-support-TIME.tar.gz, here]
    #[arg(long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Put other words in the place of addresses and of names of machines: the same word for the
    /// same address everywhere
    #[arg(long)]
    pub(super) no_addresses: bool,
    #[command(flatten)]
    pub(super) output: OutputArguments,
}

#[derive(Args, Debug)]
pub(super) struct ImportArguments {
    #[command(subcommand)]
    pub(super) from: ImportFrom,
}

#[derive(Debug, Subcommand)]
pub(super) enum ImportFrom {
    /// From the output of `iptables-save`
    #[command(
        long_about = "Print a configuration for the DNAT, SNAT and MASQUERADE rules in the output of \
        `iptables-save`.\n\n\
        The configuration goes to standard output. What it cannot say, and what to look at, goes to standard error \
        and into comments at its end, each with its line. The output passes `pls-router check --config-only`. \
        Nothing is changed, and no daemon is needed.\n\n\
        The output of `ip6tables-save` may be in the file as well: its rules are listed as not translated, because a \
        Private Link Service is IPv4.",
        after_help = "Examples:\n  \
        sudo iptables-save | pls-router import iptables-save > config.toml\n  \
        pls-router import iptables-save rules.v4 --sources 10.0.2.64/26\n\n\
        Exit code 1: a rule could not be translated."
    )]
    IptablesSave(IptablesSaveArguments),
}

#[derive(Args, Debug)]
pub(super) struct IptablesSaveArguments {
    /// The output of iptables-save; without it, or with -, standard input
    #[arg(value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// The interface that faces the Private Link Service [default: the one that most DNAT rules
    /// name, else eth0]
    #[arg(long, value_name = "NAME")]
    pub(super) pls: Option<String>,
    /// The interface that leads to the firewall [default: the one that most MASQUERADE or SNAT
    /// rules name, else that of --pls]
    #[arg(long, value_name = "NAME")]
    pub(super) firewall: Option<String>,
    /// A network that may use rules that name no source; may be given several times [default:
    /// everyone]
    #[arg(long, value_name = "NETWORK")]
    pub(super) sources: Vec<Ipv4Net>,
}

#[derive(Args, Debug)]
pub(super) struct DetachArguments {
    /// Detach even while a daemon is running
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
