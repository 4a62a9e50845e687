//! Processes and what they have open, from `/proc` (proc(5)). What may not be looked at is skipped.

use std::path::{Path, PathBuf};

use crate::preflight::facts::Process;

/// All processes but this one, with their directories in `/proc`.
pub(super) fn others() -> impl Iterator<Item = (u32, PathBuf)> {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .filter(move |(pid, _)| *pid != own)
}

/// The process `pid`, whose directory is `directory`.
pub(super) fn process(pid: u32, directory: &Path) -> Process {
    let name = std::fs::read_to_string(directory.join("comm")).unwrap_or_default();
    Process { pid, name: name.trim().to_owned() }
}

/// The entries of a directory of `/proc`.
pub(super) fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::{Child, Command, Stdio};

    /// Runs `command`, which is a `cat` and ends with the [`Child`]. It has answered once: before a
    /// new process gets to its program, `/proc` does not say all of it.
    pub(in super::super) fn running(command: &mut Command) -> Child {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"?").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }
}
