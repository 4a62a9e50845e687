//! The tasks of each CPU, and the load of a thread of the kernel.

use std::{
    fs,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lab::{Namespace, wait};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::{Pid, gettid},
};
use signal_hook::consts::SIGUSR1;

/// The CPU of the generator, of the bench itself, and of the daemon, which inherits it.
pub(crate) const GENERATOR: usize = 0;
/// The CPU of the router: the one core that is measured.
pub(crate) const ROUTER: usize = 1;

/// The limit for a NAPI thread to appear.
const THREAD_LIMIT: Duration = Duration::from_secs(2);

/// Keeps this thread, and what it starts from now on, to one CPU.
pub(crate) fn stay_on(cpu: usize) -> Result<()> {
    pin(Pid::from_raw(0), &[cpu])
}

/// Lets this thread, and what it starts from now on, run anywhere.
pub(crate) fn run_anywhere() -> Result<()> {
    pin(Pid::from_raw(0), &(0..count()?).collect::<Vec<_>>())
}

/// Returns the number of CPUs.
pub(crate) fn count() -> Result<usize> {
    let text = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    Ok(text.lines().filter(|line| line.starts_with("processor")).count())
}

fn pin(pid: Pid, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu).with_context(|| format!("no CPU can have the number {cpu}"))?;
    }
    sched_setaffinity(pid, &set).with_context(|| format!("cannot keep thread {pid} to CPU {cpus:?}"))
}

/// Has a kernel thread on `cpu` poll a device. The device's name must be unique in all namespaces,
/// since the thread is found by that name.
pub(crate) fn poll_by_thread(namespace: &Namespace, device: &str, cpu: usize) -> Result<()> {
    // Through a shell, because only a program in the namespace sees that namespace's /sys.
    let script = format!("echo 1 > /sys/class/net/{device}/threaded");
    namespace.run("sh", &["-c", &script])?;
    let prefix = format!("napi/{device}-");
    let pid = wait::until("the device's NAPI thread", THREAD_LIMIT, || find(&prefix))?;
    pin(Pid::from_raw(pid), &[cpu])
}

/// A thread of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread(Pid);

impl Thread {
    /// The thread that asks.
    pub(crate) fn this() -> Self {
        Self(gettid())
    }

    /// Interrupts the system call that it is in, if it is in one. [`allow_interrupts`] has to come
    /// first.
    pub(crate) fn interrupt(self) {
        // SAFETY: takes three numbers; the signal has a handler. That the thread has ended is an
        // error, and no harm.
        unsafe { libc::syscall(libc::SYS_tgkill, Pid::this().as_raw(), self.0.as_raw(), SIGUSR1) };
    }

    /// The time that it was runnable, but another thread ran.
    pub(crate) fn waited(self) -> Result<Duration> {
        let path = format!("/proc/self/task/{}/schedstat", self.0);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let waited = text.split_whitespace().nth(1).and_then(|number| number.parse().ok());
        Ok(Duration::from_nanos(waited.with_context(|| format!("{path} says \"{}\"", text.trim()))?))
    }
}

/// Gives the signal of [`Thread::interrupt`] a handler, without which it would end the process.
pub(crate) fn allow_interrupts() -> Result<()> {
    // The signal only has to interrupt; it needs no handler's work.
    signal_hook::flag::register(SIGUSR1, Arc::new(AtomicBool::new(false)))
        .context("cannot handle SIGUSR1")?;
    Ok(())
}

/// The ticks that a CPU has spent since it was started, by use: proc_stat(5).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    all: u64,
    idle: u64,
    /// Time that was not the router's, which runs in the kernel only: other programs, and a
    /// hypervisor that ran another machine.
    others: u64,
}

impl Ticks {
    /// Reads those of this CPU.
    pub(crate) fn of(cpu: usize) -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let prefix = format!("cpu{cpu} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
        let line = line.with_context(|| format!("/proc/stat has no CPU {cpu}"))?;
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = numbers[..] else {
            bail!("/proc/stat says \"{line}\"");
        };
        Ok(Self {
            all: user + nice + system + idle + iowait + irq + softirq + steal,
            idle: idle + iowait,
            others: user + nice + steal,
        })
    }

    /// The shares of idleness and of others since an earlier time.
    pub(crate) fn since(self, earlier: Self) -> [f64; 2] {
        let all = self.all.saturating_sub(earlier.all).max(1) as f64;
        [self.idle.saturating_sub(earlier.idle), self.others.saturating_sub(earlier.others)]
            .map(|ticks| ticks as f64 / all)
    }
}

fn find(prefix: &str) -> Result<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let entry = entry.context("cannot read /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile is none that we look for.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with(prefix) {
            found.push(pid);
        }
    }
    ensure!(found.len() == 1, "{} threads are named {prefix}*", found.len());
    Ok(found[0])
}
