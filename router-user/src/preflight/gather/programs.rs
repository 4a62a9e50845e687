//! Details of XDP programs: from the kernel's list, from pins, and from the files
//! that processes have open.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::preflight::facts::{AttachedProgram, PROGRAM_NAME, Process};
use crate::sys::processes;
use crate::sys::xdp::Mode;
use crate::sys::{bpf, bpffs};

/// A bound on the walk through a BPF file system: some keep thousands of pins there.
const MAX_PINS: usize = 4096;
const MAX_DEPTH: usize = 6;

/// Details of one program, wherever it is attached.
#[derive(Clone, Default)]
pub(super) struct Details {
    name: Option<String>,
    loaded_ago: Option<Duration>,
    uid: Option<u32>,
    holders: Vec<Process>,
    pins: Vec<PathBuf>,
    pinned_by_us: bool,
}

impl Details {
    pub(super) fn attached(self, id: u32, mode: Option<Mode>) -> AttachedProgram {
        AttachedProgram {
            id,
            mode,
            // Without CAP_SYS_ADMIN the kernel does not tell names, but our own pins can be opened
            // all the same.
            ours: self.name.as_deref().map_or(self.pinned_by_us, |name| name == PROGRAM_NAME),
            name: self.name,
            loaded_ago: self.loaded_ago,
            uid: self.uid,
            holders: self.holders,
            pins: self.pins,
        }
    }
}

/// Returns details of the programs with these ids. `our_pins` is the directory of the router's
/// pins.
pub(super) fn details(ids: &[u32], our_pins: &Path) -> HashMap<u32, Details> {
    let mut details: HashMap<u32, Details> = ids.iter().map(|id| (*id, Details::default())).collect();
    if details.is_empty() {
        return details;
    }
    // Any error means that the rest is not to be had either: the list needs CAP_SYS_ADMIN.
    for program in aya::programs::loaded_programs().map_while(Result::ok) {
        if let Some(found) = details.get_mut(&program.id()) {
            found.name = program.name_as_str().filter(|name| !name.is_empty()).map(str::to_owned);
            found.loaded_ago = program.loaded_at().and_then(|at| SystemTime::now().duration_since(at).ok());
            found.uid = program.created_by_uid();
        }
    }
    for pin in pins(our_pins) {
        if let Some(found) = pinned_program(&pin).and_then(|id| details.get_mut(&id)) {
            found.pinned_by_us |= pin.starts_with(our_pins);
            if !found.pins.contains(&pin) {
                found.pins.push(pin);
            }
        }
    }
    for (pid, directory) in processes::others() {
        for file in processes::entries(&directory.join("fdinfo")) {
            let Some(found) = program_of_fdinfo(&file).and_then(|id| details.get_mut(&id)) else {
                continue;
            };
            if found.holders.iter().all(|holder| holder.pid != pid) {
                found.holders.push(processes::process(pid, &directory));
            }
        }
    }
    details
}

/// Every file on the BPF file system, and those of `our_pins` if that is elsewhere.
fn pins(our_pins: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![(our_pins.to_owned(), 0)];
    if !Path::new(bpffs::MOUNT_POINT).starts_with(our_pins) {
        directories.push((PathBuf::from(bpffs::MOUNT_POINT), 0));
    }
    while let Some((directory, depth)) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(directory) else {
            continue;
        };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => directories.push((entry.path(), depth + 1)),
                Ok(kind) if kind.is_file() && found.len() < MAX_PINS => found.push(entry.path()),
                Ok(_) | Err(_) => {}
            }
        }
    }
    found
}

/// The id of the program that is pinned at `path`, or that a link pinned there belongs to.
fn pinned_program(path: &Path) -> Option<u32> {
    use std::os::fd::AsRawFd as _;
    let object = bpf::open_pin_to_read(path).ok()?;
    program_of_fdinfo(Path::new(&format!("/proc/self/fdinfo/{}", object.as_raw_fd())))
}

/// The program that an open file is, or is a link of: both say `prog_id:` there, maps and other
/// files do not.
fn program_of_fdinfo(path: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
}
