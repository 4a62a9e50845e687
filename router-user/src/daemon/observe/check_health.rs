//! The results of active checks, by rule and target. No I/O and no clock.
//!
//! A target is good until `fall` checks in a row have failed, and has failed until `rise` checks in
//! a row have succeeded. One that has not been checked yet is not known to have failed: a daemon
//! that starts does not take the machine out of service.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

pub(crate) use crate::model::CheckHealth;
use crate::{config::Check, model::CheckResult};

/// A target of one rule: its address and port as sessions see it, see
/// [`Endpoint`](super::target_health::Endpoint).
pub(crate) type Place = (Ipv4Addr, u16);

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// The target has answered, after this time.
    Good(Duration),
    /// The target has not answered as it should, in words for the operator.
    Bad(String),
    /// This machine could not make the check, for this reason. Says nothing about the target.
    NotMade(String),
}

impl Outcome {
    /// Returns its kind.
    pub(crate) const fn result(&self) -> CheckResult {
        match self {
            Self::Good(_) => CheckResult::Good,
            Self::Bad(_) => CheckResult::Failed,
            Self::NotMade(_) => CheckResult::NotMade,
        }
    }
}

/// The last check of a target.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Last {
    pub(crate) outcome: Outcome,
    pub(crate) at: Instant,
}

/// The state of one target.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checked {
    pub(crate) health: CheckHealth,
    /// The time since when it is so.
    pub(crate) since: Instant,
    /// The results in a row that speak against it.
    against: u32,
    /// Why a check failed last.
    reason: String,
    pub(crate) last: Option<Last>,
}

/// The numbers of checks of a rule.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    pub(crate) good: u64,
    pub(crate) bad: u64,
    pub(crate) not_made: u64,
}

/// A change of a target's state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) from: CheckHealth,
    pub(crate) to: CheckHealth,
    /// Why it has failed; empty if it has not.
    pub(crate) reason: String,
}

impl Checked {
    const fn new(now: Instant) -> Self {
        Self { health: CheckHealth::Unknown, since: now, against: 0, reason: String::new(), last: None }
    }

    /// Returns why a check failed last, in words for the operator; empty if none has.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    fn note(&mut self, outcome: Outcome, check: &Check, now: Instant) -> Option<Change> {
        let result = outcome.result();
        if let Outcome::Bad(reason) = &outcome {
            self.reason.clone_from(reason);
        }
        self.last = Some(Last { outcome, at: now });
        let (to, needed) = match (self.health, result) {
            (_, CheckResult::NotMade) => return None,
            (CheckHealth::Good, CheckResult::Good) | (CheckHealth::Failed, CheckResult::Failed) => {
                self.against = 0;
                return None;
            }
            (CheckHealth::Unknown, CheckResult::Good) => (CheckHealth::Good, 1),
            (CheckHealth::Unknown | CheckHealth::Good, CheckResult::Failed) => {
                (CheckHealth::Failed, check.fall)
            }
            (CheckHealth::Failed, CheckResult::Good) => (CheckHealth::Good, check.rise),
        };
        self.against += 1;
        if self.against < needed {
            return None;
        }
        let from = std::mem::replace(&mut self.health, to);
        (self.since, self.against) = (now, 0);
        let reason = if to == CheckHealth::Failed { self.reason.clone() } else { String::new() };
        Some(Change { from, to, reason })
    }
}

/// The state of a rule's targets.
#[derive(Debug)]
struct RuleChecks {
    check: Check,
    targets: HashMap<Place, Checked>,
    counts: Counts,
}

/// The state of all targets that are checked.
#[derive(Debug, Default)]
pub(crate) struct CheckResults {
    rules: HashMap<String, RuleChecks>,
}

impl CheckResults {
    /// Takes in what is to be checked from now on: each rule's check, and its targets. Everything
    /// else is forgotten, and so is what another check of a rule has found. Returns `true` if a
    /// target that has failed is forgotten.
    pub(crate) fn follow<'a>(
        &mut self,
        rules: impl Iterator<Item = (&'a str, &'a Check, HashSet<Place>)>,
        now: Instant,
    ) -> bool {
        let failed = self.failed();
        let mut before = std::mem::take(&mut self.rules);
        for (rule, check, places) in rules {
            let known = before.remove(rule);
            let is_same =
                |known: &RuleChecks| (&known.check.kind, known.check.port) == (&check.kind, check.port);
            let counts = known.as_ref().map(|known| known.counts).unwrap_or_default();
            let mut targets = known.filter(is_same).map(|known| known.targets).unwrap_or_default();
            targets.retain(|place, _| places.contains(place));
            for place in places {
                targets.entry(place).or_insert_with(|| Checked::new(now));
            }
            self.rules.insert(rule.to_owned(), RuleChecks { check: check.clone(), targets, counts });
        }
        self.failed() < failed
    }

    /// Takes in the outcome of a check at `now`. Returns the change of the target's state, if there
    /// is one. What is not checked any more is left out.
    pub(crate) fn note(
        &mut self,
        rule: &str,
        place: Place,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Change> {
        let RuleChecks { check, targets, counts } = self.rules.get_mut(rule)?;
        let checked = targets.get_mut(&place)?;
        let count = match outcome.result() {
            CheckResult::Good => &mut counts.good,
            CheckResult::Failed => &mut counts.bad,
            CheckResult::NotMade => &mut counts.not_made,
        };
        *count = count.saturating_add(1);
        checked.note(outcome, check, now)
    }

    /// Returns the state of a rule's target; `None` if it is not checked.
    pub(crate) fn of(&self, rule: &str, place: Place) -> Option<&Checked> {
        self.rules.get(rule)?.targets.get(&place)
    }

    /// Returns `true` if a rule's target has failed.
    pub(crate) fn has_failed(&self, rule: &str, place: Place) -> bool {
        self.of(rule, place).is_some_and(|checked| checked.health == CheckHealth::Failed)
    }

    /// Returns the numbers of a rule's checks.
    pub(crate) fn counts(&self, rule: &str) -> Counts {
        self.rules.get(rule).map(|rule| rule.counts).unwrap_or_default()
    }

    /// The number of targets that have failed.
    fn failed(&self) -> usize {
        let targets = self.rules.values().flat_map(|rule| rule.targets.values());
        targets.filter(|target| target.health == CheckHealth::Failed).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{CheckKind, Require};

    const ONE: Place = (Ipv4Addr::new(10, 1, 0, 4), 443);
    const OTHER: Place = (Ipv4Addr::new(10, 1, 0, 5), 443);

    fn check(fall: u32, rise: u32) -> Check {
        Check {
            kind: CheckKind::Tcp,
            port: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            fall,
            rise,
            require: Require::Any,
        }
    }

    fn results(check: &Check, places: &[Place]) -> CheckResults {
        let mut results = CheckResults::default();
        follow(&mut results, check, places);
        results
    }

    fn follow(results: &mut CheckResults, check: &Check, places: &[Place]) -> bool {
        let rules = [("web", check, places.iter().copied().collect())];
        results.follow(rules.into_iter(), Instant::now())
    }

    fn good() -> Outcome {
        Outcome::Good(Duration::from_millis(3))
    }

    fn bad() -> Outcome {
        Outcome::Bad("it refuses connections".to_owned())
    }

    /// Has outcomes noted one after another. Returns the states.
    fn states(results: &mut CheckResults, outcomes: &[Outcome]) -> Vec<CheckHealth> {
        let mut note = |outcome: &Outcome| {
            let change = results.note("web", ONE, outcome.clone(), Instant::now());
            let health = results.of("web", ONE).expect("it is checked").health;
            assert!(change.is_none_or(|change| change.to == health && change.from != health));
            health
        };
        outcomes.iter().map(&mut note).collect()
    }

    use CheckHealth::{Failed, Good, Unknown};

    #[test]
    fn as_many_in_a_row_as_configured_decide() {
        let mut results = results(&check(3, 2), &[ONE]);
        let story = [good(), bad(), bad(), good(), bad(), bad(), bad(), good(), bad(), good(), good()];
        let states = states(&mut results, &story);
        assert_eq!(states, [Good, Good, Good, Good, Good, Good, Failed, Failed, Failed, Failed, Good]);
        assert_eq!(results.counts("web"), Counts { good: 5, bad: 6, not_made: 0 });
    }

    #[test]
    fn a_target_is_not_known_to_have_failed_before_its_checks_say_so() {
        let mut results = results(&check(2, 2), &[ONE, OTHER]);
        assert!(!results.has_failed("web", ONE));
        assert_eq!(states(&mut results, &[bad(), bad()]), [Unknown, Failed]);
        assert!(results.has_failed("web", ONE) && !results.has_failed("web", OTHER));
        assert!(!results.has_failed("another", ONE));
    }

    #[test]
    fn what_this_machine_could_not_do_says_nothing() {
        let mut results = results(&check(2, 1), &[ONE]);
        let not_made = || Outcome::NotMade("too many open files".to_owned());
        assert_eq!(
            states(&mut results, &[not_made(), bad(), not_made(), bad()]),
            [Unknown, Unknown, Unknown, Failed]
        );
        assert_eq!(states(&mut results, &[not_made(), good()]), [Failed, Good]);
    }

    #[test]
    fn a_change_of_the_configuration_keeps_what_is_known() {
        let mut results = results(&check(1, 1), &[ONE, OTHER]);
        assert_eq!(states(&mut results, &[bad()]), [Failed]);
        assert!(!follow(&mut results, &check(5, 5), &[ONE]), "only good ones are gone");
        assert!(results.has_failed("web", ONE) && results.of("web", OTHER).is_none());
        // Another check has found nothing yet.
        let another = Check { port: Some(8443), ..check(1, 1) };
        assert!(follow(&mut results, &another, &[ONE]));
        assert_eq!(results.of("web", ONE).map(|checked| checked.health), Some(Unknown));
        assert_eq!(results.counts("web").bad, 1, "counters go on");
        assert_eq!(states(&mut results, &[bad()]), [Failed]);
        assert!(results.follow(std::iter::empty(), Instant::now()));
        assert_eq!(results.note("web", ONE, good(), Instant::now()), None, "the last check of an old one");
    }

    proptest! {
        /// For any outcomes: a target changes its state only after `fall` or `rise` outcomes in a
        /// row that say so (the first good one apart), and then it does.
        #[test]
        fn keeps_its_promises(fall in 1..6_u32, rise in 1..6_u32, story in proptest::collection::vec(0..3_usize, 0..80)) {
            let mut results = results(&check(fall, rise), &[ONE]);
            let (mut row, mut expected) = (Vec::new(), Unknown);
            for kind in story {
                let outcome = [good(), bad(), Outcome::NotMade(String::new())][kind].clone();
                if kind < 2 {
                    row.push(kind);
                }
                let last = |number: u32, kind| {
                    row.iter().rev().take_while(|one| **one == kind).count() >= number as usize
                };
                if kind < 2 {
                    expected = match expected {
                        Unknown if last(1, 0) => Good,
                        Unknown | Good if last(fall, 1) => Failed,
                        Failed if last(rise, 0) => Good,
                        same @ (Unknown | Good | Failed) => same,
                    };
                }
                prop_assert_eq!(states(&mut results, &[outcome])[0], expected);
            }
        }
    }
}
