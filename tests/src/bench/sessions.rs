//! New sessions a second: every packet opens one.
//!
//! The time is from the first packet's arrival in the sink to the last one's, so packets that
//! arrive are counted, and those that a router drops are named. Sessions are forgotten before each
//! round: pls-router starts again, the kernel's connection tracking is emptied.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    arms::{Arm, Wires},
    forward::{Bench, Burst, flows},
    packets::{MAIN, bring_up},
    rows::take_turns,
    setup::{Setup, progress},
    spread::{Spread, line, ratio},
    traffic::{Flow, Span},
};

/// The kernel's default limit of tracked connections.
const SOME: u32 = 200_000;
const MANY: u32 = 1_000_000;
const MANY_QUICK: u32 = 500_000;

/// SNAT ports to one port of a target: 1024 to 65535, for both routers.
const PORTS: u32 = 64_512;
/// The number of the target's ports.
const TARGET_PORTS: u32 = 4;
/// Per mille of the SNAT ports that are taken before and after what is timed.
const CROWDS: [[u32; 2]; 2] = [[900, 910], [990, 995]];

/// The results.
#[derive(Debug, Serialize)]
pub(crate) struct Sessions {
    rounds: u16,
    rows: Vec<Row>,
}

/// One arm in one situation.
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    arm: Arm,
    sessions: u64,
    sessions_per_second: Spread,
    ratio_to: BTreeMap<Arm, Spread>,
    lost: u64,
    bursts: Vec<Vec<Burst>>,
}

/// The timed part.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum What {
    Some,
    Many,
    Crowded(usize),
}

impl What {
    const ALL: [Self; 4] = [Self::Some, Self::Many, Self::Crowded(0), Self::Crowded(1)];

    const fn name(self) -> &'static str {
        match self {
            Self::Some => "from none",
            Self::Many => "from none, many",
            Self::Crowded(0) => "90 % of ports taken",
            Self::Crowded(_) => "99 % of ports taken",
        }
    }
}

/// The flows of every target port from one number to another.
const fn crowd(from: u32, to: u32) -> Span {
    Span {
        first: Flow { number: 0, at: from, port: 0 },
        end: TARGET_PORTS * (to - from),
        at_port: [from, to],
    }
}

/// One round of an arm. Of each thing, its bursts, one after the other.
fn round(setup: &Setup, bench: &mut Bench) -> Result<BTreeMap<What, Vec<Burst>>> {
    let mut all = BTreeMap::new();
    bench.forget_sessions(setup)?;
    let some = bench.burst(flows(0, SOME))?;
    all.insert(What::Some, vec![some.clone()]);
    let many = if setup.quick() { MANY_QUICK } else { MANY };
    if bench.takes(many)? {
        all.insert(What::Many, vec![some, bench.burst(flows(SOME, many))?]);
    }
    bench.forget_sessions(setup)?;
    let mut taken = 0;
    for (at, crowd_of) in CROWDS.into_iter().enumerate() {
        let [before, after] = crowd_of.map(|share| PORTS * share / 1000);
        bench.burst(crowd(taken, before))?;
        all.insert(What::Crowded(at), vec![bench.burst(crowd(before, after))?]);
        taken = after;
    }
    Ok(all)
}

/// Measures.
pub(crate) fn measure(setup: &Setup) -> Result<Sessions> {
    let rounds = if setup.quick() { 1 } else { setup.rounds() };
    let benches = bring_up(setup, &MAIN, Wires::Two)?;
    let mut arms: Vec<_> = benches.into_iter().map(|bench| (bench, Vec::new())).collect();
    take_turns(rounds, &mut arms, |number, (bench, measured)| {
        progress(&format!("new sessions, round {number}: {}", bench.arm()));
        measured.push(round(setup, bench).with_context(|| bench.arm().to_string())?);
        Ok(())
    })?;
    progress("");
    let mut rows = Vec::new();
    for what in What::ALL {
        let mut measured = Vec::new();
        for (bench, rounds) in &arms {
            let bursts: Vec<_> = rounds.iter().filter_map(|round| round.get(&what).cloned()).collect();
            if bursts.is_empty() {
                setup.cannot(
                    format!("new sessions, {}, {}", what.name(), bench.arm()),
                    "no room for them: nf_conntrack_max is lower".to_owned(),
                );
            } else {
                let rates: Vec<_> = bursts.iter().map(|bursts| rate(bursts)).collect();
                measured.push((bench.arm(), bursts, rates));
            }
        }
        for (arm, bursts, rates) in &measured {
            let mut ratio_to = BTreeMap::new();
            for (other, _, to) in measured.iter().filter(|(other, ..)| other != arm) {
                ratio_to.insert(*other, Spread::of_ratios(rates, to)?);
            }
            let books = || bursts.iter().flatten().map(|burst| &burst.books);
            rows.push(Row {
                what: what.name(),
                arm: *arm,
                sessions: books().map(|books| books.made).sum::<u64>() / bursts.len() as u64,
                sessions_per_second: Spread::of(rates)?,
                ratio_to,
                lost: books().map(super::forward::Books::lost).sum(),
                bursts: bursts.clone(),
            });
        }
    }
    Ok(Sessions { rounds, rows })
}

/// Sessions a second, over all of the bursts.
fn rate(bursts: &[Burst]) -> f64 {
    let packets: f64 = bursts.iter().map(|burst| burst.packets_per_second * burst.seconds).sum();
    let seconds: f64 = bursts.iter().map(|burst| burst.seconds).sum();
    packets / seconds
}

impl Sessions {
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "\n\
             New sessions a second of one core: every 64-byte UDP packet opens one; two NICs. Time from the first arrival to the last, without\n\
             answers. \"Taken\": that share of the {PORTS} SNAT ports towards each of {TARGET_PORTS} ports of the target. Medians of {} interleaved\n\
             rounds, and (min - max); ratios are of each round. The no-op only forwards.\n\n\
             \x20 {:<20} {:>9}  {:<15} {:<24} {:<24} {:<24} {}\n",
            self.rounds, "", "sessions", "router", "M sessions/s", "/ no-op", "/ nftables", "lost"
        );
        for row in &self.rows {
            let of = |arm| ratio(row.ratio_to.get(&arm));
            line(
                &mut text,
                format_args!(
                    "  {:<20} {:>9}  {:<15} {:<24} {:<24} {:<24} {}",
                    row.what,
                    row.sessions,
                    row.arm,
                    row.sessions_per_second.times(1e-6).show(0, 3),
                    of(Arm::Redirect),
                    of(Arm::Nftables),
                    row.lost
                ),
            );
        }
        for row in &self.rows {
            for problem in row.bursts.iter().flatten().filter_map(|burst| burst.books.problem()) {
                line(&mut text, format_args!("  ! {}, {}: {problem}", row.what, row.arm));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crowds_take_the_same_ports_of_every_target_port() {
        let span = crowd(10, 13);
        assert_eq!(span.end, 12);
        let mut flow = span.first;
        for _ in 0..3 {
            flow = span.after(flow);
        }
        assert_eq!((flow.at, flow.port), (10, 1));
    }

    #[test]
    fn a_rate_is_of_the_time_that_was_timed() {
        let burst = |seconds, packets_per_second| Burst {
            seconds,
            packets_per_second,
            books: super::super::forward::Books::default(),
        };
        // 2 s with 100 in each, and 1 s with 400.
        assert!((rate(&[burst(2.0, 100.0), burst(1.0, 400.0)]) - 200.0).abs() < 1e-9);
    }
}
