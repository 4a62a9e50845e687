//! `pls-router check --live`

use super::Answer;
use super::options::{CheckArguments, Format};
use super::output::{self, BAD, GOOD, counted, grouped, styled};
use super::table::{Align, Table};
use crate::client::Client;
use crate::model::{Audit, AuditKind};

/// The most findings in text; JSON has more.
const SHOWN: usize = 20;

pub(super) async fn run(client: &Client, arguments: &CheckArguments) -> anyhow::Result<Answer> {
    let audit = client.audit().await?;
    match arguments.output.output {
        Format::Text => output::print(&text(&audit))?,
        Format::Json => output::json(&audit)?,
    }
    Ok(if audit.ok { Answer::Good } else { Answer::Bad })
}

fn text(audit: &Audit) -> String {
    let sessions = counted(audit.sessions, "session");
    if audit.ok {
        return format!("{}\n", styled(GOOD, format!("{sessions}: all complete, no lost ports")));
    }
    let mut wrong: Vec<String> = [
        (audit.half_sessions, "half session"),
        (audit.duplicates, "duplicate flow"),
        (audit.leaked_ports, "lost port"),
    ]
    .into_iter()
    .filter(|(number, _)| *number > 0)
    .map(|(number, what)| counted(number, what))
    .collect();
    match audit.miscounted_sessions {
        0 => {}
        excess => {
            let direction = if excess > 0 { "too many" } else { "too few" };
            wrong.push(format!("{} counted {direction}", counted(excess.unsigned_abs(), "session")));
        }
    }
    let mut text = format!("{}\n", styled(BAD, format!("{sessions}: {}", wrong.join(", "))));
    let mut table = Table::new(&[
        ("FAULT", Align::Left),
        ("RULE", Align::Left),
        ("PROTO", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
    ]);
    for finding in audit.findings.iter().take(SHOWN) {
        let kind = match finding.kind {
            AuditKind::HalfSession => "half session",
            AuditKind::Duplicate => "duplicate flow",
            AuditKind::LeakedPort => "lost port",
        };
        table.row(vec![
            kind.into(),
            finding.rule.clone().unwrap_or_default().into(),
            finding.protocol.as_str().into(),
            finding.source.to_string().into(),
            finding.destination.to_string().into(),
        ]);
    }
    if !table.is_empty() {
        text.push_str(&format!("\n{}", table.render()));
    }
    let more = (audit.half_sessions + audit.duplicates + audit.leaked_ports).saturating_sub(SHOWN as u64);
    if more > 0 {
        text.push_str(&format!("and {} more\n", grouped(more)));
    }
    text.push_str(
        "\nThe daemon removes half sessions within 40 seconds. If they stay, this is a bug in pls-router; \
         `systemctl restart pls-router` clears the table.\n",
    );
    text
}
