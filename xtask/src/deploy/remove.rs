//! `cargo xtask deploy remove`: takes the router off a host.

use anyhow::anyhow;

use super::facts::How;
use super::host::{self, Detail, Order};
use super::outcome::{Failure, State};
use super::report::Story;
use super::scripts;

/// Takes the router off. `purge`: with its configuration and state.
pub(super) fn remove(
    order: &Order<'_>,
    purge: bool,
    story: Story<'_>,
) -> Result<State, (Failure, anyhow::Error)> {
    let host = story.host();
    let untouched = |error| (Failure::Untouched, error);
    let remote = host::reach(order, story, 0, Detail::All).map_err(untouched)?;
    let output = remote.run(scripts::STATUS, &[]).map_err(untouched)?;
    let fact = |key: &str| {
        let mut lines = output.stdout.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key).map(|(_, value)| value)
    };
    let how = fact("how").and_then(How::of).unwrap_or(How::None);
    if how == How::None && !purge {
        story.tell("done", "pls-router is not installed there");
        return Ok(State::Already);
    }
    let mut plan = Vec::new();
    if let Some(drain) = order.drain {
        plan.push(format!("drain for up to {}", humantime::format_duration(drain)));
    }
    plan.push("stop the service and take the programs off: the sessions that are left end".to_owned());
    plan.push(match (how, purge) {
        (How::Package, false) => "remove the package pls-router; its configuration stays".to_owned(),
        (How::Package, true) => "purge the package pls-router".to_owned(),
        (How::Files | How::None, false) => {
            "remove the binary and the units; the configuration stays".to_owned()
        }
        (How::Files | How::None, true) => "remove the binary, the units and the configuration".to_owned(),
    });
    story.tell("plan", &plan.join("\n"));
    if order.dry_run {
        return Ok(State::WouldChange);
    }
    let drain = order.drain.map(|drain| format!("{}s", drain.as_secs())).unwrap_or_default();
    let arguments = [drain.as_str(), if purge { "purge" } else { "" }];
    let code = remote.converse(scripts::REMOVE, &arguments, |line| {
        if line == "@go" {
            return Some("go");
        }
        story.tell("", line);
        None
    });
    match code.map_err(|error| (Failure::Unknown, error))? {
        0 => {
            story.tell("done", "pls-router is gone");
            Ok(State::Done)
        }
        5 => Err(untouched(anyhow!(
            "{host}: nothing was changed, for the reason above\n  fix: what it says; then start again"
        ))),
        4 => Err((
            Failure::NotAsBefore,
            anyhow!("{host}: NOT ALL of it could be removed\n  fix: what is said above; then start again"),
        )),
        _ => Err((
            Failure::Unknown,
            anyhow!(
                "{host}: the connection broke on the way\n  fix: the machine goes on by itself; see `cargo xtask \
                 deploy status {host}`"
            ),
        )),
    }
}
