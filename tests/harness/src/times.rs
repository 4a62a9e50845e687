//! The time that each test took.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The number of tests that are shown.
const SHOWN: usize = 15;

/// A test that took less is never worth a line.
const NOTABLE: Duration = Duration::from_secs(1);

/// The times of all tests that have run. Copies share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Arc<Mutex<Vec<(Duration, String)>>>);

impl Times {
    pub(crate) fn add(&self, test: String, time: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((time, test));
    }
}

/// Shows the slowest tests, if any took long.
impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        times.sort_by(|one, other| other.cmp(one));
        let sum: Duration = times.iter().map(|(time, _)| time).sum();
        let slowest: Vec<_> = times.iter().take_while(|(time, _)| *time >= NOTABLE).take(SHOWN).collect();
        if slowest.is_empty() {
            return Ok(());
        }
        writeln!(f, "all tests, one after the other: {:.1} s; the slowest:", sum.as_secs_f64())?;
        for (time, test) in slowest {
            writeln!(f, "{:>8.1} s  {test}", time.as_secs_f64())?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_are_shown_first() {
        let times = Times::default();
        for number in 0..20 {
            times.clone().add(format!("test {number}"), Duration::from_secs(number));
        }
        let shown = times.to_string();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[0], "all tests, one after the other: 190.0 s; the slowest:");
        assert_eq!((lines[1], lines[SHOWN]), ("    19.0 s  test 19", "     5.0 s  test 5"));
        assert_eq!(lines.len(), SHOWN + 2);
    }

    #[test]
    fn quick_tests_are_not_shown() {
        let times = Times::default();
        times.add("quick".to_owned(), Duration::from_millis(999));
        assert_eq!(times.to_string(), "");
    }
}
