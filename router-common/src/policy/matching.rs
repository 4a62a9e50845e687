//! The rule by which a packet opens a session, and the session's target.

use super::lookup::Lookup;
use crate::{
    address::{AZURE_PLATFORM, Ipv4, Port},
    local::BROADCAST_ADDRESS,
    maps::settings::Side,
    packet::Packet,
    reason::Reason,
};

/// The session that a packet may open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Match {
    /// The rule's number.
    pub rule: u16,
    /// The address that it leads to.
    pub target: Ipv4,
    /// The port that it leads to.
    pub target_port: Port,
}

/// Why a packet opens no session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The reason. [`Reason::NotMatched`] if the packet is no rule's business.
    pub reason: Reason,
    /// The forward that denies it, which counts that.
    pub denied_by: Option<u16>,
}

impl From<Reason> for Refusal {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { reason, denied_by: None }
    }
}

/// Finds the rule by which a packet without a session may open one. If `keep` still is one of the
/// rule's targets, the session leads there; else `random` picks one.
///
/// # Errors
/// Returns an error if it may not open a session.
#[inline(always)]
pub fn find(
    packet: &Packet,
    random: u32,
    keep: Option<(Ipv4, Port)>,
    lookup: &impl Lookup,
) -> Result<Match, Refusal> {
    let key = &packet.key;
    if key.source == AZURE_PLATFORM || key.destination == AZURE_PLATFORM {
        return Err(Reason::Platform.into());
    }
    let found = match lookup.local_address(key.destination) {
        Some(BROADCAST_ADDRESS) => return Err(Reason::NotMatched.into()),
        Some(_) => find_forward(packet, random, keep, lookup),
        None => find_masquerade(packet, lookup),
    }?;
    if packet.opens() { Ok(found) } else { Err(Reason::NoSession.into()) }
}

#[inline(always)]
fn find_forward(
    packet: &Packet,
    random: u32,
    keep: Option<(Ipv4, Port)>,
    lookup: &impl Lookup,
) -> Result<Match, Refusal> {
    let (key, listen) = (&packet.key, packet.key.destination_port);
    // A forward of one address is more specific than that of all.
    let rule = match lookup.listener(packet.protocol, Some(key.destination), listen) {
        Some(rule) => rule,
        None => lookup.listener(packet.protocol, None, listen).ok_or(Reason::NotMatched)?,
    };
    // A rule may listen where the kernel gives out ports.
    if lookup.answers_own_traffic(packet) {
        return Err(Reason::NotMatched.into());
    }
    if !lookup.is_allowed(rule, key.source) {
        return Err(Refusal { reason: Reason::SourceNotAllowed, denied_by: Some(rule) });
    }
    // An address is no proof of where a packet comes from; the interface is.
    if !matches!(lookup.side(), Side::Clients) {
        return Err(Refusal { reason: Reason::WrongInterface, denied_by: Some(rule) });
    }
    if let Some((target, target_port)) = keep
        && lookup.has_target(rule, target, target_port, listen)
    {
        return Ok(Match { rule, target, target_port });
    }
    let target = lookup
        .target(rule, random)
        // Never, whatever a rule says.
        .filter(|target| target.address != AZURE_PLATFORM)
        .ok_or(Reason::NoTarget)?;
    Ok(Match { rule, target: target.address, target_port: target.port_for(listen) })
}

#[inline(always)]
fn find_masquerade(packet: &Packet, lookup: &impl Lookup) -> Result<Match, Refusal> {
    let key = &packet.key;
    if !key.destination.is_unicast() {
        return Err(Reason::NotMatched.into());
    }
    match lookup.masquerade(key.source, key.destination) {
        Some(rule) => Ok(Match { rule, target: key.destination, target_port: key.destination_port }),
        None => Err(Reason::NotMatched.into()),
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use super::*;
    use crate::{
        local::OWN_ADDRESS,
        maps::rules::{Masquerade, Network, Rule},
        policy::lookup::snapshot::Snapshot,
        tcp,
        tuple::{FlowKey, Protocol},
    };

    const CLIENT: Ipv4 = Ipv4([10, 0, 2, 69]);
    const STRANGER: Ipv4 = Ipv4([10, 0, 3, 1]);
    const ROUTER: Ipv4 = Ipv4([10, 0, 2, 68]);
    const SECOND: Ipv4 = Ipv4([10, 0, 2, 70]);
    const BROADCAST: Ipv4 = Ipv4([10, 0, 2, 255]);
    const SERVER: Ipv4 = Ipv4([203, 0, 113, 10]);
    const OTHER_SERVER: Ipv4 = Ipv4([203, 0, 113, 11]);
    const LISTEN: u16 = 443;
    /// Listens on every address of the router.
    const HTTPS: u16 = 3;
    /// Listens on the second address alone.
    const SPECIFIC: u16 = 4;
    const VNET: u16 = 5;
    const WIDE: u16 = 6;

    fn network(address: [u8; 4], prefix: u8) -> Network {
        Network::new(Ipv4(address), prefix)
    }

    fn rule(targets: &[(Ipv4, Option<u16>)]) -> Rule {
        let mut rule = Rule { target_count: targets.len() as u16, ..Rule::EMPTY };
        for (place, (address, port)) in rule.targets.iter_mut().zip(targets) {
            *place = crate::maps::rules::Target::new(*address, *port);
        }
        rule
    }

    fn snapshot() -> Snapshot {
        let mut all = Snapshot::default();
        all.local.extend([(ROUTER, OWN_ADDRESS), (SECOND, OWN_ADDRESS), (BROADCAST, BROADCAST_ADDRESS)]);
        let tcp = Protocol::Tcp as u8;
        all.listeners.extend([((tcp, None, LISTEN), HTTPS), ((tcp, Some(SECOND), LISTEN), SPECIFIC)]);
        let clients = vec![network([10, 0, 2, 64], 26)];
        all.sources.extend([(HTTPS, clients.clone()), (SPECIFIC, clients)]);
        all.rules.insert(HTTPS, rule(&[(SERVER, Some(8443)), (OTHER_SERVER, None)]));
        all.rules.insert(SPECIFIC, rule(&[(OTHER_SERVER, Some(1))]));
        let pair = |source, destination, rule| Masquerade { source, destination, rule: u32::from(rule) };
        all.masquerades = vec![
            pair(network([10, 0, 2, 0], 24), network([203, 0, 113, 0], 24), VNET),
            pair(network([10, 0, 0, 0], 8), network([0; 4], 0), WIDE),
        ];
        all
    }

    fn packet(protocol: Protocol, source: Ipv4, destination: Ipv4, port: u16, tcp_flags: u8) -> Packet {
        Packet {
            key: FlowKey::new(protocol, source, Port::new(40_000), destination, Port::new(port)),
            protocol,
            ip_length: 40,
            ttl: 64,
            tcp_flags,
            sequence: 0,
            acknowledgement: 0,
            carries_data: false,
            dont_fragment: false,
            is_fragment: false,
        }
    }

    fn syn(source: Ipv4, destination: Ipv4, port: u16) -> Packet {
        packet(Protocol::Tcp, source, destination, port, tcp::SYN)
    }

    fn refused(result: Result<Match, Refusal>) -> (Reason, Option<u16>) {
        let refusal = result.expect_err("no rule");
        (refusal.reason, refusal.denied_by)
    }

    #[test]
    fn a_forward_leads_to_one_of_its_targets() {
        let all = snapshot();
        let packet = syn(CLIENT, ROUTER, LISTEN);
        let found = |random| find(&packet, random, None, &all).expect("a rule");
        let first = Match { rule: HTTPS, target: SERVER, target_port: Port::new(8443) };
        // Without a port of its own, a target keeps the client's.
        let second = Match { rule: HTTPS, target: OTHER_SERVER, target_port: Port::new(LISTEN) };
        assert_eq!((found(0), found(u32::MAX)), (first, second));
    }

    #[test]
    fn a_forward_of_one_address_comes_before_that_of_all() {
        let found = find(&syn(CLIENT, SECOND, LISTEN), 0, None, &snapshot()).expect("a rule");
        assert_eq!(found, Match { rule: SPECIFIC, target: OTHER_SERVER, target_port: Port::new(1) });
    }

    #[test]
    fn a_session_that_is_opened_again_keeps_its_target_while_the_rule_has_it() {
        let (all, packet) = (snapshot(), syn(CLIENT, ROUTER, LISTEN));
        for (keep, kept) in [
            ((SERVER, Port::new(8443)), true),
            ((OTHER_SERVER, Port::new(LISTEN)), true),
            ((SERVER, Port::new(LISTEN)), false),
            ((STRANGER, Port::new(8443)), false),
        ] {
            for random in [0, u32::MAX] {
                let found = find(&packet, random, Some(keep), &all).expect("a rule");
                let is_kept = (found.target, found.target_port) == keep;
                let drawn = find(&packet, random, None, &all).expect("a rule");
                assert!(if kept { is_kept } else { found == drawn }, "{keep:?}, {found:?}");
            }
        }
    }

    #[test]
    fn a_forward_denies_other_sources_and_other_sides_and_counts_that() {
        let mut all = snapshot();
        let denied = (Reason::SourceNotAllowed, Some(HTTPS));
        assert_eq!(refused(find(&syn(STRANGER, ROUTER, LISTEN), 0, None, &all)), denied);
        for side in [Side::Firewall, Side::Unknown] {
            all.side = side;
            let wrong = (Reason::WrongInterface, Some(HTTPS));
            assert_eq!(refused(find(&syn(CLIENT, ROUTER, LISTEN), 0, None, &all)), wrong);
            // The source comes first; a masquerade is entered from both sides.
            assert_eq!(refused(find(&syn(STRANGER, ROUTER, LISTEN), 0, None, &all)), denied);
            assert!(find(&syn(CLIENT, SERVER, LISTEN), 0, None, &all).is_ok());
        }
    }

    #[test]
    fn what_answers_this_machine_matches_no_forward() {
        let mut all = snapshot();
        let packet = syn(CLIENT, ROUTER, LISTEN);
        all.own_traffic.insert(packet.key);
        assert_eq!(refused(find(&packet, 0, None, &all)), (Reason::NotMatched, None));
    }

    #[test]
    fn a_forward_without_a_usable_target_refuses() {
        let mut all = snapshot();
        for targets in [&[][..], &[(AZURE_PLATFORM, None)]] {
            all.rules.insert(HTTPS, rule(targets));
            assert_eq!(refused(find(&syn(CLIENT, ROUTER, LISTEN), 0, None, &all)), (Reason::NoTarget, None));
        }
    }

    #[test]
    fn the_first_masquerade_pair_that_covers_a_packet_counts() {
        let all = snapshot();
        for (source, destination, rule) in
            [(CLIENT, SERVER, VNET), (CLIENT, Ipv4([198, 51, 100, 1]), WIDE), (STRANGER, SERVER, WIDE)]
        {
            let found = find(&syn(source, destination, 80), 7, None, &all).expect("a rule");
            assert_eq!(found, Match { rule, target: destination, target_port: Port::new(80) });
        }
        let outside = find(&syn(Ipv4([192, 0, 2, 1]), SERVER, 80), 0, None, &all);
        assert_eq!(refused(outside), (Reason::NotMatched, None));
    }

    #[test]
    fn addresses_of_nobody_alone_match_nothing() {
        let all = snapshot();
        for destination in [BROADCAST, Ipv4([255; 4]), Ipv4([224, 0, 0, 5])] {
            let result = find(&syn(CLIENT, destination, LISTEN), 0, None, &all);
            assert_eq!(refused(result), (Reason::NotMatched, None), "{destination:?}");
        }
        for port in [LISTEN, 80] {
            let result = find(&packet(Protocol::Udp, CLIENT, ROUTER, port, 0), 0, None, &all);
            assert_eq!(refused(result), (Reason::NotMatched, None), "UDP, {port}");
        }
        for (source, destination) in [(AZURE_PLATFORM, ROUTER), (CLIENT, AZURE_PLATFORM)] {
            let result = find(&syn(source, destination, LISTEN), 0, None, &all);
            assert_eq!(refused(result), (Reason::Platform, None));
        }
    }

    #[test]
    fn only_a_packet_that_opens_is_let_in_by_a_rule() {
        let all = snapshot();
        for destination in [ROUTER, SERVER] {
            for flags in [tcp::ACK, tcp::SYN | tcp::ACK, tcp::RST, tcp::FIN | tcp::ACK] {
                let result = find(&packet(Protocol::Tcp, CLIENT, destination, LISTEN, flags), 0, None, &all);
                assert_eq!(refused(result), (Reason::NoSession, None), "{destination:?}, {flags:#x}");
            }
        }
    }
}
