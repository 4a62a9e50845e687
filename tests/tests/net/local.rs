//! What reaches this machine itself by `[local]`: other protocols than TCP, UDP and ICMP, and groups.

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::FromRawFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Namespace, Nics, Options,
    addresses::{HEALTH_PORT, PLS_NAT, ROUTER},
};

use crate::common::{LIMIT, check, counters, helper, only_pls_router, reason, router};

const VRRP: u8 = 112;
const GRE: u8 = 47;
const ESP: u8 = 50;
const VRRP_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
const CLUSTER: Ipv4Addr = Ipv4Addr::new(239, 192, 1, 1);
const CLUSTER_PORT: u16 = 5405;
/// A packet that does not come has not come by then.
const NOTHING: Duration = Duration::from_millis(300);

/// A raw socket of one protocol at one of the host's addresses; the standard library's calls for datagrams work on it.
fn raw(host: &Namespace, protocol: u8, address: Ipv4Addr) -> Result<UdpSocket> {
    let socket = host.inside(|| {
        // SAFETY: takes three numbers and makes a descriptor, or fails.
        let socket =
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
        if socket < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: made just now, and nobody else has it.
        Ok(unsafe { UdpSocket::from_raw_fd(socket) })
    })?;
    let socket = socket.with_context(|| format!("a raw socket of protocol {protocol}"))?;
    // Groups are left and joined by the interface that has this address.
    let by = nix::sys::socket::SockaddrIn::from(std::net::SocketAddrV4::new(address, 0));
    nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &by).context("bind")?;
    Ok(socket)
}

/// A lab whose router allows GRE and the cluster's port, and where groups are reached by the network that the router is in.
fn lab() -> Lab {
    only_pls_router();
    let mut options = Options { start_router: false, ..Options::new(Nics::One, router(), helper()) };
    let rules =
        options.rules.replacen("allow = [", &format!("allow = [\"gre\", \"udp/{CLUSTER_PORT}\", "), 1);
    assert_ne!(rules, options.rules, "the lab's rules have no `allow`");
    options.rules = rules;
    let mut lab = check(Lab::up(options));
    check(lab.hosts.pls.ip("route add 224.0.0.0/4 dev vnet"));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    lab
}

/// What comes to a socket of the router's within `limit`, sent from one of a rule's sources by `socket`.
fn arrives(
    from: &UdpSocket,
    text: &[u8],
    to: (Ipv4Addr, u16),
    at: &UdpSocket,
    limit: Duration,
) -> Result<()> {
    from.send_to(text, to).with_context(|| format!("send to {}", to.0))?;
    at.set_read_timeout(Some(limit))?;
    let mut buffer = [0; 1500];
    let length = at.recv(&mut buffer).with_context(|| format!("nothing came to {}", to.0))?;
    ensure!(buffer[..length].ends_with(text), "{:?} came", &buffer[..length]);
    Ok(())
}

#[test]
fn a_link_s_protocols_and_what_is_allowed_by_number_come_in() {
    let lab = lab();
    let [source, _] = PLS_NAT;
    // A peer that shares an address with this machine: nothing has to be allowed for it.
    let (here, peer) = (
        check(raw(&lab.hosts.router, VRRP, Ipv4Addr::UNSPECIFIED)),
        check(raw(&lab.hosts.pls, VRRP, source)),
    );
    check(here.join_multicast_v4(&VRRP_GROUP, &ROUTER).context("join"));
    check(arrives(&peer, b"advertisement", (VRRP_GROUP, 0), &here, LIMIT));
    let before = reason(&counters(&lab), "local_denied");
    arrives(&peer, b"to one", (ROUTER, 0), &here, NOTHING).expect_err("VRRP to one is not allowed");
    assert_eq!(reason(&counters(&lab), "local_denied") - before, 1);

    for (protocol, allowed) in [(GRE, true), (ESP, false)] {
        let (here, peer) =
            (check(raw(&lab.hosts.router, protocol, ROUTER)), check(raw(&lab.hosts.pls, protocol, source)));
        let arrived = arrives(&peer, b"tunnel", (ROUTER, 0), &here, if allowed { LIMIT } else { NOTHING });
        assert_eq!(arrived.is_ok(), allowed, "protocol {protocol}: {arrived:?}");
    }
}

#[test]
fn groups_are_allowed_by_port() {
    let lab = lab();
    let [source, _] = PLS_NAT;
    for (port, allowed) in [(CLUSTER_PORT, true), (CLUSTER_PORT + 1, false)] {
        let bind = |host: &Namespace, address, port| {
            check(check(host.inside(|| UdpSocket::bind((address, port)))).context("bind"))
        };
        let here = bind(&lab.hosts.router, Ipv4Addr::UNSPECIFIED, port);
        check(here.join_multicast_v4(&CLUSTER, &ROUTER).context("join"));
        let peer = bind(&lab.hosts.pls, source, 5404);
        for length in [5, 1400] {
            let arrived = arrives(
                &peer,
                &vec![7; length],
                (CLUSTER, port),
                &here,
                if allowed { LIMIT } else { NOTHING },
            );
            assert_eq!(arrived.is_ok(), allowed, "{length} bytes to port {port}: {arrived:?}");
        }
    }
}

/// What load balancers and monitors ask with, and what they do not.
#[test]
fn the_probe_answers_get_head_and_options() {
    let lab = lab();
    let url = format!("http://127.0.0.1:{HEALTH_PORT}/any/path");
    for (method, expected) in
        [("GET", "200"), ("HEAD", "200"), ("OPTIONS", "200"), ("POST", "405"), ("DELETE", "405")]
    {
        let mut arguments =
            vec!["--silent", "--dump-header", "-", "--output", "/dev/null", "--max-time", "5"];
        arguments.extend(if method == "HEAD" { vec!["--head"] } else { vec!["--request", method] });
        arguments.push(&url);
        let headers = check(lab.hosts.router.run("curl", &arguments)).to_ascii_lowercase();
        assert!(headers.starts_with(&format!("http/1.1 {expected} ")), "{method}: {headers}");
        assert!(headers.contains("allow: get, head, options\r\n"), "{method}: {headers}");
    }
}
