//! Packets to this machine itself, by `[local]`: other protocols than TCP, UDP and ICMP, groups,
//! IPv6, and frames with tags.

use std::{
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Namespace, Nics, Options,
    addresses::{ECHO_PORT, HEALTH_PORT, PLS_NAT, ROUTER},
    wait,
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

/// A raw socket of one protocol at one of the host's addresses; the standard library's calls for
/// datagrams work on it.
fn raw(host: &Namespace, protocol: u8, address: Ipv4Addr) -> Result<UdpSocket> {
    let socket = host.inside(|| {
        // SAFETY: takes three numbers and makes a descriptor, or fails.
        let socket =
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
        if socket < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nothing else owns it.
        Ok(unsafe { UdpSocket::from_raw_fd(socket) })
    })?;
    let socket = socket.with_context(|| format!("a raw socket of protocol {protocol}"))?;
    // Groups are left and joined by the interface that has this address.
    let by = nix::sys::socket::SockaddrIn::from(std::net::SocketAddrV4::new(address, 0));
    nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &by).context("bind")?;
    Ok(socket)
}

/// A lab whose router allows GRE and the cluster's port, and where groups are reached by the
/// network that the router is in.
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

/// Returns the datagram that a socket of the router receives within `limit`, sent by `socket` from
/// one of a rule's sources.
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
fn link_control_and_protocols_allowed_by_number_pass() {
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

/// Methods that load balancers and monitors use, and others.
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

/// IPv6 addresses of the router and of a machine where clients come from.
const ROUTER_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x68);
const CLIENT_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x69);

/// A server of IPv6, in a lab where that is on.
fn listen(host: &Namespace, port: u16) -> TcpListener {
    check(check(host.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))).context("bind"))
}

#[test]
fn ipv6_reaches_allowed_services_and_answers_pass() {
    only_pls_router();
    let mut options = Options { start_router: false, ..Options::new(Nics::One, router(), helper()) };
    let rules = options.rules.replacen("allow = [", "allow = [\"tcp/2222 from fd00::/64\", ", 1);
    assert_ne!(rules, options.rules, "the lab's rules have no `allow`");
    options.rules = rules;
    let mut lab = check(Lab::up(options));
    for (host, interface, address) in
        [(&lab.hosts.router, "eth0", ROUTER_IPV6), (&lab.hosts.pls, "vnet", CLIENT_IPV6)]
    {
        check(host.sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0"));
        check(host.ip(&format!("addr add {address}/64 dev {interface} nodad")));
    }
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    let (allowed, closed) = (listen(&lab.hosts.router, 2222), listen(&lab.hosts.router, 2223));
    let connect = |from: &Namespace, to: Ipv6Addr, port, limit| {
        check(from.inside(|| TcpStream::connect_timeout(&(to, port).into(), limit)))
    };
    // Neighbour discovery, too.
    check(connect(&lab.hosts.pls, ROUTER_IPV6, 2222, LIMIT).context("an entry of `allow`"));
    let before = reason(&counters(&lab), "ipv6_denied");
    connect(&lab.hosts.pls, ROUTER_IPV6, 2223, NOTHING).expect_err("no entry of `allow` is for it");
    assert!(reason(&counters(&lab), "ipv6_denied") > before);
    // Requests of the router itself, by TCP and from an unconnected UDP socket.
    let peer = listen(&lab.hosts.pls, 2223);
    check(connect(&lab.hosts.router, CLIENT_IPV6, 2223, LIMIT).context("a connection of the router's own"));
    let socket = |host: &Namespace, address, port| {
        check(check(host.inside(|| UdpSocket::bind((address, port)))).context("bind"))
    };
    let here = socket(&lab.hosts.router, Ipv6Addr::UNSPECIFIED, 5000);
    let there = socket(&lab.hosts.pls, CLIENT_IPV6, 123);
    let mut buffer = [0; 9];
    for socket in [&here, &there] {
        check(socket.set_read_timeout(Some(LIMIT)).context("timeout"));
    }
    check(here.send_to(b"question", (CLIENT_IPV6, 123)).context("send"));
    let (_, asked_by) = check(there.recv_from(&mut buffer).context("the question"));
    check(there.send_to(b"answer", asked_by).context("send"));
    check(here.recv(&mut buffer).context("the answer"));
    drop((allowed, closed, peer));
}

/// A frame of UDP with a tag, from a client to the router.
fn tagged(to: [u8; 6], tag: u16, port: u16) -> Vec<u8> {
    let [source, _] = PLS_NAT;
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.octets());
    packet.extend(ROUTER.octets());
    let sum =
        packet.chunks(2).fold(0_u32, |sum, word| sum + u32::from(u16::from_be_bytes([word[0], word[1]])));
    let checksum = !((sum & 0xffff) as u16 + (sum >> 16) as u16);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    // From port 5000, without a checksum.
    packet.extend([0x13, 0x88]);
    packet.extend(port.to_be_bytes());
    packet.extend([0, 12, 0, 0, b't', b'e', b's', b't']);
    [&to[..], &[2, 0, 0, 0, 0, 0x69, 0x81, 0], &tag.to_be_bytes(), &[8, 0], &packet].concat()
}

#[test]
fn a_vlan_tag_does_not_bypass_the_local_policy() {
    only_pls_router();
    let lab = check(Lab::up(Options::new(Nics::One, router(), helper())));
    // As with NICs that leave tags in frames.
    check(lab.hosts.vnet.run("ethtool", &["-K", "router", "txvlan", "off"]));
    let text = check(lab.hosts.router.run("cat", &["/sys/class/net/eth0/address"]));
    let mac: Vec<u8> = text.trim().split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let mac: [u8; 6] = mac.try_into().expect("six bytes");
    let wire = check(check(lab.hosts.pls.inside(|| -> Result<OwnedFd> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        Ok(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?)
    })));
    let interface =
        check(check(lab.hosts.pls.inside(|| nix::net::if_::if_nametoindex("vnet"))).context("vnet"));
    let send = |frame: &[u8]| {
        // SAFETY: zero is a value of this plain structure.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = interface as i32;
        // SAFETY: both buffers live through the call and have the lengths that are said.
        let sent = unsafe {
            libc::sendto(
                wire.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as u32,
            )
        };
        assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", std::io::Error::last_os_error());
    };
    for (tag, port, expected) in [
        (0, 161, "local_denied"),
        (0xa000, 161, "local_denied"),
        (5, 161, "ethernet_denied"),
        (5, ECHO_PORT, "ethernet_denied"),
        (0xa000, ECHO_PORT, "opened"),
    ] {
        let before = reason(&counters(&lab), expected);
        send(&tagged(mac, tag, port));
        check(wait::until(&format!("tag {tag:04x}, port {port} to be {expected}"), LIMIT, || {
            ensure!(reason(&counters(&lab), expected) == before + 1);
            Ok(())
        }));
    }
}
