//! The router VM.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    addresses::{
        self, ANYWHERE, ECHO_PORT, HEALTH_PORT, IPERF_PORT, PLS_SUBNET, ROUTER, ROUTER_SECOND, TOOLS, VM,
        VNET,
    },
    namespace::Namespace,
    process::Process,
    state::State,
    variants::Nics,
};

/// The limit for pls-router to be healthy.
pub(crate) const HEALTHY_LIMIT: Duration = Duration::from_secs(20);

/// The limit for the router to end.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The limit for one request to the health endpoint.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// The place of a router in the lab: its host's name, and its addresses.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    /// The name of its host.
    pub(crate) host: String,
    /// The address of the NIC that faces the Private Link Service.
    pub(crate) address: Ipv4Addr,
    /// The address of the second NIC, if it has one.
    pub(crate) second: Ipv4Addr,
}

impl Seat {
    /// The seat of the router with this number, from 0.
    pub(crate) fn new(number: usize) -> Self {
        let (address, second) = addresses::router(number);
        let host = if number == 0 { "router".to_owned() } else { format!("router{}", number + 1) };
        Self { host, address, second }
    }
}

/// The rules that every lab's router has, as tables of the configuration.
pub fn rules() -> String {
    let forwards = [
        ("https", "tcp", 443, ANYWHERE, 443),
        ("http", "tcp", 80, ANYWHERE, 80),
        ("iperf", "tcp", IPERF_PORT, TOOLS, IPERF_PORT),
        ("echo-tcp", "tcp", ECHO_PORT, TOOLS, ECHO_PORT),
        ("echo-udp", "udp", ECHO_PORT, TOOLS, ECHO_PORT),
    ];
    let forwards = forwards.map(|(name, protocol, listen, target, port)| {
        format!(
            "[[forward]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\nlisten = \"{listen}\"\n\
             target = \"{target}:{port}\"\nsources = [\"{PLS_SUBNET}\"]\n"
        )
    });
    let masquerade =
        format!("[[masquerade]]\nname = \"vnet\"\nsources = [\"{VNET}\"]\ndestinations = [\"0.0.0.0/0\"]\n");
    let local = format!("[local]\nallow = [\"tcp/22 from {VM}/32\", \"icmp from {VM}/32\"]\n");
    format!("{}\n{masquerade}\n{local}", forwards.join("\n"))
}

/// The configuration of a lab's router with these rules, settings of `[admin]`, limits, period of
/// self-tests and further settings of the probe.
pub(crate) fn configuration(
    nics: Nics,
    rules: &str,
    admin: &str,
    (limits, self_test, health): (&str, &str, &str),
) -> String {
    let firewall = match nics {
        Nics::One => "eth0",
        Nics::Two => "eth1",
    };
    format!(
        "[interfaces]\n\
         pls = \"eth0\"\n\
         firewall = \"{firewall}\"\n\
         mode = \"native\"\n\
         \n\
         {rules}\n\
         [health]\n\
         listen = \"0.0.0.0:{HEALTH_PORT}\"\n\
         self_test = \"{self_test}\"\n\
         {health}\n\
         \n\
         [admin]\n\
         listen = \"127.0.0.1:9090\"\n\
         {admin}\n\
         \n\
         [limits]\n\
         {limits}\n"
    )
}

/// A command of pls-router in its namespace, with this configuration.
pub(crate) fn command(
    namespace: &Namespace,
    binary: &Path,
    configuration: &Path,
    args: &[&str],
) -> Result<Command> {
    let mut command = namespace.command(binary)?;
    command.env("PLS_ROUTER_CONFIG", configuration).args(args);
    Ok(command)
}

/// Starts pls-router. It may not be healthy yet when this returns.
pub(crate) fn start(
    state: &State,
    namespace: &Namespace,
    binary: &Path,
    configuration: &Path,
) -> Result<Process> {
    let command = command(namespace, binary, configuration, &["run"])?;
    Process::spawn(state, "pls-router", command)
}

/// Asks the health endpoint from the router itself; an answer other than 200 is an error with its
/// text.
pub(crate) fn healthy(seat: &Seat, namespace: &Namespace) -> Result<()> {
    let (status, body) = health(seat, namespace, "/")?;
    ensure!(status == 200, "the health endpoint answers {status}: {}", body.trim());
    Ok(())
}

/// The status and body that the health endpoint answers with for this path.
pub(crate) fn health(seat: &Seat, namespace: &Namespace, path: &str) -> Result<(u16, String)> {
    let address = (seat.address, HEALTH_PORT).into();
    let stream = namespace
        .inside(|| TcpStream::connect_timeout(&address, HEALTH_TIMEOUT))?
        .with_context(|| format!("cannot connect to the health endpoint {address}"))?;
    ask(stream, path, HEALTH_TIMEOUT)
}

/// Asks the health endpoint for a path. Returns the status and body of its answer.
pub(crate) fn ask(mut stream: TcpStream, path: &str, limit: Duration) -> Result<(u16, String)> {
    stream.set_read_timeout(Some(limit)).context("cannot set a timeout")?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("cannot ask")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("no answer from the health endpoint")?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.with_context(|| format!("not HTTP: {answer}"))?, body.to_owned()))
}

/// Loads the same rules as [`rules`] as nftables has them: the published guide's way, and the
/// yardstick for ours.
pub(crate) fn nftables(namespace: &Namespace, nics: Nics) -> Result<()> {
    let (device, address) = match nics {
        Nics::One => ("eth0", ROUTER),
        Nics::Two => ("eth1", ROUTER_SECOND),
    };
    namespace.nft(&format!(
        "table ip router {{
            chain to_targets {{
                type nat hook prerouting priority dstnat;
                iifname eth0 ip daddr {ROUTER} ip saddr {PLS_SUBNET} tcp dport {{ 80, 443 }} dnat to {ANYWHERE}
                iifname eth0 ip daddr {ROUTER} ip saddr {PLS_SUBNET} tcp dport {{ {IPERF_PORT}, {ECHO_PORT} }} dnat to {TOOLS}
                iifname eth0 ip daddr {ROUTER} ip saddr {PLS_SUBNET} udp dport {ECHO_PORT} dnat to {TOOLS}
            }}
            chain from_router {{
                type nat hook postrouting priority srcnat;
                oifname {device} ip daddr != {VNET} ip saddr {VNET} ip saddr != {address} masquerade
            }}
        }}"
    ))
}

/// The addresses and routes of the router, for `ip -batch`.
pub(crate) fn addresses(
    seat: &Seat,
    nics: Nics,
    gateway: Ipv4Addr,
    platform: Ipv4Addr,
    firewall: Ipv4Addr,
) -> String {
    let second = match nics {
        Nics::One => String::new(),
        Nics::Two => format!("addr add {}/26 dev eth1\n", seat.second),
    };
    format!(
        "addr add {}/26 dev eth0\n\
         {second}\
         route add {VNET} via {gateway}\n\
         route add {platform} via {gateway}\n\
         route add default via {firewall}\n",
        seat.address
    )
}
