//! The time that a packet takes through the router and back.
//!
//! A probe goes from the generator's end through the router to the sink's end, is turned round
//! there, and comes back through the router: see [`super::probe`]. With nothing else on the wires
//! it is then sent again. The programs at the ends run in softirqs on the router's CPU, like the
//! router itself (a NAPI thread for each of its two devices), so that no wake-up of another CPU is
//! in the time; it is the same in every arm.
//!
//! Under load, the generator sends at the same fixed rate in every arm, from its own CPU: shares of
//! what nftables takes at this number of flows, measured just before. A share above 1 is what
//! nftables does not take. Some of these packets are the probes: they are sent when their turn
//! comes, whether the ones before are back or not, and meet what every packet meets.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    arms::{Arm, Traffic},
    cpu,
    ends::Pacing,
    forward::{self, Run},
    histogram::{Histogram, Quantiles},
    path::Path,
    probe::{self, Probed, Prober},
    rows::take_turns,
    setup::{Setup, progress},
    spread::{Spread, line, ratio},
};

/// The number of flows of the load.
const FLOWS: u32 = 40_000;
/// Shares of what nftables takes that are sent.
const SHARES: [f64; 3] = [0.5, 0.8, 1.25];
/// One in this many packets is a probe. The number is odd, and batches are of 8, so probes take
/// every place in a batch.
const PROBE_EVERY: u64 = 29;
/// The time that the load runs before probes are sent.
const WARM_UP: Duration = Duration::from_millis(200);

/// The results.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    rounds: u16,
    /// The results of all arms at [`FLOWS`] flows.
    capacities: Vec<Capacity>,
    rows: Vec<Row>,
}

/// The maximum throughput of an arm.
#[derive(Debug, Serialize)]
struct Capacity {
    arm: Arm,
    flows: u32,
    packets_per_second: Spread,
}

/// One arm under one load.
#[derive(Debug, Serialize)]
struct Row {
    arm: Arm,
    load: Load,
    #[serde(skip_serializing_if = "Option::is_none")]
    background: Option<Background>,
    samples: u64,
    lost: u64,
    /// Of all rounds together, in microseconds there and back.
    all: Quantiles,
    /// Of each round.
    rounds: Vec<Quantiles>,
    /// Ratios to nftables in the same rounds.
    ratio_to_nftables: Option<Ratios>,
}

/// Ratios of quantiles, round by round.
#[derive(Debug, Serialize)]
struct Ratios {
    p50: Spread,
    p99: Spread,
    p999: Spread,
}

/// The rate that the generator sent at meanwhile.
#[derive(Clone, Copy, Debug, Serialize)]
struct Background {
    offered_per_second: f64,
    /// The share of it that did not arrive.
    lost: f64,
}

impl Background {
    fn of(runs: &[Run]) -> Result<Option<Self>> {
        if runs.is_empty() {
            return Ok(None);
        }
        let offered = Spread::of(&runs.iter().map(|run| run.offered_per_second).collect::<Vec<_>>())?;
        let sum = |pick: fn(&Run) -> u64| runs.iter().map(pick).sum::<u64>() as f64;
        let lost = 1.0 - sum(|run| run.books.sunk) / sum(|run| run.books.made).max(1.0);
        Ok(Some(Self { offered_per_second: offered.median, lost }))
    }
}

/// The load on the wires beside the probes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Load {
    /// No load.
    Idle,
    /// No load, and sockets at the ends.
    IdleSockets,
    /// Packets, as many as this share of what nftables takes.
    Share(f64),
}

impl Load {
    fn describe(self) -> String {
        match self {
            Self::Idle => "idle".to_owned(),
            Self::IdleSockets => "idle, UDP sockets".to_owned(),
            Self::Share(share) => format!("{:.0} % of nftables", share * 100.0),
        }
    }
}

/// The arms, in the order of the table.
const ARMS: [Arm; 5] = [Arm::Redirect, Arm::PlsRouter, Arm::Beside, Arm::Nftables, Arm::Kernel];

/// A path, and what sends probes along it.
struct Bench {
    bench: forward::Bench,
    prober: Prober,
}

impl Bench {
    fn new(path: Path) -> Result<Self> {
        let mut bench = forward::Bench::apart(path)?;
        let prober = bench.take_prober()?;
        Ok(Self { bench, prober })
    }

    /// Sends probes one at a time.
    fn run_idle(&mut self, enough: u64, limit: Duration) -> Result<Shown> {
        Ok(Shown { probed: self.prober.probe(enough, limit)?, run: None })
    }

    /// Sends packets at this rate, and probes among them.
    fn run(&mut self, rate: f64, window: Duration) -> Result<Shown> {
        let Self { bench, prober } = self;
        let load = forward::Load::plain(FLOWS, Pacing::Rate(rate));
        let (run, probed) = bench.run_while(&load, WARM_UP, || prober.probe_among(PROBE_EVERY, window))?;
        Ok(Shown { probed, run: Some(run) })
    }
}

/// The result of one round.
struct Shown {
    probed: Probed,
    run: Option<Run>,
}

/// The results of one arm so far.
#[derive(Default)]
struct Rounds {
    times: Vec<Histogram>,
    lost: u64,
    runs: Vec<Run>,
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
            background: Background::of(&self.runs)?,
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

/// The duration and the number of measurements.
struct Plan {
    rounds: u16,
    /// Probes a round, with nothing else on the wires.
    probes: u64,
    /// The longest time of a round for each arm.
    limit: Duration,
    /// The longest time under load.
    window: Duration,
    shares: &'static [f64],
}

impl Plan {
    const fn of(quick: bool) -> Self {
        if quick {
            Self {
                rounds: 2,
                probes: 50_000,
                limit: Duration::from_millis(400),
                window: Duration::from_millis(300),
                shares: SHARES.split_at(1).0,
            }
        } else {
            Self {
                rounds: 5,
                probes: 200_000,
                limit: Duration::from_secs(2),
                window: Duration::from_millis(1200),
                shares: &SHARES,
            }
        }
    }
}

/// Measures.
pub(crate) fn measure(setup: &Setup) -> Result<Latency> {
    let plan = Plan::of(setup.quick());
    // As for packets: processes that are started from here on keep off the router's CPU.
    cpu::stay_on(cpu::GENERATOR)?;
    let mut benches = Vec::new();
    for arm in arms(setup) {
        progress(&format!("setting up: {arm} for probes"));
        benches.push(Bench::new(Path::up(setup, arm, Traffic::Probes)?)?);
    }
    let arm = |bench: &Bench| bench.bench.arm();
    let mut rows = interleave(plan.rounds, &mut benches, Load::Idle, arm, |bench| {
        bench.run_idle(plan.probes, plan.limit)
    })?;
    let capacities = capacities(&plan, &mut benches)?;
    let nftables = capacities.iter().find(|capacity| capacity.arm == Arm::Nftables);
    let nftables = nftables.context("nftables was not measured")?.packets_per_second.median;
    for share in plan.shares {
        rows.append(&mut interleave(plan.rounds, &mut benches, Load::Share(*share), arm, |bench| {
            bench.run(nftables * share, plan.window)
        })?);
    }
    drop(benches);
    rows.append(&mut sockets(setup, &plan)?);
    progress("");
    Ok(Latency { rounds: plan.rounds, capacities, rows })
}

fn arms(setup: &Setup) -> impl Iterator<Item = Arm> {
    ARMS.into_iter().filter(|arm| *arm != Arm::Beside || setup.beside.is_some())
}

/// Measures the maximum throughput with the probes' programs in place: nftables' sets the rates,
/// and pls-router's shows how high a load they are for it.
fn capacities(plan: &Plan, benches: &mut [Bench]) -> Result<Vec<Capacity>> {
    let mut capacities = Vec::new();
    for Bench { bench, .. } in benches {
        let arm = bench.arm();
        if !arm.translates() {
            continue;
        }
        progress(&format!("latency, what it takes: {arm}"));
        let load = forward::Load::plain(FLOWS, Pacing::IN_FLIGHT);
        let mut rates = Vec::new();
        for _ in 0..3 {
            let (run, ()) = bench.run_while(&load, WARM_UP, || {
                thread::sleep(plan.window / 2);
                Ok(())
            })?;
            rates.push(run.packets_per_second);
        }
        capacities.push(Capacity { arm, flows: FLOWS, packets_per_second: Spread::of(&rates)? });
    }
    Ok(capacities)
}

/// Has every arm measured once a round.
fn interleave<B>(
    rounds: u16,
    benches: &mut [B],
    load: Load,
    arm: impl Fn(&B) -> Arm,
    mut run: impl FnMut(&mut B) -> Result<Shown>,
) -> Result<Vec<Row>> {
    let mut measured: BTreeMap<Arm, Rounds> = BTreeMap::new();
    take_turns(rounds, benches, |round, bench| {
        let arm = arm(bench);
        progress(&format!("latency, {}, round {round}: {arm}", load.describe()));
        let Shown { probed, run } = run(bench).with_context(|| arm.to_string())?;
        let rounds = measured.entry(arm).or_default();
        rounds.times.push(probed.times);
        rounds.lost += probed.lost;
        rounds.runs.extend(run);
        Ok(())
    })?;
    let nftables = measured.get(&Arm::Nftables);
    ARMS.iter()
        .filter_map(|arm| measured.get(arm).map(|rounds| (*arm, rounds)))
        .map(|(arm, rounds)| {
            rounds.row(arm, load, nftables).with_context(|| format!("{arm}, {}", load.describe()))
        })
        .collect()
}

/// Two sockets, as a check of the probes by something else: both processes and the router on one
/// CPU, in turn.
fn sockets(setup: &Setup, plan: &Plan) -> Result<Vec<Row>> {
    let mut paths = Vec::new();
    for arm in arms(setup) {
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
            let times = probe::between_sockets([client, server], limit)?;
            Ok(Shown { probed: Probed { times, lost: 0 }, run: None })
        },
    )
}

impl Latency {
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "\n\
             Latency: microseconds through the router and back, of a probe (64-byte UDP, a separate session), which XDP\n\
             programs send, turn round and receive, in softirqs of CPU 1, the router's (a NAPI thread for each device).\n\
             Idle: one probe at a time. Under load, CPU 0 sends packets of {FLOWS} flows at the same rate in all arms, a share of the\n\
             maximum of nftables, in batches of 8; one in {PROBE_EVERY} of them is a probe, sent without waiting for others.\n\
             Quantiles are of {} interleaved rounds together; a ratio is the median of the rounds' ratios, and (min - max).\n",
            self.rounds,
        );
        for Capacity { arm, packets_per_second, .. } in &self.capacities {
            let rate = packets_per_second.times(1e-6).show(0, 2);
            line(&mut text, format_args!("{arm} forwards up to {rate} Mpps here."));
        }
        line(
            &mut text,
            format_args!(
                "\n  {:<18} {:<15} {:>7} {:>8} {:>8}  {:<18} {:<18} {:<18} {:>7} {:>5} {:>5} {:>5}",
                "load",
                "router",
                "p50",
                "p99",
                "p99.9",
                "p50 / nftables",
                "p99 / nftables",
                "p99.9 / nftables",
                "probes",
                "lost",
                "Mpps",
                "lost"
            ),
        );
        for row in &self.rows {
            let of = |pick: fn(&Ratios) -> &Spread| ratio(row.ratio_to_nftables.as_ref().map(pick));
            let background = row.background.map_or_else(String::new, |background| {
                format!("{:5.2} {:4.0}%", background.offered_per_second * 1e-6, background.lost * 100.0)
            });
            line(
                &mut text,
                format_args!(
                    "  {:<18} {:<15} {:7.2} {:8.2} {:8.2}  {:<18} {:<18} {:<18} {:>7} {:>5} {background}",
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
        text.push_str(
            "\n  lost: probes that did not come back within 50 ms, which no quantile includes; and the packets of the load that did not arrive.\n",
        );
        text
    }
}
