//! From another router's rules to a configuration: what the output of `iptables-save` says, as far
//! as a configuration can say it, and what it cannot.
//!
//! `ruleset` reads lines, `conditions` what a rule matches, `action` what it does, `walk` puts
//! chains together, `forwards` and `masquerades` translate, `write` writes. Pure: no I/O. What is
//! written has passed the reader of configurations.

mod action;
mod conditions;
mod forwards;
mod masquerades;
mod names;
mod networks;
mod report;
mod ruleset;
mod walk;
mod wanted;
mod write;

use std::path::Path;

pub(crate) use self::report::listed;
pub use self::{report::Remark, wanted::Wanted};

use self::{
    forwards::Forwards,
    masquerades::Masquerades,
    report::Report,
    ruleset::{Family, Ruleset},
    walk::walk,
};
use crate::config::{Config, ConfigError, MAX_RULES, Severity};

/// The result of an import.
#[derive(Clone, Debug)]
pub struct Import {
    /// The configuration; `None` if no rule could be translated.
    pub config: Option<String>,
    /// The number of its rules.
    pub rules: usize,
    /// Rules that the configuration does not say, in the order of the lines.
    pub left_out: Vec<Remark>,
    /// Rules that it says otherwise, and things to look at, in the order of the lines.
    pub remarks: Vec<Remark>,
}

/// Translates the output of `iptables-save` or `ip6tables-save`, which came from `from` (a name for
/// people).
#[must_use]
pub fn iptables_save(text: &str, from: &str, wanted: &Wanted) -> Import {
    let ruleset = Ruleset::parse(text);
    let mut report = Report::default();
    for (line, rule, why) in &ruleset.unreadable {
        report.left_out(*line, rule, why.clone());
    }
    for rule in ruleset.rules().filter(|rule| rule.family == Family::V6 && rule.table != "filter") {
        report.left_out(
            rule.line,
            &rule.text,
            "pls-router forwards IPv4 only: a Private Link Service is IPv4",
        );
    }
    let names = names::Interfaces::find(&ruleset, wanted);
    let destinations = walk(&ruleset, "nat", "PREROUTING", &mut report);
    let sources = walk(&ruleset, "nat", "POSTROUTING", &mut report);
    let forwards = Forwards::translate(&destinations, &names, wanted, &mut report);
    let masquerades = Masquerades::translate(&sources, &forwards, &names, wanted, &mut report);
    forwards.compare_sources(&sources, &mut report);
    report::other_chains(&ruleset, &mut report);
    let mss = report::segment_size(&ruleset, &mut report);
    let mut draft = write::Draft { from, names, forwards, masquerades, mss };
    draft.keep(MAX_RULES, &mut report);
    let config = loop {
        if draft.rules() == 0 {
            break None;
        }
        let written = draft.write();
        match refused(&written.text) {
            None => break Some(written.text),
            Some(errors) => {
                let before = draft.rules();
                draft.leave_out(&written, &errors, &mut report);
                // Every error is about a rule, or there would be no end.
                if draft.rules() == before {
                    break None;
                }
            }
        }
    };
    let rules = config.as_ref().map_or(0, |_| draft.rules());
    let (left_out, remarks) = report.sorted();
    let config = config.map(|text| text + &report::as_comments(&left_out, &remarks));
    Import { config, rules, left_out, remarks }
}

/// Returns the errors of a configuration by their lines, if there are any.
fn refused(text: &str) -> Option<Vec<(usize, String)>> {
    match Config::parse(text, Path::new("import")) {
        Ok(_) => None,
        Err(ConfigError::Invalid { diagnostics }) => {
            let errors = diagnostics.iter().filter(|found| found.severity == Severity::Error);
            Some(
                errors
                    .map(|error| (error.position().map_or(0, |(line, _)| line), error.message.clone()))
                    .collect(),
            )
        }
        Err(error @ ConfigError::Read { .. }) => Some(vec![(0, error.to_string())]),
    }
}

#[cfg(test)]
mod tests;
