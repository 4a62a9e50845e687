//! `pls-router drain` and `pls-router undrain`

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Answer;
use super::options::{DrainArguments, Format, OutputArguments};
use super::output::{self, counted, grouped};
use super::table::{Align, Table};
use crate::client::{Client, ClientError};
use crate::model::Drain;

/// The pause between two looks at the sessions that are left.
const PERIOD: Duration = Duration::from_millis(500);
/// The time between two lines about them at least.
const LINES: Duration = Duration::from_secs(5);

pub(super) async fn drain(client: &Client, arguments: &DrainArguments) -> anyhow::Result<Answer> {
    let begun = client.drain().await?;
    let Some(wait) = arguments.wait else {
        show(&begun, arguments.output.output, &left(&begun))?;
        return Ok(Answer::Good);
    };
    let last = wait_until_empty(client, begun, wait).await?;
    let (verdict, answer) = match (last.draining, last.sessions) {
        (false, _) => ("no longer draining: somebody has taken it back; ".to_owned(), Answer::Bad),
        (true, 0) => ("drained: ".to_owned(), Answer::Good),
        (true, _) => (format!("not drained in {}: ", humantime::format_duration(wait)), Answer::Bad),
    };
    show(&last, arguments.output.output, &format!("{verdict}{}", left(&last)))?;
    Ok(answer)
}

pub(super) async fn undrain(client: &Client, arguments: &OutputArguments) -> anyhow::Result<Answer> {
    let before = client.undrain().await?;
    match arguments.output {
        Format::Json => {
            let now = Drain { draining: false, since: None, since_seconds: None, ..before };
            output::json(&now)?;
        }
        Format::Text => output::print(&match before.since {
            Some(since) => format!("no longer draining (since {since})\n"),
            None => "this router was not draining\n".to_owned(),
        })?,
    }
    Ok(Answer::Good)
}

/// Returns the state when no session is left, the drain is taken back, or the time is up.
async fn wait_until_empty(client: &Client, mut state: Drain, wait: Duration) -> anyhow::Result<Drain> {
    let start = Instant::now();
    let mut said: Option<(Instant, u64)> = None;
    loop {
        if !state.draining || state.sessions == 0 {
            return Ok(state);
        }
        let is_news =
            said.is_none_or(|(when, sessions)| when.elapsed() >= LINES && sessions != state.sessions);
        if is_news {
            output::remark(&left(&state));
            said = Some((Instant::now(), state.sessions));
        }
        let rest = wait.saturating_sub(start.elapsed());
        if rest.is_zero() {
            return Ok(state);
        }
        sleep(PERIOD.min(rest)).await;
        match client.draining().await {
            Ok(now) => state = now,
            // A daemon that is restarted goes on draining. While there is none, the last count
            // stands.
            Err(ClientError::NoDaemon { .. } | ClientError::Broken { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn left(state: &Drain) -> String {
    let sessions = match state.sessions {
        0 => "no session is left".to_owned(),
        number => format!("{} left", counted(number, "session")),
    };
    match &state.since {
        Some(since) => format!("draining since {since}, {sessions}"),
        None => sessions,
    }
}

fn show(state: &Drain, format: Format, line: &str) -> anyhow::Result<()> {
    match format {
        Format::Json => output::json(state),
        Format::Text => {
            let mut text = format!("{line}\n");
            if !state.rules.is_empty() {
                let mut table = Table::new(&[("RULE", Align::Left), ("SESSIONS", Align::Right)]);
                for rule in &state.rules {
                    table.row(vec![rule.rule.as_str().into(), grouped(rule.sessions).into()]);
                }
                text.push('\n');
                text.push_str(&table.render());
            }
            Ok(output::print(&text)?)
        }
    }
}
