//! Programs that keep running in a lab.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{command, interrupt, state::State, wait};

/// The limit for a killed process to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A program in the background, killed when the value is dropped (unless [`Process::leave`] was
/// called). Its output goes to a log.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// The length of the log at the start: an earlier process of the same name may have written to
    /// it.
    before: u64,
    kill: bool,
}

impl Process {
    /// Starts `command` (of [`Namespace::command`](crate::Namespace::command)) as a process of this
    /// lab.
    pub fn spawn(state: &State, name: &str, mut command: Command) -> Result<Self> {
        let log = state.log(name);
        let writer = File::options().create(true).append(true).open(&log);
        let writer = writer.with_context(|| format!("cannot open {}", log.display()))?;
        let before = writer.metadata().with_context(|| format!("cannot examine {}", log.display()))?.len();
        let copy = writer.try_clone().with_context(|| format!("cannot share {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(copy).stderr(writer);
        let _running = interrupt::gate();
        let child = command::spawn(&mut command)?;
        let process = Self { name: name.to_owned(), child, log, before, kill: true };
        state.record(process.pid())?;
        Ok(process)
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Returns its output so far.
    pub fn output(&self) -> String {
        self.read_log().unwrap_or_else(|error| format!("({error:#})"))
    }

    fn read_log(&self) -> Result<String> {
        read_from(&self.log, self.before)
    }

    /// Dropping the value will not end the process.
    pub fn leave(&mut self) {
        self.kill = false;
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Stops it (SIGSTOP), and waits until all its threads have stopped.
    pub fn suspend(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let threads = PathBuf::from(format!("/proc/{}/task", self.pid()));
        wait::until(&format!("{} to stop", self.name), KILL_LIMIT, || {
            for thread in threads.read_dir().context("its threads")? {
                let status = thread.context("a thread")?.path().join("status");
                let status = std::fs::read_to_string(status).context("a thread's status")?;
                ensure!(status.contains("\nState:\tT"), "{status}");
            }
            Ok(())
        })
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("lost {}", self.name))
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait::until(&what, limit, || self.ended()?.ok_or_else(|| anyhow!("it still runs")))
    }

    /// Waits until `ready` holds; that the process has ended is an error at once, with the end of
    /// its log.
    pub fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> Result<()>) -> Result<()> {
        let what = format!("{} to be ready", self.name);
        let ended = wait::until(&what, limit, || match ready() {
            Ok(()) => Ok(None),
            Err(not_yet) => self.ended()?.map(Some).ok_or(not_yet),
        });
        let ended = ended.with_context(|| format!("its log:\n{}", tail(&self.output())))?;
        ensure!(
            ended.is_none(),
            "{} ended ({}) before it was ready; its log:\n{}",
            self.name,
            ended.unwrap_or_else(|| ExitStatus::from_raw(0)),
            tail(&self.output())
        );
        Ok(())
    }

    /// Waits until its log has a line with `text`, and returns that line.
    pub fn wait_for_log(&mut self, text: &str, limit: Duration) -> Result<String> {
        let (log, before) = (self.log.clone(), self.before);
        let mut found = String::new();
        self.wait_until(limit, || {
            let output = read_from(&log, before)?;
            let line = output.lines().find(|line| line.contains(text));
            line.ok_or_else(|| anyhow!("its log has no line with \"{text}\""))?.clone_into(&mut found);
            Ok(())
        })?;
        Ok(found)
    }

    /// Ends it the hard way, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.signal(Signal::SIGKILL)?;
            self.wait(KILL_LIMIT)?;
        }
        Ok(())
    }

    /// Ends it the polite way.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }
}

/// Returns a log from an offset on.
fn read_from(log: &Path, offset: u64) -> Result<String> {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text)
    };
    read().with_context(|| format!("cannot read {}", log.display()))
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.kill
            && let Err(error) = self.kill()
        {
            complain!("{error:#}");
        }
    }
}

/// The last lines of a log.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
