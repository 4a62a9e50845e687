//! The options of a run, and its progress.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// The options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// pls-router.
    pub binary: PathBuf,
    /// The duration of the run once the whole crowd is there.
    pub duration: Duration,
    /// Sessions of the crowd.
    pub sessions: u32,
    /// Short sessions a second.
    pub churn: u32,
    /// TCP connections at a time.
    pub streams: u32,
    /// The seed of all random numbers but the weather's.
    pub seed: u64,
}

/// Sessions that the table has room for: with the usual number of short ones, and those that have
/// ended, it is never four fifths full, where the sweep would be in a hurry.
pub(super) const CAPACITY: u32 = 320_000;

/// When to begin and to end, for all threads.
#[derive(Debug, Default)]
pub(super) struct Phases {
    /// The crowd is there.
    pub(super) crowded: AtomicBool,
    /// No new sessions; what has begun comes to its end.
    pub(super) finish: AtomicBool,
    /// Sending is over.
    pub(super) stop: AtomicBool,
}

impl Phases {
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    pub(super) fn finishing(&self) -> bool {
        self.finish.load(Ordering::Relaxed)
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
