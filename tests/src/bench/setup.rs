//! The data that every part of the bench needs.

use std::{cell::RefCell, io::Write as _, path::PathBuf, time::Duration};

use lab::state::State;
use serde::Serialize;

use super::{arguments::Arguments, arms::Arm};

/// The data that every part needs.
pub(crate) struct Setup<'a> {
    pub(crate) arguments: &'a Arguments,
    /// The pls-router to measure.
    pub(crate) binary: PathBuf,
    /// Another pls-router to measure beside it.
    pub(crate) beside: Option<PathBuf>,
    /// The version of iptables, if there is one.
    pub(crate) iptables: Option<String>,
    pub(crate) state: State,
    pub(crate) not_measured: RefCell<Vec<NotMeasured>>,
}

impl Setup<'_> {
    /// Notes that something cannot be measured here; the report says so.
    pub(crate) fn cannot(&self, what: String, why: String) {
        self.not_measured.borrow_mut().push(NotMeasured { what, why });
    }

    /// Returns `true` if an arm can be measured here. Adds a note to the report if not.
    pub(crate) fn has(&self, arm: Arm) -> bool {
        if arm == Arm::Iptables && self.iptables.is_none() {
            self.cannot(arm.to_string(), "there is no iptables".to_owned());
            return false;
        }
        arm != Arm::Beside || self.beside.is_some()
    }

    pub(crate) fn flows(&self) -> Vec<u32> {
        let default: &[u32] = if self.quick() { &[64, 40_000] } else { &[1, 64, 1000, 40_000, 1_000_000] };
        self.arguments.flows.clone().unwrap_or_else(|| default.to_vec())
    }

    pub(crate) const fn quick(&self) -> bool {
        self.arguments.quick
    }

    pub(crate) fn rounds(&self) -> u16 {
        self.arguments.rounds.unwrap_or(if self.quick() { 2 } else { 5 })
    }

    pub(crate) fn window(&self) -> Duration {
        Duration::from_secs_f64(self.arguments.seconds.unwrap_or(if self.quick() { 0.25 } else { 0.5 }))
    }
}

/// Something that could not be measured here.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct NotMeasured {
    /// The thing: part, arm and dimension.
    pub(crate) what: String,
    pub(crate) why: String,
}

/// Shows on a terminal what is going on, in one line that the next one replaces.
pub(crate) fn progress(what: &str) {
    use std::io::IsTerminal as _;
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        // A closed standard error is no reason to stop.
        let _gone = write!(terminal, "\r\x1b[K{what}");
    }
}
