//! What the parts of the traffic report, and when they end.

use std::{
    fmt,
    ops::Add,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use crate::soak::report::{Count, Mistakes};

/// Some of all.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Share {
    /// The number that is lost.
    pub lost: u64,
    /// The number of all.
    pub of: u64,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.lost, self.of)
    }
}

impl Add for Share {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { lost: self.lost + other.lost, of: self.of + other.of }
    }
}

/// One kind of what is watched during the run: how many, which failed, and the slowest one.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) count: Count,
    pub(super) failed: Mistakes,
    /// Microseconds.
    slowest: AtomicU64,
}

impl Watch {
    pub(super) fn good(&self, took: Duration) {
        self.count.add(1);
        self.slowest.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
    }

    pub(super) fn bad(&self, what: impl FnOnce() -> String) {
        self.count.add(1);
        self.failed.add(what);
    }

    /// The slowest one since the last call.
    pub(super) fn take_slowest(&self) -> Duration {
        Duration::from_micros(self.slowest.swap(0, Ordering::Relaxed))
    }
}

/// The time at which the traffic ends, for all threads.
#[derive(Debug, Default)]
pub(super) struct End(pub(super) AtomicBool);

impl End {
    pub(super) fn has_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
