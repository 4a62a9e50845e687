//! SYN floods: the service that is left for clients that are not part of it.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lab::{
    Lab, Nics, Options,
    addresses::{ECHO_PORT, TOOLS, VM},
    client::{Tcp, Udp},
    flood::SynFlood,
    wait,
};
use router_user::model::{Flow, Status};

use crate::common::{ECHO, LIMIT, check, counters, helper, only_pls_router, reason, router};

/// An unused address beyond the firewall: attempts stay half-open.
const UNUSED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 21), ECHO_PORT);

/// Brings up a lab whose router has room for `flows` sessions, and allows a source
/// `half_open_per_source` half-open ones.
fn lab_with(flows: u32, half_open_per_source: u32) -> Lab {
    only_pls_router();
    let mut options = Options::new(Nics::Two, router(), helper());
    options.limits = format!("flows = {flows}\nhalf_open_per_source = {half_open_per_source}");
    check(Lab::up(options))
}

/// Brings up a lab whose router has few SNAT ports, and room for far more sessions.
fn lab_with_ports(ports: RangeInclusive<u16>) -> Lab {
    only_pls_router();
    let mut options = Options::new(Nics::Two, router(), helper());
    options.limits = "flows = 65536\nhalf_open_per_source = 65536".to_owned();
    options.rules.push_str(&format!("[snat]\nports = \"{}-{}\"\n", ports.start(), ports.end()));
    check(Lab::up(options))
}

fn half_open(lab: &Lab) -> usize {
    let flows: Vec<Flow> = check(lab.pls_router_json(&["flows", "--protocol", "tcp", "--limit", "0"]));
    flows.iter().filter(|flow| flow.state == "opening").count()
}

#[test]
fn a_flood_from_one_source_does_not_affect_others() {
    const SHARE: u32 = 1000;
    let lab = lab_with(16_384, SHARE);
    let mut old = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(old.echo(b"before", LIMIT));

    let flood = check(SynFlood::start(&lab.hosts.vm, VM, UNUSED));
    let started = Instant::now();
    let refused = || reason(&counters(&lab), "half_open_limit");
    check(wait::until("the flood to be held back", LIMIT, || {
        ensure!(refused() > 10_000, "{} of {} refused", refused(), flood.sent());
        Ok(())
    }));
    let (sent_before, refused_before) = (flood.sent(), refused());
    for _ in 0..500 {
        check(old.echo(b"meanwhile", LIMIT));
        let mut new = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
        check(new.echo(b"a new one", LIMIT));
        check(new.close());
    }
    // It went on all the while.
    let (sent, held_back) = (flood.sent() - sent_before, refused() - refused_before);
    let rate = flood.sent() as f64 / started.elapsed().as_secs_f64();
    println!("{sent} SYNs were sent meanwhile, {held_back} of them held back; {rate:.0} a second");
    assert!(held_back > 1000, "{held_back} of {sent}");
    drop(flood);

    assert!(half_open(&lab) <= SHARE as usize);
    assert_eq!(reason(&counters(&lab), "table_full"), 0);
    let status: Status = check(lab.pls_router_json(&["status"]));
    assert!(status.healthy, "{status:#?}");
    check(old.echo(b"after", LIMIT));

    // Nor does the source itself for long, although it would be RFC 5382's four minutes: behind a
    // Private Link Service it is many clients.
    check(wait::until("its attempts to be forgotten", Duration::from_secs(60), || {
        let left = half_open(&lab);
        ensure!(left <= SHARE as usize / 2, "{left} attempts are left");
        Ok(())
    }));
}

/// Many clients have one address behind a Private Link Service. That one of them floods a target
/// which does not answer, far beyond what the address may have half-open, does not keep the others
/// from targets that do, and ends no connection.
#[test]
fn a_flood_does_not_lock_out_other_clients_of_the_same_address() {
    const SHARE: u32 = 1000;
    const RATE: u32 = 3000;
    const ATTEMPTS: usize = 20;
    let lab = lab_with(65_536, SHARE);
    let there = SocketAddrV4::new(TOOLS, ECHO_PORT);
    let connect = || Tcp::connect_from(&lab.hosts.vm, VM, there, Duration::from_millis(600));
    let mut old = check(Tcp::connect_from(&lab.hosts.vm, VM, there, LIMIT));
    check(old.echo(b"before", LIMIT));

    let flood = check(SynFlood::start_paced(&lab.hosts.vm, VM, UNUSED, Some(RATE)));
    let in_place = || reason(&counters(&lab), "opened_in_place");
    check(wait::until("the address to have all it may", LIMIT, || {
        ensure!(in_place() > 0, "{} were sent", flood.sent());
        Ok(())
    }));
    let made_room = in_place();
    let mut opened = Vec::new();
    for _ in 0..ATTEMPTS {
        opened.extend(connect().and_then(|mut new| new.echo(b"a new one", LIMIT).map(|_| new)).ok());
    }
    let (made_room, sent) = (in_place() - made_room, flood.sent());
    drop(flood);
    println!(
        "{} of {ATTEMPTS} connections; {made_room} attempts made room meanwhile, {sent} SYNs in all",
        opened.len()
    );
    assert!(opened.len() >= ATTEMPTS * 9 / 10, "{} of {ATTEMPTS}", opened.len());
    assert!(made_room > 0, "the flood was over");
    for tcp in opened.iter_mut().chain([&mut old]) {
        check(tcp.echo(b"after", LIMIT));
    }
    assert!(half_open(&lab) <= SHARE as usize);
}

/// Several sources fill the table, none of them beyond its limit: connections that were never made
/// are removed long before their timeout.
#[test]
fn a_full_table_removes_half_open_sessions_first() {
    const ROOM: u32 = 2048;
    let lab = lab_with(ROOM, ROOM);
    let mut old = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(old.echo(b"before", LIMIT));

    let flood = check(SynFlood::start(&lab.hosts.vm, VM, UNUSED));
    check(wait::until("the table to be full", LIMIT, || {
        ensure!(reason(&counters(&lab), "table_full") > 0, "{} were sent", flood.sent());
        Ok(())
    }));
    drop(flood);
    let full = Instant::now();
    assert!(half_open(&lab) > ROOM as usize * 9 / 10);
    check(old.echo(b"meanwhile", LIMIT));

    // Without pressure, it would be RFC 5382's four minutes.
    check(wait::until("there to be room", Duration::from_secs(60), || {
        let attempt = Tcp::connect(&lab.hosts.serverless, ECHO, Duration::from_millis(300));
        attempt.and_then(|mut new| new.echo(b"a new one", LIMIT)).map(drop).context("no room")
    }));
    println!("there was room again after {:.1} s", full.elapsed().as_secs_f64());
    check(old.echo(b"after", LIMIT));
}

/// One client asks a single question from port after port, as a DNS client does, until the ports
/// run out. Those sessions are removed before their five minutes, and sessions with a second
/// question stay.
#[test]
fn answered_datagrams_free_their_ports_when_ports_run_out() {
    const PORTS: RangeInclusive<u16> = 20_000..=20_099;
    let lab = lab_with_ports(PORTS);
    let udp = |state: &str| {
        let flows: anyhow::Result<Vec<Flow>> =
            lab.pls_router_json(&["flows", "--protocol", "udp", "--limit", "0"]);
        check(flows).iter().filter(|flow| flow.state == state).count()
    };
    let talks = check(Udp::open(&lab.hosts.serverless, ECHO));
    for _ in 0..3 {
        check(talks.echo(b"a talk", LIMIT));
    }
    let questions = PORTS.len() * 9 / 10;
    let ask = |_| {
        let question = check(Udp::open(&lab.hosts.serverless, ECHO));
        check(question.echo(b"a question", LIMIT));
        question
    };
    // They stay open, so that no two have the same port.
    let _open: Vec<Udp> = (0..questions).map(ask).collect();
    assert_eq!(udp("established"), questions + 1);
    check(wait::until("the questions to be forgotten", Duration::from_secs(90), || {
        let left = udp("established");
        ensure!(left <= PORTS.len() * 8 / 10, "{left} are left");
        Ok(())
    }));
    check(talks.echo(b"goes on", LIMIT));
}

/// Ports to one target are far fewer than sessions, so a flood takes all of them first. They
/// are freed as early.
#[test]
fn ports_of_half_open_sessions_are_freed_first() {
    const PORTS: RangeInclusive<u16> = 20_000..=20_499;
    let lab = lab_with_ports(PORTS);
    let flood = check(SynFlood::start(&lab.hosts.vm, VM, UNUSED));
    let refused = || reason(&counters(&lab), "rejected") + reason(&counters(&lab), "ports_exhausted");
    check(wait::until("all ports to be taken", LIMIT, || {
        ensure!(refused() > 0, "{} were sent", flood.sent());
        Ok(())
    }));
    drop(flood);
    assert!(half_open(&lab) > PORTS.len() * 9 / 10);
    // Without pressure, it would be RFC 5382's four minutes.
    check(wait::until("the ports to be free", Duration::from_secs(60), || {
        let left = half_open(&lab);
        ensure!(left < PORTS.len() / 10, "{left} attempts are left");
        Ok(())
    }));
}

/// One address holds established sessions on all SNAT ports to a target that it may have.
/// Others still reach that target, and `status` names the address.
#[test]
fn a_source_with_many_sessions_leaves_ports_to_others() {
    const PORTS: RangeInclusive<u16> = 20_000..=20_499;
    // All but one of each of 30 pairs.
    const MOST: usize = 470;
    let lab = lab_with_ports(PORTS);
    let there = (TOOLS, ECHO_PORT).into();
    let talk = || -> anyhow::Result<Udp> {
        let talk = Udp::open_at(&lab.hosts.vm, SocketAddrV4::new(VM, 0), there)?;
        // More than a question and its answer, which would go early.
        (0..2).try_for_each(|_| talk.echo(b"a talk", LIMIT).map(drop))?;
        Ok(talk)
    };
    let talks: Vec<_> = std::iter::from_fn(|| talk().ok()).collect();
    assert_eq!(talks.len(), MOST);
    assert!(reason(&counters(&lab), "rejected") > 0, "{:#?}", counters(&lab));

    let others: Vec<_> = (0..3).map(|_| check(Udp::open(&lab.hosts.serverless, ECHO))).collect();
    for other in &others {
        check(other.echo(b"another's", LIMIT));
    }
    check(wait::until("the operator to be told", LIMIT * 2, || {
        let status: Status = lab.pls_router_json(&["status"])?;
        let full = format!("{VM} has all SNAT ports of ");
        ensure!(status.degraded.iter().any(|text| text.starts_with(&full)), "{:#?}", status.degraded);
        let most = status.snat_ports.first().and_then(|row| row.most);
        ensure!(most.is_some_and(|most| most.source == VM && most.used == MOST as u32), "{most:?}");
        Ok(())
    }));
    for talk in talks.iter().chain(&others) {
        check(talk.echo(b"goes on", LIMIT));
    }
}
