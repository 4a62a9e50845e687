//! `pls-router rules`

use super::Answer;
use super::options::{Format, OutputArguments};
use super::output::{self, BAD, grouped};
use super::status::listed;
use super::table::{Align, Cell, Table};
use crate::client::Client;
use crate::model::{Rule, RuleKind};

pub(super) async fn run(client: &Client, arguments: &OutputArguments) -> anyhow::Result<Answer> {
    let rules = client.rules().await?;
    match arguments.output {
        Format::Text => output::print(&text(&rules))?,
        Format::Json => output::json(&rules)?,
    }
    Ok(Answer::Good)
}

fn text(rules: &[Rule]) -> String {
    let mut table = Table::new(&[
        ("RULE", Align::Left),
        ("MATCH", Align::Left),
        ("SOURCES", Align::Left),
        ("TARGET", Align::Left),
        ("RESOLVED", Align::Left),
        ("SESSIONS", Align::Right),
        ("OPENED", Align::Right),
        ("PACKETS", Align::Right),
        ("REPLIES", Align::Right),
        ("DENIED", Align::Right),
    ]);
    for rule in rules {
        let matched = match (&rule.protocol, &rule.listen) {
            (Some(protocol), Some(listen)) => format!("{protocol} {listen}"),
            _ => "masquerade".to_owned(),
        };
        let counters = &rule.counters;
        let denied = grouped(counters.denied_packets);
        table.row(vec![
            rule.name.as_str().into(),
            matched.into(),
            listed(&rule.sources).into(),
            listed(match rule.kind {
                RuleKind::Forward => &rule.targets,
                RuleKind::Masquerade => &rule.destinations,
            })
            .into(),
            resolved(rule),
            grouped(rule.sessions).into(),
            grouped(counters.sessions_opened).into(),
            grouped(counters.forward_packets).into(),
            grouped(counters.reply_packets).into(),
            denied.into(),
        ]);
    }
    table.render()
}

/// Returns the addresses of the targets, if the configuration does not have them already.
fn resolved(rule: &Rule) -> Cell {
    if rule.kind == RuleKind::Masquerade {
        return "".into();
    }
    if rule.addresses.is_empty() {
        return Cell::styled(BAD, "not resolved");
    }
    let ips: Vec<String> = rule.addresses.iter().map(|address| address.ip().to_string()).collect();
    let as_configured = ips.len() == rule.targets.len()
        && ips.iter().zip(&rule.targets).all(|(ip, target)| target.split(':').next() == Some(ip.as_str()));
    if as_configured { "".into() } else { listed(&ips).into() }
}
