//! Which rule a packet opens a session by.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    cty::c_void,
    helpers::generated::bpf_loop,
    macros::map,
    maps::{Array, LpmTrie, lpm_trie::Key},
};
use router_common::{
    address::{AZURE_PLATFORM, Ipv4, Port},
    limits::{MAX_MASQUERADES, MAX_RULES},
    local::BROADCAST_ADDRESS,
    maps::{
        rules::{ListenKey, Masquerade, Rule, RuleSet, SourceKey, masquerade_index, rule_index},
        settings::Side,
    },
    packet::Packet,
    reason::Reason,
};

use crate::{kernel::own_traffic, maps::addresses, work::Work};

// All of these are written by the daemon and only read here; see `router_common::maps::rules` for
// how a new rule set takes over.

/// What a rule set says beside its rules, by bank.
#[map]
static RULE_SETS: Array<RuleSet> = Array::with_max_entries(2, 0);

/// Rules by bank and number (300 KiB).
#[map]
static RULES: Array<Rule> = Array::with_max_entries(2 * MAX_RULES as u32, 0);

/// Masquerade pairs by bank and position (10 KiB).
#[map]
static MASQUERADES: Array<Masquerade> = Array::with_max_entries(2 * MAX_MASQUERADES as u32, 0);

/// The number of the forward rule that listens on an address and port: at most 30 prefixes a rule
/// and bank.
#[map]
static LISTENERS: LpmTrie<ListenKey, u32> =
    LpmTrie::with_max_entries(2 * 32 * MAX_RULES as u32, BPF_F_NO_PREALLOC);

/// Which sources may use which forward rule; and the sources of all rules together.
#[map]
static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);

/// How a packet may open a session.
pub(crate) struct Match {
    /// The rule's number.
    pub(crate) rule: u16,
    /// Where it leads.
    pub(crate) target: Ipv4,
    /// To which port.
    pub(crate) target_port: Port,
}

/// Where a session leads that was opened moments ago, see
/// [`SETTLED`](router_common::table::SETTLED).
#[derive(Clone, Copy)]
pub(crate) struct Leads {
    pub(crate) target: Ipv4,
    pub(crate) target_port: Port,
    pub(crate) snat: Ipv4,
}

/// The rule set of a version.
#[inline(always)]
pub(crate) fn rule_set(version: u32) -> Option<&'static RuleSet> {
    RULE_SETS.get(router_common::maps::rules::bank(version))
}

/// The rule set of a version; `None` before the first.
#[inline(always)]
pub(crate) fn in_force(version: u32) -> Option<&'static RuleSet> {
    if version == 0 { None } else { rule_set(version) }
}

/// Whether any rule names this source.
#[inline(always)]
pub(crate) fn is_a_rules_source(version: u32, source: Ipv4) -> bool {
    let key = SourceKey::new(version, SourceKey::ANY_RULE, source);
    SOURCES.get(Key::new(SourceKey::FULL, key)).is_some()
}

/// What a rule keeps TCP's segments to, see [`Rule::mss`].
#[inline(always)]
pub(crate) fn mss(version: u32, rule: u16) -> u16 {
    RULES.get(rule_index(version, rule)).map_or(0, |rule| rule.mss)
}

/// Finds the rule by which a packet without a session may open one. Where `last` still is one of
/// the rule's targets, it leads there.
///
/// # Errors
/// Why it may not.
#[inline(always)]
pub(crate) fn find(
    packet: &Packet,
    version: u32,
    rule_set: &RuleSet,
    random: u32,
    last: Option<Leads>,
    work: &mut Work,
) -> Result<Match, Reason> {
    let key = &packet.key;
    if key.source == AZURE_PLATFORM || key.destination == AZURE_PLATFORM {
        return Err(Reason::Platform);
    }
    let found = match addresses::local_address(key.destination) {
        Some(BROADCAST_ADDRESS) => return Err(Reason::NotMatched),
        Some(_) => find_forward(packet, version, rule_set, random, last, work),
        None => find_masquerade(packet, version, rule_set),
    }?;
    if packet.opens() { Ok(found) } else { Err(Reason::NoSession) }
}

#[inline(always)]
fn find_forward(
    packet: &Packet,
    version: u32,
    rule_set: &RuleSet,
    random: u32,
    last: Option<Leads>,
    work: &mut Work,
) -> Result<Match, Reason> {
    let key = &packet.key;
    let listener = |address| {
        let data = ListenKey::new(version, packet.protocol, address, key.destination_port);
        LISTENERS.get(Key::new(ListenKey::FULL, data))
    };
    let rule = match listener(Some(key.destination)) {
        Some(rule) => *rule as u16,
        None => *listener(None).ok_or(Reason::NotMatched)? as u16,
    };
    // A rule may listen where the kernel gives out ports.
    if own_traffic::is_answer(work, rule_set.ephemeral) {
        return Err(Reason::NotMatched);
    }
    let source = SourceKey::new(version, rule, key.source);
    if SOURCES.get(Key::new(SourceKey::FULL, source)).is_none() {
        work.stats.denied(rule);
        return Err(Reason::SourceNotAllowed);
    }
    // An address is no proof of where a packet comes from; the interface is.
    if !matches!(work.side(), Side::Clients) {
        work.stats.denied(rule);
        return Err(Reason::WrongInterface);
    }
    let (index, listen) = (rule_index(version, rule), key.destination_port);
    if let Some(Leads { target, target_port, .. }) = last
        && rule_leads_to(index, u32::from_ne_bytes(target.0), target_port.then(listen)) != 0
    {
        return Ok(Match { rule, target, target_port });
    }
    let target = RULES
        .get(index)
        .and_then(|rule| rule.target(random))
        // Never, whatever a rule says.
        .filter(|target| target.address != AZURE_PLATFORM)
        .ok_or(Reason::NoTarget)?;
    Ok(Match { rule, target: target.address, target_port: target.port_for(listen) })
}

/// Returns 1 if the rule at this index leads a packet to this address and to the first of the two
/// ports, which has come to the second. A global function: the verifier looks at its loop once, and
/// not together with every way that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rule_leads_to(index: u32, address: u32, ports: u32) -> u32 {
    let Some(rule) = RULES.get(index) else { return 0 };
    let [a, b, c, d] = ports.to_ne_bytes();
    u32::from(rule.leads_to(Ipv4(address.to_ne_bytes()), Port([a, b]), Port([c, d])))
}

/// Returns `true` if new sessions may get this SNAT address, as configured.
#[inline(always)]
pub(crate) fn has_snat_address(version: u32, address: Ipv4) -> bool {
    is_snat_address(version, u32::from_ne_bytes(address.0)) != 0
}

/// As [`has_snat_address`]. A global function, see [`rule_leads_to`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_snat_address(version: u32, address: u32) -> u32 {
    let Some(rule_set) = rule_set(version) else { return 0 };
    u32::from(rule_set.has_snat_address(Ipv4(address.to_ne_bytes())))
}

#[inline(always)]
fn find_masquerade(packet: &Packet, version: u32, rule_set: &RuleSet) -> Result<Match, Reason> {
    let key = &packet.key;
    if !key.destination.is_unicast() {
        return Err(Reason::NotMatched);
    }
    let mut scan = Scan { version, source: key.source, destination: key.destination, found: None };
    // SAFETY: the callback is a BPF subprogram of the kernel's `bpf_loop` signature, and gets the
    // context that it expects.
    unsafe {
        bpf_loop(
            rule_set.masquerade_count.min(MAX_MASQUERADES as u32),
            matches as *const () as *mut c_void,
            (&raw mut scan).cast(),
            0,
        );
    }
    match scan.found {
        Some(rule) => Ok(Match { rule, target: key.destination, target_port: key.destination_port }),
        None => Err(Reason::NotMatched),
    }
}

/// A search for the first masquerade pair that covers a packet.
struct Scan {
    version: u32,
    source: Ipv4,
    destination: Ipv4,
    /// The rule's number.
    found: Option<u16>,
}

/// One step of the search. A callback of `bpf_loop`, so that the verifier looks at it once and not
/// once a pair; 1 ends it.
///
/// # Safety
/// `scan` points to a [`Scan`] that nothing else uses meanwhile.
unsafe extern "C" fn matches(position: u32, scan: *mut Scan) -> i64 {
    // SAFETY: the caller's promise.
    let scan = unsafe { &mut *scan };
    match MASQUERADES.get(masquerade_index(scan.version, position)) {
        Some(pair) if pair.matches(scan.source, scan.destination) => {
            scan.found = Some(pair.rule as u16);
            1
        }
        Some(_) => 0,
        None => 1,
    }
}

/// Whether a source is held to what is allowed by name.
#[inline(always)]
pub(crate) fn is_closed_out(version: u32, source: Ipv4) -> bool {
    in_force(version)
        .is_some_and(|rule_set| rule_set.others_are_closed != 0 || is_a_rules_source(version, source))
}

/// Returns `true` if this machine is closed to what does not say by an IPv4 address who it is from,
/// on the interface that a frame came in on: where clients come in, and everywhere if all others
/// are closed out.
#[inline(always)]
pub(crate) fn is_closed(side: Side, rule_set: &RuleSet) -> bool {
    rule_set.others_are_closed != 0 || !matches!(side, Side::Firewall)
}
