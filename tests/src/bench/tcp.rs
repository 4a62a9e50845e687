//! TCP through a router: iperf3, one connection.
//!
//! Client, router and server share the machine's CPUs, placed by the kernel: what is compared is what the whole costs.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::{
    Process,
    client::{self, Direction},
    state::State,
};
use serde::Serialize;

use super::{
    Setup, cpu,
    path::{Arm, IPERF_PORT, Offloads, Path, Traffic},
    progress,
    report::{Spread, line, ratio},
};

/// How long the server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(5);

/// What was measured.
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
    /// To nftables without offloads, of the same rounds.
    ratio_to_nftables: Spread,
}

/// Measures.
pub(crate) fn measure(setup: &Setup) -> Result<Tcp> {
    let (rounds, seconds) = if setup.quick() { (1, 1) } else { (5, 2) };
    cpu::run_anywhere()?;
    let nftables = (Arm::Nftables, Offloads::Off);
    let arms = [
        (Arm::Redirect, Offloads::Off),
        (Arm::PlsRouter, Offloads::Off),
        nftables,
        (Arm::Nftables, Offloads::Default),
    ];
    let mut benches = Vec::new();
    for (arm, offloads) in arms {
        progress(&format!("setting up: {arm} for TCP"));
        let path = Path::up(setup, arm, Traffic::Tcp(offloads))?;
        benches.push(((arm, offloads), Bench::new(&setup.state, path)?, Vec::new()));
    }
    for round in 1..=rounds {
        for ((arm, _), bench, rates) in &mut benches {
            progress(&format!("TCP, round {round}: {arm}"));
            rates.push(bench.run(seconds).with_context(|| arm.to_string())?);
        }
    }
    progress("");
    let reference = benches.iter().find(|(what, ..)| *what == nftables);
    let reference = reference.map(|(.., rates)| rates.clone()).unwrap_or_default();
    let rows = benches.into_iter().map(|((arm, offloads), _, rates)| {
        Ok(Row {
            arm,
            offloads,
            bits_per_second: Spread::of(&rates)?,
            ratio_to_nftables: Spread::of_ratios(&rates, &reference)?,
        })
    });
    Ok(Tcp { rounds, seconds, rows: rows.collect::<Result<_>>()? })
}

impl Tcp {
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "\n\
             TCP, one connection (iperf3), MTU 1500; client, router and server share all CPUs. Medians of {} interleaved\n\
             rounds of {} s. With offloads off every packet is one of the wire's, which is how a router sees them. The last line\n\
             is another network: super-frames of up to 64 KiB without checksums, which veth passes on but no wire does.\n\n\
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
    _server: Process,
}

impl Bench {
    /// Starts the server.
    fn new(state: &State, path: Path) -> Result<Self> {
        let mut command = path.sink.command("iperf3")?;
        command.args(["--server", "--version4", "--port", &IPERF_PORT.to_string()]);
        let mut server = Process::spawn(state, &format!("iperf3-{}", path.devices[3]), command)?;
        server.wait_until(START_LIMIT, || path.sink.listens_tcp(IPERF_PORT))?;
        Ok(Self { path, _server: server })
    }

    /// Bits a second that arrived.
    fn run(&self, seconds: u16) -> Result<f64> {
        let seconds = seconds.to_string();
        // What happens before the connection is at full speed is not counted.
        let options = ["--time", &seconds, "--omit", "1"];
        client::iperf3(
            &self.path.generator,
            (self.path.destination(), IPERF_PORT).into(),
            Direction::Up,
            &options,
        )
    }
}
