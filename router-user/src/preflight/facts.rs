//! Facts about the machine. `None` always means that the fact could not be found out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::config::Protocol;
use crate::policy_rules::PolicyRule;
use crate::port_plan;
pub use crate::sys::processes::Process;
use crate::sys::xdp::Mode;

/// The name of the daemon's process, whose sockets are no obstacle: `run` detects another daemon.
pub(super) const OWN_PROCESS: &str = "pls-router";

/// The name of the router's program as the kernel shows it.
pub(super) const PROGRAM_NAME: &str = "pls_router";

/// Everything that [`super::findings`] wants to know of a machine.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The privileges of this process.
    pub privileges: Option<Privileges>,
    /// The running kernel.
    pub kernel: Option<Kernel>,
    /// All interfaces of this network namespace, by kernel index; or why they cannot be listed.
    pub interfaces: Result<Vec<Interface>, String>,
    /// TCP sockets that listen on a port of the configuration.
    pub listeners: Vec<Listener>,
    /// The SSH servers and this process's session.
    pub ssh: Ssh,
    /// Services of this machine that could be reached by IPv6.
    pub ipv6: Ipv6,
    /// `true` if the kernel has the modules by which a program is attached to an interface's way
    /// out before Linux 6.6: sch_ingress and cls_bpf.
    pub traffic_control: Option<bool>,
    /// The ports that the kernel gives to sockets that ask for none, without the router's
    /// reservations.
    pub own_ports: Option<port_plan::Kernel>,
    /// `net.ipv4.ip_forward`.
    pub ip_forward: Option<bool>,
    /// The policy rules by which routes are looked up.
    pub policy_rules: Option<Vec<PolicyRule>>,
    /// The ways to targets that are given by address.
    pub ways: Vec<Way>,
    /// IPsec policies for IPv4.
    pub ipsec: Option<Vec<IpsecPolicy>>,
    /// Chains of the host's firewall that packets pass which the kernel forwards or sends.
    pub firewall: Vec<FirewallChain>,
    /// `true` if the directory of pins is on a BPF file system.
    pub pins_on_bpffs: Option<bool>,
    /// Access to the API's socket.
    pub api: SocketAccess,
    /// The data planes that other versions of this router have left.
    pub predecessors: Vec<Predecessor>,
    /// Directories that `run` does not use.
    pub refused: Vec<Refused>,
}

/// A directory in which another user could change what the daemon trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The configuration's key for it.
    pub key: &'static str,
    /// Its path, and what is wrong there.
    pub why: String,
    /// The remedy.
    pub fix: String,
}

/// Access to a Unix socket, by its permissions and its directory's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SocketAccess {
    /// Root alone, as the daemon makes it.
    #[default]
    Root,
    /// The group with this number as well.
    Group(u32),
    /// Every user.
    Everyone,
}

/// The data plane of another version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// The directory of its pins.
    pub directory: PathBuf,
    /// The interfaces that it has links for.
    pub interfaces: Vec<String>,
    /// `true` if this version can read its sessions.
    pub sessions_move: bool,
}

/// The privileges of this process, by its effective capabilities (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// Load programs and make maps: CAP_BPF or CAP_SYS_ADMIN.
    pub bpf: bool,
    /// Attach them to interfaces: CAP_NET_ADMIN.
    pub net_admin: bool,
}

/// The running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// Its first two numbers.
    pub version: (u32, u32),
}

/// One network interface.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its alternative names (`ip link property`).
    pub alternative_names: Vec<String>,
    /// Its kernel index.
    pub index: u32,
    /// The index of the interface below, if it is a macvlan with a different MAC address.
    pub macvlan_above: Option<u32>,
    /// `true` if it is administratively up.
    pub up: bool,
    /// `true` if it is the loopback interface.
    pub loopback: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The name and driver of the interface that it is a slave or port of.
    pub master: Option<(String, Option<String>)>,
    /// Its IPv4 addresses, primary ones first.
    pub addresses: Vec<Ipv4Addr>,
    /// The networks that they are in, each with the address; likewise.
    pub networks: Vec<Ipv4Net>,
    /// Its driver; found out only for the interfaces of the configuration.
    pub driver: Option<String>,
    /// `true` if it joins received packets into larger ones in hardware; likewise.
    pub lro: Option<bool>,
    /// The XDP programs on it.
    pub programs: Vec<AttachedProgram>,
}

impl Interface {
    /// Returns `true` if the configuration may call it so.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.alternative_names.iter().any(|other| other == name)
    }
}

/// An XDP program on an interface.
#[derive(Clone, Debug)]
pub struct AttachedProgram {
    /// The kernel's id of it.
    pub id: u32,
    /// The mode of its attachment; `None` if the NIC runs it.
    pub mode: Option<Mode>,
    /// Its name.
    pub name: Option<String>,
    /// `true` if it is ours.
    pub ours: bool,
    /// The time since it was loaded.
    pub loaded_ago: Option<Duration>,
    /// The user that loaded it.
    pub uid: Option<u32>,
    /// Processes that hold it or a link of it.
    pub holders: Vec<Process>,
    /// The pins of it and of its links.
    pub pins: Vec<PathBuf>,
}

/// A TCP socket that listens.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The process that has it.
    pub process: Option<Process>,
    /// `true` if that process has the socket of the daemon's API as well: the daemon, or the
    /// service manager, which keeps its sockets for the next one.
    pub keeps_api: bool,
}

/// Services of this machine that could be reached by IPv6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipv6 {
    /// The interfaces that have IPv6 addresses, by name.
    pub interfaces: Vec<String>,
    /// Sockets that accept connections or datagrams by IPv6 from other machines, in the order of
    /// their ports.
    pub services: Vec<Service>,
}

/// A socket that accepts connections or datagrams from any peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
    /// The process that has it.
    pub process: Option<Process>,
}

impl Service {
    /// Returns `true` if it is TCP's at this port.
    pub fn is_tcp_at(&self, port: u16) -> bool {
        self.protocol == Protocol::Tcp && self.port == port
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol.as_str(), self.port)?;
        match &self.process {
            Some(process) => write!(f, " ({})", process.name),
            None => Ok(()),
        }
    }
}

/// The SSH servers of this machine, and the session of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ssh {
    /// The ports, not only of loopback addresses, that an SSH server was seen to listen on, in
    /// order; empty if none was.
    pub ports: Vec<u16>,
    /// The session that this process was started from.
    pub session: Option<SshSession>,
}

/// An SSH session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshSession {
    /// The address of the client.
    pub peer: IpAddr,
    /// The port of this machine that it came to.
    pub port: u16,
}

/// The way to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The target's address.
    pub target: Ipv4Addr,
    /// The name of the interface that packets to it leave by.
    pub interface: String,
    /// The gateway that they are handed to; none of a target on the link.
    pub gateway: Option<Ipv4Addr>,
}

/// An IPsec policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpsecPolicy {
    /// `in`, `out` or `fwd`.
    pub direction: &'static str,
    /// The source of the packets that it applies to.
    pub source: Ipv4Net,
    /// The destination of these packets.
    pub destination: Ipv4Net,
}

impl fmt::Display for IpsecPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} to {}", self.direction, self.source, self.destination)
    }
}

/// A chain of the host's firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallChain {
    /// Family, table and name.
    pub name: String,
    /// The place of the chain in the kernel.
    pub hook: Hook,
    /// The number of its rules, if that is known.
    pub rules: Option<u32>,
    /// `true` if it drops packets that no rule accepts.
    pub drops: bool,
}

/// The place of a chain in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that the kernel forwards pass it.
    Forward,
    /// Packets that this machine itself sends do.
    Output,
}

impl fmt::Display for FirewallChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, rules, drops, .. } = self;
        f.write_str(name)?;
        let Some(rules) = rules else { return Ok(()) };
        let (plural, policy) =
            (if *rules == 1 { "" } else { "s" }, if *drops { ", policy drop" } else { "" });
        write!(f, " ({rules} rule{plural}{policy})")
    }
}
