//! Counts what the daemon does with punted packets.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tracing::debug;

use crate::{daemon::sync::lock, model::PuntStatus};

/// The time for which a failure is reported after it occurred. Continuous failures count as one.
const TOLD: Duration = Duration::from_secs(10);

/// Why a packet was lost with the daemon.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    /// Its neighbour did not answer.
    Unanswered,
    /// There was no room for it, or it was the oldest when there was none for another.
    NoRoom,
    /// A fragment whose datagram's first never came.
    Expired,
}

/// Counters, and what has failed last.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    sent: AtomicU64,
    unanswered: AtomicU64,
    no_room: AtomicU64,
    expired: AtomicU64,
    failed: AtomicU64,
    waiting: AtomicU64,
    held: AtomicU64,
    failure: Mutex<Option<(Instant, String)>>,
}

impl Tally {
    /// Counts frames that were sent.
    pub(super) fn sent(&self, frames: u64) {
        self.sent.fetch_add(frames, Relaxed);
    }

    /// Counts packets that are lost.
    pub(super) fn lost(&self, loss: Loss, packets: u64) {
        let counter = match loss {
            Loss::Unanswered => &self.unanswered,
            Loss::NoRoom => &self.no_room,
            Loss::Expired => &self.expired,
        };
        counter.fetch_add(packets, Relaxed);
    }

    /// Counts packets that are lost since something failed that should not.
    pub(super) fn failed(&self, packets: u64, error: &anyhow::Error) {
        debug!("{packets} packets of the data plane are lost: {error:#}");
        self.failed.fetch_add(packets, Relaxed);
        *lock(&self.failure) = Some((Instant::now(), format!("{error:#}")));
    }

    /// Says how many packets are here now: those that wait for a neighbour, and fragments that are
    /// held.
    pub(super) fn has(&self, waiting: usize, held: usize) {
        self.waiting.store(waiting as u64, Relaxed);
        self.held.store(held as u64, Relaxed);
    }

    /// Says what fails, if something does.
    pub(crate) fn problem(&self) -> Option<String> {
        let failure = lock(&self.failure);
        failure.as_ref().filter(|(since, _)| since.elapsed() < TOLD).map(|(_, text)| text.clone())
    }

    /// All of it.
    pub(crate) fn status(&self) -> PuntStatus {
        PuntStatus {
            sent: self.sent.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            held: self.held.load(Relaxed),
            unanswered: self.unanswered.load(Relaxed),
            no_room: self.no_room.load(Relaxed),
            expired: self.expired.load(Relaxed),
            failed: self.failed.load(Relaxed),
            problem: self.problem().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_failure_is_counted_and_told() {
        let tally = Tally::default();
        assert_eq!(tally.status(), PuntStatus::default());
        tally.failed(3, &anyhow!("no").context("cannot send by eth0"));
        tally.lost(Loss::NoRoom, 2);
        let status = tally.status();
        assert_eq!((status.failed, status.no_room, &*status.problem), (3, 2, "cannot send by eth0: no"));
        *lock(&tally.failure) = Some((Instant::now() - TOLD, "old".to_owned()));
        assert_eq!(tally.problem(), None);
        assert_eq!(tally.status().failed, 3, "counters stay");
    }
}
