//! Runs each test in a separate process.

use std::{
    env,
    ffi::OsStr,
    fs,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    io::{self, Read as _, Seek as _, Write as _},
    panic,
    process::{Command, ExitCode, ExitStatus, Stdio, Termination},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::packages::Absent;
use crate::times::Times;

/// Names the one test that a process is to run.
const TEST_VARIABLE: &str = "HARNESS_TEST";
/// Names the file that such a process writes to why the test was skipped.
const REASON_VARIABLE: &str = "HARNESS_REASON";

/// The exit code of such a process then, the same as automake's and others'.
const SKIPPED: u8 = 77;
/// The exit code of the compiler's own harness when a test has panicked.
const PANICKED: u8 = 101;

/// A registered test.
#[derive(Debug)]
pub struct Test {
    /// The module that has the function.
    pub module: &'static str,
    /// Its name.
    pub function: &'static str,
    /// Why it is ignored, if it is, unless ignored tests are asked for.
    pub ignored: &'static [&'static str],
    /// The test's function.
    pub body: fn() -> ExitCode,
}

inventory::collect!(Test);

impl Test {
    /// The test's name as the compiler's harness has it: the path in its crate.
    fn name(&self) -> String {
        match self.module.split_once("::") {
            Some((_crate, module)) => format!("{module}::{}", self.function),
            None => self.function.to_owned(),
        }
    }
}

/// The reason for skipping a test. A test unwinds with this, which is no panic.
struct Skipped(String);

/// Ends this test, which is then counted as ignored, for that reason.
pub fn skip(reason: impl Into<String>) -> ! {
    panic::resume_unwind(Box::new(Skipped(reason.into())))
}

/// Returns the value. Without one the test fails, with the whole story of the error; or is skipped,
/// where a package is missing.
#[track_caller]
pub fn check<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => match error.downcast_ref::<Absent>() {
            Some(absent) => skip(absent.to_string()),
            None => panic!("{error:#}"),
        },
    }
}

/// Returns `reason` unless this process is root's: for [`main`].
pub fn no_root(reason: &str) -> Option<&str> {
    use std::os::unix::fs::MetadataExt as _;
    // The owner of a process's own directory is its effective user.
    let root = fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    (!root).then_some(reason)
}

/// Converts a test's return value to an exit code.
#[doc(hidden)]
pub fn exit_code(value: impl Termination) -> ExitCode {
    value.report()
}

/// Runs the tests that the arguments ask for. With an obstacle, all of them are ignored for that
/// reason.
pub fn main(obstacle: Option<&str>) -> ExitCode {
    if let Some(name) = env::var_os(TEST_VARIABLE) {
        return alone(&name);
    }
    let mut arguments = Arguments::from_args();
    let threads = || env::var("RUST_TEST_THREADS").ok()?.parse().ok();
    arguments.test_threads = arguments.test_threads.or_else(threads);
    arguments.test_threads = arguments.test_threads.or_else(more_than_cpus);
    let mut tests: Vec<_> = inventory::iter::<Test>().collect();
    tests.sort_by_key(|test| spread(&test.name()));
    let times = Times::default();
    let trials = tests
        .into_iter()
        .map(|test| trial(test, obstacle.map(str::to_owned), &arguments, times.clone()))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // A closed standard output must not change the exit code.
    _ = write!(io::stdout(), "{times}");
    conclusion.exit_code()
}

/// Returns one more than there are CPUs: tests wait for half of their time.
fn more_than_cpus() -> Option<usize> {
    thread::available_parallelism().ok().map(|cpus| cpus.get() + 1)
}

/// Returns a test's place in the order, which is the same in every run and scatters the tests of a
/// module: those that need much of the same thing would run at the same time.
fn spread(name: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(name)
}

fn trial(test: &'static Test, obstacle: Option<String>, arguments: &Arguments, times: Times) -> Trial {
    let wants_ignored = arguments.ignored || arguments.include_ignored;
    let reason = if wants_ignored {
        obstacle
    } else {
        obstacle.or(test.ignored.first().map(|reason| (*reason).to_owned()))
    };
    let shown = arguments.nocapture;
    let trial = Trial::ignorable_test(test.name(), move || match reason {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => {
            let start = Instant::now();
            let outcome = apart(test, shown);
            times.add(test.name(), start.elapsed());
            outcome
        }
    });
    // Otherwise the library would ignore it by itself, and without the reason.
    trial.with_ignored_flag(wants_ignored && !test.ignored.is_empty())
}

/// Runs a test in a separate process.
fn apart(test: &Test, shown: bool) -> Result<Completion, Failed> {
    let ran = try_apart(test, shown).map_err(|error| format!("{error:#}"))?;
    if ran.status.success() {
        return Ok(Completion::Completed);
    }
    if ran.status.code() == Some(SKIPPED.into()) {
        return Ok(Completion::ignored_with(ran.reason.replace('\n', " ")));
    }
    let ended = match ran.status.code() {
        Some(code) if code == i32::from(PANICKED) => String::new(),
        _ => format!("the test's process ended with {}", ran.status),
    };
    Err(format!("{}{ended}", ran.said).into())
}

/// The end of a process that ran a test.
struct Ran {
    status: ExitStatus,
    said: String,
    reason: String,
}

fn try_apart(test: &Test, shown: bool) -> Result<Ran> {
    let this = env::current_exe().context("cannot tell which binary this is")?;
    // A file and not a pipe: what a test has left running would keep that open.
    let mut output = tempfile::tempfile().context("cannot make a file for the output")?;
    let reason = tempfile::NamedTempFile::new().context("cannot make a file for the reason")?;
    let mut command = Command::new(this);
    command.env(TEST_VARIABLE, test.name()).env(REASON_VARIABLE, reason.path()).stdin(Stdio::null());
    if !shown {
        let copy = output.try_clone().context("cannot share a file")?;
        command.stderr(copy).stdout(output.try_clone().context("cannot share a file")?);
    }
    let status = command.status().context("cannot start the test's process")?;
    let mut said = Vec::new();
    output.rewind().and_then(|()| output.read_to_end(&mut said)).context("cannot read the output")?;
    let reason = fs::read_to_string(reason.path()).context("cannot read the reason")?;
    Ok(Ran { status, said: String::from_utf8_lossy(&said).into_owned(), reason })
}

/// Runs one test in this process, on a thread that has its name, as the compiler's harness does.
fn alone(name: &OsStr) -> ExitCode {
    let Some(test) = inventory::iter::<Test>().find(|test| *test.name() == *name) else {
        eprintln!("there is no test {}", name.display());
        return ExitCode::from(PANICKED);
    };
    let thread = match thread::Builder::new().name(test.name()).spawn(test.body) {
        Ok(thread) => thread,
        Err(error) => {
            eprintln!("cannot start a thread: {error}");
            return ExitCode::from(PANICKED);
        }
    };
    thread.join().unwrap_or_else(|panicked| match panicked.downcast::<Skipped>() {
        Ok(skipped) => match env::var_os(REASON_VARIABLE).map(|path| fs::write(path, skipped.0)) {
            Some(Ok(())) => ExitCode::from(SKIPPED),
            _ => ExitCode::from(PANICKED),
        },
        Err(_panic) => ExitCode::from(PANICKED),
    })
}
