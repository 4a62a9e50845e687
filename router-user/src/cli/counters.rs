//! `pls-router counters`

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use super::Answer;
use super::options::{CountersArguments, Format};
use super::output::{self, BAD, DOUBTFUL, GOOD, grouped};
use super::table::{Align, Cell, Table};
use crate::client::Client;
use crate::model::Counters;

/// Cursor to the top left, and everything below it cleared (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) async fn run(client: &Client, arguments: &CountersArguments) -> anyhow::Result<Answer> {
    let mut now = client.counters().await?;
    let Some(seconds) = arguments.watch else {
        match arguments.output.output {
            Format::Text => output::print(&text(&now, None, arguments.all))?,
            Format::Json => output::json(&now)?,
        }
        return Ok(Answer::Good);
    };
    let redraw = std::io::stdout().is_terminal();
    let mut ticks = tokio::time::interval(Duration::from_secs(u64::from(seconds)));
    ticks.tick().await;
    let mut before: Option<Before> = None;
    loop {
        match arguments.output.output {
            Format::Json => output::json_line(&now)?,
            Format::Text => {
                let shown = text(&now, before.as_ref(), arguments.all);
                if redraw {
                    output::print(&format!("{CLEAR}{shown}\n(every {seconds} s; Ctrl-C to stop)\n"))?;
                } else {
                    output::print(&format!("{shown}\n"))?;
                }
            }
        }
        let taken = Instant::now();
        ticks.tick().await;
        let next = client.counters().await?;
        before = Some(Before { counters: now, elapsed: taken.elapsed() });
        now = next;
    }
}

/// An earlier reading, for rates.
struct Before {
    counters: Counters,
    /// From it to the one shown.
    elapsed: Duration,
}

impl Before {
    fn rate(&self, before: Option<u64>, now: u64) -> u64 {
        // A daemon that came back with new maps counts from zero again.
        let grown = now.saturating_sub(before.unwrap_or(0));
        let millis = u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        grown.saturating_mul(1000) / millis
    }
}

fn text(now: &Counters, before: Option<&Before>, all: bool) -> String {
    [reasons(now, before, all), interfaces(now, before), rules(now, before), own_traffic(now, all)]
        .iter()
        .filter(|table| !table.is_empty())
        .map(Table::render)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Makes a table, with columns for rates if there are any.
fn columns(
    fixed: &[(&'static str, Align)],
    rates: &[(&'static str, Align)],
    before: Option<&Before>,
    last: &[(&'static str, Align)],
) -> Table {
    let rates = if before.is_some() { rates } else { &[] };
    Table::new(&[fixed, rates, last].concat())
}

fn reasons(now: &Counters, before: Option<&Before>, all: bool) -> Table {
    let mut table = columns(
        &[
            ("REASON", Align::Left),
            ("ACTION", Align::Left),
            ("PACKETS", Align::Right),
            ("BYTES", Align::Right),
        ],
        &[("PACKETS/S", Align::Right), ("BYTES/S", Align::Right)],
        before,
        &[("WHY", Align::Left)],
    );
    for reason in now.reasons.iter().filter(|reason| all || reason.packets > 0) {
        let style = match reason.action.as_str() {
            "forward" => GOOD,
            "drop" if reason.packets > 0 => BAD,
            "punt" => DOUBTFUL,
            _ => anstyle::Style::new(),
        };
        let mut cells: Vec<Cell> = vec![
            reason.reason.as_str().into(),
            Cell::styled(style, reason.action.as_str()),
            grouped(reason.packets).into(),
            grouped(reason.bytes).into(),
        ];
        if let Some(before) = before {
            let old = before.counters.reasons.iter().find(|old| old.number == reason.number);
            cells.push(grouped(before.rate(old.map(|old| old.packets), reason.packets)).into());
            cells.push(grouped(before.rate(old.map(|old| old.bytes), reason.bytes)).into());
        }
        cells.push(reason.description.as_str().into());
        table.row(cells);
    }
    table
}

fn interfaces(now: &Counters, before: Option<&Before>) -> Table {
    let mut table = columns(
        &[
            ("INTERFACE", Align::Left),
            ("IN PACKETS", Align::Right),
            ("IN BYTES", Align::Right),
            ("OUT PACKETS", Align::Right),
            ("OUT BYTES", Align::Right),
        ],
        &[
            ("IN PACKETS/S", Align::Right),
            ("IN BYTES/S", Align::Right),
            ("OUT PACKETS/S", Align::Right),
            ("OUT BYTES/S", Align::Right),
        ],
        before,
        &[],
    );
    for interface in &now.interfaces {
        let mut cells: Vec<Cell> = vec![
            interface.name.as_str().into(),
            grouped(interface.rx_packets).into(),
            grouped(interface.rx_bytes).into(),
            grouped(interface.tx_packets).into(),
            grouped(interface.tx_bytes).into(),
        ];
        if let Some(before) = before {
            let old = before.counters.interfaces.iter().find(|old| old.name == interface.name);
            cells.push(grouped(before.rate(old.map(|old| old.rx_packets), interface.rx_packets)).into());
            cells.push(grouped(before.rate(old.map(|old| old.rx_bytes), interface.rx_bytes)).into());
            cells.push(grouped(before.rate(old.map(|old| old.tx_packets), interface.tx_packets)).into());
            cells.push(grouped(before.rate(old.map(|old| old.tx_bytes), interface.tx_bytes)).into());
        }
        table.row(cells);
    }
    table
}

fn own_traffic(now: &Counters, all: bool) -> Table {
    let mut table =
        Table::new(&[("OWN TRAFFIC", Align::Left), ("COUNT", Align::Right), ("WHY", Align::Left)]);
    let rows = [
        (
            "sessions_ended",
            now.own_traffic.sessions_ended,
            "Sessions ended for this machine's own traffic from the same port.",
        ),
        (
            "connections_refused",
            now.own_traffic.connections_refused,
            "Connections of this machine refused: a live session has the port.",
        ),
    ];
    for (name, count, why) in rows.into_iter().filter(|(_, count, _)| all || *count > 0) {
        table.row(vec![name.into(), grouped(count).into(), why.into()]);
    }
    table
}

fn rules(now: &Counters, before: Option<&Before>) -> Table {
    let mut table = columns(
        &[
            ("RULE", Align::Left),
            ("OPENED", Align::Right),
            ("PACKETS", Align::Right),
            ("BYTES", Align::Right),
            ("REPLIES", Align::Right),
            ("REPLY BYTES", Align::Right),
            ("DENIED", Align::Right),
        ],
        &[("OPENED/S", Align::Right), ("PACKETS/S", Align::Right), ("REPLIES/S", Align::Right)],
        before,
        &[],
    );
    for rule in &now.rules {
        let mut cells: Vec<Cell> = vec![
            rule.name.as_str().into(),
            grouped(rule.sessions_opened).into(),
            grouped(rule.forward_packets).into(),
            grouped(rule.forward_bytes).into(),
            grouped(rule.reply_packets).into(),
            grouped(rule.reply_bytes).into(),
            grouped(rule.denied_packets).into(),
        ];
        if let Some(before) = before {
            let old = before.counters.rules.iter().find(|old| old.name == rule.name);
            cells.push(grouped(before.rate(old.map(|old| old.sessions_opened), rule.sessions_opened)).into());
            cells.push(grouped(before.rate(old.map(|old| old.forward_packets), rule.forward_packets)).into());
            cells.push(grouped(before.rate(old.map(|old| old.reply_packets), rule.reply_packets)).into());
        }
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{OwnTrafficCounters, ReasonCounter, RuleCounters};

    fn counters(packets: u64) -> Counters {
        Counters {
            reasons: vec![ReasonCounter {
                number: 0,
                reason: "forwarded".to_owned(),
                action: "forward".to_owned(),
                packets,
                bytes: packets * 100,
                description: "Sent.".to_owned(),
            }],
            interfaces: Vec::new(),
            own_traffic: OwnTrafficCounters::default(),
            rules: vec![RuleCounters {
                name: "https".to_owned(),
                sessions_opened: packets / 10,
                forward_packets: packets,
                forward_bytes: packets * 100,
                reply_packets: 0,
                reply_bytes: 0,
                denied_packets: 0,
            }],
        }
    }

    #[test]
    fn rates_are_by_the_time_between_readings_and_never_negative() {
        let before = Before { counters: counters(1_000), elapsed: Duration::from_millis(2_000) };
        let shown = anstream::adapter::strip_str(&text(&counters(5_000), Some(&before), false)).to_string();
        assert_eq!(
            shown,
            "REASON     ACTION   PACKETS    BYTES  PACKETS/S  BYTES/S  WHY\n\
             forwarded  forward    5,000  500,000      2,000  200,000  Sent.\n\
             \n\
             RULE   OPENED  PACKETS    BYTES  REPLIES  REPLY BYTES  DENIED  OPENED/S  PACKETS/S  REPLIES/S\n\
             https     500    5,000  500,000        0            0       0       200      2,000          0\n"
        );
        let restarted = Before { counters: counters(9_000), elapsed: Duration::from_secs(1) };
        assert!(text(&counters(10), Some(&restarted), false).contains("        0        0  Sent."));
    }
}
