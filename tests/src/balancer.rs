//! The load balancer's decisions: its probe, and which routers get new flows.
//!
//! As with Azure's Standard Load Balancer and an HA-ports rule: a flow goes by its five-tuple to
//! one of the routers whose probe is up, and its packets stay with that router. A router is out
//! after [`PROBE_THRESHOLD`] probes without a 200, and in again after as many with one. While it is
//! out, new flows go to the others, its TCP connections stay with it, and its UDP flows move. With
//! none left, new flows get no answer (`noHealthyBackendsBehavior` is `AllProbedDown`).

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{
    addresses::{ENDPOINT, PLATFORM},
    client::sockets::connect_from,
    clock::timestamp,
    command, conntrack,
    namespace::Namespace,
};

/// The least timeout of a probe. One with a longer interval has that time: Azure's waits for as
/// long as its interval.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The number of probes in a row that change the decision.
pub const PROBE_THRESHOLD: u32 = 2;

/// The nftables table of *pls*.
pub(crate) const TABLE: &str = "pls";

/// The chain with one rule, or none: where new flows go.
pub(crate) const CHAIN: &str = "load_balancer";

/// The `ct mark` of a router's UDP flows, by its address.
pub(crate) fn marks(routers: &[Ipv4Addr]) -> String {
    let marks = routers.iter().map(|router| format!("{router} : {}", router.to_bits()));
    marks.collect::<Vec<_>>().join(", ")
}

/// Returns the routers that get new flows now.
pub(crate) fn in_service(pls: &Namespace) -> Result<BTreeSet<Ipv4Addr>> {
    let chain = pls.run("nft", &["list", "chain", "ip", TABLE, CHAIN])?;
    let targets = chain.split_once(" map ").map_or("", |(_, targets)| targets);
    Ok(targets.split([' ', ',', '\n', '\t']).filter_map(|word| word.parse().ok()).collect())
}

/// The script that sends new flows to these routers, in one step.
fn decision(healthy: &BTreeSet<Ipv4Addr>) -> String {
    let mut script = format!("flush chain ip {TABLE} {CHAIN}\n");
    if !healthy.is_empty() {
        let targets = healthy.iter().enumerate().map(|(number, router)| format!("{number} : {router}"));
        // The first 32 bits of TCP and UDP are the ports.
        script.push_str(&format!(
            "add rule ip {TABLE} {CHAIN} ip daddr {ENDPOINT} \
             dnat to jhash ip saddr . ip daddr . ip protocol . @th,0,32 mod {} map {{ {} }}\n",
            healthy.len(),
            targets.collect::<Vec<_>>().join(", ")
        ));
    }
    script
}

/// The routers whose probe is up.
#[derive(Debug)]
struct Pool {
    routers: Vec<Ipv4Addr>,
    healthy: Mutex<BTreeSet<Ipv4Addr>>,
}

impl Pool {
    /// Takes a router in or out.
    fn set(&self, router: Ipv4Addr, is_in: bool) -> Result<()> {
        let mut healthy = self.healthy.lock().unwrap_or_else(PoisonError::into_inner);
        if is_in {
            healthy.insert(router);
        } else {
            healthy.remove(&router);
        }
        command::run_with_input(Command::new("nft").args(["-f", "-"]), &decision(&healthy))?;
        if !healthy.is_empty() {
            // There is a place to move to.
            for router in self.routers.iter().filter(|router| !healthy.contains(router)) {
                conntrack::flush_marked(router.to_bits())?;
            }
        }
        Ok(())
    }
}

/// Probes all of these, each every `interval`, until the process is ended: the log has a line for
/// every change, of the reason for a failure as well.
pub(crate) fn probe(targets: &[SocketAddrV4], interval: Duration) -> Result<()> {
    let routers = targets.iter().map(|target| *target.ip()).collect();
    let pool = Pool { routers, healthy: Mutex::default() };
    thread::scope(|scope| {
        let probes: Vec<_> =
            targets.iter().map(|target| scope.spawn(|| probe_router(&pool, *target, interval))).collect();
        for probe in probes {
            probe.join().map_err(|_| anyhow!("a probe has panicked"))??;
        }
        Ok(())
    })
}

fn probe_router(pool: &Pool, target: SocketAddrV4, interval: Duration) -> Result<()> {
    let mut in_service = false;
    let mut against = 0;
    let mut failure = String::new();
    let router = target.ip();
    println!("{} {router} out: not probed yet", timestamp());
    loop {
        let started = Instant::now();
        let answer = probe_once(target, interval.max(PROBE_TIMEOUT));
        if answer.is_ok() == in_service {
            against = 0;
        } else {
            against += 1;
        }
        match &answer {
            Ok(()) => {
                if !in_service {
                    println!("{} {router} probe answered 200", timestamp());
                }
                failure.clear();
            }
            Err(error) => {
                let reason = format!("{error:#}");
                if in_service || reason != failure {
                    println!("{} {router} probe failed: {reason}", timestamp());
                }
                failure = reason;
            }
        }
        if against == PROBE_THRESHOLD {
            in_service = !in_service;
            against = 0;
            pool.set(*router, in_service)?;
            let word = if in_service { "in" } else { "out" };
            println!("{} {router} {word}: {PROBE_THRESHOLD} probes in a row", timestamp());
        }
        thread::sleep(interval.saturating_sub(started.elapsed()));
    }
}

/// A request from the platform's address; anything but a 200 in time is an error.
fn probe_once(target: SocketAddrV4, limit: Duration) -> Result<()> {
    let mut stream = connect_from(PLATFORM, target, limit)?;
    stream.write_all(
        format!(
            "GET / HTTP/1.1\r\nHost: {target}\r\nUser-Agent: Load Balancer Agent\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).context("no answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "{status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_flows_go_to_the_healthy_and_to_nobody_if_there_is_none() {
        assert_eq!(decision(&BTreeSet::new()), "flush chain ip pls load_balancer\n");
        let two = [Ipv4Addr::new(10, 0, 2, 68), Ipv4Addr::new(10, 0, 2, 73)].into();
        assert!(decision(&two).ends_with(" mod 2 map { 0 : 10.0.2.68, 1 : 10.0.2.73 }\n"));
    }
}
