//! Gives up what root may do and the daemon does not need once it forwards.
//!
//! What is left is what the daemon does again while it runs. It sets again what others change:
//! links, filters, neighbours and sysctls (CAP_NET_ADMIN). A changed configuration can take other
//! programs and maps (CAP_BPF, and CAP_PERFMON, without which the verifier adds speculation
//! barriers to them) and another packet socket (CAP_NET_RAW). Pins in directories that belong to
//! root need no capability. What would need one more: a listener on another port below 1024
//! (CAP_NET_BIND_SERVICE), and to mount a BPF file system that was unmounted (CAP_SYS_ADMIN).
//!
//! A thread gives up its own capabilities only (capabilities(7)), so each is sent a signal, whose
//! handler does it. That is how the C library has setuid(2) hold for all threads.

use std::{
    fs, io, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// The names of the capabilities that are kept.
pub(crate) const KEPT_NAMES: &str = "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_NET_RAW";
// include/uapi/linux/capability.h.
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const PERFMON: u32 = 38;
const BPF: u32 = 39;
/// The capabilities that are kept, a bit for each.
const KEPT: u64 = 1 << NET_ADMIN | 1 << NET_RAW | 1 << PERFMON | 1 << BPF;
/// The highest number of a capability that there can be.
const MAX: u32 = 63;
/// The time that all threads together may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time that threads are given before they are looked at again.
const PAUSE: Duration = Duration::from_millis(1);

/// `struct __user_cap_header_struct`, include/uapi/linux/capability.h.
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two parts of 32 capabilities.
const VERSION: u32 = 0x2008_0522;

/// `struct __user_cap_data_struct`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Part {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Has every thread of this process give up all capabilities but those that are kept, for good.
///
/// # Errors
/// Returns an error if a thread does not. Its capabilities are then as before.
pub(crate) fn give_up() -> Result<()> {
    let signal = libc::SIGRTMIN() + 5;
    install(signal).context("cannot give up privileges")?;
    // SAFETY: the handler may run at any time and in any thread, so also here.
    handler(signal);
    // SAFETY: takes and changes nothing.
    if !has_given_up(unsafe { libc::gettid() }) {
        bail!(
            "this process cannot give up its privileges\n  fix: let the service call capset (SystemCallFilter= of the unit, \
             as deploy/pls-router.service has it)"
        );
    }
    let start = Instant::now();
    // A thread may have made another one after the others were listed, and before it got the
    // signal: so twice.
    let mut good = 0;
    while good < 2 {
        let left = threads()?.into_iter().filter(|thread| !has_given_up(*thread)).collect::<Vec<_>>();
        if left.is_empty() {
            good += 1;
            continue;
        }
        good = 0;
        if start.elapsed() > PATIENCE {
            bail!("{} threads have not given up their privileges", left.len());
        }
        for thread in left {
            // SAFETY: takes numbers only. One that has ended by now is as good.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Sets the handler up. It stays: a signal may still be on its way.
fn install(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: zero is a value of this plain structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the structure is whole and outlives the call, and the handler does only what one may
    // (signal-safety(7)).
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives up the privileges of the thread that it runs in. Makes system calls only, and leaves
/// `errno` as it was.
extern "C" fn handler(_signal: libc::c_int) {
    let mut parts = [Part::default(); 2];
    let header = Header { version: VERSION, pid: 0 };
    // SAFETY: each call takes numbers, or structures of the size that its version of the interface
    // has, which outlive it; the C library's place of `errno` is this thread's for as long as that
    // lives.
    unsafe {
        let errno = *libc::__errno_location();
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        // Before CAP_SETPCAP, which this takes, goes. Without it, as in the service, the unit has
        // done it.
        for capability in 0..=MAX {
            if KEPT & (1 << capability) == 0 {
                libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0);
            }
        }
        if libc::syscall(libc::SYS_capget, &raw const header, &raw mut parts) == 0 {
            for (part, shift) in parts.iter_mut().zip([0, 32]) {
                let kept = part.permitted & (KEPT >> shift) as u32;
                *part = Part { effective: kept, permitted: kept, inheritable: 0 };
            }
            libc::syscall(libc::SYS_capset, &raw const header, &raw const parts);
        }
        *libc::__errno_location() = errno;
    }
}

/// The threads of this process.
fn threads() -> Result<Vec<libc::pid_t>> {
    let entries = fs::read_dir("/proc/self/task").context("cannot list this process's threads")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Returns `true` if a thread has no more than what is kept, or has ended.
fn has_given_up(thread: libc::pid_t) -> bool {
    let status = match fs::read_to_string(format!("/proc/self/task/{thread}/status")) {
        Ok(status) => status,
        // ESRCH is of one that ends while it is read (proc_pid_status(5)).
        Err(error) => return matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    };
    let none_but_kept = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & !KEPT == 0)
    };
    ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"].into_iter().all(none_but_kept)
}
