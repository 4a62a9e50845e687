//! The slow path: packets that may open a session, and packets of sessions whose next hop has to be resolved again.

use aya_ebpf::{
    cty::c_void,
    helpers::generated::{bpf_get_prandom_u32, bpf_loop},
    macros::map,
    maps::PerCpuArray,
};
use aya_log_ebpf::debug;
use router_common::{
    address::{Ipv4, Port},
    flow::{Direction, FlowEntry, FlowKey, NextHop},
    packet::{self, Packet},
    ports::{ATTEMPTS, PortRange},
    reason::Reason,
    rewrite::Rewrite,
    rules::RuleSet,
    session::Ticks,
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
        Resolution::Pending => Err(hand_over(frame, packet, &entry.rewrite, settings)),
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
        Resolution::Pending if settings.daemon_is_there(flows::now()) => NextHop::default(),
        Resolution::Pending => return Err(Reason::NeighbourUnresolved),
    };
    let Some(rewrite) = claim(packet, &found, snat, rule_set, next_hop, frame, counters)? else {
        return match flows::get(&packet.key) {
            Some(entry) => forward_known(frame, packet, entry, settings, counters),
            // And removed it again.
            None => Err(Reason::TableFull),
        };
    };
    match resolution {
        Resolution::Ready(next_hop) => transmit(frame, packet, &rewrite, &next_hop, Reason::Opened),
        Resolution::Pending => Err(hand_over(frame, packet, &rewrite, settings)),
    }
}

/// A session that is being opened.
///
/// Lives in a map and not on the stack: a program has 512 bytes of that, and what comes out of a map the verifier takes for
/// any value, which spares it following every combination of what went in.
struct Opening {
    rule: u16,
    snat: Ipv4,
    target: Ipv4,
    target_port: Port,
    ports: PortRange,
    random: u32,
    now: Ticks,
    /// The client's tuple.
    key: FlowKey<Ipv4>,
    forward: FlowEntry<Ipv4>,
    reply_key: FlowKey<Ipv4>,
    reply: FlowEntry<Ipv4>,
    claim: Claim,
}

/// How far the claim of a SNAT port is.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Claim {
    /// No free port yet.
    Searching = 0,
    /// The reply flow is in the table.
    Claimed,
    /// The table has no room.
    Full,
}

/// One a CPU. A CPU opens one session at a time.
#[map]
static OPENING: PerCpuArray<Opening> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn scratch() -> Option<&'static mut Opening> {
    // SAFETY: this CPU's own. `claim` and its callback each take it anew and let go of it before the other takes it. Memory of
    // a map starts as zero, which is a value of every field.
    OPENING.get_ptr_mut(0).map(|opening| unsafe { &mut *opening })
}

/// Puts a new session into the table: first the reply flow, whose key claims the SNAT port, then the forward flow. If that fails,
/// the first is taken back: there is never half a session. `None` is "another CPU has opened this very session".
#[inline(always)]
fn claim(
    packet: &Packet,
    found: &Match,
    snat: Ipv4,
    rule_set: &RuleSet,
    next_hop: NextHop,
    frame: &XdpFrame,
    counters: &mut CpuStats,
) -> Result<Option<Rewrite<Ipv4>>, Reason> {
    let now = flows::now();
    let opening = scratch().ok_or(Reason::TableFull)?;
    opening.rule = found.rule;
    opening.snat = snat;
    opening.target = found.target;
    opening.target_port = found.target_port;
    opening.ports = rule_set.ports;
    opening.random = random();
    opening.now = now;
    opening.key = packet.key;
    opening.claim = Claim::Searching;
    // SAFETY: the callback is a BPF subprogram of `bpf_loop`'s signature, and wants no context.
    unsafe { bpf_loop(ATTEMPTS, claim_port as *const () as *mut c_void, core::ptr::null_mut(), 0) };
    // Taken again: the callback has had it in the meantime.
    let opening = scratch().ok_or(Reason::TableFull)?;
    match opening.claim {
        Claim::Claimed => {}
        Claim::Searching => return Err(Reason::PortsExhausted),
        Claim::Full => return Err(Reason::TableFull),
    }
    let outbound = opening.reply_key.reversed();
    let rewrite = Rewrite::new(&packet.key, &outbound);
    opening.forward = FlowEntry::new(Direction::Forward, rewrite, next_hop, found.rule, now);
    flows::record(&mut opening.forward, packet, frame, counters);
    if let Err(error) = flows::insert(&opening.key, &opening.forward) {
        flows::remove(&opening.reply_key);
        return match error {
            InsertError::Exists => Ok(None),
            InsertError::Full => Err(Reason::TableFull),
        };
    }
    stats::rule(counters, found.rule).opened += 1;
    debug!(
        frame.context(),
        "opened {:i}:{} as {:i}:{} to {:i}:{}",
        packet.key.source.0,
        packet.key.source_port.number(),
        snat.0,
        outbound.source_port.number(),
        found.target.0,
        found.target_port.number()
    );
    Ok(Some(rewrite))
}

/// One attempt to claim a SNAT port. A callback of `bpf_loop`, so that the verifier looks at it once and not once an attempt; 1
/// ends the search.
unsafe extern "C" fn claim_port(attempt: u32, _context: *mut c_void) -> i64 {
    let Some(opening) = scratch() else { return 1 };
    let port = opening.ports.candidate(attempt, opening.key.source_port, opening.random);
    let outbound = opening.key.between(opening.snat, port, opening.target, opening.target_port);
    opening.reply_key = outbound.reversed();
    let rewrite = Rewrite::new(&opening.reply_key, &opening.key.reversed());
    // Where replies leave is found out by the first of them.
    opening.reply = FlowEntry::new(Direction::Reply, rewrite, NextHop::default(), opening.rule, opening.now);
    match flows::insert(&opening.reply_key, &opening.reply) {
        Ok(()) => opening.claim = Claim::Claimed,
        Err(InsertError::Exists) => return 0,
        Err(InsertError::Full) => opening.claim = Claim::Full,
    }
    1
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
    let slot = send(frame, packet, rewrite, next_hop).ok_or(Reason::Internal)?;
    Ok(Transmit { reason, slot })
}

/// Translates a packet and leaves the sending to the daemon, if there is one.
#[inline(always)]
fn hand_over(frame: &mut XdpFrame, packet: &Packet, rewrite: &Rewrite<Ipv4>, settings: &Settings) -> Reason {
    if !settings.daemon_is_there(flows::now()) {
        return Reason::NeighbourUnresolved;
    }
    match translate(frame, packet, rewrite) {
        Some(()) => punt::to_daemon(frame, packet.ip_length),
        None => Reason::Internal,
    }
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: takes nothing and always answers.
    unsafe { bpf_get_prandom_u32() }
}
