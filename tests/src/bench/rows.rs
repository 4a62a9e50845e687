//! Loads on arms, in interleaved rounds, and their table.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    arms::Arm,
    forward::{Bench, Load, Run},
    setup::{Setup, progress},
    spread::{Spread, line, ratio},
};

/// Sent before a timed window begins, once all sessions are open.
const WARM_UP: Duration = Duration::from_millis(150);

/// A run in which something else had this share of one of the CPUs is done again,
const DISTURBED: f64 = 0.1;
/// this many times at most; the least disturbed one counts.
const REPEATS: usize = 2;

/// A load and what it is called in the table.
#[derive(Clone, Debug)]
pub(crate) struct Labelled {
    pub(crate) label: String,
    pub(crate) load: Load,
}

/// A table, and what is said above it.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    about: String,
    /// The title of the first column.
    #[serde(skip)]
    heading: &'static str,
    /// The arm that the last ratio of each row refers to.
    #[serde(skip_serializing_if = "Option::is_none")]
    to_first: Option<&'static str>,
    /// `true` if sessions are forgotten before each round.
    afresh: bool,
    rounds: u16,
    window_seconds: f64,
    rows: Vec<Row>,
}

/// One arm under one load.
#[derive(Debug, Serialize)]
struct Row {
    label: String,
    arm: Arm,
    load: Load,
    packets_per_second: Spread,
    /// Ratios to the other arms under the same load, in the same rounds.
    ratio_to: BTreeMap<Arm, Spread>,
    /// The ratio to the same arm under the first of the loads that took turns with this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_to_first: Option<Spread>,
    offered_per_second: Spread,
    idle: Spread,
    disturbed: Spread,
    stalls: u64,
    made: u64,
    refused: u64,
    lost: u64,
    runs: Vec<Run>,
}

impl Row {
    fn of(what: &Labelled, arm: Arm, runs: Vec<Run>) -> Result<Self> {
        let spread = |pick: fn(&Run) -> f64| Spread::of(&runs.iter().map(pick).collect::<Vec<_>>());
        Ok(Self {
            label: what.label.clone(),
            arm,
            load: what.load,
            packets_per_second: spread(|run| run.packets_per_second)?,
            ratio_to: BTreeMap::new(),
            ratio_to_first: None,
            offered_per_second: spread(|run| run.offered_per_second)?,
            idle: spread(|run| run.idle)?,
            disturbed: spread(|run| run.disturbed)?,
            stalls: runs.iter().map(|run| run.stalls).sum(),
            made: runs.iter().map(|run| run.books.made).sum(),
            refused: runs.iter().map(|run| run.books.refused).sum(),
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
        format!("{} of {:.1} M", self.lost, (self.made - self.refused) as f64 / 1e6)
    }
}

/// Compares rows that took turns with each other.
fn compare(rows: &mut [Row]) -> Result<()> {
    let all: Vec<_> = rows.iter().map(|row| (row.label.clone(), row.arm, row.rates())).collect();
    for row in rows {
        let own = row.rates();
        for (label, arm, rates) in &all {
            if *label == row.label && *arm != row.arm {
                row.ratio_to.insert(*arm, Spread::of_ratios(&own, rates)?);
            }
        }
        let first = all.iter().find(|(_, arm, _)| *arm == row.arm);
        if let Some((label, _, rates)) = first
            && *label != row.label
        {
            row.ratio_to_first = Some(Spread::of_ratios(&own, rates)?);
        }
    }
    Ok(())
}

/// Calls once for every thing in every round: there and back again, so that none is always the
/// first one.
pub(crate) fn take_turns<T>(
    rounds: u16,
    things: &mut [T],
    mut turn: impl FnMut(u16, &mut T) -> Result<()>,
) -> Result<()> {
    for round in 1..=rounds {
        for at in 0..things.len() {
            let at = if round % 2 == 0 { things.len() - 1 - at } else { at };
            turn(round, &mut things[at])?;
        }
    }
    Ok(())
}

impl Section {
    /// An empty one.
    pub(crate) fn new(setup: &Setup, heading: &'static str, about: String) -> Self {
        Self {
            about,
            heading,
            to_first: None,
            afresh: false,
            rounds: setup.rounds(),
            window_seconds: setup.window().as_secs_f64(),
            rows: Vec::new(),
        }
    }

    /// Adds a column of ratios to each arm's first load, under this name.
    pub(crate) fn with_ratio_to_first(self, name: &'static str) -> Self {
        Self { to_first: Some(name), ..self }
    }

    /// Has sessions forgotten before each round.
    pub(crate) fn afresh(self) -> Self {
        Self { afresh: true, ..self }
    }

    /// Measures every arm under every one of these loads, all of which take turns.
    pub(crate) fn measure(&mut self, setup: &Setup, benches: &mut [Bench], loads: &[Labelled]) -> Result<()> {
        let mut measured = Vec::new();
        for what in loads {
            for (at, bench) in benches.iter().enumerate() {
                if bench.takes(what.load.flows)? {
                    measured.push((at, what, Vec::new()));
                } else {
                    let what = format!("packets, {}, {}", what.label, bench.arm());
                    setup.cannot(what, "no room for them: nf_conntrack_max is lower".to_owned());
                }
            }
        }
        let afresh = self.afresh;
        take_turns(self.rounds, &mut measured, |round, (at, what, runs)| {
            let bench = &mut benches[*at];
            progress(&format!("{} {}, round {round}: {}", what.label, self.heading, bench.arm()));
            let run = least_disturbed(setup, bench, &what.load, afresh);
            runs.push(run.with_context(|| format!("{}, {}", what.label, bench.arm()))?);
            Ok(())
        })?;
        progress("");
        let rows = measured.into_iter().map(|(at, what, runs)| Row::of(what, benches[at].arm(), runs));
        let mut rows = rows.collect::<Result<Vec<_>>>()?;
        compare(&mut rows)?;
        self.rows.append(&mut rows);
        Ok(())
    }

    pub(crate) fn table(&self) -> String {
        let beside = self.rows.iter().any(|row| row.arm == Arm::Beside);
        let column = |name: Option<&str>| name.map_or_else(String::new, |name| format!(" {name:<21}"));
        let mut text = format!(
            "\n{}\nMedians of {} interleaved rounds of {} s after warm-up, and (min - max); ratios are of each round.\n\n",
            self.about, self.rounds, self.window_seconds
        );
        line(
            &mut text,
            format_args!(
                "  {:<22} {:<15} {:<21} {:<21} {:<21}{}{} {:>4} {:>7} {:>5}  lost",
                self.heading,
                "router",
                "Mpps",
                "/ no-op",
                "/ nftables",
                column(self.to_first),
                column(beside.then_some("/ pls-router")),
                "idle",
                "refused",
                "dist."
            ),
        );
        for row in &self.rows {
            let of = |arm| ratio(row.ratio_to.get(&arm));
            let to_first = ratio(row.ratio_to_first.as_ref());
            line(
                &mut text,
                format_args!(
                    "  {:<22} {:<15} {:<21} {:<21} {:<21}{}{} {:3.0}% {:6.1}% {:4.0}%  {}",
                    row.label,
                    row.arm,
                    row.packets_per_second.times(1e-6).show(0, 2),
                    of(Arm::Redirect),
                    of(Arm::Nftables),
                    column(self.to_first.map(|_| to_first.as_str())),
                    column(beside.then(|| of(Arm::PlsRouter)).as_deref()),
                    row.idle.median * 100.0,
                    100.0 * row.refused as f64 / row.made.max(1) as f64,
                    row.disturbed.median * 100.0,
                    row.lost()
                ),
            );
        }
        for row in &self.rows {
            for run in &row.runs {
                if let Some(problem) = run.books.problem() {
                    line(&mut text, format_args!("  ! {}, {}: {problem}", row.label, row.arm));
                }
            }
        }
        text
    }
}

fn least_disturbed(setup: &Setup, bench: &mut Bench, load: &Load, afresh: bool) -> Result<Run> {
    let mut run = || {
        if afresh {
            bench.forget_sessions(setup)?;
        }
        bench.run(load, WARM_UP, setup.window())
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_there_and_back() {
        let mut order = Vec::new();
        let mut things = ['a', 'b', 'c'];
        take_turns(3, &mut things, |round, thing| {
            order.push(format!("{round}{thing}"));
            Ok(())
        })
        .expect("nothing fails");
        assert_eq!(order.join(" "), "1a 1b 1c 2c 2b 2a 3a 3b 3c");
    }
}
