//! A STUN server that tells a client what the NAT in front of it is like (RFC 5780).

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;

use crate::{Lab, Process, hosts::internet::START_LIMIT};

/// The server's address.
pub const STUN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
/// Its other address: RFC 5780 wants two, with two ports each.
pub const STUN_OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 21);

const PORT: u16 = 3478;
const OTHER_PORT: u16 = 3479;

/// A coturn on *firewall*, not beyond it: the firewall is a NAT itself, and the router is the one
/// to be judged.
#[derive(Debug)]
pub struct Stun {
    _turnserver: Process,
}

impl Stun {
    /// Starts it; it listens when this returns.
    pub fn start(lab: &Lab) -> Result<Self> {
        let firewall = &lab.hosts.firewall;
        firewall.ip(&format!("addr replace {STUN}/32 dev lo\naddr replace {STUN_OTHER}/32 dev lo"))?;
        let mut turnserver = firewall.command("turnserver")?;
        turnserver.args(["-n", "--stun-only", "--no-tls", "--no-dtls", "--no-cli", "--log-file", "stdout"]);
        turnserver.args(["--listening-ip", &STUN.to_string(), "--listening-ip", &STUN_OTHER.to_string()]);
        turnserver.args(["--listening-port", &PORT.to_string()]);
        turnserver.args(["--alt-listening-port", &OTHER_PORT.to_string()]);
        turnserver.arg("--pidfile").arg(lab.state().path("tmp/turnserver.pid"));
        // It keeps a database of users, which does not matter here.
        turnserver.arg("--userdb").arg(lab.state().path("tmp/turnserver.db"));
        let mut turnserver = Process::spawn(lab.state(), "turnserver", turnserver)?;
        for (address, port) in
            [(STUN, PORT), (STUN, OTHER_PORT), (STUN_OTHER, PORT), (STUN_OTHER, OTHER_PORT)]
        {
            turnserver
                .wait_until(START_LIMIT, || firewall.listens_udp_at(SocketAddrV4::new(address, port)))?;
        }
        Ok(Self { _turnserver: turnserver })
    }
}
