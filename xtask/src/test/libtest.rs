//! Runs a command that runs tests, shows what it prints and counts what it did.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::thread;
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
    let outcome = ended(attempt(command, &mut print));
    report.add(name, start.elapsed(), outcome);
}

/// Runs several commands at the same time, each as one step. What one prints is shown when it has
/// ended: by line, they would be mixed.
pub(super) fn run_together(report: &mut Report, steps: Vec<(String, Command)>, filter: Option<&OsStr>) {
    let run = |mut command: Command| {
        if let Some(filter) = filter {
            command.arg("--").arg(filter);
        }
        let (start, mut printed) = (Instant::now(), Vec::new());
        let outcome = ended(attempt(&mut command, &mut |output| printed.extend_from_slice(output)));
        (start.elapsed(), outcome, printed)
    };
    let results: Vec<_> = thread::scope(|scope| {
        let run = &run;
        let started: Vec<_> =
            steps.into_iter().map(|(name, command)| (name, scope.spawn(move || run(command)))).collect();
        started.into_iter().map(|(name, thread)| (name, thread.join().expect("no panic"))).collect()
    });
    for (name, (time, outcome, printed)) in results {
        report::title(&name);
        print(&printed);
        report.add(&name, time, outcome);
    }
}

fn ended(outcome: Result<Outcome>) -> Outcome {
    outcome.unwrap_or_else(|error| Outcome::failed(format!("{error:#}")))
}

/// Prints what tests have printed.
pub(super) fn print(output: &[u8]) {
    // A closed standard output must not change the exit code.
    _ = std::io::stdout().write_all(output);
}

fn attempt(command: &mut Command, show: &mut dyn FnMut(&[u8])) -> Result<Outcome> {
    let shown = system::display(command);
    eprintln!("  $ {shown}");
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let output = child.stdout.take().context("a command has no standard output")?;
    let mut results = Results::default();
    // By bytes: a test may print anything.
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line.with_context(|| format!("cannot read what `{shown}` prints"))?;
        results.read(&String::from_utf8_lossy(&line));
        line.push(b'\n');
        show(&line);
    }
    let status = child.wait().with_context(|| format!("lost `{shown}`"))?;
    results.end(status.success(), &format!("`{shown}` failed ({status})"));
    Ok(results.outcome())
}

/// The results in the lines of libtest so far.
#[derive(Debug, Default)]
pub(super) struct Results {
    counts: Counts,
    notes: Vec<String>,
    /// The tests that were skipped, by reason.
    skipped: BTreeMap<String, Vec<String>>,
    /// Test binaries that have started and not reported.
    unfinished: u64,
}

impl Results {
    pub(super) fn read(&mut self, line: &str) {
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

    /// Takes in that the command has ended, and how. `what` says that it has failed.
    pub(super) fn end(&mut self, success: bool, what: &str) {
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
        self.unfinished = 0;
    }

    /// Adds those of another command, which has ended.
    pub(super) fn add(&mut self, other: Self) {
        self.counts.passed += other.counts.passed;
        self.counts.failed += other.counts.failed;
        self.counts.skipped += other.counts.skipped;
        self.notes.extend(other.notes);
        for (reason, tests) in other.skipped {
            self.skipped.entry(reason).or_default().extend(tests);
        }
    }

    pub(super) fn outcome(mut self) -> Outcome {
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
        results.end(success, "`cargo test` failed");
        results.outcome()
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
    fn commands_add_up() {
        let mut all = Results::default();
        for (text, success) in [
            (
                "running 2 tests\ntest a ... ignored, why\ntest b ... FAILED\ntest result: FAILED. 0 passed; 1 failed; 1 ignored\n",
                false,
            ),
            ("running 2 tests\ntest c ... ok\n", false),
            (
                "running 2 tests\ntest d ... ok\ntest e ... ignored, why\ntest result: ok. 1 passed; 0 failed; 1 ignored\n",
                true,
            ),
        ] {
            let mut results = Results::default();
            text.lines().for_each(|line| results.read(line));
            results.end(success, "it failed");
            all.add(results);
        }
        let Outcome { counts, notes } = all.outcome();
        assert_eq!(counts, Counts { passed: 1, failed: 2, skipped: 2 });
        assert_eq!(
            notes,
            ["failed: b", "it failed: a test binary ended before it reported", "skipped: why: a, e"]
        );
    }

    #[test]
    fn commands_that_run_together_are_steps_of_their_own() {
        let shell = |name: &str, script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            (name.to_owned(), command)
        };
        // Each waits for the other.
        let place = tempfile::tempdir().unwrap();
        let (one, other) = (place.path().join("one"), place.path().join("other"));
        for fifo in [&one, &other] {
            assert!(Command::new("mkfifo").arg(fifo).status().unwrap().success());
        }
        let mut report = Report::default();
        let steps = vec![
            shell("one", &format!("echo > {}; read line < {}", one.display(), other.display())),
            shell("other", &format!("read line < {}; echo > {}; exit 3", one.display(), other.display())),
        ];
        run_together(&mut report, steps, None);
        let shown = report.to_string();
        assert!(shown.contains("  empty   one ") && shown.contains("  FAILED  other "), "{shown}");
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(result_line("test result: unknown"), None);
        assert!(!is_start_line("running late"));
        assert_eq!(read("test a ... ok\nrunning x tests\n", true).counts, Counts::default());
    }
}
