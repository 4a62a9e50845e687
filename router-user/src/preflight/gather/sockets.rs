//! Listening TCP sockets and whose they are, from `/proc/net/tcp` and the open files of all processes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::processes;
use crate::preflight::facts::{Listener, Process};

/// TCP_LISTEN of <net/tcp_states.h>, as `/proc/net/tcp` writes it.
const LISTEN: &str = "0A";

/// The sockets that listen on one of `ports`.
pub(super) fn listeners(ports: &[u16]) -> Vec<Listener> {
    let mut found = Vec::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        found.extend(text.lines().skip(1).filter_map(listener).filter(|(_, port, _)| ports.contains(port)));
    }
    if found.is_empty() {
        return Vec::new();
    }
    let inodes: Vec<u64> = found.iter().map(|(_, _, inode)| *inode).collect();
    let mut owners = owners(&inodes);
    let listener = |(address, port, inode)| Listener { address, port, process: owners.remove(&inode) };
    found.into_iter().map(listener).collect()
}

/// Address, port and inode of a line that is about a listening socket.
fn listener(line: &str) -> Option<(IpAddr, u16, u64)> {
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    Some((address_of(address)?, u16::from_str_radix(port, 16).ok()?, inode))
}

/// An address as the kernel prints it: each 32-bit word of the network's bytes as this machine reads it.
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

/// Who has the sockets with these inodes open.
fn owners(inodes: &[u64]) -> HashMap<u64, Process> {
    let mut owners = HashMap::new();
    for (pid, directory) in processes::others() {
        for file in processes::entries(&directory.join("fd")) {
            let Ok(link) = std::fs::read_link(file) else {
                continue;
            };
            let inode = link
                .to_str()
                .and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok())
                .filter(|inode| inodes.contains(inode));
            if let Some(inode) = inode {
                owners.entry(inode).or_insert_with(|| processes::process(pid, &directory));
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_proc_net_tcp() {
        let line = "   0: 4402000A:1F92 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100";
        assert_eq!(listener(line), Some((IpAddr::V4(Ipv4Addr::new(10, 0, 2, 68)), 8082, 4711)));
        let connected = line.replace(" 0A ", " 01 ");
        assert_eq!(listener(&connected), None);
        assert_eq!(listener(""), None);
        assert_eq!(address_of("00000000000000000000000001000000"), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        assert_eq!(address_of("xyz"), None);
    }

    #[test]
    fn a_socket_of_ours_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let found = listeners(&[address.port()]);
        assert!(found.iter().any(|listener| listener.address == address.ip()), "{found:?}");
    }
}
