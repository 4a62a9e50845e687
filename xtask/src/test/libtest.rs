//! Runs a command that runs tests, shows what it prints and counts what it did.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::report::{self, Counts, Outcome, Report};
use crate::system;

/// Runs the tests of one command, `cargo test` mostly, as one step.
/// The arguments are for the test binaries: filters, mostly.
pub(super) fn run<'a>(
    report: &mut Report,
    name: &str,
    command: &mut Command,
    arguments: impl IntoIterator<Item = &'a OsStr>,
) {
    report::title(name);
    let mut arguments = arguments.into_iter().peekable();
    if arguments.peek().is_some() {
        command.arg("--").args(arguments);
    }
    let start = Instant::now();
    let outcome = attempt(command).unwrap_or_else(|error| Outcome::failed(format!("{error:#}")));
    report.add(name, start.elapsed(), outcome);
}

fn attempt(command: &mut Command) -> Result<Outcome> {
    let shown = system::display(command);
    eprintln!("  $ {shown}");
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let output = child.stdout.take().context("a command has no standard output")?;
    let mut results = Results::default();
    let mut terminal = std::io::stdout();
    // By bytes: a test may print anything.
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("cannot read what `{shown}` prints"))?;
        // A closed standard output must not change the exit code.
        _ = terminal.write_all(&line).and_then(|()| terminal.write_all(b"\n"));
        results.read(&String::from_utf8_lossy(&line));
    }
    let status = child.wait().with_context(|| format!("lost `{shown}`"))?;
    Ok(results.outcome(status.success(), &format!("`{shown}` failed ({status})")))
}

/// The results in the lines of libtest so far.
#[derive(Debug, Default)]
struct Results {
    counts: Counts,
    notes: Vec<String>,
    /// The tests that were skipped, by reason.
    skipped: BTreeMap<String, Vec<String>>,
    /// Test binaries that have started and not reported.
    unfinished: u64,
}

impl Results {
    fn read(&mut self, line: &str) {
        // Programs on a terminal, as in a virtual machine, write in colours.
        let line = &plain(line);
        if let Some(counts) = result_line(line) {
            self.counts.passed += counts.passed;
            self.counts.failed += counts.failed;
            self.counts.skipped += counts.skipped;
            self.unfinished = self.unfinished.saturating_sub(1);
        } else if is_start_line(line) {
            self.unfinished += 1;
        } else if let Some((name, verdict)) =
            line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        {
            // The project's own harness aligns verdicts.
            let name = name.trim_end();
            if verdict.starts_with("FAILED") {
                self.notes.push(format!("failed: {name}"));
            } else if let Some(reason) = verdict.strip_prefix("ignored") {
                self.skipped.entry(plain_reason(reason).to_owned()).or_default().push(name.to_owned());
            }
        }
    }

    fn outcome(mut self, success: bool, what: &str) -> Outcome {
        if !success {
            // A binary that does not compile, or dies, prints no count of its failures.
            if self.unfinished > 0 {
                self.notes.push(format!("{what}: a test binary ended before it reported"));
                self.counts.failed += self.unfinished;
            } else if self.counts.failed == 0 {
                self.notes.push(what.to_owned());
                self.counts.failed += 1;
            }
        }
        let skipped =
            self.skipped.iter().map(|(reason, tests)| format!("skipped: {reason}: {}", tests.join(", ")));
        self.notes.extend(skipped);
        Outcome { counts: self.counts, notes: self.notes }
    }
}

/// The line without its colours: `ESC [ 32 m` (ECMA-48, SGR).
fn plain(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let first = parts.next().unwrap_or_default();
    let rest = parts.map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';'));
    rest.fold(first.to_owned(), |plain, part| plain + part.strip_prefix('m').unwrap_or(part))
}

/// The reason in what follows the word `ignored`: `, reason`, or ` (reason)` of the project's own
/// harness.
fn plain_reason(text: &str) -> &str {
    let text = text.trim_start_matches([',', ' ']);
    match text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        Some(reason) => reason,
        None if text.is_empty() => "no reason given",
        None => text,
    }
}

/// `running 14 tests`
fn is_start_line(line: &str) -> bool {
    line.strip_prefix("running ")
        .and_then(|rest| rest.strip_suffix(" tests").or_else(|| rest.strip_suffix(" test")))
        .is_some_and(|number| number.parse::<u64>().is_ok())
}

/// `test result: ok. 14 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s`
fn result_line(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?;
    let (_, numbers) = rest.split_once(". ")?;
    let number = |label: &str| {
        numbers.split("; ").find_map(|part| part.strip_suffix(label)?.trim().parse::<u64>().ok())
    };
    Some(Counts { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, success: bool) -> Outcome {
        let mut results = Results::default();
        for line in text.lines() {
            results.read(line);
        }
        results.outcome(success, "`cargo test` failed")
    }

    #[test]
    fn suites_add_up() {
        let outcome = read(
            "\nrunning 2 tests\ntest a ... ok\ntest b ... ignored, needs two NICs\n\n\
             test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\n\
             running 1 test\ntest src/lib.rs - (line 5) - compile ... ok\n\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.00s\n",
            true,
        );
        assert_eq!(outcome.counts, Counts { passed: 2, failed: 0, skipped: 1 });
        assert_eq!(outcome.notes, ["skipped: needs two NICs: b"]);
    }

    #[test]
    fn tests_are_listed_by_why_they_were_skipped() {
        let outcome = read(
            "running 4 tests\ntest a  ... ignored (there is no dig (DNS))\ntest bb ... ok\ntest c  ... ignored (there is no dig (DNS))\n\
             test d  ... ignored\n\ntest result: ok. 1 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.01s\n",
            true,
        );
        assert_eq!(outcome.counts, Counts { passed: 1, failed: 0, skipped: 3 });
        assert_eq!(outcome.notes, ["skipped: no reason given: d", "skipped: there is no dig (DNS): a, c"]);
    }

    #[test]
    fn colours_hide_nothing() {
        let outcome = read(
            "running 2 tests\ntest a  ... \u{1b}[31mFAILED\u{1b}[0m\ntest bb ... \u{1b}[1;33mignored (why)\u{1b}[0m\n\
             test result: \u{1b}[31mFAILED\u{1b}[0m. 0 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n",
            false,
        );
        assert_eq!(outcome.counts, Counts { passed: 0, failed: 1, skipped: 1 });
        assert_eq!(outcome.notes, ["failed: a", "skipped: why: bb"]);
    }

    #[test]
    fn failures_are_named() {
        let outcome = read(
            "running 2 tests\ntest nat::port ... FAILED\ntest b ... ok\n\nfailures:\n\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n",
            false,
        );
        assert_eq!(outcome.counts, Counts { passed: 1, failed: 1, skipped: 0 });
        assert_eq!(outcome.notes, ["failed: nat::port"]);
    }

    #[test]
    fn what_does_not_compile_has_failed() {
        let outcome = read("", false);
        assert_eq!(outcome.counts, Counts { passed: 0, failed: 1, skipped: 0 });
        assert_eq!(outcome.notes, ["`cargo test` failed"]);
    }

    #[test]
    fn what_dies_in_the_middle_has_failed() {
        let outcome = read(
            "running 1 test\ntest a ... ok\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
             running 9 tests\ntest b ... ok\n",
            false,
        );
        assert_eq!(outcome.counts, Counts { passed: 1, failed: 1, skipped: 0 });
        assert!(outcome.notes[0].contains("ended before it reported"), "{:?}", outcome.notes);
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(result_line("test result: unknown"), None);
        assert!(!is_start_line("running late"));
        assert_eq!(read("test a ... ok\nrunning x tests\n", true).counts, Counts::default());
    }
}
