//! The outcome of the steps.

use std::fmt;
use std::time::Duration;

/// Tests counted; a step that is no test suite counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
}

/// The outcome of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) counts: Counts,
    /// The tests that failed or were skipped, and why.
    pub(super) notes: Vec<String>,
}

impl Outcome {
    pub(super) fn passed() -> Self {
        Self { counts: Counts { passed: 1, ..Counts::default() }, notes: Vec::new() }
    }

    pub(super) fn failed(reason: impl Into<String>) -> Self {
        Self { counts: Counts { failed: 1, ..Counts::default() }, notes: vec![reason.into()] }
    }
}

/// All steps so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    steps: Vec<(String, Duration, Outcome)>,
}

impl Report {
    pub(super) fn add(&mut self, name: &str, duration: Duration, outcome: Outcome) {
        self.steps.push((name.to_owned(), duration, outcome));
    }

    pub(super) fn skip(&mut self, name: &str, reason: &str) {
        title(name);
        eprintln!("  skipped: {reason}");
        let counts = Counts { skipped: 1, ..Counts::default() };
        self.add(name, Duration::ZERO, Outcome { counts, notes: vec![reason.to_owned()] });
    }

    pub(super) fn failed(&self) -> bool {
        // A run in which nothing was tested is not a good one.
        let Counts { passed, failed, skipped: _ } = self.total();
        failed > 0 || passed == 0
    }

    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for (_, _, outcome) in &self.steps {
            let Counts { passed, failed, skipped } = outcome.counts;
            total.passed += passed;
            total.failed += failed;
            total.skipped += skipped;
        }
        total
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n== summary")?;
        for (name, duration, Outcome { counts, notes }) in &self.steps {
            let word = match counts {
                Counts { failed: 1.., .. } => "FAILED",
                Counts { passed: 1.., .. } => "ok",
                Counts { skipped: 1.., .. } => "skipped",
                // A filter leaves many a suite without a test.
                Counts { passed: 0, failed: 0, skipped: 0 } => "empty",
            };
            write!(f, "  {word:<8}{name:<24}{:>8.1} s", duration.as_secs_f64())?;
            let Counts { passed, failed, skipped } = counts;
            if passed + failed + skipped > 1 {
                write!(f, "  {passed} passed, {failed} failed, {skipped} skipped")?;
            }
            writeln!(f)?;
            for note in notes {
                writeln!(f, "          {note}")?;
            }
        }
        let Counts { passed, failed, skipped } = self.total();
        writeln!(f, "\n{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Announces a step.
pub(super) fn title(name: &str) {
    eprintln!("\n== {name}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_everything() {
        let mut report = Report::default();
        report.add("fmt", Duration::from_millis(800), Outcome::passed());
        let counts = Counts { passed: 41, failed: 1, skipped: 2 };
        report.add("host", Duration::from_secs(12), Outcome { counts, notes: vec!["failed: nat".into()] });
        report.add("clippy", Duration::ZERO, Outcome::failed("exit status: 101"));
        report.skip("net", "not root");
        let text = report.to_string();
        assert_eq!(text.lines().last(), Some("42 passed, 2 failed, 3 skipped"));
        assert!(
            text.contains("  FAILED  host                        12.0 s  41 passed, 1 failed, 2 skipped\n"),
            "{text}"
        );
        assert!(text.contains("          not root\n"), "{text}");
        assert!(report.failed());
    }

    #[test]
    fn nothing_tested_is_not_success() {
        let mut report = Report::default();
        assert!(report.failed());
        report.skip("net", "not root");
        assert!(report.failed());
        report.add("fmt", Duration::ZERO, Outcome::passed());
        assert!(!report.failed());
    }
}
