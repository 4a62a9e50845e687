//! Notices that somebody has set the machine's clock, and says so once: times in the log are then
//! not in order, while nothing that the daemon does depends on that clock.

use std::time::{Duration, Instant, SystemTime};

use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

/// The period of looks.
const PERIOD: Duration = Duration::from_secs(1);

/// The least change that is told. A clock that is kept right changes by less, or once at the boot.
const LEAST: Duration = Duration::from_secs(2);

/// Looks at the clock until the process ends.
pub(crate) async fn watch() {
    let mut clock = Clock::new(Instant::now(), SystemTime::now());
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        if let Some(said) = clock.look(Instant::now(), SystemTime::now()) {
            warn!("{said}");
        }
    }
}

/// The clock as it was set last. No I/O.
struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    fn new(instant: Instant, time: SystemTime) -> Self {
        Self { instant, time }
    }

    /// Returns what to say if the clock was set since the last look.
    fn look(&mut self, instant: Instant, time: SystemTime) -> Option<String> {
        let expected = self.time + instant.saturating_duration_since(self.instant);
        (self.instant, self.time) = (instant, time);
        let (change, way) = match time.duration_since(expected) {
            Ok(forward) => (forward, "forward"),
            Err(back) => (back.duration(), "back"),
        };
        (change >= LEAST).then(|| {
            // The time between the two clocks' readings is not worth telling.
            let change = humantime::format_duration(Duration::from_secs((change.as_secs_f64()).round() as u64));
            format!("the clock of this machine was set {way} by {change}; sessions, timeouts and the probe do not go by it")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_told_once() {
        let (start, time) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_047_205));
        let hour = Duration::from_secs(3600);
        let mut clock = Clock::new(start, time);
        let mut look = |seconds: u64, time: SystemTime| {
            let passed = Duration::from_secs(seconds);
            clock.look(start + passed, time + passed)
        };
        assert_eq!(look(1, time), None);
        let said = look(2, time + hour).unwrap();
        assert!(said.contains("forward by 1h;"), "{said}");
        assert_eq!(look(3, time + hour), None);
        let said = look(4, time - hour).unwrap();
        assert!(said.contains("back by 2h;"), "{said}");
        assert_eq!(look(5, time - hour), None);
    }

    #[test]
    fn a_clock_that_is_kept_right_is_not_told() {
        let (start, time) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_047_205));
        let mut clock = Clock::new(start, time);
        // A daemon that has slept for a minute, and a clock that goes a bit fast.
        let minute = Duration::from_secs(60);
        assert_eq!(clock.look(start + minute, time + minute + Duration::from_millis(500)), None);
    }
}
