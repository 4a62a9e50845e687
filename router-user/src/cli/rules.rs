//! `pls-router rules`

use super::Answer;
use super::options::{Format, OutputArguments};
use super::output::{self, BAD, DOUBTFUL, GOOD, grouped};
use super::status::listed;
use super::table::{Align, Cell, Table};
use crate::client::Client;
use crate::model::{CheckHealth, Rule, RuleCheckStatus, RuleKind};

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
        ("CHECK", Align::Left),
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
            check(rule),
            grouped(rule.sessions).into(),
            grouped(counters.sessions_opened).into(),
            grouped(counters.forward_packets).into(),
            grouped(counters.reply_packets).into(),
            denied.into(),
        ]);
    }
    table.render()
}

/// Returns the number of targets that pass the rule's check, of all of them.
fn check(rule: &Rule) -> Cell {
    let Some(RuleCheckStatus { healthy, targets, .. }) = &rule.check else { return "".into() };
    let failed = targets.iter().filter(|target| target.health == CheckHealth::Failed).count();
    let text = format!("{} of {} good", targets.len() - failed, targets.len());
    match (healthy, failed) {
        (true, 0) => Cell::styled(GOOD, text),
        (true, _) => Cell::styled(DOUBTFUL, text),
        (false, _) => Cell::styled(BAD, text),
    }
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
