//! Helpers for the kernel and its file systems, one copy of each, for the data plane, the daemon
//! and preflight.

pub(crate) mod addresses;
pub(crate) mod bpf;
pub(crate) mod bpffs;
pub(crate) mod files;
pub(crate) mod filters;
pub(crate) mod groups;
pub(crate) mod interface;
pub(crate) mod netlink;
pub(crate) mod proc_net;
pub(crate) mod processes;
pub mod xdp;

use std::path::Path;

/// Reads a kernel setting by its path below `/proc/sys`, without white space around it.
pub(crate) fn sysctl(name: &str) -> Option<String> {
    let value = std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    Some(value.trim().to_owned())
}
