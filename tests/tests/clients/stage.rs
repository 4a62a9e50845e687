//! Shared by the tests: the rules for their services, in the syntax of each router, and a lab with
//! these rules.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Result, ensure};
use lab::{
    Lab, Nics, Options, Router,
    addresses::{DNS, PLS_SUBNET, ROUTER, TOOLS},
    helper::Helper,
    rules,
    servers::{Database, Files, Shell},
    witness::Witness,
};

/// The time that one exchange may take, on a machine that has other things to do as well.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// The port of the endpoint that leads to the sshd; 22 is the router's own.
pub(crate) const SHELL_PORT: u16 = 2222;

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

/// The options of a test's lab.
pub(crate) struct Stage {
    nics: Nics,
    router: Router,
}

impl Stage {
    /// Brings up a lab with the rules of this file, in which only the router limits ICMP.
    pub(crate) fn lab(&self) -> Result<Lab> {
        self.lab_with(|_| Ok(()))
    }

    /// A lab whose wires are changed before its router starts.
    pub(crate) fn lab_with(&self, change: impl FnOnce(&Lab) -> Result<()>) -> Result<Lab> {
        let forwards = forwards();
        let ours: Vec<_> = forwards.iter().map(Forward::as_configuration).collect();
        let mut options =
            Options::new(self.nics, self.router.clone(), Helper::new(env!("CARGO_BIN_EXE_lab")));
        options.rules = format!("{}\n{}", ours.join("\n"), rules());
        options.large_file = 1 << 20;
        options.start_router = false;
        let mut lab = Lab::up(options)?;

        let hosts = &lab.hosts;
        let everything = format!("iifname vnet ip daddr {{ {TOOLS}, {DNS} }} accept");
        hosts.firewall.nft(&format!("insert rule ip firewall network_rules {everything}"))?;
        // Linux sends one host an error a second; a client that traces fast would see holes where
        // there are none.
        for host in [&hosts.pls, &hosts.router, &hosts.firewall, &hosts.internet] {
            host.sysctl("net/ipv4/icmp_ratelimit", "0")?;
        }
        change(&lab)?;
        lab.start_router()?;
        if self.router == Router::Nftables {
            let theirs: Vec<_> = forwards.iter().map(Forward::as_nftables).collect();
            lab.hosts.router.nft(&theirs.concat())?;
        }
        lab.wait_in_service(LIMIT)?;
        Ok(lab)
    }
}

/// Plays a test with this router.
pub(crate) fn play(nics: Nics, router: fn() -> Result<Router>, test: fn(&Stage) -> Result<()>) {
    harness::check(router().and_then(|router| test(&Stage { nics, router })));
}

/// The witness saw packets on both sides, and nothing wrong.
pub(crate) fn finish(witness: Witness) -> Result<()> {
    let seen = witness.finish()?;
    ensure!(seen.pls > 0 && seen.firewall > 0, "the witness saw nothing on a wire: {seen:?}");
    Ok(())
}
