//! Waiting for a condition instead of for some time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// The interval at which a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

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
        thread::sleep(INTERVAL);
    }
}
