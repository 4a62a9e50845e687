//! The BPF object: its programs and maps by name.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfError,
    maps::Map,
    programs::{ProgramError, ProgramFd, SchedClassifier, Xdp},
};

use super::{own_traffic, reserved_ports};

/// The maps that are pinned by their own name. `STAGES` is apart: each generation of programs has
/// its own.
pub(super) const PINNED_MAPS: [&str; 24] = [
    "ROOT",
    "EGRESS",
    "SETTINGS",
    "STATS",
    "FLOWS",
    "OCCUPANCY",
    "HALF_OPEN",
    "POOLS",
    "POOL_BITS",
    "RULE_SETS",
    "RULES",
    "MASQUERADES",
    "LISTENERS",
    "SOURCES",
    "LOCAL_ADDRESSES",
    "LOCAL_ADDRESSES_IPV6",
    "LOCAL_ALLOW",
    "LOCAL_ALLOW_IPV6",
    "DATAGRAMS",
    "AWAITED",
    "OWN",
    "OWN_IPV6",
    reserved_ports::MAP,
    "INTERFACE_ADDRESSES",
];
/// The ring of packets for the daemon.
pub(super) const PUNTS: &str = "PUNTS";
/// The name of the program that is attached to interfaces.
pub(super) const ROOT_PROGRAM: &str = "pls_router";
/// The program that answers a query for a route.
pub(super) const ROUTE_PROGRAM: &str = "ask_route";
/// The program of the stage `slow`, which takes every packet.
pub(super) const SLOW_STAGE: &str = "slow";

/// The BPF object: the programs of `router-ebpf`.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/router"));

/// Returns the BPF object as the compiler made it, for tests that examine its code.
#[must_use]
pub fn object() -> &'static [u8] {
    OBJECT
}

pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("the object has no program `{name}`"))?;
    Ok(program.try_into()?)
}

pub(super) fn load_program(ebpf: &mut Ebpf, name: &str, cancelled: &AtomicBool) -> Result<()> {
    ensure!(!cancelled.load(Relaxed), "stopped while the programs were loaded");
    let program = program(ebpf, name)?;
    patiently(|| program.load(), cancelled).with_context(|| {
        format!("the kernel refuses to load the program `{name}` (Linux 6.1 or later is needed)")
    })
}

pub(super) fn own_traffic_program(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
    let name = own_traffic::PROGRAM;
    let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("the object has no program `{name}`"))?;
    Ok(program.try_into()?)
}

pub(super) fn load_own_traffic(ebpf: &mut Ebpf, cancelled: &AtomicBool) -> Result<()> {
    let program = own_traffic_program(ebpf)?;
    patiently(|| program.load(), cancelled)
        .with_context(|| format!("the kernel refuses to load the program `{}`", own_traffic::PROGRAM))
}

/// Loads a program. The verifier gives up with EAGAIN when a signal comes in (`do_check`,
/// kernel/bpf/verifier.c), which says nothing about the program. What makes it think so may stay
/// for a moment.
pub(super) fn load_patiently(program: &mut Xdp) -> Result<(), ProgramError> {
    patiently(|| program.load(), &AtomicBool::new(false))
}

/// Loads a program of any kind as [`load_patiently`] does, until `cancelled` is set.
fn patiently(
    mut load: impl FnMut() -> Result<(), ProgramError>,
    cancelled: &AtomicBool,
) -> Result<(), ProgramError> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let start = Instant::now();
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock
                    && start.elapsed() < PATIENCE
                    && !cancelled.load(Relaxed) =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

pub(super) fn program_fd(ebpf: &Ebpf, name: &str) -> Result<ProgramFd> {
    let program = ebpf.program(name).ok_or_else(|| anyhow!("the object has no program `{name}`"))?;
    let program: &Xdp = program.try_into()?;
    Ok(program.fd()?.try_clone()?)
}

pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name).ok_or_else(|| anyhow!("the object has no map `{name}`"))
}

/// Adds to a failure of the kernel what to do about it; `slots` are those of the flow table.
pub(super) fn explain_load_error(error: EbpfError, slots: u32) -> anyhow::Error {
    let error = anyhow!(error);
    let is_out_of_memory = error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) == Some(libc::ENOMEM)
    });
    if is_out_of_memory {
        let mebibytes = (u64::from(slots) * 64) >> 20;
        return anyhow!(
            "the kernel does not have enough memory for the flow table (about {mebibytes} MiB): lower limits.flows \
             ({error:#})"
        );
    }
    anyhow!("the kernel refuses to load the data plane: {error:#}")
}

#[cfg(test)]
mod tests {
    use aya::maps::MapError;

    use super::*;

    #[test]
    fn a_lack_of_memory_is_explained_by_its_error_code() {
        let explained = |code| {
            let io_error = io::Error::from_raw_os_error(code);
            let error = MapError::CreateError { name: "FLOWS".to_owned(), io_error };
            explain_load_error(EbpfError::MapError(error), 1 << 22).to_string()
        };
        let text = explained(libc::ENOMEM);
        assert!(text.contains("about 256 MiB): lower limits.flows"), "{text}");
        let text = explained(libc::EPERM);
        assert!(!text.contains("limits.flows") && text.contains("os error 1)"), "{text}");
    }
}
