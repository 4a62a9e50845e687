//! The slow path: packets that may open a session, and packets of sessions whose next hop has to be resolved again.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_log_ebpf::debug;
use router_common::{
    address::Ipv4,
    flow::{Direction, FlowEntry, FlowKey, NextHop},
    packet::{self, Packet},
    ports::ATTEMPTS,
    reason::Reason,
    rewrite::Rewrite,
    rules::RuleSet,
    settings::Settings,
    stats::CpuStats,
};

use crate::{
    Outcome, Transmit,
    established::{send, translate},
    flows::{self, InsertError},
    frame::XdpFrame,
    next_hop::{self, Resolution},
    punt,
    rules::{self, Match},
    stats,
};

/// Forwards a packet that the fast path did not.
#[inline(always)]
pub(crate) fn forward(frame: &mut XdpFrame, settings: &Settings, counters: &mut CpuStats) -> Outcome {
    let packet = packet::parse(frame)?;
    if let Some(entry) = flows::get(&packet.key) {
        return forward_known(frame, &packet, entry, settings, counters);
    }
    open(frame, &packet, settings, counters)
}

/// A packet of a known session: its next hop is out of date, or something about the packet stops it.
#[inline(always)]
fn forward_known(
    frame: &mut XdpFrame,
    packet: &Packet,
    entry: &mut FlowEntry<Ipv4>,
    settings: &Settings,
    counters: &mut CpuStats,
) -> Outcome {
    if packet.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let Rewrite { source, destination, .. } = entry.rewrite;
    let resolution = next_hop::resolve(frame, settings, packet.protocol, source, destination)?;
    flows::record(entry, packet, frame, counters);
    match resolution {
        Resolution::Ready(next_hop) => {
            entry.next_hop = next_hop;
            transmit(frame, packet, &entry.rewrite, &next_hop, Reason::Forwarded)
        }
        Resolution::Pending => Err(hand_over(frame, packet, &entry.rewrite)),
    }
}

/// Opens a session for a packet, if a rule says so.
#[inline(always)]
fn open(frame: &mut XdpFrame, packet: &Packet, settings: &Settings, counters: &mut CpuStats) -> Outcome {
    let version = settings.version;
    let rule_set = match rules::rule_set(version) {
        Some(rule_set) if version != 0 => rule_set,
        _ => return Err(Reason::NotConfigured),
    };
    let found = rules::find(packet, version, rule_set, random(), counters)?;
    if packet.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let snat = rule_set.snat_address(random()).ok_or(Reason::NotConfigured)?;
    // Asked before anything is stored: a session that cannot leave is not opened.
    let resolution = next_hop::resolve(frame, settings, packet.protocol, snat, found.target)?;
    let next_hop = match &resolution {
        Resolution::Ready(next_hop) => *next_hop,
        Resolution::Pending => NextHop::default(),
    };
    let entry = match claim(packet, &found, snat, rule_set, next_hop, frame, counters)? {
        Claim::Opened(entry) => entry,
        // Another CPU has opened this very session in the meantime.
        Claim::Lost => match flows::get(&packet.key) {
            Some(entry) => return forward_known(frame, packet, entry, settings, counters),
            None => return Err(Reason::TableFull),
        },
    };
    match resolution {
        Resolution::Ready(next_hop) => transmit(frame, packet, &entry.rewrite, &next_hop, Reason::Opened),
        Resolution::Pending => Err(hand_over(frame, packet, &entry.rewrite)),
    }
}

/// How a claim ended.
enum Claim {
    /// The session is in the table; its forward entry, with this packet recorded.
    Opened(FlowEntry<Ipv4>),
    /// The client's tuple is in the table already.
    Lost,
}

/// Puts a new session into the table: first the reply flow, whose key claims the SNAT port, then the forward flow. If that fails,
/// the first is taken back: there is never half a session.
#[inline(always)]
fn claim(
    packet: &Packet,
    found: &Match,
    snat: Ipv4,
    rule_set: &RuleSet,
    next_hop: NextHop,
    frame: &XdpFrame,
    counters: &mut CpuStats,
) -> Result<Claim, Reason> {
    let now = flows::now();
    let random = random();
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let port = rule_set.ports.candidate(attempt, packet.key.source_port, random);
        attempt += 1;
        let outbound = FlowKey::new(packet.protocol, snat, port, found.target, found.target_port);
        let reply_key = outbound.reversed();
        let rewrite = Rewrite::new(&reply_key, &packet.key.reversed());
        // Where replies leave is found out by the first of them.
        let reply = FlowEntry::new(Direction::Reply, rewrite, NextHop::default(), found.rule, now);
        match flows::insert(&reply_key, &reply) {
            Ok(()) => {}
            Err(InsertError::Exists) => continue,
            Err(InsertError::Full) => return Err(Reason::TableFull),
        }
        let rewrite = Rewrite::new(&packet.key, &outbound);
        let mut forward = FlowEntry::new(Direction::Forward, rewrite, next_hop, found.rule, now);
        flows::record(&mut forward, packet, frame, counters);
        return match flows::insert(&packet.key, &forward) {
            Ok(()) => {
                stats::rule(counters, found.rule).opened += 1;
                debug!(
                    frame.context(),
                    "opened {:i}:{} via {:i}:{} to {:i}:{}",
                    packet.key.source.0,
                    packet.key.source_port.number(),
                    snat.0,
                    port.number(),
                    found.target.0,
                    found.target_port.number()
                );
                Ok(Claim::Opened(forward))
            }
            Err(error) => {
                flows::remove(&reply_key);
                match error {
                    InsertError::Exists => Ok(Claim::Lost),
                    InsertError::Full => Err(Reason::TableFull),
                }
            }
        };
    }
    Err(Reason::PortsExhausted)
}

/// Sends a translated packet, if its next hop takes one of this size.
#[inline(always)]
fn transmit(
    frame: &mut XdpFrame,
    packet: &Packet,
    rewrite: &Rewrite<Ipv4>,
    next_hop: &NextHop,
    reason: Reason,
) -> Outcome {
    if packet.ip_length > next_hop.mtu {
        return Err(Reason::TooBig);
    }
    let slot = send(frame, packet, rewrite, next_hop).ok_or(Reason::Truncated)?;
    Ok(Transmit { reason, slot })
}

/// Translates a packet and leaves the sending to the daemon.
#[inline(always)]
fn hand_over(frame: &mut XdpFrame, packet: &Packet, rewrite: &Rewrite<Ipv4>) -> Reason {
    match translate(frame, packet, rewrite) {
        Some(()) => punt::to_daemon(frame, packet.ip_length),
        None => Reason::Truncated,
    }
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: takes nothing and always answers.
    unsafe { bpf_get_prandom_u32() }
}
