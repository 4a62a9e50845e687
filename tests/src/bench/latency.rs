//! How long a packet takes through the router and back.
//!
//! One probe at a time goes from the generator's end through the router to the sink's end, is turned round there, comes back
//! through the router, and is sent again: see [`probe`](super::probe). The programs at the ends run in softirqs on the
//! router's CPU, like the router itself (a NAPI thread for each of its two devices), so that no wake-up of another CPU is in
//! the time; it is the same in every arm.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    Setup, cpu,
    ends::Sink,
    histogram::{Histogram, Quantiles},
    path::{Arm, Path, Traffic},
    probe::{self, Probed, Prober},
    progress,
    report::{Spread, line, ratio},
};

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    rounds: u16,
    rows: Vec<Row>,
}

/// One arm under one load.
#[derive(Debug, Serialize)]
struct Row {
    arm: Arm,
    load: Load,
    samples: u64,
    lost: u64,
    /// Of all rounds together, in microseconds there and back.
    all: Quantiles,
    /// Of each round.
    rounds: Vec<Quantiles>,
    /// To nftables, of the same rounds.
    ratio_to_nftables: Option<Ratios>,
}

/// Ratios of quantiles, round by round.
#[derive(Debug, Serialize)]
struct Ratios {
    p50: Spread,
    p99: Spread,
    p999: Spread,
}

/// What else is on the wires.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Load {
    /// Nothing.
    Idle,
    /// Nothing, and sockets at the ends.
    IdleSockets,
}

impl Load {
    const fn describe(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::IdleSockets => "idle, UDP sockets",
        }
    }
}

/// The arms, in the order of the table.
const ARMS: [Arm; 5] = [Arm::Redirect, Arm::PlsRouter, Arm::Beside, Arm::Nftables, Arm::Kernel];

/// A path with the ends of probes in place.
struct Bench {
    path: Path,
    prober: Prober,
    _sink: Sink,
}

impl Bench {
    fn new(path: Path) -> Result<Self> {
        let headers = path.headers();
        let sink = path.bouncing_sink()?;
        let prober = Prober::attach(&path.generator, &path.devices[0], &headers)?;
        for device in &path.devices[1..3] {
            cpu::poll_by_thread(&path.router, device, cpu::ROUTER)?;
        }
        Ok(Self { path, prober, _sink: sink })
    }

    fn run(&mut self, enough: u64, limit: Duration) -> Result<Probed> {
        let Self { path, prober, .. } = self;
        path.generator.inside(|| prober.probe(enough, limit))?
    }
}

/// What one arm has shown so far.
#[derive(Default)]
struct Rounds {
    times: Vec<Histogram>,
    lost: u64,
}

impl Rounds {
    fn row(&self, arm: Arm, load: Load, nftables: Option<&Self>) -> Result<Row> {
        let mut all = Histogram::new();
        for times in &self.times {
            all.add(times);
        }
        let rounds = self.quantiles()?;
        let ratio_to_nftables = match nftables {
            Some(nftables) => {
                let to = nftables.quantiles()?;
                let of = |pick: fn(&Quantiles) -> f64| {
                    let values = [&rounds, &to].map(|rounds| rounds.iter().map(pick).collect::<Vec<_>>());
                    Spread::of_ratios(&values[0], &values[1])
                };
                Some(Ratios { p50: of(|q| q.p50)?, p99: of(|q| q.p99)?, p999: of(|q| q.p999)? })
            }
            None => None,
        };
        Ok(Row {
            arm,
            load,
            samples: all.samples(),
            lost: self.lost,
            all: all.quantiles()?,
            rounds,
            ratio_to_nftables,
        })
    }

    fn quantiles(&self) -> Result<Vec<Quantiles>> {
        self.times.iter().map(Histogram::quantiles).collect()
    }
}

/// How long and how often is measured.
struct Plan {
    rounds: u16,
    /// Probes a round.
    probes: u64,
    /// How long a round takes at most for each arm.
    limit: Duration,
}

impl Plan {
    const fn of(quick: bool) -> Self {
        if quick {
            Self { rounds: 3, probes: 50_000, limit: Duration::from_millis(500) }
        } else {
            Self { rounds: 7, probes: 200_000, limit: Duration::from_secs(2) }
        }
    }
}

/// Measures.
pub(crate) fn measure(setup: &Setup) -> Result<Latency> {
    let plan = Plan::of(setup.quick());
    // As for packets: what is started from here on keeps off the router's CPU.
    cpu::stay_on(cpu::GENERATOR)?;
    let mut benches = Vec::new();
    for arm in ARMS {
        if arm == Arm::Beside && setup.beside.is_none() {
            continue;
        }
        progress(&format!("setting up: {arm} for probes"));
        benches.push(Bench::new(Path::up(setup, arm, Traffic::Probes)?)?);
    }
    let mut rows = idle(&plan, &mut benches)?;
    drop(benches);
    rows.append(&mut sockets(setup, &plan)?);
    progress("");
    Ok(Latency { rounds: plan.rounds, rows })
}

/// Probes with nothing else on the wires.
fn idle(plan: &Plan, benches: &mut [Bench]) -> Result<Vec<Row>> {
    interleave(
        plan.rounds,
        benches,
        Load::Idle,
        |bench| bench.path.arm,
        |bench| bench.run(plan.probes, plan.limit),
    )
}

/// Has every arm measured once a round, there and back again, so that nobody is always the first one.
fn interleave<B>(
    rounds: u16,
    benches: &mut [B],
    load: Load,
    arm: impl Fn(&B) -> Arm,
    mut run: impl FnMut(&mut B) -> Result<Probed>,
) -> Result<Vec<Row>> {
    let mut measured: BTreeMap<Arm, Rounds> = BTreeMap::new();
    for round in 1..=rounds {
        let backwards = round % 2 == 0;
        let count = benches.len();
        for at in 0..count {
            let bench = &mut benches[if backwards { count - 1 - at } else { at }];
            let arm = arm(bench);
            progress(&format!("latency, {}, round {round}: {arm}", load.describe()));
            let Probed { times, lost } = run(bench).with_context(|| arm.to_string())?;
            let rounds = measured.entry(arm).or_default();
            rounds.times.push(times);
            rounds.lost += lost;
        }
    }
    let nftables = measured.get(&Arm::Nftables);
    ARMS.iter()
        .filter_map(|arm| measured.get(arm).map(|rounds| (*arm, rounds)))
        .map(|(arm, rounds)| {
            rounds.row(arm, load, nftables).with_context(|| format!("{arm}, {}", load.describe()))
        })
        .collect()
}

/// Two sockets, as a check of the probes by something else: both processes and the router on one CPU, in turn.
fn sockets(setup: &Setup, plan: &Plan) -> Result<Vec<Row>> {
    let mut paths = Vec::new();
    for arm in ARMS {
        if arm == Arm::Beside && setup.beside.is_none() {
            continue;
        }
        progress(&format!("setting up: {arm} for sockets"));
        let path = Path::up(setup, arm, Traffic::Datagrams)?;
        let sockets = path.sockets()?;
        paths.push((path, sockets));
    }
    let limit = plan.limit / 4;
    interleave(
        plan.rounds,
        &mut paths,
        Load::IdleSockets,
        |(path, _)| path.arm,
        |(_, [client, server])| {
            Ok(Probed { times: probe::between_sockets([client, server], limit)?, lost: 0 })
        },
    )
}

impl Latency {
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "\n\
             Latency: microseconds through the router and back, of one probe at a time (64-byte UDP, a session of its own). The probe is\n\
             sent, turned round and taken by XDP programs, in softirqs of CPU 1, which is the router's (a NAPI thread for each device).\n\
             Quantiles are of {} interleaved rounds together; a ratio is the median of the rounds' ratios, and (min - max).\n\n\
             \x20 {:<18} {:<15} {:>8} {:>8} {:>8}  {:<20} {:<20} {:<20} {:>8} {:>6}\n",
            self.rounds,
            "load",
            "router",
            "p50",
            "p99",
            "p99.9",
            "p50 / nftables",
            "p99 / nftables",
            "p99.9 / nftables",
            "samples",
            "lost"
        );
        for row in &self.rows {
            let of = |pick: fn(&Ratios) -> &Spread| ratio(row.ratio_to_nftables.as_ref().map(pick));
            line(
                &mut text,
                format_args!(
                    "  {:<18} {:<15} {:8.2} {:8.2} {:8.2}  {:<20} {:<20} {:<20} {:>8} {:>6}",
                    row.load.describe(),
                    row.arm,
                    row.all.p50,
                    row.all.p99,
                    row.all.p999,
                    of(|ratios| &ratios.p50),
                    of(|ratios| &ratios.p99),
                    of(|ratios| &ratios.p999),
                    row.samples,
                    row.lost
                ),
            );
        }
        text
    }
}
