//! The rule sets.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    cty::c_void,
    helpers::generated::bpf_loop,
    macros::map,
    maps::{Array, LpmTrie, lpm_trie::Key},
};
use router_common::{
    address::{Ipv4, Port},
    limits::{MAX_MASQUERADES, MAX_RULES},
    maps::rules::{ListenKey, Masquerade, Rule, RuleSet, SourceKey, Target, masquerade_index, rule_index},
    tuple::Protocol,
};

// All of these are written by the daemon and only read here; see `router_common::maps::rules` for
// how a new rule set takes over.

/// The rule sets without their rules, by bank.
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

/// The sources that may use each forward; and the sources of all rules together.
#[map]
static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);

/// Returns the rule set of a version.
#[inline(always)]
pub(crate) fn rule_set(version: u32) -> Option<&'static RuleSet> {
    RULE_SETS.get(router_common::maps::rules::bank(version))
}

/// Returns the rule set of a version; `None` before the first.
#[inline(always)]
pub(crate) fn in_force(version: u32) -> Option<&'static RuleSet> {
    if version == 0 { None } else { rule_set(version) }
}

/// Returns `true` if any rule names this source.
#[inline(always)]
pub(crate) fn is_rule_source(version: u32, source: Ipv4) -> bool {
    let key = SourceKey::new(version, SourceKey::ANY_RULE, source);
    SOURCES.get(Key::new(SourceKey::FULL, key)).is_some()
}

/// Returns the largest TCP segment of a rule's sessions, see [`Rule::mss`].
#[inline(always)]
pub(crate) fn mss(version: u32, rule: u16) -> u16 {
    RULES.get(rule_index(version, rule)).map_or(0, |rule| rule.mss)
}

/// Returns the forward that listens on an address and port, or on every address of this machine if
/// there is no `address`.
#[inline(always)]
pub(crate) fn listener(version: u32, protocol: Protocol, address: Option<Ipv4>, port: Port) -> Option<u16> {
    let key = ListenKey::new(version, protocol, address, port);
    LISTENERS.get(Key::new(ListenKey::FULL, key)).map(|rule| *rule as u16)
}

/// Returns `true` if a source may use a forward.
#[inline(always)]
pub(crate) fn is_allowed(version: u32, rule: u16, source: Ipv4) -> bool {
    let key = SourceKey::new(version, rule, source);
    SOURCES.get(Key::new(SourceKey::FULL, key)).is_some()
}

/// Picks one of a forward's targets by random bits.
#[inline(always)]
pub(crate) fn target(version: u32, rule: u16, random: u32) -> Option<Target> {
    RULES.get(rule_index(version, rule)).and_then(|rule| rule.target(random)).copied()
}

/// Returns `true` if a forward's targets include this address and port, for packets to the port
/// `listen`.
#[inline(always)]
pub(crate) fn has_target(version: u32, rule: u16, address: Ipv4, port: Port, listen: Port) -> bool {
    rule_leads_to(rule_index(version, rule), u32::from_ne_bytes(address.0), port.then(listen)) != 0
}

/// Returns 1 if the rule at this index leads a packet to this address and to the first of the two
/// ports, if it came to the second. A global function: the verifier looks at its loop once, and not
/// on every path that leads to it.
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

/// Returns the rule of the first masquerade pair that covers a packet.
#[inline(always)]
pub(crate) fn masquerade(version: u32, rule_set: &RuleSet, source: Ipv4, destination: Ipv4) -> Option<u16> {
    let mut scan = Scan { version, source, destination, found: None };
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
    scan.found
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
