//! `pls-router reload`

use super::Answer;
use super::options::{Format, ReloadArguments};
use super::output::{self, BAD, DOUBTFUL, GOOD, STRONG, styled};
use crate::changes;
use crate::client::Client;
use crate::model::{CheckFinding, Reload, ReloadQuery};

pub(super) async fn run(client: &Client, arguments: &ReloadArguments) -> anyhow::Result<Answer> {
    let query = ReloadQuery { dry_run: arguments.dry_run, cut: arguments.cut };
    let reload = client.reload(query).await?;
    match arguments.output.output {
        Format::Json => output::json(&reload)?,
        Format::Text => output::print(&text(&reload, query.cut))?,
    }
    Ok(if reload.ok { Answer::Good } else { Answer::Bad })
}

fn text(reload: &Reload, cut: bool) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    for finding in &reload.findings {
        line(&shown(finding));
    }
    // Without a readable file, there is nothing to compare.
    if reload.ok || reload.changed {
        changes::lines(reload).iter().for_each(|one| line(one));
    }
    if let Some(sessions) = changes::sessions(reload, cut) {
        line(&sessions);
    }
    let file = &reload.config;
    line(&match (reload.ok, reload.dry_run) {
        (true, true) => format!("{file} {}; nothing was changed (--dry-run)", styled(GOOD, "is good")),
        (true, false) => format!("{file} {}", styled(GOOD, "is in force")),
        (false, _) => {
            format!("{file} {}: {}", styled(BAD, "is not in force"), reload.problem)
        }
    });
    text
}

fn shown(finding: &CheckFinding) -> String {
    let style = match finding.severity.as_str() {
        "error" => BAD,
        "warning" => DOUBTFUL,
        _ => STRONG,
    };
    let place = finding.place.as_ref().map(|place| format!("\n  at {place}")).unwrap_or_default();
    let fix = if finding.fix.is_empty() { String::new() } else { format!("\n  fix: {}", finding.fix) };
    format!("{}: {}{place}{fix}\n", styled(style, &finding.severity), finding.text)
}
