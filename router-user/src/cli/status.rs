//! `pls-router status`

use std::fmt::Display;
use std::path::PathBuf;
use std::time::SystemTime;

use super::Answer;
use super::options::{Format, Global, OutputArguments};
use super::output::{self, BAD, DOUBTFUL, GOOD, counted, grouped, styled, time};
use super::table::{Align, Cell, Table};
use crate::client::{Client, ClientError};
use crate::config::{Config, defaults};
use crate::dataplane::{self, Unattended};
use crate::model::{
    self, CheckHealth, CheckResult, CheckStatus, FlowTableStatus, Health, PendingAnswer, ProbeStatus,
    PuntStatus, SnatPortStatus, Status,
};

pub(super) async fn run(
    global: &Global,
    client: &Client,
    arguments: &OutputArguments,
) -> anyhow::Result<Answer> {
    let status = match client.status().await {
        Ok(status) => status,
        Err(error @ ClientError::NoDaemon { .. }) => return without_daemon(global, error, arguments.output),
        Err(error) => return Err(error.into()),
    };
    match arguments.output {
        Format::Text => output::print(&text(&status))?,
        Format::Json => output::json(&status)?,
    }
    Ok(if status.healthy { Answer::Good } else { Answer::Bad })
}

/// Says what goes on without a daemon. To tell that takes root.
fn without_daemon(global: &Global, error: ClientError, format: Format) -> anyhow::Result<Answer> {
    let pins = Config::load(&global.config).map_or(PathBuf::from(defaults::PINS), |it| it.config.admin.pins);
    let Ok(Some(Unattended { interfaces, silence })) = dataplane::unattended(&pins) else {
        return Err(error.into());
    };
    let seconds = silence.as_secs();
    let since = SystemTime::now().checked_sub(silence).unwrap_or(SystemTime::UNIX_EPOCH);
    let since = humantime::format_rfc3339_seconds(since).to_string();
    let forwarding = if interfaces.is_empty() {
        format!("nothing is forwarded, and there has been no daemon since {since}: no program is attached")
    } else {
        format!("forwarding without a daemon since {since}, on {}", listed(&interfaces))
    };
    let reasons = vec![forwarding, error.to_string()];
    match format {
        Format::Json => {
            let unattended = model::Unattended { interfaces, since, seconds };
            output::json(&model::NoDaemon { healthy: false, reasons, unattended })?;
        }
        Format::Text => {
            let [forwarding, error] = reasons.as_slice() else { return Ok(Answer::Bad) };
            output::print(&format!(
                "daemon      {}\n            - {forwarding} ({})\n            - the probe is not answered, idle \
                 sessions do not end, and routes are not followed\n            - {}\n",
                styled(BAD, "NONE"),
                time(seconds),
                error.replace('\n', "\n            "),
            ))?;
        }
    }
    Ok(Answer::Bad)
}

fn text(status: &Status) -> String {
    // The only thing that keeps the probe from answering 200 is that it was asked to.
    let only_drains = status.draining.is_some() && status.reasons.len() <= 1;
    let healthy = match (status.reasons.is_empty() || only_drains, status.degraded.is_empty()) {
        (true, _) if only_drains => styled(DOUBTFUL, "yes, draining"),
        (true, true) => styled(GOOD, "yes"),
        (true, false) => styled(DOUBTFUL, "yes, degraded"),
        (false, _) => styled(BAD, "NO"),
    };
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<12}{value}\n"));
    line("forwarding", &healthy);
    for reason in status.reasons.iter().chain(&status.degraded) {
        line("", &format!("- {reason}"));
    }
    line("probe", &probe(&status.probe));
    line("version", &format!("{}, up {}", status.version, time(status.uptime_seconds)));
    line("config", &status.config);
    line("sources", &listed(&status.snat_addresses));
    line("sessions", &sessions(&status.flows));
    if let Some(drain) = &status.draining {
        let since = time(drain.since_seconds.unwrap_or_default());
        line("draining", &format!("{since}, {} left", counted(drain.sessions, "session")));
    }
    if let Some(fullest) = status.snat_ports.first() {
        line("ports", &ports(fullest));
    }
    for repairs in status.repairs.iter().filter(|repairs| repairs.count > 0) {
        let last = repairs.last_seconds.map(time).unwrap_or_default();
        line("repaired", &format!("{}, {}, last {last} ago", repairs.name, counted(repairs.count, "time")));
    }
    if status.punts != PuntStatus::default() {
        line("punts", &punts(&status.punts));
    }

    let mut interfaces = Table::new(&[
        ("INTERFACE", Align::Left),
        ("ROLE", Align::Left),
        ("PROGRAM", Align::Left),
        ("MODE", Align::Left),
        ("ID", Align::Right),
    ]);
    for interface in &status.interfaces {
        let attached = if interface.attached {
            Cell::styled(GOOD, "attached")
        } else {
            Cell::styled(BAD, "NOT ATTACHED")
        };
        interfaces.row(vec![
            interface.name.as_str().into(),
            listed(&interface.roles).into(),
            attached,
            interface.mode.as_str().into(),
            interface.program_id.map(|id| id.to_string()).unwrap_or_default().into(),
        ]);
    }
    let mut hops = Table::new(&[
        ("TARGET", Align::Left),
        ("RULES", Align::Left),
        ("VIA", Align::Left),
        ("INTERFACE", Align::Left),
        ("SOURCE", Align::Left),
        ("MAC", Align::Left),
        ("NEXT HOP", Align::Left),
    ]);
    for hop in &status.next_hops {
        hops.row(vec![
            hop.target.to_string().into(),
            listed(&hop.rules).into(),
            hop.via.map(|via| via.to_string()).unwrap_or_default().into(),
            hop.interface.clone().unwrap_or_default().into(),
            hop.source.map(|source| source.to_string()).unwrap_or_default().into(),
            hop.mac.clone().unwrap_or_default().into(),
            if hop.resolved { Cell::styled(GOOD, "ok") } else { Cell::styled(BAD, problem(&hop.problem)) },
        ]);
    }
    let mut names = Table::new(&[
        ("NAME", Align::Left),
        ("ADDRESSES", Align::Left),
        ("AGE", Align::Right),
        ("NEXT IN", Align::Right),
        ("STATUS", Align::Left),
    ]);
    for name in &status.names {
        // A name that cannot be resolved again keeps its addresses, which is less bad than none.
        let style = if name.addresses.is_empty() { BAD } else { DOUBTFUL };
        names.row(vec![
            name.name.as_str().into(),
            listed(&name.addresses).into(),
            if name.addresses.is_empty() { "".into() } else { time(name.age_seconds).into() },
            time(name.next_seconds).into(),
            match (name.problem.as_str(), name.left_out.as_str()) {
                ("", "") => Cell::styled(GOOD, "ok"),
                ("", left_out) => Cell::styled(DOUBTFUL, left_out),
                (problem, _) => Cell::styled(style, problem),
            },
        ]);
    }
    let mut targets = Table::new(&[
        ("TARGET", Align::Left),
        ("RULES", Align::Left),
        ("HEALTH", Align::Left),
        ("SINCE", Align::Right),
        ("REASON", Align::Left),
    ]);
    for target in &status.targets {
        let good = target.health == Health::Good;
        targets.row(vec![
            format!("{}/{}", target.target, target.protocol).into(),
            listed(&target.rules).into(),
            Cell::styled(if good { GOOD } else { DOUBTFUL }, target.health.as_str()),
            target.since_seconds.map(time).unwrap_or_default().into(),
            target.reason.as_str().into(),
        ]);
    }
    for table in [interfaces, hops, names, targets, checks(&status.checks)] {
        if !table.is_empty() {
            text.push('\n');
            text.push_str(&table.render());
        }
    }
    text
}

/// Returns the answer of the probe, and what becomes of it.
fn probe(probe: &ProbeStatus) -> String {
    let ProbeStatus { answer, since, since_seconds, reasons, pending, .. } = probe;
    let style = if *answer == 200 { GOOD } else { BAD };
    let mut text = format!("{} for {} (since {since})", styled(style, answer), time(*since_seconds));
    if let Some(PendingAnswer { answer, for_seconds, after_seconds }) = pending {
        let left = (after_seconds - for_seconds).max(0.0);
        text.push_str(&format!(", {answer} in {left:.1} s"));
        if *answer == 200 && !reasons.is_empty() {
            text.push_str(&format!("; the cause was: {}", reasons.join("; ")));
        }
    }
    text
}

/// Returns the active checks of targets.
fn checks(checks: &[CheckStatus]) -> Table {
    let mut table = Table::new(&[
        ("CHECK", Align::Left),
        ("RULE", Align::Left),
        ("BY", Align::Left),
        ("STATE", Align::Left),
        ("SINCE", Align::Right),
        ("LAST", Align::Right),
        ("LATENCY", Align::Right),
        ("REASON", Align::Left),
    ]);
    for check in checks {
        let style = match (check.health, check.last) {
            (CheckHealth::Failed, _) => BAD,
            (CheckHealth::Unknown, _) | (_, Some(CheckResult::Failed | CheckResult::NotMade)) => DOUBTFUL,
            (CheckHealth::Good, _) => GOOD,
        };
        table.row(vec![
            check.target.to_string().into(),
            check.rule.as_str().into(),
            by(check).into(),
            Cell::styled(style, check.health.as_str()),
            time(check.since_seconds).into(),
            check.last_seconds.map(time).unwrap_or_default().into(),
            check.latency_seconds.map(milliseconds).unwrap_or_default().into(),
            check.reason.as_str().into(),
        ]);
    }
    table
}

/// Returns what a check does: its kind, its port, where that is not the target's, and its name.
fn by(check: &CheckStatus) -> String {
    let mut text = check.kind.clone();
    if check.port != check.target.port() {
        text.push_str(&format!(" {}", check.port));
    }
    if let Some(sni) = &check.sni {
        text.push_str(&format!(" {sni}"));
    }
    text
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

fn problem(words: &str) -> &str {
    if words.is_empty() { "unresolved" } else { words }
}

fn sessions(flows: &FlowTableStatus) -> String {
    share(flows.sessions, flows.capacity)
}

/// Returns the use of SNAT ports for the target with the most.
fn ports(fullest: &SnatPortStatus) -> String {
    let SnatPortStatus { snat, target, protocol, used, free, most } = fullest;
    let share = share(u64::from(*used), u64::from(*used) + u64::from(*free));
    let most = most.map(|most| format!(", {} of them by {}", grouped(most.used.into()), most.source));
    format!("{share} on {snat} to {target}/{protocol}{}", most.unwrap_or_default())
}

/// Returns the numbers of packets that were handed to the daemon.
fn punts(punts: &PuntStatus) -> String {
    let PuntStatus { sent, waiting, held, unanswered, no_room, expired, failed, problem: _ } = punts;
    let lost = unanswered + no_room + expired + failed;
    format!("{} sent, {} waiting, {} lost", grouped(*sent), grouped(waiting + held), grouped(lost))
}

fn share(used: u64, of: u64) -> String {
    let text = format!("{} of {}", grouped(used), grouped(of));
    // Per mille in whole numbers, shown as per cent with one place.
    match (used * 1000 + of / 2).checked_div(of) {
        Some(share) => {
            let text = format!("{text} ({}.{}%)", share / 10, share % 10);
            if share >= 900 { styled(BAD, text) } else { text }
        }
        None => text,
    }
}

pub(super) fn listed<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
