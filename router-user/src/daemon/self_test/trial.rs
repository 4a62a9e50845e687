//! Runs a test session through the programs, and compares every packet that comes out with one that
//! was built from scratch.

use std::net::Ipv4Addr;

use anyhow::Result;
use router_common::{address::Mac, tcp};

use super::{
    packet::{
        CLIENT_NUMBER, CLIENT_PORT, DATA, End, Packet, TARGET_NUMBER, TTL, arp_answer, difference, ends,
    },
    plan::{Target, Trial, Way},
};
use crate::dataplane::Ran;

// `enum xdp_action`, include/uapi/linux/bpf.h.
const XDP_ABORTED: u32 = 0;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// The programs that are attached.
pub(super) trait Programs {
    /// Gives a frame to the program on the interface with this index. Nothing leaves.
    ///
    /// # Errors
    /// Returns an error if the kernel does not run the program.
    fn run(&mut self, interface: u32, frame: &[u8]) -> Result<Ran>;
}

/// The end of a test that has not succeeded.
#[derive(Debug)]
pub(super) enum Failure {
    /// Something else came out, in words.
    Wrong(String),
    /// The programs could not be run.
    Impossible(anyhow::Error),
}

/// Gives an answer of ARP to the program on each of these interfaces: it has to reach this machine
/// as it is, or soon there is no neighbour to forward to. So this cannot wait for a next hop.
///
/// # Errors
/// Returns an error at the first one that does not.
pub(super) fn run_arp(
    programs: &mut dyn Programs,
    interfaces: impl Iterator<Item = (u32, Mac)>,
) -> Result<(), Failure> {
    for (interface, mac) in interfaces {
        let frame = arp_answer(mac);
        let ran = programs.run(interface, &frame).map_err(Failure::Impossible)?;
        let wrong = match ran.verdict {
            XDP_PASS if ran.frame == frame => continue,
            XDP_PASS => "was changed",
            other => verdict(other),
        };
        return Err(Failure::Wrong(format!("an answer of ARP to this machine {wrong}")));
    }
    Ok(())
}

/// A direction of the session.
struct Direction {
    /// The interface that its packets come in by: its index and MAC address.
    entry: (u32, Mac),
    /// The ends as they come in, and as they leave.
    before: (End, End),
    after: (End, End),
    way: Way,
    /// The slot of the interface that its packets come in by.
    slot: u32,
}

impl Trial {
    /// Runs a session. The caller removes it.
    ///
    /// # Errors
    /// Returns an error at the first packet that does not come out as it should.
    pub(super) fn run(&self, programs: &mut dyn Programs) -> Result<(), Failure> {
        let (to_target, to_client) = self.open(programs)?;
        let Some(to_client) = to_client else { return Ok(()) };
        let (client, target) = (CLIENT_NUMBER, TARGET_NUMBER);
        let length = DATA.len() as u32;
        let ack = tcp::ACK;
        let mut step = |name, direction, numbers, flags, data| {
            self.step(programs, name, direction, numbers, flags, data)
        };
        if !self.first().is_tcp() {
            step("the target's answer", &to_client, (0, 0), 0, DATA)?;
            return step("the client's second datagram", &to_target, (0, 0), 0, DATA);
        }
        let push = ack | tcp::PSH;
        step("the target's SYN-ACK", &to_client, (target, client + 1), ack | tcp::SYN, &[])?;
        step("the client's ACK", &to_target, (client + 1, target + 1), ack, &[])?;
        step("the target's data", &to_client, (target + 1, client + 1), push, DATA)?;
        step("the client's data", &to_target, (client + 1, target + 1 + length), push, DATA)?;
        step("the target's ACK", &to_client, (target + 1 + length, client + 1 + length), ack, &[])?;
        let numbers = (client + 1 + length, target + 1 + length);
        step("the client's reset", &to_target, numbers, ack | tcp::RST, &[])
    }

    /// Returns the packet that opens the session.
    fn first(&self) -> Packet {
        let is_tcp = self.protocol == router_common::tuple::Protocol::Tcp;
        Packet {
            protocol: self.protocol,
            source: (self.client, CLIENT_PORT),
            destination: self.listen,
            ttl: TTL,
            numbers: if is_tcp { (CLIENT_NUMBER, 0) } else { (0, 0) },
            flags: if is_tcp { tcp::SYN } else { 0 },
            data: if is_tcp { &[] } else { DATA },
        }
    }

    /// Opens the session. Returns both of its directions; the second one only if the way to the
    /// client is known.
    fn open(&self, programs: &mut dyn Programs) -> Result<(Direction, Option<Direction>), Failure> {
        let name = if self.first().is_tcp() { "the client's SYN" } else { "the client's datagram" };
        let (interface, mac) = self.entry;
        let first = self.first();
        // Programs do not look at the sender's MAC address.
        let ran = programs.run(interface, &first.frame(mac, mac)).map_err(Failure::Impossible)?;
        let wrong = |what: &str| Failure::Wrong(self.words(name, what));
        if ![XDP_TX, XDP_REDIRECT].contains(&ran.verdict) {
            return Err(wrong(verdict(ran.verdict)));
        }
        let Some((snat, target)) = ends(&ran.frame) else {
            return Err(wrong("came out without addresses and ports"));
        };
        let Some(Target { way, back, .. }) = self.targets.iter().find(|known| known.end == target) else {
            let targets: Vec<String> = self.targets.iter().map(|target| shown(target.end)).collect();
            let targets = targets.join(" or ");
            return Err(wrong(&format!("left for {} instead of {targets}", shown(target))));
        };
        let may_be = |address: Ipv4Addr| match &*self.snat {
            [] => address == way.source,
            given => given.contains(&address),
        };
        if !may_be(snat.0) {
            return Err(wrong(&format!("left from {}, which is no SNAT address of its", snat.0)));
        }
        if !self.ports.contains(snat.1) {
            return Err(wrong(&format!("left from port {}, which is no port of sessions", snat.1)));
        }
        let to_target = Direction {
            entry: self.entry,
            before: (first.source, first.destination),
            after: (snat, target),
            way: *way,
            slot: 0,
        };
        self.check(name, &to_target, &first, &ran)?;
        let to_client = back.map(|back| Direction {
            entry: (way.interface, way.mac),
            before: (target, snat),
            after: (first.destination, first.source),
            way: back,
            slot: way.slot,
        });
        Ok((to_target, to_client))
    }

    /// Sends a packet of the session, and checks it.
    fn step(
        &self,
        programs: &mut dyn Programs,
        name: &str,
        direction: &Direction,
        numbers: (u32, u32),
        flags: u8,
        data: &'static [u8],
    ) -> Result<(), Failure> {
        let (source, destination) = direction.before;
        let packet = Packet { protocol: self.protocol, source, destination, ttl: TTL, numbers, flags, data };
        let (interface, mac) = direction.entry;
        let ran = programs.run(interface, &packet.frame(mac, mac)).map_err(Failure::Impossible)?;
        self.check(name, direction, &packet, &ran)
    }

    /// Checks a packet that came out: its verdict and every byte.
    fn check(&self, name: &str, direction: &Direction, packet: &Packet, ran: &Ran) -> Result<(), Failure> {
        let wrong = |what: &str| Failure::Wrong(self.words(name, what));
        let expected = if direction.way.slot == direction.slot { XDP_TX } else { XDP_REDIRECT };
        if ran.verdict != expected {
            return Err(wrong(verdict(ran.verdict)));
        }
        let (source, destination) = direction.after;
        let translated = Packet { source, destination, ttl: packet.ttl - 1, ..*packet };
        let frame = translated.frame(direction.way.mac, direction.way.next_hop);
        match difference(self.protocol, &ran.frame, &frame) {
            None => Ok(()),
            Some(difference) => Err(wrong(&format!("came out, but {difference}"))),
        }
    }

    /// Returns the words for a packet that did not come out as it should.
    fn words(&self, name: &str, what: &str) -> String {
        let (client, listen) = (shown((self.client, CLIENT_PORT)), shown(self.listen));
        format!("rule {}: of a test session from {client} to {listen}, {name} {what}", self.rule)
    }
}

/// Returns what a verdict means for a packet that should have been forwarded.
const fn verdict(verdict: u32) -> &'static str {
    match verdict {
        XDP_ABORTED => "was dropped by a program that failed (XDP_ABORTED)",
        XDP_DROP => "was dropped",
        XDP_PASS => "was passed to this machine's own network stack instead of being forwarded",
        XDP_TX => "was sent back out of the interface that it came in by",
        XDP_REDIRECT => "was redirected to another interface",
        _ => "got a verdict that does not exist",
    }
}

fn shown((address, port): End) -> String {
    format!("{address}:{port}")
}

#[cfg(test)]
mod tests {
    use anyhow::bail;
    use router_common::{ports::PortRange, tuple::Protocol};

    use super::*;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 70);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 68);
    const TARGET: End = (Ipv4Addr::new(203, 0, 113, 10), 443);
    const OTHER: End = (Ipv4Addr::new(203, 0, 113, 11), 443);
    const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
    const NEXT: Mac = Mac::new([2, 0, 0, 0, 0, 9]);

    fn trial(protocol: Protocol) -> Trial {
        let way = Way { slot: 0, interface: 2, mac: OWN, next_hop: NEXT, source: ROUTER };
        Trial {
            rule: "https".to_owned(),
            protocol,
            client: CLIENT,
            listen: (ROUTER, 443),
            targets: vec![
                Target { end: OTHER, way, back: Some(Way { next_hop: OWN, ..way }) },
                Target { end: TARGET, way, back: Some(way) },
            ],
            snat: vec![],
            ports: PortRange { first: 1024, last: 2023 },
            entry: (2, OWN),
        }
    }

    /// A router written a second time, that makes a mistake in packet `fails` of its packets.
    struct Router {
        seen: usize,
        fails: usize,
        mistake: fn(&mut Ran),
    }

    impl Programs for Router {
        fn run(&mut self, interface: u32, frame: &[u8]) -> Result<Ran> {
            assert_eq!(interface, 2);
            let (_, destination) = ends(frame).expect("a packet");
            let snat = (ROUTER, 1500);
            let (source, destination) =
                if destination == snat { ((ROUTER, 443), (CLIENT, 0)) } else { (snat, TARGET) };
            let protocol = if frame[23] == 6 { Protocol::Tcp } else { Protocol::Udp };
            let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("a word"));
            let is_tcp = protocol == Protocol::Tcp;
            let has_data = frame.ends_with(DATA);
            let packet = Packet {
                protocol,
                source,
                destination,
                ttl: frame[22] - 1,
                numbers: if is_tcp { (word(38), word(42)) } else { (0, 0) },
                flags: if is_tcp { frame[47] } else { 0 },
                data: if has_data { DATA } else { &[] },
            };
            let mut ran = Ran { verdict: XDP_TX, frame: packet.frame(OWN, NEXT) };
            if self.seen == self.fails {
                (self.mistake)(&mut ran);
            }
            self.seen += 1;
            Ok(ran)
        }
    }

    fn run(protocol: Protocol, fails: usize, mistake: fn(&mut Ran)) -> (usize, Result<(), String>) {
        let mut router = Router { seen: 0, fails, mistake };
        let result = trial(protocol).run(&mut router).map_err(|failure| match failure {
            Failure::Wrong(text) => text,
            Failure::Impossible(error) => error.to_string(),
        });
        (router.seen, result)
    }

    #[test]
    fn a_router_that_is_right_passes() {
        assert_eq!(run(Protocol::Tcp, 99, |_| {}), (7, Ok(())));
        assert_eq!(run(Protocol::Udp, 99, |_| {}), (3, Ok(())));
    }

    #[test]
    fn a_mistake_in_any_packet_is_found() {
        for (protocol, packets) in [(Protocol::Tcp, 7), (Protocol::Udp, 3)] {
            for fails in 0..packets {
                for mistake in [
                    |ran: &mut Ran| ran.verdict = XDP_PASS,
                    |ran: &mut Ran| ran.verdict = XDP_REDIRECT,
                    |ran: &mut Ran| ran.frame[0] ^= 1,
                    |ran: &mut Ran| ran.frame[29] ^= 1,
                    |ran: &mut Ran| ran.frame[36] ^= 1,
                    |ran: &mut Ran| ran.frame.truncate(40),
                ] {
                    let (seen, result) = run(protocol, fails, mistake);
                    assert!(seen == fails + 1 && result.is_err(), "{protocol:?}, {fails}: {result:?}");
                }
            }
        }
        let (_, result) = run(Protocol::Tcp, 0, |ran| ran.verdict = XDP_PASS);
        let text = "rule https: of a test session from 10.0.2.70:0 to 10.0.2.68:443, the client's SYN was passed to \
                    this machine's own network stack instead of being forwarded";
        assert_eq!(result, Err(text.to_owned()));
    }

    #[test]
    fn a_kernel_that_runs_nothing_is_no_fault_of_the_programs() {
        struct Refuses;
        impl Programs for Refuses {
            fn run(&mut self, _: u32, _: &[u8]) -> Result<Ran> {
                bail!("not permitted")
            }
        }
        assert!(matches!(trial(Protocol::Tcp).run(&mut Refuses), Err(Failure::Impossible(_))));
    }
}
