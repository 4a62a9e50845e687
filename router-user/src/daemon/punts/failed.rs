//! Neighbours that have not answered.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use router_common::maps::punt::Neighbour;

/// The time for which no packets are queued for a neighbour that has not answered: their senders
/// are answered at once.
pub(super) const HOLD: Duration = Duration::from_secs(10);
/// The period in which a failed neighbour is asked for, to notice earlier that it is back.
const AGAIN: Duration = Duration::from_secs(2);

/// The failed neighbours, for which no packets are queued now.
#[derive(Debug, Default)]
pub(super) struct FailedNeighbours {
    neighbours: HashMap<Neighbour, Times>,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    /// The time at which it was added.
    since: Instant,
    /// The time at which the kernel was last asked for it.
    asked: Instant,
}

impl FailedNeighbours {
    /// Adds a neighbour that has not answered.
    pub(super) fn add(&mut self, neighbour: Neighbour, now: Instant) {
        self.neighbours.insert(neighbour, Times { since: now, asked: now });
    }

    /// Removes a neighbour. Returns `true` if it was among the failed ones.
    pub(super) fn remove(&mut self, neighbour: &Neighbour) -> bool {
        self.neighbours.remove(neighbour).is_some()
    }

    /// Returns `true` if a neighbour is among the failed ones.
    pub(super) fn contains(&self, neighbour: &Neighbour) -> bool {
        self.neighbours.contains_key(neighbour)
    }

    /// Removes and returns the neighbours whose [`HOLD`] is over.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<Neighbour> {
        self.neighbours
            .extract_if(|_, times| now.saturating_duration_since(times.since) >= HOLD)
            .map(|(neighbour, _)| neighbour)
            .collect()
    }

    /// Returns the neighbours that are to be asked for again now, and notes that they were.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Neighbour> {
        let mut due = Vec::new();
        for (neighbour, times) in &mut self.neighbours {
            if now.saturating_duration_since(times.asked) >= AGAIN {
                times.asked = now;
                due.push(*neighbour);
            }
        }
        due
    }

    /// Returns `true` if there are no failed neighbours.
    pub(super) fn is_empty(&self) -> bool {
        self.neighbours.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_was_given_up_is_asked_for_and_has_its_chance_again() {
        let (mut failed, start) = (FailedNeighbours::default(), Instant::now());
        let [one, other] = [1, 2].map(|interface| Neighbour { interface, address: [0; 16] });
        failed.add(one, start);
        failed.add(other, start + AGAIN);
        assert_eq!(failed.due(start), []);
        assert_eq!(failed.due(start + AGAIN), [one]);
        assert_eq!(failed.due(start + AGAIN), [], "once each time");
        assert_eq!(failed.due(start + AGAIN * 2).len(), 2);
        assert_eq!(failed.take_expired(start + HOLD), [one]);
        assert!(!failed.contains(&one) && failed.contains(&other));
        assert!(failed.remove(&other) && !failed.remove(&other));
        assert!(failed.is_empty());
    }
}
