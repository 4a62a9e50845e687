//! A reload as lines of text, for the command line and for the log.

use serde_json::Value;

use crate::model::{ChangeKind, CheckFinding, KeyChange, Reload, RuleChange, RuleKind};

/// Returns what differs, a line each: rules with their keys below them, then other keys. One line
/// if nothing does.
pub(crate) fn lines(reload: &Reload) -> Vec<String> {
    if !reload.changed {
        return vec!["nothing has changed".to_owned()];
    }
    let mut lines = Vec::new();
    for rule in &reload.rules {
        lines.push(headline(rule));
        lines.extend(rule.keys.iter().map(|key| format!("    {}", key_line(key, rule.change))));
    }
    lines.extend(reload.keys.iter().map(|key| format!("~ {}", key_line(key, ChangeKind::Changed))));
    lines
}

fn headline(RuleChange { rule, kind, change, .. }: &RuleChange) -> String {
    let kind = match kind {
        RuleKind::Forward => "forward",
        RuleKind::Masquerade => "masquerade",
    };
    match change {
        ChangeKind::Added => format!("+ {kind} `{rule}` is added"),
        ChangeKind::Removed => format!("- {kind} `{rule}` is removed"),
        ChangeKind::Changed => format!("~ {kind} `{rule}` is changed"),
    }
}

fn key_line(KeyChange { key, from, to }: &KeyChange, change: ChangeKind) -> String {
    match change {
        ChangeKind::Added => format!("{key} = {}", shown(to)),
        ChangeKind::Removed => format!("{key} = {}", shown(from)),
        ChangeKind::Changed => format!("{key}: {} -> {}", shown(from), shown(to)),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "(not set)".to_owned(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => value.to_string(),
    }
}

/// Returns a finding in one line: `PLACE: fault; fix: remedy`.
pub(crate) fn finding(CheckFinding { text, place, fix, .. }: &CheckFinding) -> String {
    let place = place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default();
    let fix = if fix.is_empty() { String::new() } else { format!("; fix: {fix}") };
    format!("{place}{text}{fix}")
}

/// Returns what becomes of sessions that the rules in force would not open; `None` if there are
/// none.
pub(crate) fn sessions(reload: &Reload, wants_cut: bool) -> Option<String> {
    let Reload { old_sessions, cut_sessions, dry_run, .. } = reload;
    let number = |count: u64| format!("{count} session{}", if count == 1 { "" } else { "s" });
    match (*old_sessions, *cut_sessions) {
        (0, 0) => None,
        (old, _) if *dry_run && wants_cut => {
            Some(format!("{} of removed or changed rules would be cut", number(old)))
        }
        (old, _) if *dry_run => Some(format!("{} of removed or changed rules would go on", number(old))),
        (old, cut) if cut >= old => Some(format!("{} of removed or changed rules cut", number(cut))),
        (old, 0) => Some(format!(
            "{} of removed or changed rules go on until they end (--cut ends them)",
            number(old)
        )),
        (old, cut) => Some(format!(
            "{} of removed or changed rules cut; {} ended meanwhile",
            number(cut),
            old.saturating_sub(cut)
        )),
    }
}
