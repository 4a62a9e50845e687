//! A netlink dump by hand, for the two families that route netlink has no part in: IPsec policies
//! and nftables.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

/// `struct nlmsghdr`, include/uapi/linux/netlink.h: length, type, flags, sequence number, port.
const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_DUMP: u16 = 0x300;
/// The longest wait for the kernel's answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than the kernel puts into one answer.
const ROOM: usize = 1 << 16;

/// Asks a netlink family for everything of a kind. Returns the payloads of its answers.
///
/// # Errors
/// Returns an error if the kernel does not have the family, or refuses.
pub(super) fn dump(family: libc::c_int, kind: u16, request: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let socket = open(family)?;
    let length = u32::try_from(HEADER + request.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(request);
    // SAFETY: the buffer lives through the call and has the length that is said.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut all = Vec::new();
    let mut room = vec![0; ROOM];
    loop {
        // SAFETY: as above, and the kernel writes at most its length.
        let got = unsafe { libc::recv(socket.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), 0) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        if read(&room[..got], &mut all)? {
            return Ok(all);
        }
    }
}

fn open(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let socket = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, family) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and not owned elsewhere.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let patience = libc::timeval { tv_sec: PATIENCE.as_secs().cast_signed(), tv_usec: 0 };
    // SAFETY: the structure is what the option takes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            libc::socklen_t::try_from(size_of_val(&patience)).map_err(io::Error::other)?,
        )
    };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Reads the messages of one answer. Returns `true` if they were the last.
fn read(mut messages: &[u8], all: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while let Some((header, _)) = messages.split_first_chunk::<HEADER>() {
        let [a, b, c, d, e, f, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let Some(payload) = messages.get(HEADER..length) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match i32::from(u16::from_ne_bytes([e, f])) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(-code));
            }
            libc::NLMSG_NOOP => {}
            _ => all.push(payload.to_vec()),
        }
        messages = messages.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

/// The attributes (`struct nlattr`) that these bytes are: type and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// `NLA_TYPE_MASK`: two bits of the type are flags.
    const TYPE: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & TYPE, value))
    })
}

const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = (HEADER + payload.len()) as u32;
        let mut message = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], payload].concat();
        message.resize(aligned(message.len()), 0);
        message
    }

    #[test]
    fn answers_are_parsed() {
        let mut all = Vec::new();
        let answer = [message(20, &[1, 2, 3]), message(20, &[4])].concat();
        assert!(!read(&answer, &mut all).unwrap());
        assert_eq!(all, [vec![1, 2, 3], vec![4]]);
        assert!(read(&message(3, &[0; 4]), &mut all).unwrap());
        let refused = read(&message(2, &(-libc::EPERM).to_ne_bytes()), &mut all).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        assert!(read(&answer[..18], &mut all).is_err(), "cut off");
    }

    #[test]
    fn attributes_are_parsed() {
        let bytes = [5, 0, 1, 0, 7, 0, 0, 0, 8, 0, 2, 0x80, 1, 2, 3, 4];
        assert_eq!(attributes(&bytes).collect::<Vec<_>>(), [(1, &[7][..]), (2, &[1, 2, 3, 4])]);
        assert_eq!(attributes(&bytes[..10]).count(), 1);
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
    }
}
