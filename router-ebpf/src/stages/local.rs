//! Packets that are no session's and no rule's: this machine's own traffic, or nobody's business.

use router_common::{
    address::{AZURE_PLATFORM, Port},
    local::{Judgement, Place, Service, is_link_control, judge, may_be_for_the_stack},
    maps::own::{dhcp_answer, dhcp_transaction},
    packet::{self, Packet},
    reason::Reason,
};

use crate::{
    kernel::own_traffic,
    maps::{addresses, flows, local_allow, rules},
    session::datagrams,
    work::{Outcome, Work},
};

/// Passes a packet to this machine's own stack, or drops it.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Outcome {
    let parsed = packet::parse_leading(&work.frame);
    // Keeps it in memory: in registers, the compiler would move what an error does not have, and
    // the verifier refuse that.
    core::hint::black_box(&parsed);
    // Why it passes, if it does.
    let reason = match &parsed {
        Ok(_) => Reason::NotMatched,
        Err(reason) => *reason,
    };
    let Some((source, destination)) = packet::addresses(&work.frame) else { return Err(reason.into()) };
    let version = work.settings.version();
    let rule_set = rules::in_force(version).ok_or(Reason::NotConfigured)?;
    if source == AZURE_PLATFORM || destination == AZURE_PLATFORM {
        return Err(Reason::Platform.into());
    }
    if reason as u32 == Reason::IpOptions as u32
        && packet::key_after_options(&work.frame).is_some_and(|key| flows::is_there(&key))
    {
        return Err(Reason::SessionOptions.into());
    }
    if !rules::is_closed_out(version, source) {
        return Err(noted(work, &parsed, reason).into());
    }
    let is_local = addresses::is_local(destination);
    let is_allowed = |service| {
        may_be_for_the_stack(destination, is_local) && local_allow::covers(version, rule_set, service, source)
    };
    let allowed = match &parsed {
        Ok(packet) => {
            let place = Place { health_port: Some(Port::new(rule_set.health_port as u16)), is_local };
            match judge(packet, &place) {
                Judgement::Harmless => true,
                Judgement::IfConnected if own_traffic::is_answer(work, rule_set.ephemeral) => true,
                Judgement::IfAskedFor if !rule_set.sees_own_traffic() || answers_dhcp(work) => true,
                Judgement::Forbidden => false,
                Judgement::IfConnected | Judgement::IfAskedFor | Judgement::Closed => {
                    Service::of(packet).is_some_and(is_allowed)
                }
            }
        }
        // An ICMP error about something that is not ours: the kernel finds out whose it is.
        Err(Reason::IcmpOther) => {
            may_be_for_the_stack(destination, is_local) && packet::is_icmp_error(&work.frame)
        }
        // IGMP has options, and large packets of any protocol come in fragments.
        Err(Reason::UnsupportedProtocol | Reason::IpOptions | Reason::Fragment) => {
            match packet::other_protocol(&work.frame) {
                Some(protocol) => {
                    is_link_control(protocol, destination) || is_allowed(Service::without_ports(protocol))
                }
                // Of a datagram to a group: what is sent to this machine alone is the program
                // `fragment`'s.
                None if reason as u32 == Reason::Fragment as u32 => datagrams::first_has_passed(work)?,
                None => false,
            }
        }
        Err(_) => false,
    };
    Err(noted(work, &parsed, if allowed { reason } else { Reason::LocalDenied }).into())
}

/// Returns `true` if a DHCP message has the transaction of one that this machine has sent.
#[inline(always)]
fn answers_dhcp(work: &Work) -> bool {
    dhcp_transaction(&work.frame).is_some_and(|transaction| own_traffic::has_sent(&dhcp_answer(transaction)))
}

/// What a packet leaves for; the later fragments of one that is the first of several do, too.
#[inline(always)]
fn noted(work: &Work, parsed: &Result<Packet, Reason>, reason: Reason) -> Reason {
    match parsed {
        Ok(packet) if packet.is_fragment => datagrams::note_reason(work, packet, reason),
        _ => reason,
    }
}
