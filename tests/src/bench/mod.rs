//! The bench: what `cargo xtask bench` runs.
//!
//! Each part is a function with what it measures: [`programs`], [`packets`], [`sessions`],
//! [`latency`], [`tcp`], [`resources`]. What they share is the way that packets take ([`path`]),
//! its ends ([`ends`], [`frames`], [`traffic`]), one measurement along it ([`forward`]), rounds of
//! them ([`rows`]), the CPUs ([`cpu`]), and what tables are made of ([`report`]).

mod conntrack;
mod cpu;
mod ends;
mod forward;
mod frames;
mod histogram;
mod latency;
mod packets;
mod path;
mod probe;
mod programs;
mod report;
mod resources;
mod rows;
mod sessions;
mod tcp;
#[path = "../../../router-ebpf/src/bin/labtools/traffic.rs"]
mod traffic;

use std::{cell::RefCell, fs, io::Write as _, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use lab::{Router, state::State};

use self::{
    path::Arm,
    report::{NotMeasured, Report},
};

/// Measures pls-router beside what it replaces, on this machine: packets a second of one core by
/// sessions, NICs, lengths, protocols and directions, new sessions a second, two cores beside one,
/// and TCP; nftables and iptables NAT, plain forwarding, and XDP programs that only forward; and
/// what the programs cost a packet. In network namespaces, which are gone afterwards.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "cargo xtask bench",
    bin_name = "cargo xtask bench",
    after_help = "Examples:\n  \
        cargo xtask bench                         everything, in about ten minutes\n  \
        cargo xtask bench --quick                 a first impression, in less than two\n  \
        cargo xtask bench --only packets --flows 1,1000,60000 --json bench.json\n  \
        cargo xtask bench --only packets --beside ./pls-router-before\n\n\
        Compare the arms of one run, not one run with another: a virtual machine is not equally fast at all times. Nothing else \
        should run meanwhile; the table says if something did.\n\n\
        Exit codes: 0 it was measured; 1 it could not be; 2 wrong usage."
)]
pub(crate) struct Arguments {
    /// Shorter windows, fewer rounds, and not every combination.
    #[arg(long)]
    quick: bool,
    /// Write the results to a file, too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Another pls-router program, measured beside the first: what a change has brought.
    #[arg(long, value_name = "FILE")]
    beside: Option<PathBuf>,
    /// Rounds of packets; each has every arm once. 5, or 2 with --quick.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// How long each round's timed window is for each arm. 0.5, or 0.25 with --quick.
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// How many sessions the packets of the first table belong to. 1, 64, 1000, 40000 and 1000000,
    /// or 64 and 40000 with --quick.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=i64::from(ends::MAX_SESSIONS)))]
    flows: Option<Vec<u32>>,
    /// Measure only some of it.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Option<Vec<Part>>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.1 to 60".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Part {
    /// Nanoseconds a packet of the programs.
    Programs,
    /// Packets a second of one core, by numbers of sessions.
    Packets,
    /// The same with one NIC.
    OneNic,
    /// The same by length, protocol and direction.
    Shapes,
    /// New sessions a second, also where most SNAT ports are taken.
    Sessions,
    /// Packets a second where some open sessions.
    Mixed,
    /// Two cores beside one.
    Cores,
    /// What the generator's pacing changes. Only if asked for.
    Pacing,
    /// How long a packet takes there and back.
    Latency,
    /// Memory, starts, and what the daemon does with a million sessions.
    Resources,
    /// TCP by iperf3.
    Tcp,
}

impl Part {
    const ALL: [Self; 11] = [
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

    fn is_default(self) -> bool {
        self != Self::Pacing
    }
}

/// Measures, and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run this as root or with sudo");
    ensure!(cpu::count()? >= 2, "one CPU is measured, another one makes the packets: two are needed");
    let Router::PlsRouter(binary) = Router::find()? else { bail!("there is no pls-router") };
    // A path without a directory would be looked for in $PATH, or in another directory.
    let absolute = |path: &PathBuf| {
        path.canonicalize().with_context(|| format!("there is no pls-router at {}", path.display()))
    };
    let beside = arguments.beside.as_ref().map(absolute).transpose()?;
    // A file that cannot be written is better known before than after.
    let mut json = match &arguments.json {
        Some(path) => {
            let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Some((path, file))
        }
        None => None,
    };
    cpu::allow_interrupts()?;
    let state = State::create("bench")?;
    let iptables = lab::command::run(Command::new("iptables").arg("--version")).ok();
    let iptables = iptables.map(|version| version.trim().to_owned());
    let setup = Setup { arguments, binary, beside, iptables, state, not_measured: RefCell::default() };
    let mut report = Report::begin(&setup)?;
    print!("{}", report.head());
    for part in Part::ALL {
        if !arguments.only.as_ref().map_or_else(|| part.is_default(), |only| only.contains(&part)) {
            continue;
        }
        let table = match part {
            Part::Programs => report.programs.insert(programs::measure(&setup)?).table(),
            Part::Packets => report.section("packets", packets::by_sessions(&setup)?).table(),
            Part::OneNic => report.section("one_nic", packets::one_nic(&setup)?).table(),
            Part::Shapes => report.section("shapes", packets::by_shape(&setup)?).table(),
            Part::Sessions => report.sessions.insert(sessions::measure(&setup)?).table(),
            Part::Mixed => report.section("mixed", packets::mixed(&setup)?).table(),
            Part::Cores => report.section("cores", packets::by_cores(&setup)?).table(),
            Part::Pacing => report.section("pacing", packets::by_pacing(&setup)?).table(),
            Part::Latency => report.latency.insert(latency::measure(&setup)?).table(),
            Part::Resources => report.resources.insert(resources::measure(&setup)?).table(),
            Part::Tcp => report.tcp.insert(tcp::measure(&setup)?).table(),
        };
        print!("{table}");
    }
    report.end(setup.not_measured.take())?;
    print!("{}", report.tail());
    if let Some((path, file)) = &mut json {
        let text = serde_json::to_string_pretty(&report)?;
        writeln!(file, "{text}").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What every part needs.
struct Setup<'a> {
    arguments: &'a Arguments,
    /// The pls-router that is measured,
    binary: PathBuf,
    /// and the one beside it.
    beside: Option<PathBuf>,
    /// What iptables says that it is, if there is one.
    iptables: Option<String>,
    state: State,
    not_measured: RefCell<Vec<NotMeasured>>,
}

impl Setup<'_> {
    /// Notes that something cannot be measured here; the report says so.
    fn cannot(&self, what: String, why: String) {
        self.not_measured.borrow_mut().push(NotMeasured { what, why });
    }

    /// Whether an arm can be measured here. Notes it if not.
    fn has(&self, arm: Arm) -> bool {
        if arm == Arm::Iptables && self.iptables.is_none() {
            self.cannot(arm.to_string(), "there is no iptables".to_owned());
            return false;
        }
        arm != Arm::Beside || self.beside.is_some()
    }

    fn flows(&self) -> Vec<u32> {
        let default: &[u32] = if self.quick() { &[64, 40_000] } else { &[1, 64, 1000, 40_000, 1_000_000] };
        self.arguments.flows.clone().unwrap_or_else(|| default.to_vec())
    }

    const fn quick(&self) -> bool {
        self.arguments.quick
    }

    fn rounds(&self) -> u16 {
        self.arguments.rounds.unwrap_or(if self.quick() { 2 } else { 5 })
    }

    fn window(&self) -> Duration {
        Duration::from_secs_f64(self.arguments.seconds.unwrap_or(if self.quick() { 0.25 } else { 0.5 }))
    }
}

/// Shows on a terminal what is going on, in one line that the next one replaces.
fn progress(what: &str) {
    use std::io::IsTerminal as _;
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        // Nobody there to see it is no reason to stop.
        let _gone = write!(terminal, "\r\x1b[K{what}");
    }
}
