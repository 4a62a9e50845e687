//! Waiting for a condition instead of for some time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// The shortest interval at which a condition is looked at.
const SHORTEST: Duration = Duration::from_millis(10);
/// The longest one.
const LONGEST: Duration = Duration::from_millis(100);

/// Calls `condition` repeatedly until it succeeds, and returns its value.
///
/// An error of the condition means "not yet"; the last one is the cause of the error that is
/// returned once `limit` has passed, so that a timeout says what was missing.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match condition() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if start.elapsed() >= limit {
            return Err(last).with_context(|| format!("waited {limit:?} for {what}"));
        }
        thread::sleep(interval(start.elapsed()));
    }
}

/// Returns the interval after so much waiting: a small part of it. Most conditions start a program,
/// and at the shortest interval a test that waits for a minute takes a CPU from those that do not.
fn interval(waited: Duration) -> Duration {
    (waited / 20).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_wait_looks_less_often() {
        assert_eq!(interval(Duration::ZERO), SHORTEST);
        assert_eq!(interval(Duration::from_secs(1)), Duration::from_millis(50));
        assert_eq!(interval(Duration::from_secs(60)), LONGEST);
    }
}
