//! Decides whether a packet without a session or a rule reaches this machine itself.

use super::lookup::{Lookup, is_closed_out, is_local};
use crate::{
    address::{AZURE_PLATFORM, Port},
    local::{Judgement, Place, Service, is_link_control, judge, may_be_for_the_stack},
    maps::own::{dhcp_answer, dhcp_transaction},
    packet::{self, Packet},
    reason::Reason,
    wire::Frame,
};

/// The decision about a packet that matches no session and no rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admission {
    /// It ends for this reason, which says whether it is passed to the kernel.
    Ends(Reason),
    /// It is a later fragment that is passed to the kernel if the first one of its datagram was.
    AsFirstFragment,
}

/// Decides whether a packet is passed to this machine's own stack. `parsed` is what
/// [`packet::parse_leading`] says of the frame.
///
/// # Errors
/// Returns an error if that needs no decision by the rules: the packet is cut off, from or to the
/// platform, or of a session. Its later fragments, if any, are none of the first one's then.
#[inline(always)]
pub fn admit(
    frame: &(impl Frame + ?Sized),
    parsed: &Result<Packet, Reason>,
    lookup: &impl Lookup,
) -> Result<Admission, Reason> {
    // Why it passes, if it does.
    let reason = match parsed {
        Ok(_) => Reason::NotMatched,
        Err(reason) => *reason,
    };
    let (source, destination) = packet::addresses(frame).ok_or(reason)?;
    if source == AZURE_PLATFORM || destination == AZURE_PLATFORM {
        return Err(Reason::Platform);
    }
    if reason as u32 == Reason::IpOptions as u32
        && packet::key_after_options(frame).is_some_and(|key| lookup.has_session(&key))
    {
        return Err(Reason::SessionOptions);
    }
    if !is_closed_out(lookup, source) {
        return Ok(Admission::Ends(reason));
    }
    let is_local = is_local(lookup, destination);
    let is_allowed =
        |service| may_be_for_the_stack(destination, is_local) && lookup.is_service_allowed(service, source);
    let is_let_in = match parsed {
        Ok(packet) => {
            let health_port = Some(Port::new(lookup.rule_set().health_port as u16));
            match judge(packet, &Place { health_port, is_local }) {
                Judgement::Harmless => true,
                Judgement::IfConnected if lookup.answers_own_traffic(packet) => true,
                Judgement::IfAskedFor if asked_for(frame, lookup) => true,
                Judgement::Forbidden => false,
                Judgement::IfConnected | Judgement::IfAskedFor | Judgement::Closed => {
                    Service::of(packet).is_some_and(is_allowed)
                }
            }
        }
        // An ICMP error about something that is not ours: the kernel finds out whose it is.
        Err(Reason::IcmpOther) => may_be_for_the_stack(destination, is_local) && packet::is_icmp_error(frame),
        // IGMP has options, and large packets of any protocol come in fragments.
        Err(Reason::UnsupportedProtocol | Reason::IpOptions | Reason::Fragment) => {
            match packet::other_protocol(frame) {
                Some(protocol) => {
                    is_link_control(protocol, destination) || is_allowed(Service::without_ports(protocol))
                }
                // Of a datagram to a group: what is sent to this machine alone is the program
                // `fragment`'s.
                None if reason as u32 == Reason::Fragment as u32 => return Ok(Admission::AsFirstFragment),
                None => false,
            }
        }
        Err(_) => false,
    };
    Ok(Admission::Ends(if is_let_in { reason } else { Reason::LocalDenied }))
}

/// Returns `true` if a DHCP message may be one that this machine waits for: it has the transaction
/// of one that was sent, if those are seen.
#[inline(always)]
fn asked_for(frame: &(impl Frame + ?Sized), lookup: &impl Lookup) -> bool {
    !lookup.rule_set().sees_own_traffic()
        || dhcp_transaction(frame).is_some_and(|transaction| lookup.has_sent(&dhcp_answer(transaction)))
}

#[cfg(all(test, not(model)))]
mod tests {
    use super::*;
    use crate::{
        address::Ipv4,
        checksum::Sum,
        local::{Allow, OWN_ADDRESS},
        maps::rules::Network,
        policy::lookup::snapshot::Snapshot,
        tuple::{FlowKey, Protocol},
        wire::L4,
    };

    const CLIENT: Ipv4 = Ipv4([10, 0, 2, 69]);
    const OTHER: Ipv4 = Ipv4([10, 0, 3, 1]);
    const ROUTER: Ipv4 = Ipv4([10, 0, 2, 68]);
    const SERVER: Ipv4 = Ipv4([203, 0, 113, 10]);
    const ALL_ROUTERS: Ipv4 = Ipv4([224, 0, 0, 5]);
    const SSH: u16 = 22;
    const HEALTH: u16 = 8082;

    /// Clients are closed out, and may use SSH and ESP; the health port is open.
    fn snapshot() -> Snapshot {
        let mut all = Snapshot::default();
        let clients = Network::new(Ipv4([10, 0, 2, 64]), 26);
        all.local.insert(ROUTER, OWN_ADDRESS);
        all.sources.insert(1, vec![clients]);
        all.allow = vec![
            Allow { from: clients, first: SSH, last: SSH, protocol: 6 },
            Allow { from: clients, first: 0, last: u16::MAX, protocol: 50 },
        ];
        all
    }

    /// A frame with an IP packet of these protocol and addresses and at this place in its datagram,
    /// with `rest` after the header.
    fn frame(protocol: u8, (source, destination): (Ipv4, Ipv4), place: u16, rest: &[u8]) -> Vec<u8> {
        let mut frame = [0; L4];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[16..18].copy_from_slice(&((20 + rest.len()) as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&place.to_be_bytes());
        frame[22..24].copy_from_slice(&[64, protocol]);
        frame[26..30].copy_from_slice(&source.0);
        frame[30..34].copy_from_slice(&destination.0);
        let checksum = Sum::ZERO.add_bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&checksum);
        [&frame[..], rest].concat()
    }

    fn tcp_to(addresses: (Ipv4, Ipv4), port: u16) -> Vec<u8> {
        let mut header = [0; 20];
        header[..2].copy_from_slice(&40_000_u16.to_be_bytes());
        header[2..4].copy_from_slice(&port.to_be_bytes());
        (header[12], header[13]) = (0x50, 2);
        frame(6, addresses, 0, &header)
    }

    fn decide(frame: &[u8], all: &Snapshot) -> Result<Admission, Reason> {
        admit(frame, &packet::parse_leading(frame), all)
    }

    fn ends(frame: &[u8], all: &Snapshot) -> Reason {
        match decide(frame, all) {
            Ok(Admission::Ends(reason)) => reason,
            decision => unreachable!("{decision:?}"),
        }
    }

    #[test]
    fn a_closed_out_source_reaches_the_health_port_and_what_is_allowed() {
        let mut all = snapshot();
        for (source, destination, port, is_let_in) in [
            (CLIENT, ROUTER, HEALTH, true),
            (CLIENT, ROUTER, SSH, true),
            (CLIENT, ROUTER, 80, false),
            // Without a rule there is no way through this machine.
            (CLIENT, SERVER, SSH, false),
            (CLIENT, SERVER, HEALTH, false),
            (OTHER, ROUTER, 80, true),
            (OTHER, SERVER, 80, true),
        ] {
            let wanted = if is_let_in { Reason::NotMatched } else { Reason::LocalDenied };
            assert_eq!(ends(&tcp_to((source, destination), port), &all), wanted, "{source:?}, {port}");
        }
        all.rule_set.others_are_closed = 1;
        assert_eq!(ends(&tcp_to((OTHER, ROUTER), 80), &all), Reason::LocalDenied);
        assert_eq!(ends(&tcp_to((OTHER, ROUTER), SSH), &all), Reason::LocalDenied, "an entry has sources");
        assert_eq!(ends(&tcp_to((OTHER, ROUTER), HEALTH), &all), Reason::NotMatched);
    }

    #[test]
    fn answers_to_this_machine_come_in() {
        let mut all = snapshot();
        let frame = tcp_to((CLIENT, ROUTER), 50_000);
        assert_eq!(ends(&frame, &all), Reason::LocalDenied);
        let (from, to) = (Port::new(40_000), Port::new(50_000));
        all.own_traffic.insert(FlowKey::new(Protocol::Tcp, CLIENT, from, ROUTER, to));
        assert_eq!(ends(&frame, &all), Reason::NotMatched);
    }

    #[test]
    fn protocols_without_ports_come_in_by_name_or_from_the_link() {
        let all = snapshot();
        for (protocol, destination, is_let_in) in [
            (50, ROUTER, true),
            (47, ROUTER, false),
            (50, SERVER, false),
            (89, ALL_ROUTERS, true),
            (89, ROUTER, false),
            (47, ALL_ROUTERS, false),
        ] {
            let wanted = if is_let_in { Reason::UnsupportedProtocol } else { Reason::LocalDenied };
            let frame = frame(protocol, (CLIENT, destination), 0, &[0; 20]);
            assert_eq!(ends(&frame, &all), wanted, "{protocol} to {destination:?}");
        }
    }

    #[test]
    fn icmp_errors_come_in_and_other_icmp_does_not() {
        let all = snapshot();
        for (kind, destination, is_let_in) in [
            (3, ROUTER, true),
            (11, ROUTER, true),
            (5, ROUTER, false),
            (13, ROUTER, false),
            (3, SERVER, false),
        ] {
            let wanted = if is_let_in { Reason::IcmpOther } else { Reason::LocalDenied };
            let frame = frame(1, (CLIENT, destination), 0, &[kind, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(ends(&frame, &all), wanted, "{kind} to {destination:?}");
        }
    }

    #[test]
    fn a_later_fragment_ends_as_the_first_one_of_its_datagram() {
        let all = snapshot();
        let later = |source| frame(17, (source, ALL_ROUTERS), 0x0010, &[0; 20]);
        assert_eq!(decide(&later(CLIENT), &all), Ok(Admission::AsFirstFragment));
        assert_eq!(decide(&later(OTHER), &all), Ok(Admission::Ends(Reason::Fragment)));
    }

    #[test]
    fn the_platform_and_what_is_cut_off_need_no_rules() {
        let all = snapshot();
        let platform = tcp_to((AZURE_PLATFORM, ROUTER), 80);
        assert_eq!(decide(&platform, &all), Err(Reason::Platform));
        assert_eq!(decide(&tcp_to((CLIENT, AZURE_PLATFORM), 80), &all), Err(Reason::Platform));
        assert_eq!(decide(&platform[..20], &all), Err(Reason::Truncated));
    }
}
