//! Listening TCP sockets and whose they are, from the open files of processes.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::sys::processes;
use crate::{
    config::Protocol,
    preflight::facts::{Listener, OWN_PROCESS, Process, Service},
    sys::proc_net::{self, CLOSED, LISTEN, TCP, UDP},
};

/// The sockets that listen on one of `ports`. `api` is the path of the daemon's socket.
pub(super) fn listeners(ports: &[u16], api: &Path) -> Vec<Listener> {
    let found: Vec<_> = all().into_iter().filter(|(_, port, _)| ports.contains(port)).collect();
    if found.is_empty() {
        return Vec::new();
    }
    let inodes: Vec<u64> = found.iter().map(|(_, _, inode)| *inode).collect();
    let mut owners = owners(&inodes);
    let keepers = owners_of_any(&proc_net::unix_sockets(api));
    let listener = |(address, port, inode)| {
        let process = owners.remove(&inode);
        let keeps_api = process.as_ref().is_some_and(|process| keepers.contains(&process.pid));
        Listener { address, port, process, keeps_api }
    };
    found.into_iter().map(listener).collect()
}

/// The processes that have a socket with one of these inodes open.
fn owners_of_any(inodes: &[u64]) -> BTreeSet<u32> {
    let has = |directory: &Path| sockets(directory).any(|inode| inodes.contains(&inode));
    processes::all().filter(|(_, directory)| has(directory)).map(|(pid, _)| pid).collect()
}

/// The ports that processes with one of these names listen on, in order, without what only this
/// machine reaches.
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

/// Returns the sockets that other machines can reach by IPv6: those of TCP that listen, and those
/// of UDP without a peer.
pub(super) fn ipv6_services() -> Vec<Service> {
    let waiting = |list, protocol, state| {
        let of_anybody = move |socket: &proc_net::Socket| {
            socket.state == state && socket.address.is_ipv6() && !socket.address.is_loopback()
        };
        let sockets = proc_net::sockets(list).into_iter().filter(of_anybody);
        sockets.map(move |socket| (socket.port, protocol, socket.inode))
    };
    let tcp = waiting(TCP, Protocol::Tcp, LISTEN);
    let mut found: Vec<_> = tcp.chain(waiting(UDP, Protocol::Udp, CLOSED)).collect();
    found.sort_by_key(|(port, protocol, inode)| (*port, *protocol == Protocol::Udp, *inode));
    // A server may have several of one port.
    found.dedup_by_key(|(port, protocol, _)| (*port, *protocol));
    let inodes: Vec<u64> = found.iter().map(|(_, _, inode)| *inode).collect();
    let mut owners = owners(&inodes);
    let service = |(port, protocol, inode)| Service { protocol, port, process: owners.remove(&inode) };
    found.into_iter().map(service).collect()
}

/// Address, port and inode of all listening sockets.
fn all() -> Vec<(IpAddr, u16, u64)> {
    let listening = proc_net::sockets(TCP).into_iter().filter(|socket| socket.state == LISTEN);
    listening.map(|socket| (socket.address, socket.port, socket.inode)).collect()
}

/// Returns the processes that have the sockets with these inodes open. Of several, it is a
/// `pls-router`: the service manager has the daemon's sockets open as well, to keep them over a
/// restart.
fn owners(inodes: &[u64]) -> HashMap<u64, Process> {
    let mut owners = HashMap::<u64, Process>::new();
    for (pid, directory) in processes::all() {
        for inode in sockets(&directory).filter(|inode| inodes.contains(inode)) {
            let process = processes::process(pid, &directory);
            if process.name == OWN_PROCESS || !owners.contains_key(&inode) {
                owners.insert(inode, process);
            }
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
    fn own_socket_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let found = listeners(&[address.port()], Path::new("/"));
        assert!(found.iter().any(|listener| listener.address == address.ip()), "{found:?}");
    }

    /// As with the descriptors that systemd keeps for the daemon.
    #[test]
    fn a_socket_of_two_processes_is_the_daemons() {
        let directory = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let holder = |name: &str| {
            use std::os::unix::process::CommandExt as _;
            let program = directory.path().join(name);
            std::os::unix::fs::symlink("/bin/cat", &program).unwrap();
            let mut command = std::process::Command::new(&program);
            let socket = std::os::fd::OwnedFd::from(listener.try_clone().unwrap());
            processes::tests::running(command.arg0("cat").stderr(socket))
        };
        let mut holders = vec![holder("manager-1")];
        let owner =
            || listeners(&[port], Path::new("/")).pop().and_then(|listener| listener.process).unwrap();
        assert_ne!(owner().name, OWN_PROCESS);
        holders.push(holder(OWN_PROCESS));
        holders.push(holder("manager-2"));
        assert_eq!((owner().pid, owner().name.as_str()), (holders[1].id(), OWN_PROCESS));
        for mut holder in holders {
            drop(holder.stdin.take());
            holder.wait().unwrap();
        }
    }

    /// As while no daemon runs that systemd has started, and is to start again.
    #[test]
    fn a_process_that_keeps_the_api_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let [kept, other] = ["kept.sock", "other.sock"].map(|name| directory.path().join(name));
        let api = std::os::unix::net::UnixListener::bind(&kept).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let keeps_api = |api: &Path| listeners(&[port], api).pop().unwrap().keeps_api;
        assert!(keeps_api(&kept));
        assert!(!keeps_api(&other));
        drop(api);
        assert!(!keeps_api(&kept));
    }

    #[test]
    fn sockets_open_to_ipv6_are_found() {
        let any = std::net::Ipv6Addr::UNSPECIFIED;
        let Ok(tcp) = std::net::TcpListener::bind((any, 0)) else { return };
        let udp = std::net::UdpSocket::bind((any, 0)).unwrap();
        let own = std::net::TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 0)).unwrap();
        let ports =
            [tcp.local_addr(), udp.local_addr(), own.local_addr()].map(|address| address.unwrap().port());
        let found = ipv6_services();
        let has =
            |protocol, port| found.iter().any(|service| service.protocol == protocol && service.port == port);
        assert!(has(Protocol::Tcp, ports[0]) && has(Protocol::Udp, ports[1]), "{found:?}");
        assert!(!has(Protocol::Tcp, ports[2]), "{found:?}");
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
