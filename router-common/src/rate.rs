//! Rate limits, in memory that all CPUs share.

use crate::shared::AtomicU64;

/// A rate, and a burst.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// The number that may come at once.
    pub burst: u64,
    /// Nanoseconds until one more may come.
    pub interval: u64,
}

impl Rate {
    /// Answers of a kind to one source: 1,000 a second.
    pub const PER_SOURCE: Self = Self { burst: 100, interval: 1_000_000 };
    /// The answers of these that every source gets, however many other sources are answered: 10 a
    /// second.
    pub const GUARANTEED: Self = Self { burst: 10, interval: 100_000_000 };
    /// Answers of a kind beyond these, to all sources together: 10,000 a second.
    pub const SHARED: Self = Self { burst: 1_000, interval: 100_000 };
}

/// Keeps events to a [`Rate`], in memory that all CPUs share.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct TokenBucket {
    /// The time at which the bucket will be full again, in nanoseconds.
    full: AtomicU64,
}

impl TokenBucket {
    /// Attempts to take from a bucket that another CPU takes from at the same moment.
    const ATTEMPTS: u32 = 4;

    /// Returns `true` if one more may come now, without counting it: see [`take`](Self::take).
    #[inline(always)]
    pub fn has_token(&self, now: u64, rate: Rate) -> bool {
        Self::is_one_in(self.full.load(), now, rate)
    }

    #[inline(always)]
    const fn is_one_in(full: u64, now: u64, rate: Rate) -> bool {
        full.saturating_sub(now) <= (rate.burst - 1) * rate.interval
    }

    /// Returns `true` if one more may come now, and counts it. A refusal changes nothing, so that
    /// CPUs do not contend for the memory in a flood.
    #[inline(always)]
    pub fn take(&self, now: u64, rate: Rate) -> bool {
        for _ in 0..Self::ATTEMPTS {
            let seen = self.full.load();
            if !Self::is_one_in(seen, now, rate) {
                return false;
            }
            let from = if seen < now { now } else { seen };
            if self.full.change(seen, from + rate.interval) {
                return true;
            }
        }
        false
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use super::*;
    use crate::effort::tries;

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let (bucket, rate) = (TokenBucket::default(), Rate::PER_SOURCE);
        let start = 5_000_000_000;
        let burst = (0..2 * rate.burst).filter(|_| bucket.take(start, rate)).count() as u64;
        assert_eq!(burst, rate.burst);
        assert!(!bucket.take(start + rate.interval - 1, rate));
        assert!(bucket.take(start + rate.interval, rate));
        assert!(!bucket.take(start + rate.interval, rate));
        // More than enough questions, of a second if it may take so long.
        let questions = u64::from(tries(10_000, 100));
        let later =
            (0..questions).filter(|at| bucket.take(start + rate.interval + at * 100_000, rate)).count();
        assert_eq!(later as u64, questions / 10 - 1);
    }

    #[test]
    fn concurrent_takes_do_not_exceed_the_burst() {
        let (bucket, rate, start) = (TokenBucket::default(), Rate::SHARED, 5_000_000_000);
        let tries = tries(100_000, 600);
        let take = || (0..tries).filter(|_| bucket.take(start, rate)).count() as u64;
        let taken: u64 = std::thread::scope(|scope| {
            let threads = [0; 4].map(|_| scope.spawn(take));
            threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
        });
        assert_eq!(taken, rate.burst);
    }
}
