//! The usage of a process: proc_pid_fdinfo(5), proc_pid_smaps(5), and its CPU clock.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use aya::maps::{MapData, MapInfo};
use nix::{time::clock_getcpuclockid, unistd::Pid};
use serde::Serialize;

/// A BPF map that a process holds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MapMemory {
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// The memory of a process.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Memory {
    /// Resident, with what it shares with others.
    pub(super) rss_bytes: u64,
    /// Resident, with its share of that.
    pub(super) pss_bytes: u64,
    /// Private memory: neither files nor maps.
    pub(super) anonymous_bytes: u64,
}

/// Returns the CPU time of a process, with that of all threads, ended ones included.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed()));
    let time = clock.and_then(nix::time::ClockId::now).context("cannot read the daemon's CPU clock")?;
    Ok(Duration::from(time))
}

pub(super) fn memory(pid: u32) -> Result<Memory> {
    let text = read(&format!("/proc/{pid}/smaps_rollup"))?;
    let kibibytes = |name| number(&text, name).with_context(|| format!("smaps_rollup has no {name}"));
    Ok(Memory {
        rss_bytes: kibibytes("Rss:")? * 1024,
        pss_bytes: kibibytes("Pss:")? * 1024,
        anonymous_bytes: kibibytes("Anonymous:")? * 1024,
    })
}

/// The most that was resident at any time.
pub(super) fn peak(pid: u32) -> Result<u64> {
    let text = read(&format!("/proc/{pid}/status"))?;
    Ok(number(&text, "VmHWM:").context("status has no VmHWM")? * 1024)
}

/// The BPF maps that a process has open or that are pinned below a directory, the largest first:
/// what the kernel has set aside for each. A map that is only in a process' memory is open nowhere.
pub(super) fn maps(pid: u32, pins: &Path) -> Result<Vec<MapMemory>> {
    let mut maps = BTreeMap::new();
    let mut collect = |text: &str| -> Result<()> {
        if let (Some(id), Some(bytes)) = (number(text, "map_id:"), number(text, "memlock:")) {
            maps.insert(u32::try_from(id).context("a map's id is too large")?, bytes);
        }
        Ok(())
    };
    for path in files(Path::new(&format!("/proc/{pid}/fdinfo")))? {
        // One that was closed meanwhile is none.
        collect(&fs::read_to_string(path).unwrap_or_default())?;
    }
    for directory in files(pins)? {
        for pin in files(&directory)? {
            // Links are pinned there, too.
            let Ok(map) = MapData::from_pin(&pin) else { continue };
            collect(&read(&format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?)?;
        }
    }
    let mut maps = maps
        .into_iter()
        .map(|(id, bytes)| {
            let info = MapInfo::from_id(id).with_context(|| format!("cannot examine the map {id}"))?;
            Ok(MapMemory { name: info.name_as_str().unwrap_or("?").to_owned(), bytes })
        })
        .collect::<Result<Vec<_>>>()?;
    maps.sort_by_key(|map| Reverse(map.bytes));
    Ok(maps)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = || fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    read().with_context(|| format!("cannot read {}", directory.display()))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

/// The number after a name at the start of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_names() {
        let text = "Rss:                1234 kB\nPss:  56 kB\nmap_id:\t7\n";
        assert_eq!(number(text, "Rss:"), Some(1234));
        assert_eq!(number(text, "Pss:"), Some(56));
        assert_eq!(number(text, "map_id:"), Some(7));
        assert_eq!(number(text, "memlock:"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let pid = std::process::id();
        assert!(memory(pid).expect("memory").rss_bytes > 0);
        assert!(peak(pid).expect("a peak") >= memory(pid).expect("memory").pss_bytes / 2);
        assert!(cpu_time(pid).expect("a clock") > Duration::ZERO);
    }
}
