//! Decides which failures of self-tests are a fault, and for how long.
//!
//! What a fault does can keep its test from being repeated: a table that stays full, sources with
//! too many half-open sessions, a neighbour that is lost. So what has failed counts until a test
//! succeeds again, and only for a while if nothing can be tested.

use std::time::{Duration, Instant};

/// Failures in a row that are a fault. Rules, routes and neighbours may change in the middle of a
/// test; new rules follow a new answer of a name server within a second.
const FAILURES: u32 = 3;
/// The time for which a fault stays one after the last failure, while nothing can be tested.
const KEPT: Duration = Duration::from_secs(60);
/// The same for failures that are no fault yet.
const IN_DOUBT: Duration = Duration::from_secs(10);

/// The subject of a test.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Subject {
    /// That answers of ARP reach this machine.
    Arp,
    /// A rule, by its name.
    Rule(String),
}

/// The reason why something is not tested.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Untested {
    /// There is no such rule in force.
    Gone,
    /// It lacks something now, in words.
    Now(&'static str),
}

impl Untested {
    /// Returns the words for it.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Gone => "it is not there any more",
            Self::Now(text) => text,
        }
    }
}

/// The test that has failed, until one succeeds.
#[derive(Debug, Default)]
pub(super) struct Suspicion(Option<Suspect>);

#[derive(Debug)]
struct Suspect {
    subject: Subject,
    /// The failures in a row, and the time of the last one.
    failures: u32,
    last: Instant,
}

impl Suspect {
    fn is_fault(&self) -> bool {
        self.failures >= FAILURES
    }
}

impl Suspicion {
    /// Returns `true` if something has failed, so that a test is to be repeated soon.
    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Returns what to test, in this order until one fails: what has failed, and those whose turn
    /// it is.
    pub(super) fn subjects(&self, in_turn: impl FnOnce() -> Vec<Subject>) -> Vec<Subject> {
        match &self.0 {
            None => in_turn(),
            Some(suspect) => {
                let others = in_turn().into_iter().filter(|subject| *subject != suspect.subject);
                std::iter::once(suspect.subject.clone()).chain(others).collect()
            }
        }
    }

    /// Takes in that a test has succeeded. Returns `true` if nothing is suspected any more: that of
    /// a rule tells about all rules, that of ARP about ARP alone.
    pub(super) fn passed(&mut self, subject: &Subject) -> bool {
        let tells = match &self.0 {
            Some(Suspect { subject: Subject::Rule(_), .. }) => matches!(subject, Subject::Rule(_)),
            Some(Suspect { subject: Subject::Arp, .. }) => *subject == Subject::Arp,
            None => true,
        };
        if tells {
            self.0 = None;
        }
        tells
    }

    /// Takes in that a test has failed. Returns `true` if that is a fault by now.
    pub(super) fn failed(&mut self, subject: Subject, now: Instant) -> bool {
        let failures = self.0.as_ref().map_or(1, |suspect| suspect.failures.saturating_add(1));
        let suspect = Suspect { subject, failures, last: now };
        let is_fault = suspect.is_fault();
        self.0 = Some(suspect);
        is_fault
    }

    /// Takes in that something cannot be tested. Returns `true` if nothing is suspected any more,
    /// because that is gone.
    pub(super) fn untested(&mut self, subject: &Subject, why: Untested) -> bool {
        self.0.take_if(|suspect| suspect.subject == *subject && why == Untested::Gone);
        self.0.is_none()
    }

    /// Forgets a failure that has not been seen again for long. Returns `true` if it has.
    pub(super) fn forget_old(&mut self, now: Instant) -> bool {
        let is_old = |suspect: &mut Suspect| {
            now.duration_since(suspect.last) >= if suspect.is_fault() { KEPT } else { IN_DOUBT }
        };
        self.0.take_if(is_old).is_some()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Untested = Untested::Now("the flow table is full");

    fn rule(name: &str) -> Subject {
        Subject::Rule(name.to_owned())
    }

    /// A rule that has failed so often by this time.
    fn suspected(subject: &Subject, failures: u32, now: Instant) -> Suspicion {
        let mut suspicion = Suspicion::default();
        let faults = (0..failures).filter(|_| suspicion.failed(subject.clone(), now)).count();
        assert_eq!(faults, usize::from(failures >= FAILURES));
        suspicion
    }

    #[test]
    fn a_fault_stays_one_while_it_cannot_be_tested() {
        let now = Instant::now();
        let mut suspicion = suspected(&rule("web"), FAILURES, now);
        assert!(!suspicion.untested(&rule("web"), FULL));
        assert!(!suspicion.untested(&rule("dns"), FULL) && !suspicion.untested(&rule("old"), Untested::Gone));
        assert!(!suspicion.passed(&Subject::Arp) && !suspicion.forget_old(now + KEPT / 2));
        assert!(suspicion.is_there());
        // The others are tested meanwhile, and one that succeeds ends it.
        let turn = || vec![Subject::Arp, rule("web"), rule("dns")];
        assert_eq!(suspicion.subjects(turn), [rule("web"), Subject::Arp, rule("dns")]);
        assert!(suspicion.passed(&rule("dns")) && !suspicion.is_there());
    }

    #[test]
    fn a_fault_ends_with_its_rule_and_after_a_while() {
        let now = Instant::now();
        assert!(suspected(&rule("web"), FAILURES, now).untested(&rule("web"), Untested::Gone));
        assert!(suspected(&rule("web"), FAILURES, now).passed(&rule("web")));
        let mut suspicion = suspected(&rule("web"), FAILURES, now);
        assert!(suspicion.forget_old(now + KEPT) && !suspicion.is_there());
        assert!(!suspicion.forget_old(now + KEPT), "once");
    }

    #[test]
    fn another_rule_that_fails_as_well_keeps_it() {
        let now = Instant::now();
        let mut suspicion = suspected(&rule("web"), FAILURES, now);
        assert!(suspicion.failed(rule("dns"), now + KEPT / 2), "it still is a fault");
        assert!(!suspicion.forget_old(now + KEPT));
        assert!(!suspicion.untested(&rule("web"), Untested::Gone) && suspicion.is_there());
    }

    #[test]
    fn a_single_failure_counts_for_a_moment() {
        let now = Instant::now();
        let mut suspicion = suspected(&rule("web"), FAILURES - 1, now);
        // A table that is full now and then hides no fault.
        assert!(!suspicion.untested(&rule("web"), FULL));
        assert!(suspicion.failed(rule("web"), now + Duration::from_secs(2)));
        let mut suspicion = suspected(&rule("web"), FAILURES - 1, now);
        assert!(suspicion.forget_old(now + IN_DOUBT) && !suspicion.is_there());
        assert!(suspicion.untested(&rule("web"), FULL), "nothing is suspected");
        assert!(suspected(&rule("web"), 1, now).passed(&rule("dns")));
    }

    #[test]
    fn only_arp_tells_about_arp() {
        let mut suspicion = suspected(&Subject::Arp, FAILURES, Instant::now());
        assert!(!suspicion.passed(&rule("web")) && suspicion.is_there());
        assert!(suspicion.passed(&Subject::Arp) && !suspicion.is_there());
    }
}
