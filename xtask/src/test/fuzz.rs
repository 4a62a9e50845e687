//! Builds the fuzz targets with libFuzzer's instrumentation and runs each for a while.
//!
//! Does the work of cargo-fuzz with a stable compiler: coverage is instrumented by LLVM's own pass,
//! which needs no nightly. There is no address sanitizer; a target finds panics, failed assertions,
//! overflows and hangs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::report::{self, Outcome, Report};
use crate::{system, workspace};

/// Coverage as libFuzzer wants it: edges counted in place, their addresses, and the operands of
/// comparisons.
const RUSTFLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // The pass runs once a unit; more than one and the counters of some would be lost.
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "-Copt-level=3",
];

/// The time that one input may take, and the memory for the whole, before that is a finding; and
/// that nearly equal operands count as progress. libFuzzer follows comparisons of four and eight
/// bytes by itself, but what a packet holds is mostly of one and two.
const OPTIONS: &[&str] = &["-timeout=10", "-rss_limit_mb=2048", "-use_value_profile=1"];

/// Runs every target for `time`.
pub(super) fn run(report: &mut Report, time: Duration) {
    report::title("fuzz: build");
    let start = Instant::now();
    let binaries = match build() {
        Ok(binaries) => binaries,
        Err(error) => return report.add("fuzz", start.elapsed(), Outcome::failed(format!("{error:#}"))),
    };
    report::title("fuzz: all targets at the same time");
    // Each is one thread.
    let steps: Vec<_> = thread::scope(|scope| {
        let started: Vec<_> = binaries.iter().map(|binary| scope.spawn(|| step(binary, time))).collect();
        started.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    for (name, time, outcome) in steps {
        report.add(&name, time, outcome);
    }
}

/// Runs one target. Returns the step's name, time and outcome.
fn step(binary: &Path, time: Duration) -> (String, Duration, Outcome) {
    let name = binary.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let start = Instant::now();
    let outcome = match fuzz(&name, binary, time) {
        Ok(()) => Outcome::passed(),
        Err(error) => {
            let reason = format!("{error:#}");
            eprintln!("  {name}: {reason}");
            Outcome::failed(reason)
        }
    };
    (format!("fuzz {name}"), start.elapsed(), outcome)
}

fn build() -> Result<Vec<PathBuf>> {
    let host = super::host_triple()?;
    let target_dir = workspace::target_dir().join("fuzz");
    let mut build = workspace::cargo("build");
    build
        // With a target named, the flags are kept from build scripts and macros, which are
        // not to be fuzzed.
        .args(["--package", "fuzz", "--bins", "--target", &host, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\u{1f}"));
    system::run(&mut build)?;
    let sources = workspace::root().join("fuzz/fuzz_targets");
    let mut names: Vec<_> = fs::read_dir(&sources)
        .with_context(|| format!("cannot read {}", sources.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| path.file_stem().map(PathBuf::from))
        .collect();
    names.sort();
    Ok(names.into_iter().map(|name| target_dir.join(&host).join("debug").join(name)).collect())
}

fn fuzz(name: &str, binary: &Path, time: Duration) -> Result<()> {
    let folder = workspace::root().join("fuzz");
    let (corpus, artifacts) = (folder.join("corpus").join(name), folder.join("artifacts").join(name));
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let path = binary.with_extension("log");
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!(
        "  {name}: {} s of inputs, starting from {}; log in {}",
        time.as_secs(),
        corpus.display(),
        path.display()
    );
    let mut command = Command::new(binary);
    command
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg("-print_final_stats=1")
        .args(OPTIONS)
        // The slash makes it a directory and not the beginning of a file's name.
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(&corpus)
        .current_dir(&folder)
        .stderr(log);
    let status = command.status().with_context(|| format!("cannot start {}", binary.display()))?;
    let log = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    if !status.success() {
        eprintln!("{}", tail(&log, 40));
        match artifact(&log) {
            Some(input) => bail!("found an input that fails; to see it again: {} {input}", binary.display()),
            None => bail!("libFuzzer failed ({status}); see {}", path.display()),
        }
    }
    // Without instrumentation it would run blindly and find little, and look just as good.
    ensure!(counters(&log) > 0, "the code is not instrumented for coverage; see {}", path.display());
    let runs = statistic(&log, "number_of_executed_units").unwrap_or("?");
    let added = statistic(&log, "new_units_added").unwrap_or("?");
    eprintln!("  {name}: {runs} inputs, {added} of them new to the corpus, nothing found");
    Ok(())
}

/// The input that libFuzzer has saved: `artifact_prefix='..'; Test unit written to PATH`.
fn artifact(log: &str) -> Option<&str> {
    log.lines().find_map(|line| Some(line.split_once("Test unit written to ")?.1.trim()))
}

/// The number of places that are counted: `INFO: Loaded 1 modules   (58 inline 8-bit counters): 58
/// [0x..), `.
fn counters(log: &str) -> u64 {
    let number = |line: &str| {
        let (before, _) = line.split_once(" inline 8-bit counters")?;
        before.rsplit('(').next()?.parse().ok()
    };
    log.lines().find_map(number).unwrap_or(0)
}

/// One of `stat::number_of_executed_units: 123`.
fn statistic<'a>(log: &'a str, name: &str) -> Option<&'a str> {
    log.lines()
        .find_map(|line| Some(line.strip_prefix("stat::")?.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
INFO: Running with entropic power schedule (0xFF, 100).
INFO: Loaded 1 modules   (58 inline 8-bit counters): 58 [0x55d0, 0x560a), 
#2\tINITED cov: 3 ft: 4 corp: 1/1b exec/s: 0 rss: 30Mb
==1== ERROR: libFuzzer: deadly signal
artifact_prefix='/x/fuzz/artifacts/parse/'; Test unit written to /x/fuzz/artifacts/parse/crash-0a
stat::number_of_executed_units: 4711
stat::new_units_added:          12
";

    #[test]
    fn the_log_is_understood() {
        assert_eq!(counters(LOG), 58);
        assert_eq!(artifact(LOG), Some("/x/fuzz/artifacts/parse/crash-0a"));
        assert_eq!(statistic(LOG, "number_of_executed_units"), Some("4711"));
        assert_eq!(statistic(LOG, "new_units_added"), Some("12"));
        assert_eq!(tail(LOG, 1), "stat::new_units_added:          12");
    }

    #[test]
    fn a_log_without_counters_is_seen() {
        assert_eq!(counters("INFO: Running with entropic power schedule\n"), 0);
        assert_eq!(artifact(""), None);
        assert_eq!(statistic("", "new_units_added"), None);
    }
}
