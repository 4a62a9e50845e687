//! The system calls that aya has no function for, each with the kernel structure it follows.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};

// enum bpf_cmd, include/uapi/linux/bpf.h.
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
/// include/uapi/linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The index of an interface in this network namespace, by its name or one of its alternative
/// names.
///
/// # Errors
/// When there is no such interface.
pub fn interface_index(name: &str) -> Result<u32> {
    let text = CString::new(name).with_context(|| format!("{name:?} is not an interface name"))?;
    // SAFETY: a NUL-terminated string that lives through the call.
    match unsafe { libc::if_nametoindex(text.as_ptr()) } {
        0 => Err(io::Error::last_os_error()).with_context(|| format!("there is no interface {name}")),
        index => Ok(index),
    }
}

/// The name of the interface with this index in this network namespace, if there is one.
pub fn interface_name(index: u32) -> Option<String> {
    let mut name: [libc::c_char; libc::IF_NAMESIZE] = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the function asks for.
    if unsafe { libc::if_indextoname(index, name.as_mut_ptr()) }.is_null() {
        return None;
    }
    // SAFETY: the function has succeeded, so the buffer holds a NUL-terminated name.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Some(name.to_string_lossy().into_owned())
}

/// Whether a path, or the nearest directory above it that exists, is on a BPF file system.
pub(super) fn is_bpffs(path: &Path) -> Result<bool> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let file = File::open(existing).with_context(|| format!("cannot open {}", existing.display()))?;
    // SAFETY: zero is a value of this plain structure, and the file is open.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: as above; the kernel fills the structure.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot examine {}", existing.display()));
    }
    Ok(stat.f_type == BPF_FS_MAGIC)
}

/// Mounts a BPF file system.
pub(super) fn mount_bpffs(at: &Path) -> io::Result<()> {
    let at = CString::new(at.as_os_str().as_bytes())?;
    let options = c"mode=0700";
    // SAFETY: NUL-terminated strings that live through the call.
    let result =
        unsafe { libc::mount(c"bpf".as_ptr(), at.as_ptr(), c"bpf".as_ptr(), 0, options.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The part of `union bpf_attr` for `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct PinAttributes {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens a pinned BPF object of any kind.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinAttributes { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the attributes are those of the command, and the path lives through the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a BPF object of any kind.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes =
        PinAttributes { pathname: path.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, file_flags: 0 };
    // SAFETY: the attributes are those of the command, and the path lives through the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

/// What the kernel says of an XDP link.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct XdpLinkInfo {
    /// `enum bpf_link_type`.
    kind: u32,
    /// The link's id.
    id: u32,
    /// The id of the program that it holds.
    pub(super) program: u32,
    padding: u32,
    /// The interface it is on; 0 when that is gone.
    pub(super) interface: u32,
    rest: [u32; 11],
}

/// Asks about an XDP link.
pub(super) fn xdp_link_info(link: BorrowedFd<'_>) -> io::Result<XdpLinkInfo> {
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
pub(super) fn link_interface(link: &OwnedFd) -> io::Result<u32> {
    xdp_link_info(link.as_fd()).map(|info| info.interface)
}

/// The two ways through the qdisc `clsact`, as the parents of their filters (`TC_H_MAKE`,
/// include/uapi/linux/pkt_sched.h): in,
pub(super) const INGRESS: u32 = 0xffff_fff2;
/// and out.
pub(super) const EGRESS: u32 = 0xffff_fff3;
/// The qdisc itself: its handle, and its parent.
const CLSACT: [u32; 2] = [0xffff_0000, 0xffff_fff1];

/// Whether an interface has any filter on this way through its qdisc `clsact`.
pub(super) fn has_filters(interface: u32, way: u32) -> io::Result<bool> {
    let answers = traffic_control(libc::RTM_GETTFILTER, libc::NLM_F_DUMP, interface, [0, way])?;
    Ok(answers.contains(&libc::RTM_NEWTFILTER))
}

/// Removes the qdisc `clsact` of an interface.
pub(super) fn remove_clsact(interface: u32) -> io::Result<()> {
    traffic_control(libc::RTM_DELQDISC, libc::NLM_F_ACK, interface, CLSACT).map(drop)
}

/// Sends a request of rtnetlink's traffic control (rtnetlink(7)), for the object with this handle
/// and parent; the types of the messages that answer it.
fn traffic_control(
    kind: u16,
    flags: libc::c_int,
    interface: u32,
    [handle, parent]: [u32; 2],
) -> io::Result<Vec<u16>> {
    /// `struct nlmsghdr` and `struct tcmsg`.
    #[repr(C)]
    struct Request {
        length: u32,
        kind: u16,
        flags: u16,
        sequence: u32,
        port: u32,
        family: u32,
        interface: u32,
        handle: u32,
        parent: u32,
        info: u32,
    }
    const LENGTH: usize = size_of::<Request>();
    let request = Request {
        length: LENGTH as u32,
        kind,
        flags: (libc::NLM_F_REQUEST | flags) as u16,
        sequence: 1,
        port: 0,
        family: 0,
        interface,
        handle,
        parent,
        info: 0,
    };
    // SAFETY: takes numbers only.
    let socket =
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the request is plain data of this length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), (&raw const request).cast(), LENGTH, 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut kinds = Vec::new();
    let mut buffer = vec![0_u8; 1 << 16];
    loop {
        // SAFETY: the kernel writes at most the buffer's length.
        let got = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        let mut rest = buffer.get(..got).unwrap_or_default();
        while let Some((length, kind, payload)) = netlink_message(rest) {
            match libc::c_int::from(kind) {
                libc::NLMSG_DONE => return Ok(kinds),
                libc::NLMSG_ERROR => {
                    let error =
                        payload.first_chunk().map_or(-libc::EBADMSG, |error| i32::from_ne_bytes(*error));
                    return if error == 0 { Ok(kinds) } else { Err(io::Error::from_raw_os_error(-error)) };
                }
                _ => kinds.push(kind),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The first message of some: its length, its type, and what it says.
fn netlink_message(bytes: &[u8]) -> Option<(usize, u16, &[u8])> {
    const HEADER: usize = 16;
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    Some((length, kind, bytes.get(HEADER..length)?))
}

/// Opens a program.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
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

/// Puts another program into a link.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    /// The part of `union bpf_attr` for `BPF_LINK_UPDATE`.
    #[repr(C)]
    struct Attributes {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attributes = Attributes {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: the attributes are those of the command.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attributes) }.map(drop)
}

/// Takes the program of a link off its interface. One of an interface that is gone is no error.
///
/// The program is off when this returns. Without its pin alone the kernel takes it off as well, but
/// some time later (`bpf_link_put`, kernel/bpf/syscall.c), and until then the interface takes no
/// other.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
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
pub(super) fn remove_link(pin: &Path) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netlink_messages_are_read_one_by_one() {
        let message = |kind: u16, payload: &[u8]| {
            let length = u32::try_from(16 + payload.len()).expect("a short one");
            [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], payload].concat()
        };
        let two = [message(44, b"12345678"), message(3, b"")].concat();
        let (length, kind, payload) = netlink_message(&two).expect("a message");
        assert_eq!((length, kind, payload), (24, 44, &b"12345678"[..]));
        assert_eq!(netlink_message(&two[length..]), Some((16, 3, &b""[..])));
        // Of one that is cut off, or says that it is shorter than its header, there is nothing to
        // read.
        assert_eq!(netlink_message(&two[..20]), None);
        assert_eq!(netlink_message(&[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(netlink_message(b""), None);
    }
}
