//! Traffic control's filters (tc-bpf(8)) on an interface, by rtnetlink(7).

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// The way in through the qdisc `clsact`, as the parent of its filters (`TC_H_MAKE`,
/// include/uapi/linux/pkt_sched.h).
pub(crate) const INGRESS: u32 = 0xffff_fff2;
/// The way out through the qdisc `clsact`.
pub(crate) const EGRESS: u32 = 0xffff_fff3;
/// The qdisc itself: its handle, and its parent.
const CLSACT: [u32; 2] = [0xffff_0000, 0xffff_fff1];

/// Returns `true` if an interface has any filter on this way through its qdisc `clsact`.
pub(crate) fn has_filters(interface: u32, way: u32) -> io::Result<bool> {
    let answers = traffic_control(libc::RTM_GETTFILTER, libc::NLM_F_DUMP, interface, [0, way])?;
    Ok(answers.contains(&libc::RTM_NEWTFILTER))
}

/// Removes the qdisc `clsact` of an interface.
pub(crate) fn remove_clsact(interface: u32) -> io::Result<()> {
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
