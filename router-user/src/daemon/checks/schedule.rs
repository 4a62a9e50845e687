//! Decides when each target is checked: spread over time, a few at once. No I/O and no clock.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

/// The most checks at a time.
pub(crate) const AT_ONCE: usize = 64;
/// The most checks of one rule at a time: targets that do not answer take the whole timeout, and
/// leave the other rules room.
const OF_A_RULE: usize = 8;
/// The time from one check to the next at least, of any targets.
const GAP: Duration = Duration::from_millis(5);
/// The time over which the first checks of new targets are spread.
const SPREAD: Duration = Duration::from_secs(1);
/// The pause between the first checks of a target, as long as nothing is known of it.
const SOON: Duration = Duration::from_secs(1);

/// A target of a rule: the rule's name, and its address and port as sessions see it.
pub(super) type Key = (Arc<str>, Ipv4Addr, u16);

#[derive(Debug)]
struct Entry {
    interval: Duration,
    state: Turn,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Turn {
    /// The check is due at this time.
    At(Instant),
    /// The check that began then is being made.
    Since(Instant),
}

/// The turns of all targets.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    entries: HashMap<Key, Entry>,
    /// Those that wait, by when they are due.
    queue: BTreeSet<(Instant, Key)>,
    /// The numbers of checks that are being made, by rule; also of targets that are gone.
    running: HashMap<Arc<str>, usize>,
    /// No check starts before.
    gap: Option<Instant>,
}

impl Schedule {
    /// Takes in the targets that are to be checked from now on, each with its interval. New ones
    /// have their turns soon, one after another.
    pub(super) fn follow(&mut self, targets: &HashMap<Key, Duration>, now: Instant) {
        self.entries.retain(|key, entry| {
            let stays = targets.contains_key(key);
            if let (false, Turn::At(due)) = (stays, entry.state) {
                self.queue.remove(&(due, key.clone()));
            }
            stays
        });
        let mut new = Vec::new();
        for (key, interval) in targets {
            match self.entries.get_mut(key) {
                Some(entry) => entry.interval = *interval,
                None => new.push((key, *interval)),
            }
        }
        let number = u32::try_from(new.len()).unwrap_or(u32::MAX).max(1);
        // In no order of rules or addresses: a map has none.
        for ((key, interval), place) in new.into_iter().zip(0_u32..) {
            let due = now + SPREAD.min(interval) / number * place;
            self.entries.insert(key.clone(), Entry { interval, state: Turn::At(due) });
            self.queue.insert((due, key.clone()));
        }
    }

    /// Returns a target whose check is to start now, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> Option<Key> {
        if self.gap.is_some_and(|gap| now < gap) || self.running.values().sum::<usize>() >= AT_ONCE {
            return None;
        }
        let has_room = |(_, (rule, ..)): &&(Instant, Key)| {
            self.running.get(rule).is_none_or(|running| *running < OF_A_RULE)
        };
        let due = self.queue.iter().take_while(|(due, _)| *due <= now);
        let next = due.into_iter().find(has_room).cloned()?;
        self.queue.remove(&next);
        let (_, key) = next;
        self.entries.get_mut(&key)?.state = Turn::Since(now);
        *self.running.entry(key.0.clone()).or_default() += 1;
        self.gap = Some(now + GAP);
        Some(key)
    }

    /// Notes that a check is over, and gives the target its next turn.
    ///
    /// `is_known`: the state of the target is known by now. `jitter`: about 1; what the interval is
    /// multiplied by, so that targets do not stay in step.
    pub(super) fn done(&mut self, key: &Key, is_known: bool, jitter: f64, now: Instant) {
        if let Some(running) = self.running.get_mut(&key.0) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(&key.0);
            }
        }
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Turn::Since(started) = entry.state else { return };
        let due =
            if is_known { started + entry.interval.mul_f64(jitter) } else { now + SOON.min(entry.interval) };
        let due = due.max(now);
        entry.state = Turn::At(due);
        self.queue.insert((due, key.clone()));
    }

    /// Returns the time at which a check may have to start; `None` while only the end of another
    /// one, or new targets, can lead to any.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.running.values().sum::<usize>() >= AT_ONCE {
            return None;
        }
        let has_room = |rule: &Arc<str>| self.running.get(rule).is_none_or(|running| *running < OF_A_RULE);
        let (due, _) = self.queue.iter().find(|(_, (rule, ..))| has_room(rule))?;
        Some(self.gap.map_or(*due, |gap| gap.max(*due)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(rule: &str, number: u32) -> Key {
        (rule.into(), Ipv4Addr::from_bits(0x0a01_0000 + number), 443)
    }

    fn targets(rule: &str, number: u32, interval: u64) -> HashMap<Key, Duration> {
        (0..number).map(|number| (key(rule, number), Duration::from_secs(interval))).collect()
    }

    /// A schedule that is followed for a time: checks of the rule `dead` take two seconds, and
    /// those of others ten milliseconds.
    struct World {
        start: Instant,
        now: Duration,
        schedule: Schedule,
        running: Vec<(Duration, Key)>,
        /// When each check began.
        log: Vec<(Duration, Key)>,
    }

    impl World {
        fn with(targets: &HashMap<Key, Duration>) -> Self {
            let start = Instant::now();
            let mut schedule = Schedule::default();
            schedule.follow(targets, start);
            Self { start, now: Duration::ZERO, schedule, running: Vec::new(), log: Vec::new() }
        }

        fn run(&mut self, seconds: u64) {
            let end = self.now + Duration::from_secs(seconds);
            while self.now < end {
                let now = self.start + self.now;
                while let Some(key) = self.schedule.take(now) {
                    let takes = if &*key.0 == "dead" { 2000 } else { 10 };
                    self.running.push((self.now + Duration::from_millis(takes), key.clone()));
                    self.log.push((self.now, key));
                    assert!(self.running.len() <= AT_ONCE);
                }
                let over = self.running.extract_if(.., |(end, _)| *end <= self.now).collect::<Vec<_>>();
                for (_, key) in over {
                    self.schedule.done(&key, true, 1.0, now);
                }
                // No later than the schedule says, or when a check ends.
                let next = self.schedule.next().map(|next| next.saturating_duration_since(self.start));
                let ends = self.running.iter().map(|(end, _)| *end);
                let next = ends.chain(next).min().unwrap_or(end);
                self.now = next.max(self.now + Duration::from_micros(100));
            }
        }

        fn times(&self, key: &Key) -> Vec<Duration> {
            self.log.iter().filter(|(_, one)| one == key).map(|(at, _)| *at).collect()
        }
    }

    #[test]
    fn first_checks_are_spread_over_a_second_and_the_others_follow() {
        let mut world = World::with(&targets("web", 20, 5));
        world.run(21);
        let first: Vec<u128> = world.log.iter().take(20).map(|(at, _)| at.as_millis()).collect();
        assert_eq!(first, (0..20).map(|place| place * 50).collect::<Vec<_>>());
        for number in 0..20 {
            let times = world.times(&key("web", number));
            assert!((4..=5).contains(&times.len()), "{times:?}");
            assert!(times.windows(2).all(|pair| (pair[1] - pair[0]).as_millis() == 5000), "{times:?}");
        }
    }

    /// 32 names with 32 addresses each.
    #[test]
    fn many_targets_do_not_make_a_burst() {
        let mut world = World::with(&targets("web", 1024, 5));
        world.run(60);
        assert!(world.log.windows(2).all(|pair| pair[1].0 - pair[0].0 >= GAP), "a burst");
        for number in 0..1024 {
            assert!(world.times(&key("web", number)).len() >= 8, "{number} is left out");
        }
    }

    #[test]
    fn dead_targets_of_one_rule_do_not_delay_another_rule() {
        let mut all = targets("dead", 1024, 5);
        all.extend(targets("web", 2, 5));
        let mut world = World::with(&all);
        world.run(60);
        for number in 0..2 {
            let times = world.times(&key("web", number));
            assert!(times.len() >= 11, "{times:?}");
        }
        assert!(world.log.len() > 200, "{}", world.log.len());
    }

    #[test]
    fn what_is_not_known_is_asked_again_soon() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.follow(&targets("web", 1, 30), start);
        let one = schedule.take(start).expect("due");
        assert_eq!(schedule.next(), None);
        let at = |seconds| start + Duration::from_secs(seconds);
        schedule.done(&one, false, 1.0, at(2));
        assert_eq!((schedule.take(at(2)), schedule.next()), (None, Some(at(3))));
        assert_eq!(schedule.take(at(3)), Some(one.clone()));
        schedule.done(&one, true, 1.1, at(4));
        assert_eq!(schedule.next(), Some(at(36)));
    }

    #[test]
    fn targets_come_and_go() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.follow(&targets("web", 2, 5), start);
        let one = schedule.take(start).expect("due");
        // Both are gone, one of them while it is checked.
        schedule.follow(&HashMap::new(), start);
        assert_eq!(schedule.next(), None);
        schedule.done(&one, true, 1.0, start);
        assert!(schedule.next().is_none() && schedule.running.is_empty() && schedule.queue.is_empty());
        // It comes back, while its old check is still being made.
        schedule.follow(&targets("web", 1, 5), start);
        let at = start + GAP;
        let again = schedule.take(at).expect("due");
        schedule.follow(&HashMap::new(), at);
        schedule.follow(&targets("web", 1, 5), at);
        schedule.done(&again, true, 1.0, at);
        let due = schedule.next().expect("its new turn");
        assert!(due <= at + GAP && schedule.running.is_empty());
    }

    proptest! {
        /// For any changes: nothing is lost from the queue, and nothing is in it twice.
        #[test]
        fn keeps_its_books(story in proptest::collection::vec((0..4_usize, 0..6_u32, 0..2000_u64), 1..100)) {
            let (start, mut at) = (Instant::now(), 0);
            let (mut schedule, mut wanted, mut running) = (Schedule::default(), HashMap::new(), Vec::new());
            for (what, number, step) in story {
                at += step;
                let now = start + Duration::from_millis(at);
                match what {
                    0 => {
                        wanted.insert(key("web", number), Duration::from_secs(1));
                        schedule.follow(&wanted, now);
                    }
                    1 => {
                        wanted.remove(&key("web", number));
                        schedule.follow(&wanted, now);
                    }
                    2 => running.extend(schedule.take(now)),
                    _ => if let Some(key) = running.pop() {
                        schedule.done(&key, number % 2 == 0, 1.0, now);
                    }
                }
                let waiting = schedule.entries.values().filter(|entry| matches!(entry.state, Turn::At(_))).count();
                prop_assert_eq!(schedule.entries.len(), wanted.len());
                prop_assert_eq!(schedule.queue.len(), waiting);
                prop_assert_eq!(schedule.running.values().sum::<usize>(), running.len());
                for (due, key) in &schedule.queue {
                    prop_assert_eq!(schedule.entries[key].state, Turn::At(*due));
                }
            }
        }
    }
}
