//! traceroute, mtr and tracepath: every router on the way answers for itself.

use anyhow::{Context as _, Result, ensure};

use super::finish;
use crate::{
    Lab, Namespace, Nics,
    addresses::{ECHO_PORT, ENDPOINT, FIREWALL_ONE_NIC, FIREWALL_TWO_NICS, ROUTER, TOOLS, VM_GATEWAY},
    command,
    witness::Witness,
};
use serde_json::Value;

/// The number of times that each hop is asked.
const PROBES: usize = 3;

/// The hops from the VM to [`TOOLS`].
pub(super) fn hops(lab: &Lab) -> [String; 4] {
    let firewall = match lab.options.nics {
        Nics::One => FIREWALL_ONE_NIC,
        Nics::Two => FIREWALL_TWO_NICS,
    };
    [VM_GATEWAY, ROUTER, firewall, TOOLS].map(|hop| hop.to_string())
}

/// Runs traceroute. Returns the address that answered at each hop, or an error if one did not
/// answer every probe.
fn traceroute(from: &Namespace, target: &str, options: &[&str]) -> Result<Vec<String>> {
    let mut traceroute = from.command("traceroute")?;
    traceroute.args(["-n", "-m", "8", "-w", "2", "-q", &PROBES.to_string()]).args(options).arg(target);
    let said = command::run(&mut traceroute)?;
    let mut hops = Vec::new();
    for (line, number) in said.lines().skip(1).zip(1..) {
        // ` 2  10.0.2.68  0.034 ms  0.012 ms  0.011 ms`; another host that answers one probe is
        // named in between.
        let words: Vec<&str> = line.split_whitespace().collect();
        let wrong = || format!("hop {number} of `{}`: {said}", command::line(&traceroute));
        let [ttl, hop, times @ ..] = &*words else { anyhow::bail!(wrong()) };
        let answered = times.len() == 2 * PROBES && times.iter().skip(1).step_by(2).all(|unit| *unit == "ms");
        ensure!(*ttl == number.to_string() && answered, wrong());
        hops.push((*hop).to_owned());
    }
    Ok(hops)
}

fn traceroutes(lab: &Lab) -> Result<()> {
    let witness = Witness::start(lab)?;
    let echo = ECHO_PORT.to_string();
    // UDP to rising ports, UDP to one port, ICMP, TCP.
    for options in [&[][..], &["-U", "-p", &echo], &["-I"], &["-T", "-p", &echo]] {
        let seen = traceroute(&lab.hosts.vm, &TOOLS.to_string(), options)?;
        ensure!(seen == hops(lab), "`traceroute {}` saw {seen:?}", options.join(" "));
    }
    finish(witness)
}

/// Traces by UDP, ICMP and TCP, from the VM beyond the firewall.
pub fn traceroute_shows_every_hop(lab: &Lab) -> Result<()> {
    traceroutes(lab)
}

/// Does the same; the firewall is at another address then.
pub fn traceroute_shows_every_hop_with_two_nics(lab: &Lab) -> Result<()> {
    traceroutes(lab)
}

/// The Private Link Service hides the machines behind it, but every hop has to answer: its own
/// gateway, the router, the firewall, the server.
pub fn traceroute_to_the_endpoint_shows_only_the_endpoint(lab: &Lab) -> Result<()> {
    let witness = Witness::start(lab)?;
    let echo = ECHO_PORT.to_string();
    for options in [["-T", "-p", &echo], ["-U", "-p", &echo]] {
        let seen = traceroute(&lab.hosts.serverless, &ENDPOINT.to_string(), &options)?;
        let wanted = [ENDPOINT; 4].map(|hop| hop.to_string());
        ensure!(seen == wanted, "`traceroute {}` saw {seen:?}", options.join(" "));
    }
    finish(witness)
}

/// Traces many times over.
pub fn mtr_reports_every_hop(lab: &Lab) -> Result<()> {
    let witness = Witness::start(lab)?;
    let echo = ECHO_PORT.to_string();
    for options in [&[][..], &["--udp"], &["--tcp", "--port", &echo]] {
        let mut mtr = lab.hosts.vm.command("mtr")?;
        mtr.args(["--json", "--no-dns", "--report-cycles", "5", "--interval", "0.2", "--gracetime", "1"]);
        let said = command::run(mtr.args(options).arg(TOOLS.to_string()))?;
        let report: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let hubs = report["report"]["hubs"].as_array().with_context(|| said.clone())?;
        let seen: Vec<_> = hubs.iter().filter_map(|hub| hub["host"].as_str()).collect();
        ensure!(seen == hops(lab), "`mtr {}`: {said}", options.join(" "));
        for hub in hubs {
            ensure!(hub["Loss%"] == 0.0 && hub["Snt"] == 5, "`mtr {}`: {said}", options.join(" "));
        }
    }
    finish(witness)
}

/// Runs tracepath on the VM. Returns its output.
pub(super) fn tracepath(lab: &Lab) -> Result<String> {
    let mut tracepath = lab.hosts.vm.command("tracepath")?;
    command::run(tracepath.args(["-n", "-m", "8", &TOOLS.to_string()]))
}

/// Returns the address that answered at each hop, from the last line of each hop: the first may
/// only report an MTU.
pub(super) fn tracepath_hops(said: &str) -> Vec<(u8, String)> {
    let mut hops: Vec<(u8, String)> = Vec::new();
    for line in said.lines() {
        let Some((ttl, rest)) = line.split_once(':') else { continue };
        let (Ok(ttl), Some(hop)) = (ttl.trim().parse(), rest.split_whitespace().next()) else { continue };
        hops.retain(|(known, _)| *known != ttl);
        hops.push((ttl, hop.to_owned()));
    }
    hops
}

/// Traces while it looks for the path MTU.
pub fn tracepath_shows_every_hop(lab: &Lab) -> Result<()> {
    let witness = Witness::start(lab)?;
    let said = tracepath(lab)?;
    let wanted: Vec<_> = (1..).zip(hops(lab)).collect();
    ensure!(tracepath_hops(&said) == wanted, "{said}");
    ensure!(said.contains("Resume: pmtu 1500 hops 4 back 4"), "{said}");
    finish(witness)
}
