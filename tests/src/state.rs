//! The state of a lab outside of its process, and its removal in every case.
//!
//! Each lab has a directory `/run/pls-router-lab/<id>` with its configuration, logs, sockets and a
//! bpffs, and namespaces named `plr-<id>-<host>`. A live lab holds a lock on `<id>/lock`; one that
//! was kept on purpose has a file `<id>/kept`. Everything else was left by a dead run, and every
//! new run begins by removing it. Processes are ended only if the lab recorded them itself (id and
//! start time) or if they live in one of its namespaces.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    interrupt, namespace,
    paths::{self, ROOT, directory},
    wait,
};

/// The prefix of directories of labs that were removed but for their files.
const GONE: &str = ".gone-";

/// The time that processes get to disappear after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The data that entering a kept lab takes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct About {
    /// Its hosts.
    pub hosts: Vec<String>,
    /// The daemon's binary, if a daemon runs.
    pub binary: Option<PathBuf>,
    /// The hosts that have a file system of their own: a process of each, by its id and start time.
    #[serde(default)]
    pub machines: BTreeMap<String, (u32, u64)>,
}

impl About {
    /// Returns the id of a process in the file system of a host, if it has its own.
    pub fn machine(&self, host: &str) -> Result<Option<u32>> {
        let Some((pid, started)) = self.machines.get(host) else { return Ok(None) };
        ensure!(
            start_time(*pid) == Some(*started),
            "the machine of {host} has ended; `cargo xtask lab --down` removes the lab"
        );
        Ok(Some(*pid))
    }
}

/// The directory of a live lab, and the claim on its id.
#[derive(Debug)]
pub struct State {
    id: String,
    path: PathBuf,
    /// Locked for the life of the lab. The kernel releases the lock when the process ends in any
    /// way.
    _lock: File,
    keep: bool,
}

impl State {
    /// Removes what dead labs left, and claims `id`.
    pub fn create(id: &str) -> Result<Self> {
        let well_formed =
            !id.is_empty() && id.len() <= 32 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        ensure!(well_formed, "a lab's id is made of letters and digits, not \"{id}\"");
        let _turn = turn()?;
        sweep()?;

        let path = directory(id);
        if path.exists() {
            bail!("{}", occupied(id));
        }
        interrupt::guard(id, destroy)?;
        let _running = interrupt::gate();
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut lock = File::create_new(path.join("lock")).context("cannot make the lab's lock file")?;
        lock.try_lock().context("cannot lock a file that was just made")?;
        let started = start_time(process::id()).context("this process is not in /proc")?;
        writeln!(lock, "{} {started}", process::id()).context("cannot write the lab's lock file")?;
        let state = Self { id: id.to_owned(), path, _lock: lock, keep: false };
        for directory in ["bpf", "conf", "etc", "logs", "tmp"] {
            state.directory(directory)?;
        }
        let bpf = state.path.join("bpf");
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a bpffs on {}", bpf.display()))?;
        Ok(state)
    }

    /// The lab's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The path of something in the lab's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A directory in the lab's directory, made if it is not there.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Writes a file into the lab's directory.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The path of a log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// Notes a process of this lab, so that it is ended with it.
    pub(crate) fn record(&self, pid: u32) -> Result<()> {
        let Some(started) = start_time(pid) else { return Ok(()) };
        let path = self.path("pids");
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        writeln!(file, "{pid} {started}").with_context(|| format!("cannot write {}", path.display()))
    }

    /// The lab stays up after this process.
    pub fn keep(&mut self, about: &About) -> Result<()> {
        self.write("kept", serde_json::to_string(about)?)?;
        self.keep = true;
        interrupt::release(&self.id);
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = destroy(&self.id) {
            complain!("the lab \"{}\" could not be removed whole, the next run will: {error:#}", self.id);
        }
        interrupt::release(&self.id);
    }
}

/// Returns the data of a kept lab.
pub fn about(id: &str) -> Result<About> {
    let path = directory(id).join("kept");
    ensure!(path.exists(), "no lab \"{id}\" was kept; `cargo xtask lab --keep` brings one up");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// Removes the kept lab `id`. False if there is none.
pub fn down(id: &str) -> Result<bool> {
    let _turn = turn()?;
    sweep()?;
    if !directory(id).exists() {
        return Ok(false);
    }
    if is_held(&directory(id))? {
        bail!("{}", occupied(id));
    }
    destroy(id)?;
    Ok(true)
}

/// Only one process at a time makes or removes directories of labs.
fn turn() -> Result<File> {
    fs::create_dir_all(ROOT).with_context(|| format!("cannot make {ROOT}"))?;
    let path = Path::new(ROOT).join(".turn");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Describes the lab that has this id.
fn occupied(id: &str) -> String {
    let directory = directory(id);
    if directory.join("kept").exists() {
        return format!(
            "the lab \"{id}\" was kept and is still up; `cargo xtask lab --down` removes it, `cargo xtask lab --exec HOST` enters it"
        );
    }
    let holder = holder(&directory).map_or_else(|| "?".to_owned(), |(pid, _)| pid.to_string());
    let command = fs::read(format!("/proc/{holder}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    format!("the lab \"{id}\" is running: process {holder} (`{}`) has it", command.trim())
}

/// Returns `true` if a live process has the lab of this directory.
fn is_held(directory: &Path) -> Result<bool> {
    let lock = match File::open(directory.join("lock")) {
        // Without a lock file the run died between two system calls.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        lock => lock.with_context(|| format!("cannot open the lock in {}", directory.display()))?,
    };
    let is_locked = || match lock.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error).context("cannot ask for a lock"),
    };
    if !is_locked()? {
        return Ok(false);
    }
    let holder = holder(directory);
    if holder.is_some_and(|(pid, started)| start_time(pid) == Some(started)) {
        return Ok(true);
    }
    // It is dead. A child that it had just forked has the lock until it becomes the program that it
    // is to be.
    wait::until("a dead lab's lock", KILL_LIMIT, || {
        ensure!(!is_locked()?, "{} is locked, but not by the process that it names", directory.display());
        Ok(false)
    })
}

/// The process that made the lab of this directory, as its id and start time.
fn holder(directory: &Path) -> Option<(u32, u64)> {
    parse_process(&fs::read_to_string(directory.join("lock")).ok()?)
}

/// The line that names a process for good.
fn parse_process(line: &str) -> Option<(u32, u64)> {
    let (pid, started) = line.trim().split_once(' ')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// Removes what dead labs left. The caller has the turn.
fn sweep() -> Result<()> {
    for entry in fs::read_dir(ROOT).with_context(|| format!("cannot read {ROOT}"))? {
        let entry = entry.with_context(|| format!("cannot read {ROOT}"))?;
        let (path, name) = (entry.path(), entry.file_name());
        let Some(id) = name.to_str() else { continue };
        if id.starts_with(GONE) {
            remove_directory(&path)?;
        } else if path.is_dir() && !path.join("kept").exists() && !is_held(&path)? {
            complain!("removing what the lab \"{id}\" left behind: its process is gone");
            destroy(id)?;
        }
    }
    // Namespaces without a directory: that was removed by hand.
    for name in namespaces("plr-")? {
        let id = name.split('-').nth(1).unwrap_or_default();
        if !directory(id).exists() {
            complain!("removing the namespaces of the lab \"{id}\": it has no directory any more");
            destroy(id)?;
        }
    }
    Ok(())
}

/// Removes all that a lab is: processes, namespaces, the bpffs with its pins, and the directory.
fn destroy(id: &str) -> Result<()> {
    let directory = directory(id);
    let names = namespaces(&paths::namespace_name(id, ""))?;
    let recorded = recorded(&directory);
    let mut inodes = Vec::new();
    for name in &names {
        // A name without a namespace mounted on it belongs to a run that died in `ip netns add`.
        if let Ok(metadata) = fs::metadata(Path::new(namespace::NAMES).join(name)) {
            inodes.push((metadata.dev(), metadata.ino()));
        }
    }
    wait::until("the lab's processes to end", KILL_LIMIT, || {
        let alive = alive(&recorded, &inodes)?;
        for pid in &alive {
            kill_all(*pid);
        }
        ensure!(alive.is_empty(), "still alive: {alive:?}");
        Ok(())
    })?;

    for name in &names {
        namespace::remove(name)?;
    }
    if !directory.exists() {
        return Ok(());
    }
    for mounted in paths::bpf_mounts()? {
        if mounted.starts_with(&directory) {
            umount2(&mounted, MntFlags::MNT_DETACH)
                .with_context(|| format!("cannot unmount {}", mounted.display()))?;
        }
    }
    // In one step, since others may look: a directory that has lost its lock file first would look
    // like a dead run's.
    let gone = Path::new(ROOT).join(format!("{GONE}{}", paths::unique_id()));
    fs::rename(&directory, &gone).with_context(|| format!("cannot rename {}", directory.display()))?;
    remove_directory(&gone)
}

/// Removes a directory that another process may be removing, too.
fn remove_directory(path: &Path) -> Result<()> {
    wait::until("a lab's directory to be empty", KILL_LIMIT, || match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", path.display())),
    })
}

/// Ends a process and what it started; the processes that the lab starts lead a session of their
/// own.
fn kill_all(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed());
    let leads = nix::unistd::getpgid(Some(pid)) == Ok(pid);
    // One that is gone by now is what we want.
    let _gone: Result<(), Errno> =
        if leads { killpg(pid, Signal::SIGKILL) } else { kill(pid, Signal::SIGKILL) };
}

/// The processes that a lab noted, with their start times.
fn recorded(directory: &Path) -> Vec<(u32, u64)> {
    let text = fs::read_to_string(directory.join("pids")).unwrap_or_default();
    text.lines().filter_map(parse_process).collect()
}

/// Returns the recorded processes that still live, and all processes in the namespaces with these
/// inodes.
fn alive(recorded: &[(u32, u64)], inodes: &[(u64, u64)]) -> Result<Vec<u32>> {
    let mut alive: Vec<u32> = recorded
        .iter()
        .filter(|(pid, started)| start_time(*pid) == Some(*started))
        .map(|(pid, _)| *pid)
        .collect();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let entry = entry.context("cannot read /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(metadata) = fs::metadata(entry.path().join("ns/net")) else { continue };
        if pid != process::id() && inodes.contains(&(metadata.dev(), metadata.ino())) && !alive.contains(&pid)
        {
            alive.push(pid);
        }
    }
    Ok(alive)
}

/// Returns the time a process started, in the kernel's ticks: with the id, that identifies a
/// process. `None` once it has ended, even if its exit status has not been collected yet.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold anything; field 3 is the state,
    // field 22 the time.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.nth(18)?.parse().ok() }
}

/// The named namespaces whose names start like this.
fn namespaces(prefix: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir(namespace::NAMES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot read {}", namespace::NAMES))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("cannot read {}", namespace::NAMES))?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.starts_with(prefix)) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_id_and_start_time() {
        let this = process::id();
        let started = start_time(this).expect("this process runs");
        assert!(alive(&[(this, started)], &[]).expect("/proc is readable").contains(&this));
        assert!(!alive(&[(this, started + 1)], &[]).expect("/proc is readable").contains(&this));
    }
}
