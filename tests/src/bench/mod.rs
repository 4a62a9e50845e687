//! The bench: what `cargo xtask bench` runs.
//!
//! Three questions: how many packets a second one core forwards ([`forward`]), what TCP gets through ([`iperf`]), and what the
//! programs cost a packet ([`program`]); each beside what pls-router replaces, in the same run, on the same machine.

mod cpu;
mod ends;
mod forward;
mod iperf;
mod path;
mod program;
mod report;

use std::{fs, io::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use lab::{Router, state::State};

use self::{
    path::{Arm, Offloads, Path, Traffic},
    report::{PacketsRow, ProgramCost, Report, Spread, TcpRow},
};

/// Sent before a timed window begins, once all sessions are open.
const WARM_UP: Duration = Duration::from_millis(300);

/// A run in which something else had this share of one of the two CPUs is done again,
const DISTURBED: f64 = 0.1;
/// this many times at most; the least disturbed one counts.
const REPEATS: usize = 2;

/// Measures pls-router beside what it replaces, on this machine: packets a second of one core and TCP through it, nftables
/// NAT, plain forwarding and an XDP program that only redirects; and what the programs cost a packet. In network
/// namespaces, which are gone afterwards.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "cargo xtask bench",
    bin_name = "cargo xtask bench",
    after_help = "Examples:\n  \
        cargo xtask bench                         everything, in about three minutes\n  \
        cargo xtask bench --quick                 a first impression, in less than one\n  \
        cargo xtask bench --only packets --flows 1,1000,60000 --json bench.json\n\n\
        Compare the arms of one run, not one run with another: a virtual machine is not equally fast at all times. Nothing else \
        should run meanwhile; the table says if something did.\n\n\
        Exit codes: 0 it was measured; 1 it could not be; 2 wrong usage."
)]
pub(crate) struct Arguments {
    /// Shorter windows, fewer rounds.
    #[arg(long)]
    quick: bool,
    /// Write the results to a file, too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds of packets; each has every arm once. 9, or 3 with --quick.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// How long each round's timed window is for each arm. 1, or 0.5 with --quick.
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// How many flows the packets belong to.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 40_000, 1_000_000],
          value_parser = clap::value_parser!(u32).range(1..=i64::from(ends::MAX_SESSIONS)))]
    flows: Vec<u32>,
    /// Measure only some of it.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    only: Vec<Part>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.1 to 60".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Part {
    /// Packets a second of one core.
    Packets,
    /// TCP by iperf3.
    Tcp,
    /// Nanoseconds a packet of the programs.
    Programs,
}

impl Part {
    const ALL: [Self; 3] = [Self::Packets, Self::Tcp, Self::Programs];
}

/// Measures, and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run this as root or with sudo");
    ensure!(cpu::count()? >= 2, "one CPU is measured, another one makes the packets: two are needed");
    let Router::PlsRouter(binary) = Router::find()? else { bail!("there is no pls-router") };
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
    let bench = Bench { arguments, binary, state };
    let mut report = Report::begin()?;
    print!("{}", report.head());
    if arguments.only.contains(&Part::Programs) {
        report.programs = Some(bench.programs()?);
        print!("{}", report.programs_table());
    }
    if arguments.only.contains(&Part::Packets) {
        report.packets = bench.packets()?;
        print!("{}", report.packets_table(arguments.rounds(), arguments.window()));
    }
    if arguments.only.contains(&Part::Tcp) {
        report.tcp = bench.tcp()?;
        print!("{}", report.tcp_table(bench.tcp_rounds(), bench.tcp_seconds()));
    }
    report.end()?;
    println!("\nload when it began and ended: {}; {}", report.load[0], report.load[1]);
    if let Some((path, file)) = &mut json {
        let text = serde_json::to_string_pretty(&report)?;
        writeln!(file, "{text}").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

impl Arguments {
    fn rounds(&self) -> u16 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 9 })
    }

    fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.unwrap_or(if self.quick { 0.5 } else { 1.0 }))
    }
}

struct Bench<'a> {
    arguments: &'a Arguments,
    binary: PathBuf,
    state: State,
}

impl Bench<'_> {
    fn packets(&self) -> Result<Vec<PacketsRow>> {
        // What is started from here on, the daemon with it, keeps off the router's CPU, too.
        cpu::stay_on(cpu::GENERATOR)?;
        let flows = &self.arguments.flows;
        let mut benches = Vec::new();
        for arm in Arm::ALL {
            progress(&format!("setting up: {arm}"));
            let path = Path::up(&self.state, arm, Traffic::Packets, &self.binary)?;
            benches.push(forward::Bench::new(path, flows)?);
        }
        let mut rows = Vec::new();
        for flows in flows {
            let mut measured = Vec::new();
            for bench in &benches {
                if bench.takes(*flows)? {
                    measured.push((bench, Vec::new()));
                } else {
                    println!(
                        "{} has no room for {flows} flows (nf_conntrack_max): not measured",
                        bench.arm()
                    );
                }
            }
            for round in 1..=self.arguments.rounds() {
                for (bench, runs) in &mut measured {
                    progress(&format!("{flows} flows, round {round}: {}", bench.arm()));
                    runs.push(self.least_disturbed(bench, *flows).with_context(|| bench.arm().to_string())?);
                }
            }
            for (bench, runs) in measured {
                rows.push(PacketsRow::of(bench.arm(), *flows, runs)?);
            }
        }
        progress("");
        Ok(rows)
    }

    fn least_disturbed(&self, bench: &forward::Bench, flows: u32) -> Result<forward::Run> {
        let run = || bench.run(flows, WARM_UP, self.arguments.window());
        let mut best = run()?;
        for _ in 0..REPEATS {
            if best.disturbed <= DISTURBED {
                break;
            }
            let other = run()?;
            if other.disturbed < best.disturbed {
                best = other;
            }
        }
        Ok(best)
    }

    fn tcp_rounds(&self) -> u16 {
        if self.arguments.quick { 1 } else { 5 }
    }

    fn tcp_seconds(&self) -> u16 {
        if self.arguments.quick { 1 } else { 2 }
    }

    fn tcp(&self) -> Result<Vec<TcpRow>> {
        cpu::run_anywhere()?;
        let arms = [
            (Arm::Redirect, Offloads::Off),
            (Arm::PlsRouter, Offloads::Off),
            (Arm::Nftables, Offloads::Off),
            (Arm::Nftables, Offloads::Default),
        ];
        let mut benches = Vec::new();
        for (arm, offloads) in arms {
            progress(&format!("setting up: {arm} for TCP"));
            let path = Path::up(&self.state, arm, Traffic::Tcp(offloads), &self.binary)?;
            benches.push((arm, offloads, iperf::Bench::new(&self.state, path)?, Vec::new()));
        }
        for round in 1..=self.tcp_rounds() {
            for (arm, _, bench, rates) in &mut benches {
                progress(&format!("TCP, round {round}: {arm}"));
                rates.push(bench.run(self.tcp_seconds()).with_context(|| arm.to_string())?);
            }
        }
        progress("");
        let rows = benches.into_iter().map(|(arm, offloads, _, rates)| {
            Ok(TcpRow { arm, offloads, bits_per_second: Spread::of(&rates)? })
        });
        rows.collect()
    }

    fn programs(&self) -> Result<ProgramCost> {
        progress("programs");
        let samples = program::measure(&self.state, if self.arguments.quick { 11 } else { 51 })?;
        progress("");
        Ok(ProgramCost {
            root_and_forward: Spread::of(&samples.root)?,
            forward: Spread::of(&samples.forward)?,
            root: Spread::of(&samples.difference)?,
        })
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
