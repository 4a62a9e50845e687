//! Listening TCP sockets and whose they are, from `/proc/net/tcp` and the open files of processes.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::processes;
use crate::preflight::facts::{Listener, Process};

/// TCP_LISTEN of <net/tcp_states.h>, as `/proc/net/tcp` writes it.
const LISTEN: &str = "0A";

/// The sockets that listen on one of `ports`.
pub(super) fn listeners(ports: &[u16]) -> Vec<Listener> {
    let found: Vec<_> = all().into_iter().filter(|(_, port, _)| ports.contains(port)).collect();
    if found.is_empty() {
        return Vec::new();
    }
    let inodes: Vec<u64> = found.iter().map(|(_, _, inode)| *inode).collect();
    let mut owners = owners(&inodes);
    let listener = |(address, port, inode)| Listener { address, port, process: owners.remove(&inode) };
    found.into_iter().map(listener).collect()
}

/// The ports that processes with one of these names listen on, in order, without what only this machine reaches.
pub(super) fn ports_of(names: &[&str]) -> Vec<u16> {
    let named: Vec<PathBuf> = processes::others()
        .filter(|(pid, directory)| names.contains(&processes::process(*pid, directory).name.as_str()))
        .map(|(_, directory)| directory)
        .collect();
    let inodes: Vec<u64> = named.iter().flat_map(|directory| sockets(directory)).collect();
    let ports: BTreeSet<u16> = all()
        .into_iter()
        .filter(|(address, _, inode)| !address.is_loopback() && inodes.contains(inode))
        .map(|(_, port, _)| port)
        .collect();
    ports.into_iter().collect()
}

/// Address, port and inode of all listening sockets.
fn all() -> Vec<(IpAddr, u16, u64)> {
    let mut found = Vec::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        found.extend(text.lines().skip(1).filter_map(listener));
    }
    found
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
        for inode in sockets(&directory).filter(|inode| inodes.contains(inode)) {
            owners.entry(inode).or_insert_with(|| processes::process(pid, &directory));
        }
    }
    owners
}

/// The inodes of the sockets that a process has open.
fn sockets(directory: &Path) -> impl Iterator<Item = u64> + use<> {
    processes::entries(&directory.join("fd")).filter_map(|file| {
        let link = std::fs::read_link(file).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
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

    #[test]
    fn ports_of_processes_by_their_name() {
        use std::os::unix::process::CommandExt as _;
        let directory = tempfile::tempdir().unwrap();
        let name = format!("ports-{}", std::process::id());
        let program = directory.path().join(&name);
        std::os::unix::fs::symlink("/bin/cat", &program).unwrap();
        let sockets =
            ["0.0.0.0:0", "127.0.0.1:0"].map(|address| std::net::TcpListener::bind(address).unwrap());
        let port = sockets[0].local_addr().unwrap().port();
        // `cat` has nothing to say there, so it leaves the socket alone.
        let holders = sockets.map(|socket| {
            let mut command = std::process::Command::new(&program);
            processes::tests::running(command.arg0("cat").stderr(std::os::fd::OwnedFd::from(socket)))
        });
        assert_eq!(ports_of(&["no-such-name", &name]), [port]);
        for mut holder in holders {
            drop(holder.stdin.take());
            holder.wait().unwrap();
        }
    }
}
