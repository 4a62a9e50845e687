//! The commands of bpf(2) that aya has no function for, each with the kernel structure it follows.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    time::Duration,
};

// enum bpf_cmd, include/uapi/linux/bpf.h.
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_DETACH: libc::c_long = 34;
/// include/uapi/linux/bpf.h.
const BPF_F_RDONLY: u32 = 1 << 3;

/// The part of `union bpf_attr` for `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct PinAttributes {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens a pinned BPF object of any kind.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    get_object(path, 0)
}

/// Opens a pinned BPF object of any kind to read what the kernel says of it.
pub(crate) fn open_pin_to_read(path: &Path) -> io::Result<OwnedFd> {
    // The kernel opens programs without flags only (EINVAL otherwise), and read-only objects with
    // this one only.
    get_object(path, 0).or_else(|_| get_object(path, BPF_F_RDONLY))
}

fn get_object(path: &Path, file_flags: u32) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinAttributes { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags };
    // SAFETY: the attributes are those of the command, and the path lives through the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a BPF object of any kind.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes =
        PinAttributes { pathname: path.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, file_flags: 0 };
    // SAFETY: the attributes are those of the command, and the path lives through the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

/// Reads the value of an array at an index. `value` is as long as what the kernel writes: the map's
/// value, or of a per-CPU map, in multiples of 8 bytes, as many as there may be CPUs.
pub(crate) fn lookup(map: BorrowedFd<'_>, index: u32, value: &mut [u8]) -> io::Result<()> {
    /// The part of `union bpf_attr` for `BPF_MAP_LOOKUP_ELEM`.
    #[repr(C)]
    struct Attributes {
        map_fd: u64,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut attributes = Attributes {
        // A number of 32 bits, and padding.
        map_fd: map.as_raw_fd() as u64,
        key: (&raw const index) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command; key and value live through the call, and the
    // caller has promised the value's length.
    unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) }.map(drop)
}

/// Waits until every program that is running now has ended (`synchronize_rcu`).
///
/// With one CPU the kernel does not wait (kernel/sched/membarrier.c), and need not: programs run in
/// softirqs, which this process does not interrupt. (Where they can be preempted, with PREEMPT_RT,
/// that does not hold.)
pub(crate) fn wait_for_programs() {
    /// include/uapi/linux/membarrier.h.
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    /// Longer than a program takes for a packet, by far.
    const LONG_ENOUGH: Duration = Duration::from_millis(50);
    // SAFETY: takes numbers only.
    let waited = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if waited != 0 {
        // A kernel with `nohz_full=`, or a filter of system calls.
        std::thread::sleep(LONG_ENOUGH);
    }
}

/// The kernel's data about an XDP link.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct XdpLinkInfo {
    /// `enum bpf_link_type`.
    kind: u32,
    /// The link's id.
    pub(crate) id: u32,
    /// The id of the program that it holds.
    pub(crate) program: u32,
    padding: u32,
    /// The interface it is on; 0 when that is gone.
    pub(crate) interface: u32,
    rest: [u32; 11],
}

/// Asks about an XDP link.
pub(crate) fn xdp_link_info(link: BorrowedFd<'_>) -> io::Result<XdpLinkInfo> {
    /// The part of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
    #[repr(C)]
    struct Attributes {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = XdpLinkInfo::default();
    let mut attributes = Attributes {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<XdpLinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attributes are those of the command; the kernel writes at most `info_len` bytes
    // to `info`.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info)
}

/// Returns the index of the interface that a link of an interface is on; 0 when that is gone. Links
/// of XDP and of tcx have it in the same place (`struct bpf_link_info`, include/uapi/linux/bpf.h).
pub(crate) fn link_interface(link: &OwnedFd) -> io::Result<u32> {
    xdp_link_info(link.as_fd()).map(|info| info.interface)
}

/// Returns the kernel's id of a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    /// The first numbers of `struct bpf_prog_info`.
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    struct Info {
        kind: u32,
        id: u32,
    }
    /// The part of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
    #[repr(C)]
    struct Attributes {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = Info::default();
    let mut attributes = Attributes {
        bpf_fd: program.as_raw_fd() as u32,
        info_len: size_of::<Info>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attributes are those of the command; the kernel writes at most `info_len` bytes
    // to `info`.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info.id)
}

/// Opens a program.
pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` for `BPF_PROG_GET_FD_BY_ID`.
    #[repr(C)]
    struct Attributes {
        prog_id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let mut attributes = Attributes { prog_id: id, next_id: 0, open_flags: 0 };
    // SAFETY: the attributes are those of the command.
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The verdict of a program, and the length of the frame that it left.
pub(crate) struct TestRun {
    pub(crate) verdict: u32,
    pub(crate) length: usize,
}

/// Runs an XDP program once (`BPF_PROG_TEST_RUN`). `context` is a `struct xdp_md` in bytes; the
/// frame that the program leaves is written to `out`.
///
/// # Errors
/// Fails if the kernel does not run it, for one with `ENOSPC` if `out` is too small.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    out: &mut [u8],
    context: &[u8],
) -> io::Result<TestRun> {
    /// The part of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        padding: u32,
    }
    let length = |length: usize| u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput);
    let mut attributes = Attributes {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: length(frame.len())?,
        data_size_out: length(out.len())?,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        ctx_size_in: length(context.len())?,
        ctx_in: context.as_ptr() as u64,
        ..Attributes::default()
    };
    // SAFETY: the attributes are those of the command; the buffers live through the call, and are
    // as long as is said.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes) }?;
    Ok(TestRun { verdict: attributes.retval, length: attributes.data_size_out as usize })
}

/// Takes the program of a link off its interface. One of an interface that is gone is no error.
///
/// The program is off when this returns. Without its pin alone the kernel takes it off as well, but
/// some time later (`bpf_link_put`, kernel/bpf/syscall.c), and until then the interface takes no
/// other.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    /// The part of `union bpf_attr` for `BPF_LINK_DETACH`.
    #[repr(C)]
    struct Attributes {
        link_fd: u32,
    }
    let mut attributes = Attributes { link_fd: link.as_raw_fd() as u32 };
    // SAFETY: the attributes are those of the command.
    unsafe { bpf(BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

/// Takes the program of a pinned link off its interface, and removes the pin.
pub(crate) fn remove_link(pin: &Path) -> io::Result<()> {
    detach_link(open_pin(pin)?.as_fd())?;
    fs::remove_file(pin)
}

/// The system call.
///
/// # Safety
/// `attributes` is the part of `union bpf_attr` that belongs to the command, and every pointer in
/// it is good for it.
unsafe fn bpf<A>(command: libc::c_long, attributes: &mut A) -> io::Result<RawFd> {
    // SAFETY: the caller's promise; the size tells the kernel how much of the union there is.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}
