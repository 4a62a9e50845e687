//! Packets that wait for a neighbour's MAC address.
//!
//! There is as much room for each neighbour as the kernel has for its own packets
//! (`net.ipv4.neigh.default.unres_qlen_bytes`), and a limit for all together. Where there is none
//! left, the oldest packets go.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use router_common::maps::punt::Neighbour;

use super::received::Received;

/// The maximum number of bytes queued for one neighbour.
pub(super) const NEIGHBOUR_BYTES: usize = 208 << 10;
/// The maximum number of bytes queued for all neighbours together.
pub(super) const BYTES: usize = 4 << 20;
/// The maximum number of neighbours with queued packets: the kernel is asked for each.
pub(super) const NEIGHBOURS: usize = 1024;
/// The time after which a queued packet is dropped. The kernel asks a neighbour for three seconds,
/// unless it is set up otherwise.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// The pause before a restless neighbour is asked for again.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// A neighbour is restless if packets have been queued for it this often within [`WINDOW`].
const OFTEN: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// The queued packets, by neighbour.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    queues: HashMap<Neighbour, Queue>,
    bytes: usize,
    /// Neighbours whose queue was taken lately: the first time, and how often since.
    settled: HashMap<Neighbour, (Instant, u32)>,
}

#[derive(Debug, Default)]
struct Queue {
    /// The packets with their times of arrival, the oldest first.
    packets: VecDeque<(Instant, Received)>,
    bytes: usize,
}

impl Queue {
    /// Drops the oldest packet and returns the number of bytes that this frees.
    fn drop_oldest(&mut self) -> Option<usize> {
        let (_, received) = self.packets.pop_front()?;
        self.bytes -= received.cost();
        Some(received.cost())
    }
}

/// The result of queueing a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Queued {
    /// The pause after which the neighbour is to be asked for; `None` if packets already wait for
    /// it.
    pub(super) ask: Option<Duration>,
    /// The number of packets dropped to make room, which can include this one.
    pub(super) dropped: u64,
}

impl Waiting {
    /// Queues a packet for a neighbour.
    pub(super) fn push(&mut self, neighbour: Neighbour, received: Received, now: Instant) -> Queued {
        let is_new = !self.queues.contains_key(&neighbour);
        let cost = received.cost();
        if cost > NEIGHBOUR_BYTES || (is_new && self.queues.len() >= NEIGHBOURS) {
            return Queued { ask: None, dropped: 1 };
        }
        let mut dropped = 0;
        let queue = self.queues.entry(neighbour).or_default();
        while queue.bytes + cost > NEIGHBOUR_BYTES
            && let Some(freed) = queue.drop_oldest()
        {
            self.bytes -= freed;
            dropped += 1;
        }
        queue.packets.push_back((now, received));
        queue.bytes += cost;
        self.bytes += cost;
        while self.bytes > BYTES
            && let Some(freed) = self.drop_oldest()
        {
            self.bytes -= freed;
            dropped += 1;
        }
        let is_restless = self
            .settled
            .get(&neighbour)
            .is_some_and(|(since, times)| *times >= OFTEN && now.saturating_duration_since(*since) < WINDOW);
        Queued { ask: is_new.then_some(if is_restless { PAUSE } else { Duration::ZERO }), dropped }
    }

    /// Drops the oldest packet of all queues and returns the number of bytes that this frees. An
    /// empty queue stays until its neighbour answers or fails.
    fn drop_oldest(&mut self) -> Option<usize> {
        let oldest = self
            .queues
            .values_mut()
            .filter(|queue| !queue.packets.is_empty())
            .min_by_key(|queue| queue.packets.front().map(|(since, _)| *since));
        oldest?.drop_oldest()
    }

    /// Returns `true` if a neighbour has a queue.
    pub(super) fn is_for(&self, neighbour: &Neighbour) -> bool {
        self.queues.contains_key(neighbour)
    }

    /// Removes a neighbour's queue and returns its packets in the order of arrival.
    pub(super) fn take(&mut self, neighbour: &Neighbour, now: Instant) -> Vec<Received> {
        let Some(queue) = self.queues.remove(neighbour) else { return Vec::new() };
        self.bytes -= queue.bytes;
        self.settled.retain(|_, (since, _)| now.saturating_duration_since(*since) < WINDOW);
        self.settled.entry(*neighbour).or_insert((now, 0)).1 += 1;
        queue.packets.into_iter().map(|(_, received)| received).collect()
    }

    /// Returns the neighbours that have a queue.
    pub(super) fn neighbours(&self) -> Vec<Neighbour> {
        self.queues.keys().copied().collect()
    }

    /// Returns the neighbours whose oldest packet has reached [`LIMIT`], or whose queue is empty.
    pub(super) fn overdue(&self, now: Instant) -> Vec<Neighbour> {
        let is_overdue = |queue: &Queue| {
            queue.packets.front().is_none_or(|(since, _)| now.saturating_duration_since(*since) >= LIMIT)
        };
        let overdue = self.queues.iter().filter(|(_, queue)| is_overdue(queue));
        overdue.map(|(neighbour, _)| *neighbour).collect()
    }

    /// Returns the number of queued packets.
    pub(super) fn packets(&self) -> usize {
        self.queues.values().map(|queue| queue.packets.len()).sum()
    }

    /// Returns `true` if no neighbour has a queue.
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use router_common::address::Ipv4;

    use super::*;

    fn neighbour(number: u32) -> Neighbour {
        Neighbour { interface: 2, address: Neighbour::mapped(Ipv4(number.to_be_bytes())) }
    }

    fn received(tag: u8, length: usize) -> Received {
        Received { interface: 3, packet: vec![tag; length] }
    }

    #[test]
    fn a_neighbour_is_asked_for_once_and_gets_its_packets_in_order() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        let at_once = Queued { ask: Some(Duration::ZERO), dropped: 0 };
        assert_eq!(waiting.push(neighbour(1), received(1, 10), now), at_once);
        assert_eq!(waiting.push(neighbour(2), received(2, 10), now), at_once);
        assert_eq!(waiting.push(neighbour(1), received(3, 10), now), Queued::default());
        assert_eq!(waiting.packets(), 3);
        assert_eq!(waiting.take(&neighbour(1), now), [received(1, 10), received(3, 10)]);
        assert_eq!(waiting.take(&neighbour(1), now), []);
        assert!(!waiting.is_for(&neighbour(1)) && waiting.is_for(&neighbour(2)));
        assert_eq!(waiting.take(&neighbour(2), now), [received(2, 10)]);
        assert!(waiting.is_empty());
        assert_eq!(waiting.bytes, 0);
    }

    #[test]
    fn a_neighbour_that_comes_and_goes_is_asked_for_after_a_pause() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for _ in 0..OFTEN {
            assert_eq!(waiting.push(neighbour(1), received(1, 10), now).ask, Some(Duration::ZERO));
            waiting.take(&neighbour(1), now);
        }
        assert_eq!(waiting.push(neighbour(1), received(1, 10), now).ask, Some(PAUSE));
        assert_eq!(waiting.push(neighbour(2), received(1, 10), now).ask, Some(Duration::ZERO), "another");
        waiting.take(&neighbour(1), now + WINDOW);
        let later = waiting.push(neighbour(1), received(1, 10), now + WINDOW);
        assert_eq!(later.ask, Some(Duration::ZERO));
    }

    #[test]
    fn the_oldest_of_a_neighbour_go_first() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        let fit = NEIGHBOUR_BYTES / received(0, 1000).cost();
        for tag in 0..fit + 3 {
            let dropped = waiting.push(neighbour(1), received(tag as u8, 1000), now).dropped;
            assert_eq!(dropped, u64::from(tag >= fit), "{tag}");
            assert!(waiting.bytes <= NEIGHBOUR_BYTES);
        }
        let left = waiting.take(&neighbour(1), now);
        assert_eq!((left.len(), &left[0]), (fit, &received(3, 1000)));
        assert_eq!(
            waiting.push(neighbour(1), received(0, NEIGHBOUR_BYTES), now).dropped,
            1,
            "too long alone"
        );
        assert!(waiting.is_empty());
    }

    #[test]
    fn the_oldest_of_all_go_where_there_are_too_many() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        let fit = BYTES / received(0, 60_000).cost();
        let mut dropped = 0;
        for number in 0..(fit as u32 + 2) {
            let now = start + Duration::from_millis(u64::from(number));
            dropped += waiting.push(neighbour(number), received(0, 60_000), now).dropped;
            assert!(waiting.bytes <= BYTES);
        }
        assert_eq!((dropped, waiting.packets()), (2, fit));
        assert_eq!(waiting.take(&neighbour(1), start), []);
        assert_eq!(waiting.take(&neighbour(2), start).len(), 1);
    }

    #[test]
    fn there_is_a_limit_to_neighbours() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for number in 0..NEIGHBOURS as u32 {
            assert_eq!(waiting.push(neighbour(number), received(0, 40), now).dropped, 0);
        }
        assert_eq!(waiting.push(neighbour(u32::MAX), received(0, 40), now), Queued { ask: None, dropped: 1 });
        assert_eq!(waiting.push(neighbour(0), received(0, 40), now).dropped, 0);
    }

    #[test]
    fn nothing_waits_for_ever() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        waiting.push(neighbour(1), received(1, 10), start);
        waiting.push(neighbour(2), received(1, 10), start + LIMIT / 2);
        assert_eq!(waiting.overdue(start + LIMIT / 2), []);
        assert_eq!(waiting.overdue(start + LIMIT), [neighbour(1)]);
    }
}
