//! Real clients through the router: what people run, against servers that people run.
//!
//! Each public function of the modules below has a lab that is up, and fails with what went wrong.
//! The tests `clients` play them with pls-router and with the kernel's own NAT, each in a lab of
//! its own; the tests `machine` play some with a whole Debian in the router's place, one after the
//! other.

pub mod bulk;
pub mod database;
pub mod dns;
pub mod fragments;
pub mod git;
pub mod mtu;
pub mod shell;
pub mod stun;
pub mod trace;
pub mod web;

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    Lab,
    addresses::{DNS, PLS_SUBNET, ROUTER, TOOLS},
    servers::{Database, Files, Shell},
    witness::Witness,
};

/// The time that one exchange may take, on a machine that has other things to do as well.
const LIMIT: Duration = Duration::from_secs(30);

/// The port of the endpoint that leads to the sshd; 22 is the router's own.
const SHELL_PORT: u16 = 2222;

/// An act of a test: done in a lab, or to it.
pub type Act = fn(&Lab) -> Result<()>;

/// A rule: what is sent to this port of the endpoint goes to that service.
struct Forward {
    name: &'static str,
    protocol: &'static str,
    listen: u16,
    target: SocketAddrV4,
}

fn forwards() -> Vec<Forward> {
    [
        ("postgres", "tcp", Database::PORT, TOOLS, Database::PORT),
        ("ssh", "tcp", SHELL_PORT, TOOLS, Shell::PORT),
        ("files", "tcp", Files::PORT, TOOLS, Files::PORT),
        ("dns", "udp", 53, DNS, 53),
        ("dns-tcp", "tcp", 53, DNS, 53),
    ]
    .map(|(name, protocol, listen, target, port)| Forward {
        name,
        protocol,
        listen,
        target: SocketAddrV4::new(target, port),
    })
    .into()
}

impl Forward {
    fn as_configuration(&self) -> String {
        let Self { name, protocol, listen, target } = self;
        format!(
            "[[forward]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\nlisten = \"{listen}\"\n\
             target = \"{target}\"\nsources = [\"{PLS_SUBNET}\"]\n"
        )
    }

    fn as_nftables(&self) -> String {
        let Self { protocol, listen, target, .. } = self;
        format!(
            "add rule ip router to_targets iifname eth0 ip daddr {ROUTER} ip saddr {PLS_SUBNET} \
             {protocol} dport {listen} dnat to {target}\n"
        )
    }
}

/// The rules for the servers, as tables of the router's configuration, beside those that every
/// lab's router has.
pub fn rules() -> String {
    forwards().iter().map(Forward::as_configuration).collect::<Vec<_>>().join("\n")
}

/// The same rules for the kernel's own NAT, beside those that it has.
pub fn nftables() -> String {
    forwards().iter().map(Forward::as_nftables).collect()
}

/// Has a lab's firewall let the clients through, and its hosts answer with as many ICMP errors as
/// they like. Linux sends one host an error a second; a client that traces fast would see holes
/// where there are none.
pub fn admit(lab: &Lab) -> Result<()> {
    let hosts = &lab.hosts;
    let everything = format!("iifname vnet ip daddr {{ {TOOLS}, {DNS} }} accept");
    hosts.firewall.nft(&format!("insert rule ip firewall network_rules {everything}"))?;
    for host in [&hosts.pls, &hosts.router, &hosts.firewall, &hosts.internet] {
        host.sysctl("net/ipv4/icmp_ratelimit", "0")?;
    }
    Ok(())
}

/// The witness saw packets on both sides, and nothing wrong.
fn finish(witness: Witness) -> Result<()> {
    let seen = witness.finish()?;
    ensure!(seen.pls > 0 && seen.firewall > 0, "the witness saw nothing on a wire: {seen:?}");
    Ok(())
}
