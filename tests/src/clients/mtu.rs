//! Links that take less than others, and path MTU discovery through them (RFC 1191).

use std::{fs, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};

use super::{
    LIMIT, finish,
    trace::{hops, tracepath, tracepath_hops},
};
use crate::{
    Hosts, Lab, Namespace,
    addresses::{ECHO_PORT, ENDPOINT, FIREWALL_PUBLIC, ROUTER, SERVERLESS_GATEWAY, TOOLS},
    client::{self, Tcp, Udp, sha256},
    command,
    servers::Files,
    witness::Witness,
};

/// The MTU of the narrow link.
pub const NARROW: u32 = 1400;

/// The MTU of all other links.
const WIDE: u32 = 1500;

/// A ping whose packets fit into 1500 bytes and no less: 20 of IPv4, 8 of ICMP.
const FULL: &str = "1472";
/// One that the narrow link just takes; with a byte more it does not.
const FITS: &str = "1372";
/// See [`FITS`].
const TOO_BIG: &str = "1373";

/// Sets the MTU of devices.
fn set(mtu: u32, ends: &[(&Namespace, &str)]) -> Result<()> {
    ends.iter().try_for_each(|(host, device)| host.ip(&format!("link set {device} mtu {mtu}")).map(drop))
}

/// Makes the link between router and firewall narrow.
pub fn narrow_to_the_firewall(lab: &Lab) -> Result<()> {
    set(NARROW, &[(&lab.hosts.router, "eth1")])?;
    narrow_firewall(lab)
}

/// Makes the firewall's end of that link narrow. The other one is for the caller, where the router
/// is a machine.
pub fn narrow_firewall(lab: &Lab) -> Result<()> {
    set(NARROW, &[(&lab.hosts.firewall, "vnet")])
}

/// Makes the link between router and Private Link Service narrow.
pub fn narrow_to_the_private_link(lab: &Lab) -> Result<()> {
    set(NARROW, &[(&lab.hosts.pls, "vnet"), (&lab.hosts.router, "eth0")])
}

/// Makes the firewall's other link narrow.
pub fn narrow_beyond_the_firewall(lab: &Lab) -> Result<()> {
    set(NARROW, &[(&lab.hosts.firewall, "internet")])?;
    sends_less(&lab.hosts.internet, FIREWALL_PUBLIC, "")
}

/// Makes the client's link to the private endpoint narrow.
pub fn narrow_beyond_the_private_link(lab: &Lab) -> Result<()> {
    set(NARROW, &[(&lab.hosts.pls, "serverless")])?;
    sends_less(&lab.hosts.serverless, ENDPOINT, &format!("via {SERVERLESS_GATEWAY}"))
}

/// At the far end of a narrow link: sends what it takes, but announces as much as if it did not
/// know.
fn sends_less(host: &Namespace, towards: Ipv4Addr, via: &str) -> Result<()> {
    host.ip(&format!("route add {towards}/32 dev eth0 {via} mtu {NARROW} advmss 1460")).map(drop)
}

/// Undoes [`narrow_beyond_the_firewall`], and has the ends forget what they have learnt.
pub fn widen_beyond_the_firewall(lab: &Lab) -> Result<()> {
    set(WIDE, &[(&lab.hosts.firewall, "internet")])?;
    lab.hosts.internet.ip(&format!("route del {FIREWALL_PUBLIC}/32"))?;
    forget(lab)
}

/// Undoes [`narrow_beyond_the_private_link`], and has the ends forget what they have learnt.
pub fn widen_beyond_the_private_link(lab: &Lab) -> Result<()> {
    set(WIDE, &[(&lab.hosts.pls, "serverless")])?;
    lab.hosts.serverless.ip(&format!("route del {ENDPOINT}/32"))?;
    forget(lab)
}

/// Has the ends forget the path MTU that they have learnt.
fn forget(lab: &Lab) -> Result<()> {
    let Hosts { serverless, internet, vm, .. } = &lab.hosts;
    [serverless, internet, vm].into_iter().try_for_each(|end| end.ip("route flush cache").map(drop))
}

/// The path MTU that a host has learnt for an address.
fn learnt(host: &Namespace, towards: Ipv4Addr) -> Result<Option<u32>> {
    let route = host.run("ip", &["route", "get", &towards.to_string()])?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    words.next().map(|mtu| mtu.parse().with_context(|| route.clone())).transpose()
}

/// The number of fragments that a host has made.
fn fragments_made(host: &Namespace) -> Result<u64> {
    let table = host.inside(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let table = table.context("cannot read a host's counters")?;
    // A line of names, and one of values.
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut counters = names.split(' ').zip(values.split(' '));
    let found = counters.find(|(name, _)| *name == "FragCreates");
    let (_, value) = found.with_context(|| format!("no FragCreates in {names}"))?;
    value.parse().with_context(|| format!("FragCreates is {value}"))
}

/// Returns the output of ping, for any number of answers.
fn ping(lab: &Lab, size: &str) -> Result<String> {
    let mut ping = lab.hosts.vm.command("ping")?;
    ping.args(["-n", "-M", "do", "-c", "1", "-W", "2", "-s", size]).arg(TOOLS.to_string());
    Ok(String::from_utf8_lossy(&command::output(&mut ping)?.stdout).into_owned())
}

/// Sends packets that the narrow link to the firewall just takes, and just does not.
pub fn the_router_reports_the_mtu_of_its_link(lab: &Lab) -> Result<()> {
    let witness = Witness::start(lab)?;
    let said = ping(lab, FITS)?;
    ensure!(said.contains(" 1 received"), "{said}");
    ensure!(learnt(&lab.hosts.vm, TOOLS)?.is_none(), "the path MTU is known too early");
    for size in [TOO_BIG, FULL] {
        // As if for the first time: a host that knows the path MTU would not send a packet of this
        // size.
        lab.hosts.vm.ip("route flush cache")?;
        let said = ping(lab, size)?;
        let error = format!("From {ROUTER} icmp_seq=1 Frag needed and DF set (mtu = {NARROW})");
        ensure!(said.contains(&error) && said.contains(" 0 received"), "not \"{error}\" in {said}");
        ensure!(learnt(&lab.hosts.vm, TOOLS)? == Some(NARROW), "the VM has not learnt it");
    }
    finish(witness)
}

/// Narrows the link to the firewall under a connection.
pub fn a_reduced_mtu_is_noticed(lab: &Lab) -> Result<()> {
    is_noticed(lab, || narrow_to_the_firewall(lab))
}

/// Has both ends of the link to the firewall narrowed under a connection: it goes on, and so do new
/// ones.
pub fn is_noticed(lab: &Lab, narrow: impl FnOnce() -> Result<()>) -> Result<()> {
    let witness = Witness::start(lab)?;
    let bytes: Vec<u8> = (0..100_000).map(|index| (index * 31 + index / 251) as u8).collect();
    let mut old = Tcp::connect(&lab.hosts.serverless, (ENDPOINT, ECHO_PORT).into(), LIMIT)?;
    old.echo(&bytes, LIMIT).context("before")?;
    ensure!(learnt(&lab.hosts.serverless, ENDPOINT)?.is_none(), "the path MTU is known too early");

    narrow()?;
    old.echo(&bytes, LIMIT).context("on a connection that was there before")?;
    let client = learnt(&lab.hosts.serverless, ENDPOINT)?;
    ensure!(client == Some(NARROW), "the client believes that the path takes {client:?}");
    let said = ping(lab, FULL)?;
    ensure!(
        said.contains(&format!("From {ROUTER} icmp_seq=1 Frag needed and DF set (mtu = {NARROW})")),
        "{said}"
    );
    finish(witness)
}

/// Traces over the narrow link to the firewall.
pub fn tracepath_finds_the_smaller_mtu(lab: &Lab) -> Result<()> {
    let witness = Witness::start(lab)?;
    let said = tracepath(lab)?;
    let wanted: Vec<_> = (1..).zip(hops(lab)).collect();
    ensure!(tracepath_hops(&said) == wanted, "{said}");
    let tells = |line: &str| line.contains(&format!("{ROUTER} ")) && line.contains(&format!("pmtu {NARROW}"));
    ensure!(said.lines().any(tells), "the router does not tell: {said}");
    ensure!(said.contains(&format!("Resume: pmtu {NARROW} hops 4 back 4")), "{said}");
    finish(witness)
}

/// Sends packets that may be fragmented over the narrow link to the firewall.
pub fn packets_without_df_are_fragmented(lab: &Lab) -> Result<()> {
    are_fragmented(lab, || lab.hosts.router.ip("neigh flush all").map(drop))
}

/// Does the same with a router that forgets its next hops by `flush`.
pub fn are_fragmented(lab: &Lab, flush: impl FnOnce() -> Result<()>) -> Result<()> {
    let Hosts { serverless, vm, .. } = &lab.hosts;
    // A host that knows the path MTU would make smaller fragments itself.
    forget(lab)?;
    let known = (learnt(vm, TOOLS)?, learnt(serverless, ENDPOINT)?);
    ensure!(known == (None, None), "the path MTU is known: {known:?}");
    let witness = Witness::start(lab)?;
    let before = fragments_made(vm)?;
    for size in [FITS, TOO_BIG, FULL] {
        let answers = client::ping(vm, TOOLS, 3, &["-M", "dont", "-s", size])?;
        ensure!(answers == 3, "{answers} answers to 3 echo requests with {size} bytes");
    }
    let made = fragments_made(vm)? - before;
    ensure!(made == 0, "the VM has made {made} fragments itself");
    // Fragments that have to be fragmented again.
    let udp = Udp::open(serverless, (ENDPOINT, ECHO_PORT).into())?;
    for length in [1473, 4000, 20_000] {
        udp.echo(&vec![0x5a; length], LIMIT)?;
    }
    // Nor is one lost to a next hop that has to be asked for first.
    flush()?;
    let answers = client::ping(vm, TOOLS, 1, &["-M", "dont", "-s", TOO_BIG])?;
    ensure!(answers == 1, "{answers} answers to an echo request with {TOO_BIG} bytes, cold");
    finish(witness)
}

/// The path MTU that each end has learnt, unless it is that of its own link.
#[derive(Debug)]
struct Learnt {
    /// The client, by an upload.
    client: Option<u32>,
    /// The server, by a download.
    server: Option<u32>,
}

/// A file up and a file down, each as if it were the first. The ends announce segments for 1500
/// bytes in their SYNs, so that what they have learnt afterwards, they were told.
fn transfer(lab: &Lab) -> Result<Learnt> {
    let files = Files::start(lab)?;
    let witness = Witness::start(lab)?;
    let original = sha256(&lab.large_file())?;
    let url = format!("http://{ENDPOINT}:{}", Files::PORT);

    let fetched = client::upload(lab, &lab.large_file(), &format!("{url}/upload/copy"))?;
    // 204: it replaces that of an earlier transfer.
    ensure!(matches!(fetched.status, 201 | 204), "upload: {} {}", fetched.status, fetched.error);
    ensure!(sha256(&files.uploaded("copy"))? == original, "the upload differs");
    let client = learnt(&lab.hosts.serverless, ENDPOINT)?;

    // A host that knows of a smaller path MTU announces smaller segments.
    forget(lab)?;
    let copy = lab.state().path("tmp/copy");
    let fetched = client::download(lab, &format!("{url}/large.bin"), &copy)?;
    ensure!(fetched.status == 200, "download: {} {}", fetched.status, fetched.error);
    ensure!(sha256(&copy)? == original, "the download differs");
    let server = learnt(&lab.hosts.internet, FIREWALL_PUBLIC)?;

    finish(witness)?;
    Ok(Learnt { client, server })
}

/// Upload: the router tells the client. Download: the firewall tells the server.
pub fn tcp_works_over_a_smaller_mtu_to_the_firewall(lab: &Lab) -> Result<()> {
    let learnt = transfer(lab)?;
    ensure!(learnt.client == Some(NARROW) && learnt.server == Some(NARROW), "{learnt:?}");
    Ok(())
}

/// Upload: the Private Link Service tells the client. Download: the router tells the server.
pub fn tcp_works_over_a_smaller_mtu_to_the_private_link(lab: &Lab) -> Result<()> {
    let learnt = transfer(lab)?;
    ensure!(learnt.client == Some(NARROW) && learnt.server == Some(NARROW), "{learnt:?}");
    Ok(())
}

/// Upload: the firewall tells the client, through the router.
pub fn tcp_works_over_a_smaller_mtu_beyond_the_firewall(lab: &Lab) -> Result<()> {
    let learnt = transfer(lab)?;
    ensure!(learnt.client == Some(NARROW), "{learnt:?}");
    Ok(())
}

/// Download: the Private Link Service tells the server, through the router and the firewall.
pub fn tcp_works_over_a_smaller_mtu_beyond_the_private_link(lab: &Lab) -> Result<()> {
    let learnt = transfer(lab)?;
    ensure!(learnt.server == Some(NARROW), "{learnt:?}");
    Ok(())
}
