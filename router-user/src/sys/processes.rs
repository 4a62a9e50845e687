//! Processes and what they have open, from `/proc` (proc(5)). Skips what may not be read.

use std::fmt;
use std::path::{Path, PathBuf};

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, as `ps -o comm` shows it.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// Returns all processes, with their directories in `/proc`.
pub(crate) fn all() -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
}

/// Returns all processes but this one.
pub(crate) fn others() -> impl Iterator<Item = (u32, PathBuf)> {
    let own = std::process::id();
    all().filter(move |(pid, _)| *pid != own)
}

/// Returns the process `pid` of the directory `directory`.
pub(crate) fn process(pid: u32, directory: &Path) -> Process {
    let name = std::fs::read_to_string(directory.join("comm")).unwrap_or_default();
    Process { pid, name: name.trim().to_owned() }
}

/// Returns the entries of a directory of `/proc`.
pub(crate) fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::{Child, Command, Stdio};

    /// Runs `command`, which is a `cat` and ends with the [`Child`]. It has answered once: before a
    /// new process gets to its program, `/proc` does not say all of it.
    pub(crate) fn running(command: &mut Command) -> Child {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"?").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }
}
