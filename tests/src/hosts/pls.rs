//! Private Link and the internal Standard Load Balancer with HA ports, and the platform's own
//! address.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::Result;

use crate::{
    addresses::{ENDPOINT, HEALTH_PORT, PLATFORM, PLS_GATEWAY, PLS_NAT, ROUTER, SERVERLESS},
    balancer::{self, CHAIN, TABLE},
    helper::Helper,
    hosts::internet::{self, START_LIMIT},
    namespace::Namespace,
    process::Process,
    state::State,
    variants::PlsPorts,
};

/// Loads the translation and starts the platform's DNS server. The load balancer sends nothing to
/// the routers before the probe is up.
pub(crate) fn start(
    state: &State,
    namespace: &Namespace,
    ports: PlsPorts,
    routers: &[Ipv4Addr],
) -> Result<Process> {
    let [first, last] = PLS_NAT;
    let ports = match ports {
        PlsPorts::Keep => "",
        PlsPorts::Random => ":1024-65535 fully-random",
    };
    // When a backend is taken out, connections keep the backend that conntrack gave them, as in
    // Azure. New ones go to the others; if there is none, they get no answer, and neither does
    // what is for a VM that is gone.
    let marks = balancer::marks(routers);
    namespace.nft(&format!(
        "table ip {TABLE} {{
            chain {CHAIN} {{
                type nat hook prerouting priority dstnat;
            }}
            chain datagrams {{
                type filter hook forward priority filter;
                meta l4proto udp ct mark set ip daddr map {{ {marks} }}
            }}
            chain nobody_home {{
                type filter hook input priority filter;
                ip daddr {ENDPOINT} drop
            }}
            chain nobody_says_so {{
                type filter hook output priority filter;
                icmp type destination-unreachable icmp code host-unreachable drop
            }}
            chain private_link {{
                type nat hook postrouting priority srcnat;
                oifname vnet ip saddr {SERVERLESS} meta l4proto {{ tcp, udp }} snat to {first}-{last}{ports}
            }}
        }}"
    ))?;
    let mut dns = internet::dns(state, namespace, "platform-dns", &PLATFORM.to_string())?;
    dns.wait_until(START_LIMIT, || namespace.listens_udp(53))?;
    Ok(dns)
}

/// Starts the load balancer's probe.
pub(crate) fn probe(
    state: &State,
    namespace: &Namespace,
    helper: &Helper,
    routers: &[Ipv4Addr],
    interval: Duration,
) -> Result<Process> {
    let targets: Vec<_> = routers.iter().map(|router| SocketAddrV4::new(*router, HEALTH_PORT)).collect();
    helper.probe(state, namespace, "probe", &targets, interval)
}

/// The addresses and routes of *pls*, for `ip -batch`.
pub(crate) fn addresses() -> String {
    let mut lines = format!(
        "addr add {PLATFORM}/32 dev lo\n\
         addr add {ENDPOINT}/32 dev lo\n\
         addr add {PLS_GATEWAY}/26 dev vnet\n\
         route add default via {ROUTER}\n"
    );
    for address in PLS_NAT {
        lines.push_str(&format!("addr add {address}/32 dev vnet\n"));
    }
    lines
}
