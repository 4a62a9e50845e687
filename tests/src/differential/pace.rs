//! The number of errors that a router may be made to send.
//!
//! pls-router keeps its own ICMP errors to a rate, which the oracle is told not to do. All the
//! sequences together would ask for more than that; each alone does not.

use std::{
    thread,
    time::{Duration, Instant},
};

use router_common::rate::{Rate, TokenBucket};

/// The rest of the rate.
#[derive(Debug)]
pub(super) struct Pace {
    start: Instant,
    /// The router has one for each kind of error and source. This one takes all of them for one,
    /// and every error for later than it was.
    bucket: TokenBucket,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), bucket: TokenBucket::default() }
    }

    /// Waits until the router may send this many errors. Only time tells, since the router does not
    /// report its rate.
    pub(super) fn wait_for(&self, errors: usize) {
        while spend(&self.bucket, self.now(), errors).is_none() {
            thread::sleep(Duration::from_nanos(Rate::PER_SOURCE.interval));
        }
    }

    /// Notes that the router may have given this many, which have been waited for.
    pub(super) fn spent(&mut self, errors: usize) {
        if let Some(left) = spend(&self.bucket, self.now(), errors) {
            self.bucket = left;
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

/// Returns a bucket after this many errors, at most as many as it holds; `None` if it has too few.
fn spend(bucket: &TokenBucket, now: u64, errors: usize) -> Option<TokenBucket> {
    let (rate, bucket) = (Rate::PER_SOURCE, bucket.clone());
    (0..rate.burst.min(errors as u64)).all(|_| bucket.take(now, rate)).then_some(bucket)
}
