//! Packets a second of one core: what is run, and its table. How one window is measured is [`forward`]'s.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    Setup, cpu, forward,
    forward::Run,
    path::{Arm, Path, Traffic},
    progress,
    report::{Spread, line, ratio},
};

/// Sent before a timed window begins, once all sessions are open.
const WARM_UP: std::time::Duration = std::time::Duration::from_millis(300);

/// A run in which something else had this share of one of the two CPUs is done again,
const DISTURBED: f64 = 0.1;
/// this many times at most; the least disturbed one counts.
const REPEATS: usize = 2;

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Packets {
    rounds: u16,
    window_seconds: f64,
    rows: Vec<Row>,
}

/// One arm with one number of flows.
#[derive(Debug, Serialize)]
struct Row {
    arm: Arm,
    flows: u32,
    packets_per_second: Spread,
    /// To the other arms, of the same rounds.
    ratio_to: BTreeMap<Arm, Spread>,
    offered_per_second: Spread,
    idle: Spread,
    disturbed: Spread,
    given: u64,
    lost: u64,
    runs: Vec<Run>,
}

impl Row {
    fn of(arm: Arm, flows: u32, runs: Vec<Run>) -> Result<Self> {
        let spread = |pick: fn(&Run) -> f64| Spread::of(&runs.iter().map(pick).collect::<Vec<_>>());
        Ok(Self {
            arm,
            flows,
            packets_per_second: spread(|run| run.packets_per_second)?,
            ratio_to: BTreeMap::new(),
            offered_per_second: spread(|run| run.offered_per_second)?,
            idle: spread(|run| run.idle)?,
            disturbed: spread(|run| run.disturbed)?,
            given: runs.iter().map(|run| run.books.given).sum(),
            lost: runs.iter().map(|run| run.books.lost()).sum(),
            runs,
        })
    }

    fn rates(&self) -> Vec<f64> {
        self.runs.iter().map(|run| run.packets_per_second).collect()
    }

    fn lost(&self) -> String {
        if self.lost == 0 {
            return "0".to_owned();
        }
        format!("{} of {:.1} M", self.lost, self.given as f64 / 1e6)
    }
}

/// Compares arms that took turns with each other.
fn compare(rows: &mut [Row]) -> Result<()> {
    let rates: Vec<_> = rows.iter().map(|row| (row.arm, row.rates())).collect();
    for row in rows {
        let own = row.rates();
        for (arm, rates) in rates.iter().filter(|(arm, _)| *arm != row.arm) {
            row.ratio_to.insert(*arm, Spread::of_ratios(&own, rates)?);
        }
    }
    Ok(())
}

/// Measures.
pub(crate) fn measure(setup: &Setup) -> Result<Packets> {
    // What is started from here on, the daemon with it, keeps off the router's CPU, too.
    cpu::stay_on(cpu::GENERATOR)?;
    let flows = &setup.arguments.flows;
    let mut benches = Vec::new();
    for arm in Arm::ALL {
        if arm == Arm::Beside && setup.beside.is_none() {
            continue;
        }
        progress(&format!("setting up: {arm}"));
        let path = Path::up(setup, arm, Traffic::Packets)?;
        benches.push(forward::Bench::new(path, flows)?);
    }
    let mut all = Vec::new();
    for flows in flows {
        let mut measured = Vec::new();
        for bench in &benches {
            if bench.takes(*flows)? {
                measured.push((bench, Vec::new()));
            } else {
                let what = format!("packets, {flows} flows, {}", bench.arm());
                setup.cannot(what, "no room for them: nf_conntrack_max is lower".to_owned());
            }
        }
        for round in 1..=setup.rounds() {
            // There and back again, so that nobody is always the first one.
            let backwards = round % 2 == 0;
            for at in 0..measured.len() {
                let at = if backwards { measured.len() - 1 - at } else { at };
                let (bench, runs) = &mut measured[at];
                progress(&format!("{flows} flows, round {round}: {}", bench.arm()));
                runs.push(least_disturbed(setup, bench, *flows).with_context(|| bench.arm().to_string())?);
            }
        }
        let rows = measured.into_iter().map(|(bench, runs)| Row::of(bench.arm(), *flows, runs));
        let mut rows = rows.collect::<Result<Vec<_>>>()?;
        compare(&mut rows)?;
        all.append(&mut rows);
    }
    progress("");
    Ok(Packets { rounds: setup.rounds(), window_seconds: setup.window().as_secs_f64(), rows: all })
}

fn least_disturbed(setup: &Setup, bench: &forward::Bench, flows: u32) -> Result<Run> {
    let run = || bench.run(flows, WARM_UP, setup.window());
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

impl Packets {
    pub(crate) fn table(&self) -> String {
        let beside = self.rows.iter().any(|row| row.arm == Arm::Beside);
        let mut text = format!(
            "\n\
             Packets a second of one core: 64-byte UDP (60 bytes and the frame check sequence), two veth NICs, native XDP,\n\
             tx checksum, TSO and GSO off everywhere, GRO off but for the kernel's receiving NIC, which polls only with it.\n\
             CPU 1 is the router (a NAPI thread) and the sink behind it (the softirq of that thread); CPU 0 makes the packets,\n\
             more than the router takes. The daemon runs, on CPU 0. Counted is what the sink received; medians of {}\n\
             interleaved rounds of {} s after warm-up, and (min - max). A ratio is the median of the rounds' ratios.\n\n\
             \x20 {:>7}  {:<15} {:<20} {:<20} {:<20}{} {:>7} {:>5} {:>9}  {}\n",
            self.rounds,
            self.window_seconds,
            "flows",
            "router",
            "Mpps",
            "/ no-op",
            "/ nftables",
            if beside { format!(" {:<20}", "/ pls-router") } else { String::new() },
            "offered",
            "idle",
            "disturbed",
            "lost"
        );
        for row in &self.rows {
            let of = |arm| ratio(row.ratio_to.get(&arm));
            let beside = if beside { format!(" {:<20}", of(Arm::PlsRouter)) } else { String::new() };
            line(
                &mut text,
                format_args!(
                    "  {:>7}  {:<15} {:<20} {:<20} {:<20}{beside} {:7.2} {:4.0}% {:8.0}%  {}",
                    row.flows,
                    row.arm,
                    row.packets_per_second.times(1e-6).show(0, 2),
                    of(Arm::Redirect),
                    of(Arm::Nftables),
                    row.offered_per_second.median / 1e6,
                    row.idle.median * 100.0,
                    row.disturbed.median * 100.0,
                    row.lost()
                ),
            );
        }
        text.push_str(
            "\n  offered: what was made; what does not fit into the router's full receive ring is not sent, and not lost.\n\
             \x20 idle: the router's CPU. disturbed: what programs of others, or the hypervisor, took of either CPU.\n",
        );
        for row in &self.rows {
            for run in &row.runs {
                if let Some(problem) = run.books.problem() {
                    line(&mut text, format_args!("  {} flows, {}: {problem}", row.flows, row.arm));
                }
            }
        }
        text
    }
}
