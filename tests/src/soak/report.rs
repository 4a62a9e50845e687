//! The counts and mistakes of a run.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A number that one thread counts and others read.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// The counts of a run.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Sessions of the crowd that have heard something.
    pub(super) gathered: Count,
    /// Words of the crowd's clients, without repetitions.
    pub(super) said: Count,
    /// Repetitions.
    pub(super) repeated: Count,
    /// Words that came back.
    pub(super) heard: Count,
    /// Words whose answer is outstanding.
    pub(super) outstanding: Count,
    /// Sessions of the crowd that were silent for so long that they may have expired, and have
    /// another address now.
    pub(super) moved: Count,
    /// Short sessions begun.
    pub(super) begun: Count,
    /// Packets of targets that came back to them.
    pub(super) answered: Count,
    /// TCP connections of the streams that have come to their end.
    pub(super) connections: Count,
    /// Bytes of the streams that have arrived, each one as it was sent.
    pub(super) bytes: Count,
    /// The mistakes of a run.
    pub(super) mistakes: Mistakes,
}

/// The number of mistakes, and the text of the first few.
#[derive(Debug, Default)]
pub(super) struct Mistakes {
    count: Count,
    first: Mutex<Vec<String>>,
}

impl Mistakes {
    const TOLD: usize = 10;

    pub(super) fn add(&self, what: impl FnOnce() -> String) {
        self.count.add(1);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.len() < Self::TOLD {
            first.push(what());
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count.get()
    }

    /// Returns the texts so far; others are told from now on.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.first.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "{} mistakes, the first of them:", self.count)?;
        for mistake in first.iter() {
            write!(f, "\n  {mistake}")?;
        }
        Ok(())
    }
}
