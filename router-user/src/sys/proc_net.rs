//! The sockets of this network namespace, from `/proc/net`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

/// The lists of TCP sockets.
pub(crate) const TCP: &[&str] = &["/proc/net/tcp", "/proc/net/tcp6"];
/// The lists of UDP sockets.
pub(crate) const UDP: &[&str] = &["/proc/net/udp", "/proc/net/udp6"];

/// TCP_LISTEN of <net/tcp_states.h>.
pub(crate) const LISTEN: u8 = 10;
/// TCP_CLOSE, which a UDP socket without a peer has.
pub(crate) const CLOSED: u8 = 7;

/// A socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Socket {
    /// The address that it is bound to.
    pub(crate) address: IpAddr,
    /// The port that it is bound to, as a number.
    pub(crate) port: u16,
    /// Of <net/tcp_states.h>, for UDP as well.
    pub(crate) state: u8,
    /// Its number in the links of `/proc/PID/fd`.
    pub(crate) inode: u64,
}

/// The sockets in these lists. What cannot be read is left out.
pub(crate) fn sockets(lists: &[&str]) -> Vec<Socket> {
    let texts = lists.iter().map(|list| std::fs::read_to_string(list).unwrap_or_default());
    texts.flat_map(|text| text.lines().skip(1).filter_map(socket).collect::<Vec<_>>()).collect()
}

/// The inodes of the Unix sockets that are bound to this path.
pub(crate) fn unix_sockets(path: &Path) -> Vec<u64> {
    // Any user may give a socket a name that is not UTF-8.
    let text = std::fs::read("/proc/net/unix").unwrap_or_default();
    String::from_utf8_lossy(&text).lines().skip(1).filter_map(|line| unix_socket(line, path)).collect()
}

/// Returns the inode of a line of `/proc/net/unix` if its path is this one.
fn unix_socket(line: &str, path: &Path) -> Option<u64> {
    // The path may have blanks.
    let (inode, bound) = line.splitn(7, ' ').nth(6)?.trim_start().split_once(' ')?;
    if Path::new(bound) == path { inode.parse().ok() } else { None }
}

/// The names of the interfaces that have IPv6 addresses.
pub(crate) fn ipv6_interfaces() -> Vec<String> {
    names_in(&std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default())
}

/// The last field of each line, once.
fn names_in(addresses: &str) -> Vec<String> {
    let mut names: Vec<String> =
        addresses.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Socket { address: address_of(address)?, port: u16::from_str_radix(port, 16).ok()?, state, inode })
}

/// An address as the kernel prints it: each 32-bit word of the network's bytes as this machine
/// reads it.
fn address_of(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for start in (0..hex.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(hex.get(start..start + 8)?, 16).ok()?.to_ne_bytes());
    }
    if let Ok(four) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(IpAddr::V4(Ipv4Addr::from(four)));
    }
    let sixteen = <[u8; 16]>::try_from(bytes.as_slice()).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(sixteen)).to_canonical())
}

#[cfg(test)]
mod tests {
    use std::os::{
        fd::{AsRawFd as _, RawFd},
        unix::fs::MetadataExt as _,
    };

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_proc_net_tcp() {
        let line = "   0: 4402000A:1F92 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100";
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 68));
        let listening = Socket { address, port: 8082, state: LISTEN, inode: 4711 };
        assert_eq!(socket(line), Some(listening));
        assert_eq!(socket(&line.replace(" 0A ", " 01 ")), Some(Socket { state: 1, ..listening }));
        assert_eq!(socket(""), None);
        assert_eq!(address_of("00000000000000000000000001000000"), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        assert_eq!(address_of("xyz"), None);
    }

    #[test]
    fn lines_of_proc_net_unix() {
        let line = "0000000012345678: 00000002 00000000 00010000 0001 01  4711 /run/pls router/api.sock";
        assert_eq!(unix_socket(line, Path::new("/run/pls router/api.sock")), Some(4711));
        assert_eq!(unix_socket(line, Path::new("/run/pls")), None);
        let unbound = "0000000012345678: 00000003 00000000 00000000 0001 03  4712";
        assert_eq!(unix_socket(unbound, Path::new("/run/pls router/api.sock")), None);
        assert_eq!(unix_socket("", Path::new("/")), None);
    }

    #[test]
    fn interfaces_with_ipv6_addresses() {
        let text = "00000000000000000000000000000001 01 80 10 80       lo\n\
            fe800000000000000000000000000068 02 40 20 80     eth0\n\
            fd000000000000000000000000000068 02 40 00 80     eth0\n";
        assert_eq!(names_in(text), ["eth0", "lo"]);
        assert!(names_in("").is_empty());
    }

    #[test]
    fn sockets_of_ours_are_found() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        // By inode: others' sockets may have the same port for the other protocol, and ours after
        // us.
        let inode = |fd: RawFd| std::fs::metadata(format!("/proc/self/fd/{fd}")).expect("an open file").ino();
        let found = |lists, inode| sockets(lists).into_iter().find(|socket| socket.inode == inode);
        let (tcp_inode, udp_inode) = (inode(tcp.as_raw_fd()), inode(udp.as_raw_fd()));
        let listening = found(TCP, tcp_inode).map(|socket| (socket.address, socket.port, socket.state));
        let bound = found(UDP, udp_inode).map(|socket| (socket.address, socket.port));
        let (tcp, udp) = (tcp.local_addr().expect("its address"), udp.local_addr().expect("its address"));
        assert_eq!(listening, Some((tcp.ip(), tcp.port(), LISTEN)));
        assert_eq!(bound, Some((udp.ip(), udp.port())));
        assert_eq!((found(UDP, tcp_inode), found(TCP, udp_inode)), (None, None));
    }
}
