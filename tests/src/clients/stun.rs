//! The router's NAT behaviour as coturn's `turnutils_natdiscovery` finds it, by RFC 5780.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};

use super::finish;
use crate::{
    Lab, Nics,
    addresses::{ROUTER, ROUTER_SECOND, VM},
    command,
    servers::{STUN, STUN_OTHER, Stun},
    witness::Witness,
};

/// A port of the VM that is one of the router's `[snat]`, so that it can be kept.
const LOCAL_PORT: u16 = 20_000;

/// Another address of the VM's subnet.
const VM_OTHER: &str = "10.0.2.5";

/// Runs the discovery on the VM. Returns its output.
fn discover(lab: &Lab, options: &[&str]) -> Result<String> {
    let mut discovery = lab.hosts.vm.command("turnutils_natdiscovery")?;
    discovery.args(["-L", &VM.to_string(), "-l", &LOCAL_PORT.to_string()]).args(options);
    command::run(discovery.arg(STUN.to_string()))
}

/// The client's address as the router translates it.
fn translated(lab: &Lab) -> Ipv4Addr {
    match lab.options.nics {
        Nics::One => ROUTER,
        Nics::Two => ROUTER_SECOND,
    }
}

/// The lines that classify.
fn verdicts(said: &str) -> Vec<&str> {
    said.lines().filter(|line| line.starts_with("NAT with") || line.starts_with("No NAT")).collect()
}

/// Returns the client's addresses as the server saw them, in the order of the exchanges.
fn reflexive(said: &str) -> Vec<&str> {
    said.lines().filter_map(|line| Some(line.split_once("UDP reflexive addr: ")?.1.trim())).collect()
}

/// The same with nftables: a mapping is reused for other destinations, what was not asked for is
/// not let in.
pub fn mappings_are_endpoint_independent_and_filters_are_not(lab: &Lab) -> Result<()> {
    let _server = Stun::start(lab)?;
    let witness = Witness::start(lab)?;
    let said = discover(lab, &["-m"])?;
    ensure!(verdicts(&said) == ["NAT with Endpoint Independent Mapping!"], "{said}");
    let kept = format!("{}:{LOCAL_PORT}", translated(lab));
    ensure!(reflexive(&said) == [&*kept, &*kept], "the port is free and not kept: {said}");
    let other = format!("Response origin: : {STUN_OTHER}:3478");
    ensure!(said.contains(&other), "nothing came from the server's other address: {said}");

    let said = discover(lab, &["-f"])?;
    ensure!(verdicts(&said) == ["NAT with Address and Port Dependent Filtering!"], "{said}");
    finish(witness)
}

/// With padding to more than a packet the requests are fragments.
pub fn padded_requests_are_answered(lab: &Lab) -> Result<()> {
    let _server = Stun::start(lab)?;
    let witness = Witness::start(lab)?;
    let said = discover(lab, &["-m", "-P"])?;
    ensure!(verdicts(&said) == ["NAT with Endpoint Independent Mapping!"], "{said}");
    let fragments = witness.finish_listing("firewall", "ip[6:2] & 0x3fff != 0")?.len();
    ensure!(fragments >= 4, "only {fragments} fragments on the firewall's wire");
    Ok(())
}

/// Has a second client send from the port that the first one has.
pub fn two_clients_with_the_same_port_are_kept_apart(lab: &Lab) -> Result<()> {
    lab.hosts.vm.ip(&format!("addr add {VM_OTHER}/26 dev eth0"))?;
    let _server = Stun::start(lab)?;
    let witness = Witness::start(lab)?;
    let said = discover(lab, &["-c", "-A", VM_OTHER])?;
    let [first, second] = *reflexive(&said) else { anyhow::bail!("not two answers: {said}") };
    ensure!(first == format!("{}:{LOCAL_PORT}", translated(lab)), "the port is free and not kept: {said}");
    let (address, port) = second.rsplit_once(':').with_context(|| format!("no port: {said}"))?;
    ensure!(address == translated(lab).to_string() && port != LOCAL_PORT.to_string(), "{said}");
    finish(witness)
}
