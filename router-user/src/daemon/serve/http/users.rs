//! The users of this machine that own TCP connections from itself, asked of the kernel
//! (sock_diag(7)).
//!
//! On the loopback, an address does not identify a user: any user may have any of 127.0.0.0/8.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    sync::Mutex,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::daemon::sync::lock;

// include/uapi/linux/sock_diag.h, and struct nlmsghdr.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`, include/uapi/linux/inet_diag.h.
const REQUEST: usize = 56;
/// The part of `struct inet_diag_msg` after the header.
const USER: usize = HEADER + 64;
const INODE: usize = HEADER + 68;

/// The two ends of a TCP connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// Asks the kernel for users.
pub(crate) struct Users {
    /// A netlink socket, and the number of the last question; `None` where the kernel has no such
    /// socket.
    socket: Option<Mutex<(Socket, u32)>>,
}

impl Users {
    /// Opens the socket to the kernel. Without one, no user is known.
    pub(crate) fn open() -> Self {
        let open = || -> io::Result<Socket> {
            let protocol = Protocol::from(libc::NETLINK_SOCK_DIAG);
            let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        Self { socket: open().ok().map(|socket| Mutex::new((socket, 0))) }
    }

    /// Returns the user at the other end of a connection from this machine itself; `None` if the
    /// kernel does not say, as of one that is closed already.
    pub(crate) fn of(&self, ends: &Ends) -> Option<u32> {
        let (socket, sequence) = &mut *lock(self.socket.as_ref()?);
        *sequence = sequence.wrapping_add(1);
        socket.send(&question(ends, *sequence)).ok()?;
        let mut answer = [MaybeUninit::uninit(); 1024];
        // Answered in the call above. What was left unread by an earlier question comes first.
        for _ in 0..16 {
            let length = socket.recv(&mut answer).ok()?;
            // SAFETY: the kernel has written so many bytes.
            let bytes = unsafe { answer.get(..length)?.assume_init_ref() };
            if word(bytes, 8) == Some(*sequence) {
                return user(bytes);
            }
        }
        None
    }
}

/// The question for the socket at the peer's end of a connection.
fn question(Ends { peer, local }: &Ends, sequence: u32) -> Vec<u8> {
    let family = if peer.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    // Of all states.
    bytes.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    for end in [peer, local] {
        bytes.extend(end.port().to_be_bytes());
    }
    for end in [peer, local] {
        bytes.extend(octets(end));
    }
    // By any interface, and no cookie.
    bytes.extend([0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    bytes
}

fn octets(end: &SocketAddr) -> [u8; 16] {
    match end.ip() {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// The user in an answer. A socket that no process has any more has no owner, also if it says 0
/// there.
fn user(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    let inode = word(answer, INODE)?;
    (kind == SOCK_DIAG_BY_FAMILY && inode != 0).then(|| word(answer, USER)).flatten()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection to `address`, as the one that listens sees them.
    fn connection(address: &str) -> (TcpStream, TcpStream, Ends) {
        let listener = TcpListener::bind((address, 0)).expect("a listener");
        let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        let (server, peer) = listener.accept().expect("the other end");
        let local = server.local_addr().expect("its address");
        (client, server, Ends { peer, local })
    }

    #[test]
    fn the_user_of_a_connection_is_found() {
        let users = Users::open();
        // SAFETY: takes and changes nothing.
        let me = unsafe { libc::geteuid() };
        for address in ["127.0.0.1", "127.1.2.3", "::1"] {
            // Not every machine has IPv6.
            if TcpListener::bind((address, 0)).is_err() {
                continue;
            }
            let (client, _server, ends) = connection(address);
            assert_eq!(users.of(&ends), Some(me), "{address}");
            let other = Ends { peer: SocketAddr::new(ends.peer.ip(), 1), ..ends };
            assert_eq!(users.of(&other), None, "{address}");
            // Closed on one side: the kernel keeps it for a while, without an owner.
            drop(client);
            assert_eq!(users.of(&ends), None, "{address}");
        }
    }

    #[test]
    fn only_a_whole_answer_names_a_user() {
        let mut answer = vec![0; HEADER + 72];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[USER..USER + 4].copy_from_slice(&1000_u32.to_ne_bytes());
        assert_eq!(user(&answer), None, "of no process");
        answer[INODE] = 1;
        assert_eq!(user(&answer), Some(1000));
        assert_eq!(user(&answer[..HEADER + 68]), None);
        answer[4] = 2;
        assert_eq!(user(&answer), None, "an error");
    }
}
