//! Decides which targets new sessions avoid: those that fail the active check of their rule
//! ([`check_health`](super::check_health)), and those that earlier sessions got no answer from.
//!
//! For the latter, a circuit breaker for each target. Sessions without an answer break it; it stays
//! open for a while, then new sessions try the target again: an answer closes it, and more silence
//! opens it for twice as long. An answer closes it in any state.
//!
//! ```text
//!          3 without an answer, none with                10 s, 20 s, 40 s, 80 s
//!   good ----------------------------------> avoided ------------------------------> trial
//!     ^                                        |  ^                                   | |
//!     +------------- an answer ----------------+  +--------- no answer --------------+ |
//!     +--------------------------------- an answer, or no session for long      ------+
//! ```
//!
//! If all targets of a rule are to be avoided, [`desired`](crate::daemon::control::desired)
//! decides.

use std::{
    collections::{HashMap, VecDeque},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use router_common::tuple::Protocol;

use super::check_health::CheckResults;
pub(crate) use crate::model::Health;

/// A session without a packet from its target after this long has got no answer. A client's SYN has
/// been repeated by then.
pub(crate) const UNANSWERED_AFTER: Duration = Duration::from_secs(3);
/// Sessions without an answer, and none with one, after which a target counts as dead.
const SUSPECT: u64 = 3;
/// The time for which a session without an answer counts.
const WINDOW: Duration = Duration::from_secs(30);
/// The time for which a target is avoided first.
const FIRST: Duration = Duration::from_secs(10);
/// The time for which it is avoided after many failed trials.
const LONGEST: Duration = Duration::from_secs(80);
/// The time without a session after which a trial is over.
const FORGET: Duration = Duration::from_secs(600);

/// A target as sessions see it. Port 0 stands for the port that the client used, of a rule that
/// listens on a range.
pub(crate) type Endpoint = (Ipv4Addr, u16, Protocol);

/// The outcome of sessions to a target since the last look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Signs {
    /// Young sessions that have got an answer. A session may be counted more than once.
    pub(crate) answered: u64,
    /// Sessions that have become older than [`UNANSWERED_AFTER`] without any. A session is counted
    /// once.
    pub(crate) unanswered: u64,
}

/// The outcome of sessions, by target.
#[derive(Clone, Debug, Default)]
pub(crate) struct TargetSigns {
    pub(crate) by_target: HashMap<Endpoint, Signs>,
}

/// A change of a target's health.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) target: Endpoint,
    pub(crate) from: Health,
    pub(crate) to: Health,
    /// In words for the operator.
    pub(crate) reason: String,
}

/// The health of a target, for people.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report<'a> {
    pub(crate) health: Health,
    /// Since when; `None` for as long as it is known.
    pub(crate) since: Option<Instant>,
    /// Why, in words for the operator; empty for one that is good.
    pub(crate) reason: &'a str,
}

/// The health of all targets. Of sessions to a target, nothing is kept that is not against it.
#[derive(Debug, Default)]
pub(crate) struct TargetHealth {
    /// The results of active checks.
    pub(crate) checks: CheckResults,
    suspects: HashMap<Endpoint, Suspect>,
}

#[derive(Debug)]
struct Suspect {
    health: Health,
    since: Instant,
    reason: String,
    /// While it is good: the sessions without an answer, by when they were seen.
    unanswered: VecDeque<(Instant, u64)>,
    /// The time for which it is, or was last, avoided.
    avoid: Duration,
}

impl TargetHealth {
    /// Takes in what sessions have shown, and that time has passed. Has to be called every few
    /// seconds, also when there are no signs.
    pub(crate) fn observe(&mut self, signs: &TargetSigns, now: Instant) -> Vec<Change> {
        let mut changes = self.pass_time(now);
        for (target, signs) in &signs.by_target {
            changes.extend(match signs {
                Signs { answered: 1.., .. } => self.answered(*target),
                Signs { unanswered: 0, .. } => None,
                Signs { unanswered, .. } => self.unanswered(*target, *unanswered, now),
            });
        }
        changes
    }

    /// Returns `true` if new sessions of a rule avoid it.
    pub(crate) fn is_avoided(&self, rule: &str, target: Endpoint) -> bool {
        self.avoids(target) || self.checks.has_failed(rule, (target.0, target.1))
    }

    /// Returns `true` if new sessions avoid it for what earlier ones have shown.
    pub(crate) fn avoids(&self, target: Endpoint) -> bool {
        self.report(target).health == Health::Avoided
    }

    /// Returns the health of a target, as sessions have shown it.
    pub(crate) fn report(&self, target: Endpoint) -> Report<'_> {
        match self.suspects.get(&target) {
            Some(Suspect { health: health @ (Health::Avoided | Health::Trial), since, reason, .. }) => {
                Report { health: *health, since: Some(*since), reason }
            }
            _ => Report { health: Health::Good, since: None, reason: "" },
        }
    }

    fn pass_time(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        self.suspects.retain(|target, suspect| {
            let age = now.saturating_duration_since(suspect.since);
            match suspect.health {
                Health::Good => {
                    suspect.forget_old(now);
                    !suspect.unanswered.is_empty()
                }
                Health::Avoided => {
                    if age >= suspect.avoid {
                        let reason = format!("{}; new sessions try it again", suspect.reason);
                        changes.push(suspect.turn(*target, Health::Trial, reason, now));
                    }
                    true
                }
                Health::Trial => {
                    let over = age >= FORGET;
                    if over {
                        let reason = "no new session has tried it for long".to_owned();
                        changes.push(suspect.turn(*target, Health::Good, reason, now));
                    }
                    !over
                }
            }
        });
        changes
    }

    fn answered(&mut self, target: Endpoint) -> Option<Change> {
        let Suspect { health: from, .. } = self.suspects.remove(&target)?;
        (from != Health::Good).then(|| Change {
            target,
            from,
            to: Health::Good,
            reason: "a new session got an answer".to_owned(),
        })
    }

    fn unanswered(&mut self, target: Endpoint, count: u64, now: Instant) -> Option<Change> {
        let suspect = self.suspects.entry(target).or_insert_with(|| Suspect {
            health: Health::Good,
            since: now,
            reason: String::new(),
            unanswered: VecDeque::new(),
            avoid: Duration::ZERO,
        });
        let (count, avoid) = match suspect.health {
            Health::Good => {
                suspect.unanswered.push_back((now, count));
                suspect.forget_old(now);
                let count =
                    suspect.unanswered.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
                (count >= SUSPECT).then_some((count, FIRST))?
            }
            // Sessions from before, or of a rule that leads nowhere else.
            Health::Avoided => return None,
            // So soon only sessions from before the trial can have waited for long enough.
            Health::Trial if now.saturating_duration_since(suspect.since) < UNANSWERED_AFTER => return None,
            Health::Trial => (count, suspect.avoid.saturating_mul(2).min(LONGEST)),
        };
        let sessions = if count == 1 { "1 new session".to_owned() } else { format!("{count} new sessions") };
        let reason =
            format!("{sessions} without an answer in {} s, and none with one", UNANSWERED_AFTER.as_secs());
        suspect.avoid = avoid;
        Some(suspect.turn(target, Health::Avoided, reason, now))
    }
}

impl Suspect {
    fn turn(&mut self, target: Endpoint, to: Health, reason: String, now: Instant) -> Change {
        let from = std::mem::replace(&mut self.health, to);
        self.since = now;
        self.unanswered.clear();
        self.reason.clone_from(&reason);
        Change { target, from, to, reason }
    }

    fn forget_old(&mut self, now: Instant) {
        self.unanswered.retain(|(seen, _)| now.saturating_duration_since(*seen) < WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: Endpoint = (Ipv4Addr::new(10, 1, 0, 4), 443, Protocol::Tcp);
    const OTHER: Endpoint = (Ipv4Addr::new(10, 1, 0, 5), 443, Protocol::Tcp);

    /// A clock that starts anywhere, and what is seen at its times.
    struct World {
        start: Instant,
        health: TargetHealth,
    }

    impl World {
        fn new() -> Self {
            Self { start: Instant::now(), health: TargetHealth::default() }
        }

        /// Has a target show something, at so many seconds; gives the changes as where from and
        /// where to.
        fn see(
            &mut self,
            second: u64,
            target: Endpoint,
            answered: u64,
            unanswered: u64,
        ) -> Vec<(Health, Health)> {
            let by_target = HashMap::from([(target, Signs { answered, unanswered })]);
            let changes =
                self.health.observe(&TargetSigns { by_target }, self.start + Duration::from_secs(second));
            changes.into_iter().map(|change| (change.from, change.to)).collect()
        }

        fn pass(&mut self, second: u64) -> Vec<(Health, Health)> {
            self.see(second, ONE, 0, 0)
        }
    }

    use Health::{Avoided, Good, Trial};

    #[test]
    fn three_sessions_without_an_answer_are_enough() {
        let mut world = World::new();
        assert_eq!(world.see(0, ONE, 0, 2), []);
        assert!(!world.health.avoids(ONE));
        assert_eq!(world.see(2, ONE, 0, 1), [(Good, Avoided)]);
        assert!(world.health.avoids(ONE) && !world.health.avoids(OTHER));
        let report = world.health.report(ONE);
        assert_eq!(report.since, Some(world.start + Duration::from_secs(2)));
        assert_eq!(report.reason, "3 new sessions without an answer in 3 s, and none with one");
    }

    #[test]
    fn one_answer_outweighs_any_silence() {
        let mut world = World::new();
        assert_eq!(world.see(0, ONE, 0, 2), []);
        assert_eq!(world.see(2, ONE, 1, 1000), []);
        // Sessions before the answer are forgotten.
        assert_eq!(world.see(4, ONE, 0, 2), []);
        assert_eq!(world.see(6, ONE, 0, 1), [(Good, Avoided)]);
        assert_eq!(world.see(8, ONE, 1, 5), [(Avoided, Good)]);
        assert_eq!(world.health.report(ONE), Report { health: Good, since: None, reason: "" });
    }

    #[test]
    fn silence_a_while_ago_does_not_count() {
        let mut world = World::new();
        assert_eq!(world.see(0, ONE, 0, 2), []);
        assert_eq!(world.see(30, ONE, 0, 2), []);
        assert_eq!(world.see(59, ONE, 0, 1), [(Good, Avoided)]);
    }

    #[test]
    fn failed_trials_double_the_time_up_to_80_seconds() {
        let mut world = World::new();
        assert_eq!(world.see(0, ONE, 0, 3), [(Good, Avoided)]);
        let mut second = 0;
        for avoided in [10, 20, 40, 80, 80] {
            assert_eq!(world.pass(second + avoided - 1), []);
            second += avoided;
            assert_eq!(world.pass(second), [(Avoided, Trial)], "after {avoided} s");
            assert!(!world.health.avoids(ONE));
            // A session that is 3 s old by now began before the trial.
            assert_eq!(world.see(second + 2, ONE, 0, 3), []);
            second += 4;
            assert_eq!(world.see(second, ONE, 0, 1), [(Trial, Avoided)]);
        }
        second += 80;
        assert_eq!(world.pass(second), [(Avoided, Trial)]);
        assert_eq!(world.see(second + 1, ONE, 1, 0), [(Trial, Good)]);
        // The next time starts over.
        assert_eq!(world.see(second + 2, ONE, 0, 3), [(Good, Avoided)]);
        assert_eq!(world.pass(second + 12), [(Avoided, Trial)]);
    }

    #[test]
    fn sessions_of_others_do_not_prolong_it() {
        let mut world = World::new();
        assert_eq!(world.see(0, ONE, 0, 3), [(Good, Avoided)]);
        assert_eq!(world.see(5, ONE, 0, 100), []);
        assert_eq!(world.pass(10), [(Avoided, Trial)]);
    }

    #[test]
    fn a_target_without_sessions_is_forgotten() {
        let mut world = World::new();
        assert_eq!(world.see(0, ONE, 0, 1), []);
        assert_eq!(world.see(0, OTHER, 0, 3), [(Good, Avoided)]);
        assert_eq!(world.pass(10), [(Avoided, Trial)]);
        assert_eq!(world.pass(609), []);
        assert_eq!(world.pass(610), [(Trial, Good)]);
        assert!(world.health.suspects.is_empty(), "{:?}", world.health.suspects);
    }

    proptest! {
        /// For any sequence of signs, every change is of one of the machine's arrows, and tells the
        /// truth; a target that answers is good; no target is avoided for longer than 80 s and the
        /// time between two looks, nor without three sessions in half a minute that say so.
        #[test]
        fn keeps_its_promises(story in proptest::collection::vec((0..20_u64, 0..3_usize, 0..2_u64, 0..4_u64), 1..200)) {
            let targets = [ONE, OTHER, (Ipv4Addr::new(10, 1, 0, 6), 443, Protocol::Tcp)];
            let mut world = World::new();
            let mut second = 0;
            let mut states = targets.map(|_| (Good, 0));
            let mut seen: [Vec<(u64, u64)>; 3] = Default::default();
            for (step, who, answered, unanswered) in story {
                second += step;
                let by_target = HashMap::from([(targets[who], Signs { answered, unanswered })]);
                if answered > 0 { seen[who].clear() } else { seen[who].push((second, unanswered)) }
                let now = world.start + Duration::from_secs(second);
                for Change { target, from, to, .. } in world.health.observe(&TargetSigns { by_target }, now) {
                    let at = targets.iter().position(|known| *known == target).expect("one of ours");
                    prop_assert_eq!(states[at].0, from);
                    prop_assert!(matches!((from, to), (Good, Avoided) | (Avoided, Trial | Good) | (Trial, Avoided | Good)));
                    match (from, to) {
                        (Good, Avoided) => {
                            let recent = seen[at].iter().filter(|(when, _)| second - when < 30);
                            prop_assert!(recent.map(|(_, count)| count).sum::<u64>() >= 3);
                        }
                        (Avoided, Trial) => prop_assert!(second - states[at].1 >= 10),
                        _ => {}
                    }
                    states[at] = (to, second);
                }
                for (target, (health, since)) in targets.iter().zip(states) {
                    prop_assert_eq!(world.health.report(*target).health, health);
                    prop_assert_eq!(world.health.avoids(*target), health == Avoided);
                    prop_assert!(health != Avoided || second - since < 80);
                }
                if answered > 0 {
                    prop_assert_eq!(world.health.report(targets[who]).health, Good);
                }
            }
        }
    }
}
