//! Private Link and the internal Standard Load Balancer with HA ports, and the platform's own
//! address.

use std::time::Duration;

use anyhow::Result;

use crate::{
    addresses::{ENDPOINT, HEALTH_PORT, PLATFORM, PLS_GATEWAY, PLS_NAT, ROUTER, SERVERLESS},
    helper::{BACKENDS, Helper, TABLE},
    hosts::internet::{self, START_LIMIT},
    namespace::Namespace,
    process::Process,
    state::State,
    variants::PlsPorts,
};

/// Loads the translation and starts the platform's DNS server. The load balancer sends nothing to
/// the router before the probe is up.
pub(crate) fn start(state: &State, namespace: &Namespace, ports: PlsPorts) -> Result<Process> {
    let [first, last] = PLS_NAT;
    let ports = match ports {
        PlsPorts::Keep => "",
        PlsPorts::Random => ":1024-65535 fully-random",
    };
    // When the backend is taken out, connections keep the backend that conntrack gave them, as in
    // Azure. New ones get no answer.
    namespace.nft(&format!(
        "table ip {TABLE} {{
            map {BACKENDS} {{ type ipv4_addr : ipv4_addr; }}
            chain load_balancer {{
                type nat hook prerouting priority dstnat;
                ip daddr {ENDPOINT} dnat to ip daddr map @{BACKENDS}
            }}
            chain nobody_home {{
                type filter hook input priority filter;
                ip daddr {ENDPOINT} drop
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
    interval: Duration,
) -> Result<Process> {
    helper.probe(state, namespace, "probe", (ROUTER, HEALTH_PORT).into(), interval)
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
