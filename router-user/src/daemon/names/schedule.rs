//! The times at which names are asked for again.

use std::time::Duration;

/// The shortest wait, for any time of an answer.
const SHORTEST: Duration = Duration::from_secs(5);
/// The longest wait, for any time of an answer: a change comes through.
const LONGEST: Duration = Duration::from_secs(300);
/// After the first failure; every further one doubles it.
const FIRST_RETRY: Duration = Duration::from_secs(3);
/// The longest wait after failures.
const LAST_RETRY: Duration = Duration::from_secs(30);
/// By how much of it a wait is longer at most, so that many names do not march in step.
const JITTER: f64 = 0.1;

/// Returns how long a good answer is relied on. `jitter` is a random number from 0 to 1.
pub(super) fn after_answer(ttl: Duration, jitter: f64) -> Duration {
    // Never before its end: a caching server would say the same once more, with what is left of the
    // time.
    ttl.clamp(SHORTEST, LONGEST).mul_f64(1.0 + JITTER * jitter.clamp(0.0, 1.0))
}

/// Returns how long to wait after this many failures in a row. `jitter` is a random number from 0
/// to 1.
pub(super) fn after_failure(failures: u32, jitter: f64) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(LAST_RETRY).mul_f64(1.0 + JITTER * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_answer_is_relied_on_for_its_time_within_bounds(ttl in 0..u32::MAX, jitter in 0.0..=1.0) {
            let wait = after_answer(Duration::from_secs(ttl.into()), jitter);
            prop_assert!(wait >= SHORTEST && wait <= LONGEST.mul_f64(1.0 + JITTER));
            if (5..=300).contains(&ttl) {
                let ttl = Duration::from_secs(ttl.into());
                prop_assert!(wait >= ttl && wait <= ttl.mul_f64(1.1));
            }
        }

        #[test]
        fn failures_slow_it_down_to_half_a_minute(failures in 1..u32::MAX, jitter in 0.0..=1.0) {
            let wait = after_failure(failures, jitter);
            prop_assert!(wait >= FIRST_RETRY && wait <= LAST_RETRY.mul_f64(1.1));
            prop_assert!(after_failure(failures.saturating_add(1), jitter) >= wait);
        }
    }

    #[test]
    fn retries_double() {
        let waits: Vec<u64> = (1..=6).map(|failures| after_failure(failures, 0.0).as_secs()).collect();
        assert_eq!(waits, [3, 6, 12, 24, 30, 30]);
    }
}
