//! Runs the tests of one binary in several processes at a time, for an interpreter that has one
//! thread.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::libtest::{self, Results};
use super::report::{self, Outcome, Report};
use crate::system;

/// The parts for each CPU. With more, all CPUs would end nearer to the same time; but each part
/// starts with ten seconds in which Miri compiles the tests.
const PARTS_PER_CPU: usize = 2;

/// Runs the tests with `filter` in their names as one step. `command` makes the command that runs
/// them, without arguments for the test binary.
pub(super) fn run(
    report: &mut Report,
    name: &str,
    command: &(dyn Fn() -> Command + Sync),
    filter: Option<&OsStr>,
) {
    report::title(name);
    let start = Instant::now();
    let outcome = attempt(command, filter, &libtest::print)
        .unwrap_or_else(|error| Outcome::failed(format!("{error:#}")));
    report.add(name, start.elapsed(), outcome);
}

/// Shows what a part has printed.
type Show = dyn Fn(&[u8]) + Sync;

fn attempt(command: &(dyn Fn() -> Command + Sync), filter: Option<&OsStr>, show: &Show) -> Result<Outcome> {
    let shown = system::display(&command());
    eprintln!("  $ {shown}");
    let mut list = command();
    list.args(["--", "--list"]).args(filter).stderr(Stdio::inherit());
    let listed = list.output().with_context(|| format!("cannot start `{shown}`"))?;
    ensure!(listed.status.success(), "`{shown} -- --list` failed ({})", listed.status);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let queue = Mutex::new(divide(&names(&listed), cpus * PARTS_PER_CPU).into_iter());
    let all = Mutex::new(Results::default());
    let next = || queue.lock().expect("no panic").next();
    thread::scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(|| {
                while let Some(part) = next() {
                    let results = run_part(&mut command(), &shown, &part, show);
                    all.lock().expect("no panic").add(results);
                }
            });
        }
    });
    Ok(all.into_inner().expect("no panic").outcome())
}

/// Runs these tests, and shows what they print once all have run: by line, parts would be mixed.
fn run_part(command: &mut Command, shown: &str, part: &[&str], show: &Show) -> Results {
    command.args(["--", "--exact"]).args(part).stderr(Stdio::inherit());
    let mut results = Results::default();
    match command.output() {
        Ok(output) => {
            show(&output.stdout);
            // Tests may print anything.
            String::from_utf8_lossy(&output.stdout).lines().for_each(|line| results.read(line));
            let what = format!("`{shown} -- --exact {}` failed ({})", part.join(" "), output.status);
            results.end(output.status.success(), &what);
        }
        Err(error) => results.end(false, &format!("cannot start `{shown}`: {error}")),
    }
    results
}

/// The names in a list of tests: `module::name: test`.
fn names(list: &str) -> Vec<&str> {
    list.lines().filter_map(|line| line.strip_suffix(": test")).collect()
}

/// Divides tests into at most so many parts. Neighbours come into different ones: the tests of a
/// module take about as long as each other.
fn divide<'a>(names: &[&'a str], parts: usize) -> Vec<Vec<&'a str>> {
    let parts = parts.min(names.len());
    (0..parts).map(|first| names.iter().skip(first).step_by(parts).copied().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::report::Counts;

    #[test]
    fn a_list_has_names() {
        let list = "a::b: test\nc: test\n\n2 tests, 0 benchmarks\n";
        assert_eq!(names(list), ["a::b", "c"]);
    }

    #[test]
    fn parts_are_of_all_tests() {
        assert_eq!(divide(&["a", "b", "c", "d", "e"], 2), [vec!["a", "c", "e"], vec!["b", "d"]]);
        assert_eq!(divide(&["a"], 8), [["a"]]);
        assert!(divide(&[], 8).is_empty());
    }

    /// A stand-in for a test binary. A test with `bad` in its name fails, and one with `dead` ends
    /// the process.
    const BINARY: &str = r#"
        shift
        if [ "$1" = --list ]; then
            printf '%s: test\n' good bad dead other
            exit
        fi
        shift
        echo "running $# tests"
        passed=0 failed=0
        for name; do
            case $name in
                dead) exit 101 ;;
                bad) echo "test $name ... FAILED"; failed=$((failed + 1)) ;;
                *) echo "test $name ... ok"; passed=$((passed + 1)) ;;
            esac
        done
        echo "test result: x. $passed passed; $failed failed; 0 ignored; 0 measured"
        exit $failed
    "#;

    #[test]
    fn all_parts_are_counted() {
        let command = || {
            let mut command = Command::new("sh");
            command.args(["-c", BINARY, "binary"]);
            command
        };
        let Outcome { counts, mut notes } = attempt(&command, None, &|_| {}).unwrap();
        assert_eq!(counts, Counts { passed: 2, failed: 2, skipped: 0 });
        notes.sort();
        assert!(notes[0].contains("--exact dead` failed") && notes[0].contains("before it reported"));
        assert_eq!(notes[1], "failed: bad");
    }

    #[test]
    fn what_cannot_be_listed_is_an_error() {
        let error = attempt(&|| Command::new("false"), None, &|_| {}).unwrap_err().to_string();
        assert!(error.contains("`false -- --list` failed"), "{error}");
    }
}
