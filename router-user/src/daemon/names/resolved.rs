//! The addresses of names.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::{choice::Choice, schedule};
use crate::daemon::logging::text::printable;

/// Addresses by name, with what is known about each.
pub(crate) type Names = HashMap<String, Resolved>;

/// The last good answer for a name, and the attempts since.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    /// The addresses of the last good answer, in order.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// The time of that answer; of the first question, if there is none yet.
    pub(crate) since: Instant,
    /// The time to live of that answer; `None` if there is none yet.
    pub(crate) ttl: Option<Duration>,
    /// The time of the next question.
    pub(crate) next: Instant,
    /// Failed attempts since.
    pub(super) failures: u32,
    /// The problem of the last attempt; `None` if it went well.
    pub(crate) problem: Option<String>,
    /// The part of the last good answer that is not used, and why; `None` if all of it is.
    pub(crate) left_out: Option<String>,
}

/// An answer of which something can be used.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Good {
    pub(super) choice: Choice,
    pub(super) ttl: Duration,
}

impl Resolved {
    pub(super) fn unknown(now: Instant) -> Self {
        Self {
            addresses: Vec::new(),
            since: now,
            ttl: None,
            next: now,
            failures: 0,
            problem: None,
            left_out: None,
        }
    }

    /// A name with these addresses.
    #[cfg(test)]
    pub(crate) fn of(addresses: Vec<Ipv4Addr>) -> Self {
        Self { addresses, ..Self::unknown(Instant::now()) }
    }

    /// Takes in the outcome of an attempt. `jitter` is a random number from 0 to 1.
    pub(super) fn note(&mut self, outcome: Result<Good, String>, now: Instant, jitter: f64) -> Noted {
        match outcome {
            Ok(Good { choice: Choice { addresses, left_out }, ttl }) => {
                self.next = now + schedule::after_answer(ttl, jitter);
                self.failures = 0;
                self.since = now;
                self.ttl = Some(ttl);
                let noted =
                    Noted { moved: self.addresses != addresses, recovered: self.problem.take().is_some() };
                self.addresses = addresses;
                self.left_out = left_out;
                noted
            }
            Err(problem) => {
                self.failures = self.failures.saturating_add(1);
                self.next = now + schedule::after_failure(self.failures, jitter);
                // It may say what a server has said.
                self.problem = Some(printable(&problem));
                Noted { moved: false, recovered: false }
            }
        }
    }
}

/// The changes by an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Noted {
    /// The addresses.
    pub(super) moved: bool,
    /// Something was wrong, and is not any more.
    pub(super) recovered: bool,
}
