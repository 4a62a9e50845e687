//! Decides what the probe answers: a state counts when it has lasted for a while.
//!
//! The load balancer takes a machine out after a few bad answers and sends it new connections after
//! a few good ones. A fault that is over after a moment is no reason for either, so a change has to
//! last before the answer changes: `down_after` and `up_after` of `[health]`. Nothing waits where
//! waiting can only do harm ([`Effect`](crate::health::Effect)): an order of the operator counts at
//! once, as does its end, and so does a program that is not on its interface.
//!
//! A load balancer does not see a restart: a daemon that starts answers 200 the first time that all
//! is well. Until then it has no answer for a moment (a neighbour may have to be asked for), and
//! answers 503 after that. Pure: no clock, no I/O.

use std::time::{Duration, Instant};

use crate::health::{Conditions, Effect, Severity};

/// The time that a start may take to find that all is well, before there is an answer.
const START: Duration = Duration::from_secs(1);

/// The times for which a state has to last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Times {
    /// Not forwarding, before the probe answers 503.
    pub(crate) down_after: Duration,
    /// Forwarding again, before the probe answers 200.
    pub(crate) up_after: Duration,
}

/// The outcome of a look at the router.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Found {
    /// It does not forward.
    pub(crate) is_down: bool,
    /// It does not forward, for a reason that does not pass by itself.
    pub(crate) is_lost: bool,
    /// The operator wants no new connections.
    pub(crate) is_ordered: bool,
}

impl Found {
    /// Returns what conditions amount to.
    pub(crate) fn of(conditions: &Conditions) -> Self {
        let mut found = Self::default();
        for condition in conditions.iter().filter(|condition| condition.severity == Severity::Down) {
            match condition.id.effect() {
                Effect::Lasting => found.is_down = true,
                Effect::AtOnce => found.is_lost = true,
                Effect::Ordered => found.is_ordered = true,
            }
        }
        found
    }
}

/// A change that has begun and not lasted for long enough.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Pending {
    pub(crate) since: Instant,
    /// The time for which it has to last.
    pub(crate) after: Duration,
}

/// The answer of the probe.
#[derive(Debug, Default)]
pub(crate) struct ProbeAnswer {
    /// `true` if the router forwards, as far as no order says otherwise.
    is_up: bool,
    /// `true` once it has been.
    has_been_up: bool,
    /// The time since when it has looked other than `is_up`.
    other_since: Option<Instant>,
    pending: Option<Pending>,
    /// The time of the first look.
    start: Option<Instant>,
    /// The answer, and since when it is given; `None` while there is none.
    given: Option<(bool, Instant)>,
    changes: u64,
}

impl ProbeAnswer {
    /// Takes in what a look at `now` has found. Returns `true` if the answer is another one now.
    pub(crate) fn observe(&mut self, found: Found, times: Times, now: Instant) -> bool {
        let looks_up = !found.is_down && !found.is_lost;
        if looks_up == self.is_up {
            self.other_since = None;
        } else {
            let since = *self.other_since.get_or_insert(now);
            let after = if looks_up { times.up_after } else { times.down_after };
            let counts_at_once = if looks_up { !self.has_been_up } else { found.is_lost };
            if counts_at_once || now.saturating_duration_since(since) >= after {
                self.is_up = looks_up;
                self.other_since = None;
            }
            self.pending = Some(Pending { since, after });
        }
        self.has_been_up |= self.is_up;
        // Whatever the router looks like, an order decides.
        if self.other_since.is_none() || found.is_ordered {
            self.pending = None;
        }
        let start = *self.start.get_or_insert(now);
        let answer = self.is_up && !found.is_ordered;
        let is_starting = now.saturating_duration_since(start) < START.min(times.down_after);
        if self.given.is_none() && is_starting && !answer && !found.is_ordered && !found.is_lost {
            return false;
        }
        let before = self.given.map(|(answer, _)| answer);
        if before == Some(answer) {
            return false;
        }
        self.given = Some((answer, now));
        if before.is_some() {
            self.changes = self.changes.saturating_add(1);
        }
        true
    }

    /// Returns `true` if the answer is that the router forwards.
    pub(crate) fn forwards(&self) -> bool {
        self.given.is_some_and(|(answer, _)| answer)
    }

    /// Returns the time since when the answer is given; `None` while a daemon that has just started
    /// has none.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.given.map(|(_, since)| since)
    }

    /// Returns the change that has begun, if there is one.
    pub(crate) fn pending(&self) -> Option<Pending> {
        self.pending
    }

    /// Returns the number of changes since the first answer.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::health::Id;

    const GOOD: Found = Found { is_down: false, is_lost: false, is_ordered: false };
    const DOWN: Found = Found { is_down: true, ..GOOD };
    const LOST: Found = Found { is_lost: true, ..GOOD };
    const ORDERED: Found = Found { is_ordered: true, ..GOOD };
    const TIMES: Times =
        Times { down_after: Duration::from_millis(2000), up_after: Duration::from_millis(5000) };

    /// A clock that starts anywhere, and an answer that is asked for at its times.
    struct World {
        start: Instant,
        answer: ProbeAnswer,
        times: Times,
    }

    impl World {
        fn with(times: Times) -> Self {
            Self { start: Instant::now(), answer: ProbeAnswer::default(), times }
        }

        /// One that forwards since the beginning.
        fn forwarding() -> Self {
            let mut world = Self::with(TIMES);
            assert!(world.see(0, GOOD));
            world
        }

        fn at(&self, milliseconds: u64) -> Instant {
            self.start + Duration::from_millis(milliseconds)
        }

        /// Returns `true` if the answer is 200 after this look.
        fn see(&mut self, milliseconds: u64, found: Found) -> bool {
            let now = self.at(milliseconds);
            self.answer.observe(found, self.times, now);
            self.answer.forwards()
        }
    }

    #[test]
    fn a_good_start_counts_at_once() {
        let mut world = World::forwarding();
        assert_eq!((world.answer.since(), world.answer.changes()), (Some(world.at(0)), 0));
        assert_eq!(world.answer.pending(), None);
        assert!(world.see(10, GOOD));
    }

    #[test]
    fn a_start_that_becomes_good_counts_at_once() {
        let mut world = World::with(TIMES);
        assert!(!world.see(0, DOWN) && !world.see(999, DOWN));
        assert_eq!(world.answer.since(), None, "no answer yet");
        assert!(!world.see(1000, DOWN));
        assert_eq!(world.answer.since(), Some(world.at(1000)));
        assert!(world.see(1001, GOOD), "it has never been in service: nothing flaps");
        assert_eq!((world.answer.since(), world.answer.changes()), (Some(world.at(1001)), 1));
    }

    #[test]
    fn the_first_moment_of_a_start_has_no_answer() {
        let mut world = World::with(TIMES);
        assert!(!world.see(0, DOWN) && world.see(400, GOOD));
        assert_eq!((world.answer.since(), world.answer.changes()), (Some(world.at(400)), 0));
        for found in [LOST, ORDERED] {
            let mut world = World::with(TIMES);
            assert!(!world.see(0, found));
            assert_eq!(world.answer.since(), Some(world.at(0)), "waiting does not help");
        }
        let mut world = World::with(Times { down_after: Duration::ZERO, ..TIMES });
        assert!(!world.see(0, DOWN));
        assert_eq!(world.answer.since(), Some(world.at(0)));
    }

    #[test]
    fn a_blip_does_not_count() {
        let mut world = World::forwarding();
        assert!(world.see(1000, DOWN) && world.see(2999, DOWN));
        let pending = Pending { since: world.at(1000), after: TIMES.down_after };
        assert_eq!(world.answer.pending(), Some(pending));
        assert!(world.see(3000, GOOD));
        assert_eq!((world.answer.pending(), world.answer.changes()), (None, 0));
        // And the next one does not add to it.
        assert!(world.see(3001, DOWN) && world.see(5000, DOWN));
        assert!(!world.see(5001, DOWN));
        assert_eq!(world.answer.since(), Some(world.at(5001)));
    }

    #[test]
    fn good_again_has_to_last_as_well() {
        let mut world = World::forwarding();
        assert!(world.see(0, DOWN) && !world.see(2000, DOWN));
        assert_eq!(world.answer.pending(), None);
        assert!(!world.see(2500, GOOD) && !world.see(7000, GOOD) && !world.see(7100, DOWN));
        assert!(!world.see(7200, GOOD) && !world.see(12_199, GOOD) && world.see(12_200, GOOD));
        assert_eq!(world.answer.changes(), 2);
    }

    #[test]
    fn a_lost_program_counts_at_once_and_its_return_does_not() {
        let mut world = World::forwarding();
        assert!(!world.see(1000, LOST));
        assert!(!world.see(1001, GOOD) && !world.see(6000, GOOD) && world.see(6001, GOOD));
        // Also in the middle of another fault.
        assert!(world.see(7000, DOWN) && !world.see(7001, LOST));
        assert_eq!(world.answer.since(), Some(world.at(7001)));
    }

    #[test]
    fn an_order_counts_at_once_and_so_does_its_end() {
        let mut world = World::forwarding();
        assert!(!world.see(1000, ORDERED) && world.see(1001, GOOD));
        // What happens meanwhile goes on.
        assert!(!world.see(2000, ORDERED) && !world.see(3000, Found { is_down: true, ..ORDERED }));
        assert_eq!(world.answer.pending(), None, "of no interest meanwhile");
        assert!(!world.see(5000, Found { is_down: true, ..ORDERED }) && !world.see(5001, GOOD));
        assert!(!world.see(10_000, GOOD) && world.see(10_001, GOOD));
    }

    #[test]
    fn without_times_every_look_counts() {
        let mut world = World::with(Times { down_after: Duration::ZERO, up_after: Duration::ZERO });
        for (found, forwards) in [(GOOD, true), (DOWN, false), (GOOD, true), (LOST, false), (GOOD, true)] {
            assert_eq!(world.see(0, found), forwards);
            assert_eq!(world.answer.pending(), None);
        }
    }

    #[test]
    fn times_that_change_count_from_now_on() {
        let mut world = World::forwarding();
        assert!(world.see(0, DOWN) && world.see(1000, DOWN));
        world.times.down_after = Duration::from_secs(1);
        assert!(!world.see(1001, DOWN));
    }

    #[test]
    fn conditions_count_by_their_identifiers() {
        let found = |id, severity| {
            let mut conditions = Conditions::at(Instant::now());
            conditions.add(severity, id, "", "");
            Found::of(&conditions)
        };
        assert_eq!(found(Id::NoRules, Severity::Down), DOWN);
        assert_eq!(found(Id::ProgramLost, Severity::Down), LOST);
        assert_eq!(found(Id::Detached, Severity::Down), ORDERED);
        assert_eq!(found(Id::ProgramLost, Severity::Degraded), GOOD);
    }

    proptest! {
        /// For any sequence of looks and any times: the answer is 503 while there is an order; a
        /// lost program makes it 503; and apart from these (and from the first good look) it
        /// changes only when all looks of the last `down_after` or `up_after` say so, and then
        /// it does.
        #[test]
        fn keeps_its_promises(
            down_after in 0..400_u64,
            up_after in 0..400_u64,
            story in proptest::collection::vec((0..300_u64, 0..8_usize), 1..120),
        ) {
            let times = Times { down_after: Duration::from_millis(down_after), up_after: Duration::from_millis(up_after) };
            let mut world = World::with(times);
            let (mut at, mut looks, mut up, mut has_been_up) = (0, Vec::new(), false, false);
            for (step, kind) in story {
                at += step;
                let found = [GOOD, GOOD, GOOD, DOWN, DOWN, LOST, ORDERED, Found { is_down: true, ..ORDERED }][kind];
                let looks_up = !found.is_down && !found.is_lost;
                looks.push((at, looks_up));
                // The looks since the router looks as it does now.
                let same = looks.iter().rev().take_while(|(_, looked_up)| *looked_up == looks_up);
                let begin = same.map(|(at, _)| *at).last().expect("this look");
                let lasts = at - begin >= if looks_up { up_after } else { down_after };
                if looks_up != up && (lasts || (looks_up && !has_been_up) || found.is_lost) {
                    up = looks_up;
                }
                has_been_up |= up;
                let (before, since) = (world.answer.forwards(), world.answer.since());
                let forwards = world.see(at, found);
                prop_assert_eq!(forwards, up && !found.is_ordered);
                prop_assert!(!forwards || !found.is_ordered && !found.is_lost);
                let is_starting = at - looks[0].0 < down_after.min(1000);
                if since.is_none() && is_starting && !forwards && !found.is_ordered && !found.is_lost {
                    prop_assert_eq!(world.answer.since(), None);
                } else if since.is_some() && before == forwards {
                    prop_assert_eq!(world.answer.since(), since);
                } else {
                    prop_assert_eq!(world.answer.since(), Some(world.at(at)));
                }
                let is_pending = !found.is_ordered && looks_up != up;
                prop_assert_eq!(world.answer.pending().map(|pending| pending.since), is_pending.then(|| world.at(begin)));
            }
        }
    }
}
