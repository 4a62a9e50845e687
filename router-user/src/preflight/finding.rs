//! Findings: what is wrong, doubtful or worth knowing before a start.

use std::fmt;

use crate::config::Severity;

pub use crate::health::Id;

/// One thing that is wrong, doubtful or worth knowing on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Identifies the kind of finding, as for a condition of a running router.
    pub id: Id,
    /// The interface, rule, address, ... that it is about; empty where there is only one.
    pub subject: String,
    /// An error keeps the router from working; a warning does not; a note may well be intended.
    pub severity: Severity,
    /// The fault and its place, in one line.
    pub text: String,
    /// The remedy: the command where there is one.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  fix: {}", self.severity, self.text, self.fix)
    }
}

/// Findings as they are made.
#[derive(Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    fn push(
        &mut self,
        severity: Severity,
        (id, subject): (Id, &str),
        text: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let (subject, text, fix) = (subject.to_owned(), text.into(), fix.into());
        self.0.push(Finding { id, subject, severity, text, fix });
    }

    pub(super) fn error(&mut self, of: (Id, &str), text: impl Into<String>, fix: impl Into<String>) {
        self.push(Severity::Error, of, text, fix);
    }

    pub(super) fn warning(&mut self, of: (Id, &str), text: impl Into<String>, fix: impl Into<String>) {
        self.push(Severity::Warning, of, text, fix);
    }

    pub(super) fn note(&mut self, of: (Id, &str), text: impl Into<String>, fix: impl Into<String>) {
        self.push(Severity::Note, of, text, fix);
    }

    /// Returns the findings, errors first.
    pub(super) fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| match finding.severity {
            Severity::Error => 0,
            Severity::Warning => 1,
            Severity::Note => 2,
        });
        self.0
    }
}

/// Lists items as people write them: "a, b, c".
pub(super) fn listed<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
