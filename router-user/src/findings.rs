//! Findings in a configuration file and on this machine, as the data that is reported.

use std::path::Path;

use crate::{
    config::{ConfigError, Diagnostic, Severity},
    model::{Check, CheckFinding, ListenerAccess},
    preflight::Finding,
};

/// Returns what `check` reports of a file and its machine.
pub(crate) fn check(file: &Path, mut findings: Vec<CheckFinding>, access: Vec<ListenerAccess>) -> Check {
    findings.sort_by_key(|finding| finding.severity != "error");
    let ok = findings.iter().all(|finding| finding.severity != "error");
    Check { config: file.display().to_string(), ok, findings, access }
}

/// Returns a finding in the file.
pub(crate) fn of_file(diagnostic: &Diagnostic) -> CheckFinding {
    CheckFinding {
        severity: diagnostic.severity.to_string(),
        id: None,
        text: diagnostic.message.clone(),
        place: Some(match diagnostic.position() {
            Some((line, column)) => format!("{}:{line}:{column}", diagnostic.path()),
            None => diagnostic.path().to_owned(),
        }),
        fix: diagnostic.fix(),
    }
}

/// Returns a finding on this machine.
pub(crate) fn of_machine(finding: &Finding) -> CheckFinding {
    CheckFinding {
        severity: finding.severity.to_string(),
        id: Some(finding.id.as_str().to_owned()),
        text: finding.text.clone(),
        place: None,
        fix: finding.fix.clone(),
    }
}

/// Returns the findings that keep a file from being a configuration.
pub(crate) fn of_error(error: &ConfigError) -> Vec<CheckFinding> {
    match error {
        ConfigError::Invalid { diagnostics } => diagnostics.iter().map(of_file).collect(),
        ConfigError::Read { path, error } => vec![CheckFinding {
            severity: Severity::Error.to_string(),
            id: None,
            text: format!("cannot read the file: {error}"),
            place: Some(path.clone()),
            fix: "let root read it, or start the daemon with another --config FILE".to_owned(),
        }],
    }
}
