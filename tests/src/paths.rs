//! The places where a lab is found outside of its process, by its id: the directory, the
//! namespaces, the bpffs.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};

/// The directory of all labs.
pub(crate) const ROOT: &str = "/run/pls-router-lab";

/// Returns the directory of one lab.
pub fn directory(id: &str) -> PathBuf {
    Path::new(ROOT).join(id)
}

/// Returns the name of a host's namespace.
pub fn namespace_name(id: &str, host: &str) -> String {
    format!("plr-{id}-{host}")
}

/// Returns an id that no other lab has: for tests, which run side by side.
pub fn unique_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}x{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Returns where the bpffs of all labs are mounted.
pub(crate) fn bpf_mounts() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mounted = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    Ok(mounted.filter(|path| path.starts_with(ROOT)).collect())
}

/// Returns `true` if a path below the directory of labs belongs to the same lab as a namespace.
pub(crate) fn belongs_to(path: &Path, namespace: &str) -> bool {
    let id = path.strip_prefix(ROOT).ok().and_then(|rest| rest.iter().next()).and_then(|id| id.to_str());
    id.is_some_and(|id| namespace.starts_with(&namespace_name(id, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_belong_to_the_lab_of_their_first_directory() {
        let path = Path::new("/run/pls-router-lab/t1x1/bpf");
        assert!(belongs_to(path, "plr-t1x1-router"));
        assert!(!belongs_to(path, "plr-t1x10-router"));
    }
}
