//! The firewall: the router's next hop for everything, with application rules by name and network
//! rules by port.
//!
//! Like Azure Firewall it works transparently: clients connect to any address, and it picks the
//! server by the SNI of TLS or the Host of HTTP. Its log has a line for every connection that an
//! application rule decided on.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::Result;

use crate::{
    addresses::{DNS, ECHO_PORT, IPERF_PORT, NAMES},
    hosts::{internet::START_LIMIT, nginx},
    namespace::Namespace,
    process::Process,
    state::State,
};

/// The port of nginx for the TLS connections that nftables redirects.
const TLS_PORT: u16 = 8443;
/// The port for the HTTP connections.
const HTTP_PORT: u16 = 8080;

/// The nftables table, and the set of addresses that new connections have come from.
const TABLE: &str = "firewall";
/// See [`TABLE`].
const SOURCES: &str = "sources";

/// The log of the application rules, in the lab's directory.
pub(crate) const LOG: &str = "logs/firewall.log";

/// Returns the addresses from which the routers' side has opened connections.
pub(crate) fn sources(namespace: &Namespace) -> Result<BTreeSet<Ipv4Addr>> {
    let set = namespace.run("nft", &["list", "set", "ip", TABLE, SOURCES])?;
    let elements = set.split_once("elements = {").map_or("", |(_, elements)| elements);
    Ok(elements.split([' ', ',', '\n', '\t']).filter_map(|word| word.parse().ok()).collect())
}

/// Starts the firewall; it works when this returns.
pub(crate) fn start(state: &State, namespace: &Namespace) -> Result<Process> {
    let log = state.path(LOG);
    let log = log.display();
    let mut allowed = String::new();
    for (name, _, allow) in NAMES {
        if allow {
            allowed.push_str(&format!("{name} allow;\n"));
        }
    }
    let resolver = format!("resolver {DNS} ipv6=off valid=5s;");
    let http = format!(
        "map $host $verdict {{\n default deny;\n{allowed}}}\n\
         log_format rule '$time_iso8601 $verdict http name=$host client=$remote_addr:$remote_port status=$status';\n\
         {resolver}\n\
         server {{\n\
         listen {HTTP_PORT};\n\
         access_log {log} rule;\n\
         location / {{\n\
         if ($verdict = deny) {{ return 470 'Action: Deny. Reason: No rule matched.\\n'; }}\n\
         proxy_set_header Host $host;\n\
         proxy_pass http://$host:80$request_uri;\n\
         }}\n\
         }}\n"
    );
    // An empty upstream makes nginx close the connection, which is what a client of Azure Firewall
    // sees as well.
    let stream = format!(
        "map $ssl_preread_server_name $verdict {{\n default deny;\n{allowed}}}\n\
         map $verdict $server {{\n default '';\n allow $ssl_preread_server_name:443;\n}}\n\
         log_format rule '$time_iso8601 $verdict tls name=$ssl_preread_server_name client=$remote_addr:$remote_port status=$status';\n\
         {resolver}\n\
         server {{\n\
         listen {TLS_PORT};\n\
         ssl_preread on;\n\
         access_log {log} rule;\n\
         proxy_pass $server;\n\
         }}\n"
    );
    namespace.nft(&format!(
        "table ip {TABLE} {{
            set {SOURCES} {{ type ipv4_addr; size 1024; flags dynamic; }}
            chain count {{
                type filter hook prerouting priority filter;
                iifname vnet ct state new update @{SOURCES} {{ ip saddr }}
            }}
            chain to_proxy {{
                type nat hook prerouting priority dstnat;
                iifname vnet tcp dport 443 redirect to :{TLS_PORT}
                iifname vnet tcp dport 80 redirect to :{HTTP_PORT}
            }}
            chain network_rules {{
                type filter hook forward priority filter; policy drop;
                ct state established,related accept
                iifname vnet tcp dport {{ {IPERF_PORT}, {ECHO_PORT} }} accept
                iifname vnet udp dport {{ {IPERF_PORT}, {ECHO_PORT} }} accept
                iifname vnet icmp type echo-request accept
                counter
            }}
            chain to_internet {{
                type nat hook postrouting priority srcnat;
                oifname internet masquerade
            }}
        }}"
    ))?;
    let mut nginx = nginx::start(state, namespace, "firewall", &http, &stream)?;
    nginx.wait_until(START_LIMIT, || namespace.listens_tcp(TLS_PORT))?;
    nginx.wait_until(START_LIMIT, || namespace.listens_tcp(HTTP_PORT))?;
    Ok(nginx)
}
