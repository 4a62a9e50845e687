//! TCP through a router: iperf3, one connection.
//!
//! Client, router and server share the machine's CPUs, placed by the kernel: what is compared is
//! what the whole costs.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::{
    Namespace, Process,
    client::{self, Direction},
    state::State,
};
use serde::Serialize;

use super::{
    addresses::IPERF_PORT,
    arms::{Arm, Offloads, Traffic},
    cpu,
    path::Path,
    rows::take_turns,
    setup::{Setup, progress},
    spread::{Spread, line, ratio},
};

/// The limit for the server to listen.
const START_LIMIT: Duration = Duration::from_secs(5);

/// The arms, in the order of the table.
const ARMS: [Arm; 4] = [Arm::Redirect, Arm::PlsRouter, Arm::Nftables, Arm::Kernel];

/// The results.
#[derive(Debug, Serialize)]
pub(crate) struct Tcp {
    rounds: u16,
    seconds: u16,
    rows: Vec<Row>,
}

/// One arm.
#[derive(Debug, Serialize)]
struct Row {
    arm: Arm,
    offloads: Offloads,
    bits_per_second: Spread,
    /// Ratios to nftables with the same offloads, in the same rounds.
    ratio_to_nftables: Spread,
}

/// Measures.
pub(crate) fn measure(setup: &Setup) -> Result<Tcp> {
    let (rounds, seconds) = if setup.quick() { (1, 1) } else { (5, 2) };
    cpu::run_anywhere()?;
    let mut benches = Vec::new();
    for offloads in [Offloads::Off, Offloads::Default] {
        for arm in ARMS {
            progress(&format!("setting up: {arm} for TCP"));
            let path = Path::up(setup, arm, Traffic::Tcp(offloads))?;
            let bench = Bench::new(&setup.state, path, offloads)?;
            match (offloads, arm.is_xdp()) {
                (Offloads::Default, true) => try_out(setup, &bench)?,
                _ => benches.push((bench, Vec::new())),
            }
        }
    }
    take_turns(rounds, &mut benches, |round, (bench, rates)| {
        let arm = bench.path.arm;
        progress(&format!("TCP, round {round}: {arm}"));
        rates.push(bench.run(seconds).with_context(|| arm.to_string())?);
        Ok(())
    })?;
    progress("");
    let reference = |offloads| {
        let of = |bench: &Bench| bench.path.arm == Arm::Nftables && bench.offloads == offloads;
        benches.iter().find(|(bench, _)| of(bench)).map(|(_, rates)| rates.as_slice())
    };
    let rows = benches.iter().map(|(bench, rates)| {
        let nftables = reference(bench.offloads).context("nftables was not measured")?;
        Ok(Row {
            arm: bench.path.arm,
            offloads: bench.offloads,
            bits_per_second: Spread::of(rates)?,
            ratio_to_nftables: Spread::of_ratios(rates, nftables)?,
        })
    });
    Ok(Tcp { rounds, seconds, rows: rows.collect::<Result<_>>()? })
}

/// Sees whether TCP gets through an XDP program where the ends leave checksums to a NIC that there
/// is none of.
fn try_out(setup: &Setup, bench: &Bench) -> Result<()> {
    let arm = bench.path.arm;
    let what = format!("TCP, veth's default offloads, {arm}");
    let why = match bench.run(1) {
        Ok(rate) => format!("not in the table, but it works: {:.2} Gbit/s", rate / 1e9),
        Err(error) => {
            let error = format!("{error:#}");
            let last = error.lines().last().unwrap_or_default();
            format!("{last}. {}", bench.evidence()?)
        }
    };
    setup.cannot(what, why);
    Ok(())
}

impl Tcp {
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "\n\
             TCP, one connection (iperf3), MTU 1500; client, router and server share all CPUs. Medians of {} interleaved\n\
             rounds of {} s. With offloads off, packets are as on a wire. With veth's defaults, super-frames of up to 64 KiB\n\
             without checksums pass, which no wire carries.\n\n\
             \x20 {:<15} {:<16} {:<22} {}\n",
            self.rounds, self.seconds, "router", "offloads", "Gbit/s", "/ nftables"
        );
        for row in &self.rows {
            let offloads = match row.offloads {
                Offloads::Off => "off",
                Offloads::Default => "veth's defaults",
            };
            let rate = row.bits_per_second.times(1e-9).show(0, 2);
            let ratio = ratio(Some(&row.ratio_to_nftables));
            line(&mut text, format_args!("  {:<15} {offloads:<16} {rate:<22} {ratio}", row.arm));
        }
        text
    }
}

/// A path with a server at its end.
struct Bench {
    path: Path,
    offloads: Offloads,
    _server: Process,
}

impl Bench {
    /// Starts the server.
    fn new(state: &State, path: Path, offloads: Offloads) -> Result<Self> {
        let mut command = path.sink.command("iperf3")?;
        command.args(["--server", "--version4", "--port", &IPERF_PORT.to_string()]);
        let mut server = Process::spawn(state, &format!("iperf3-{}", path.devices[3]), command)?;
        server.wait_until(START_LIMIT, || path.sink.listens_tcp(IPERF_PORT))?;
        Ok(Self { path, offloads, _server: server })
    }

    /// Bits a second that arrived.
    fn run(&self, seconds: u16) -> Result<f64> {
        let seconds = seconds.to_string();
        // The time until the connection is at full speed is not counted, if the run is long enough.
        let options = ["--time", &seconds, "--omit", if seconds == "1" { "0" } else { "1" }];
        client::iperf3(
            &self.path.generator,
            (self.path.destination(), IPERF_PORT).into(),
            Direction::Up,
            &options,
        )
    }

    /// Returns the counters of the two ends and of the router, for a path that does not work.
    fn evidence(&self) -> Result<String> {
        let bad = |namespace: &Namespace| -> Result<u64> {
            let text = namespace.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
            let text = text.context("cannot read /proc/thread-self/net/snmp")?;
            checksum_errors(&text).context("the kernel does not count TCP's checksum errors")
        };
        let mut text = format!(
            "The segments have unfinished checksums, which an XDP program can neither recognise nor finish. Wrong checksums \
             counted by the client: {}, by the server: {}",
            bad(&self.path.generator)?,
            bad(&self.path.sink)?
        );
        if let Some(counters) = self.path.counters()? {
            let dropped = counters.reasons.iter().find(|reason| reason.reason == "bad_checksum");
            text += &format!(", by pls-router: {}", dropped.map_or(0, |reason| reason.packets));
        }
        Ok(text)
    }
}

/// `InCsumErrors` of TCP in /proc/net/snmp: a line with names, and a line with numbers.
fn checksum_errors(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|name| name == "InCsumErrors")?;
    numbers.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_errors_are_in_the_column_of_their_name() {
        let text = "Ip: Forwarding InCsumErrors\nIp: 1 2\nTcp: InSegs InCsumErrors OutSegs\nTcp: 10 7 12\n";
        assert_eq!(checksum_errors(text), Some(7));
        assert_eq!(checksum_errors("Udp: InCsumErrors\nUdp: 1\n"), None);
    }
}
