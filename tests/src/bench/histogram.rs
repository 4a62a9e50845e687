//! Times counted in buckets, and their quantiles.

#[path = "../../labtools/src/buckets.rs"]
mod buckets;

use anyhow::{Context, Result};
use serde::Serialize;

pub(crate) use self::buckets::BUCKETS;
use self::buckets::{A_DOUBLING, bucket};

/// The number of times in each bucket.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(Box<[u64; BUCKETS]>);

/// The quantiles of some times, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self(Box::new([0; BUCKETS]))
    }

    /// Counts as a program has left them.
    pub(crate) fn of(counts: [u64; BUCKETS]) -> Self {
        Self(Box::new(counts))
    }

    /// Counts a time in nanoseconds; what is longer than 4 s counts as that.
    pub(crate) fn count(&mut self, nanoseconds: u128) {
        self.0[bucket(u32::try_from(nanoseconds).unwrap_or(u32::MAX))] += 1;
    }

    /// Adds another's times.
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0.iter()) {
            *sum += count;
        }
    }

    /// The times that have come since an earlier state of the same histogram.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut difference = self.clone();
        for (count, before) in difference.0.iter_mut().zip(earlier.0.iter()) {
            *count -= before;
        }
        difference
    }

    /// Returns the number of times.
    pub(crate) fn samples(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(crate) fn quantiles(&self) -> Result<Quantiles> {
        let at = |share| self.quantile(share).context("nothing was measured");
        Ok(Quantiles { p50: at(0.5)?, p99: at(0.99)?, p999: at(0.999)?, max: at(1.0)? })
    }

    /// The middle of the bucket below or in which this share of the times is, in microseconds.
    fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = (self.samples() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let index = self.0.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        index.map(|index| middle(index as u32) / 1000.0)
    }
}

/// The time in the middle of a bucket, in nanoseconds.
fn middle(index: u32) -> f64 {
    if index < A_DOUBLING {
        return f64::from(index);
    }
    let shift = index / A_DOUBLING - 1;
    let first = u64::from(A_DOUBLING + index % A_DOUBLING) << shift;
    first as f64 + ((1_u64 << shift) - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_near_the_middle_of_its_bucket() {
        for time in (0..1000).chain((0..32).map(|bit| 1 << bit)).chain([12_345_678, u32::MAX - 1, u32::MAX]) {
            let found = middle(bucket(time) as u32);
            let error = (found - f64::from(time)).abs();
            assert!(error <= f64::from(time) / 128.0, "{time} is counted as {found}");
        }
        assert_eq!(bucket(u32::MAX), BUCKETS - 1);
    }

    #[test]
    fn buckets_are_in_order_and_none_is_left_out() {
        let mut last = 0;
        for time in 0..100_000 {
            let now = bucket(time);
            assert!(now == last || now == last + 1, "{time} is in bucket {now} after {last}");
            last = now;
        }
    }

    #[test]
    fn quantiles_of_known_times() {
        let mut histogram = Histogram::new();
        for time in 1..=1000 {
            histogram.count(time * 1000);
        }
        let Quantiles { p50, p99, p999, max } = histogram.quantiles().expect("times");
        for (found, right) in [(p50, 500.0), (p99, 990.0), (p999, 999.0), (max, 1000.0)] {
            assert!((found - right).abs() <= right / 100.0, "{found} for {right}");
        }
        assert!(Histogram::new().quantiles().is_err());
    }

    #[test]
    fn sums_and_differences() {
        let mut first = Histogram::new();
        first.count(5);
        let mut second = first.clone();
        second.count(7);
        second.count(u128::MAX);
        assert_eq!(second.since(&first).samples(), 2);
        first.add(&second);
        assert_eq!(first.samples(), 4);
    }
}
