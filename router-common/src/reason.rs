//! Reasons why packets leave the program: one numbered list for counters, metrics and the command
//! line.

/// The treatment of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Translated and sent on its way.
    Forward,
    /// Passed unchanged to this machine's own network stack.
    Pass,
    /// Dropped.
    Drop,
    /// Handed to the daemon, which sends it when it can be sent.
    Punt,
    /// Not forwarded: its sender gets an answer that says why.
    Answer,
}

impl Action {
    /// `forward`, `pass`, `drop`, `punt` or `answer`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Punt => "punt",
            Self::Answer => "answer",
        }
    }
}

/// Defines [`Reason`] from one table, so that every reason has a number, an action, a name and a
/// description.
macro_rules! reasons {
    ($($number:literal $variant:ident $name:literal $action:ident $description:literal;)*) => {
        /// A drop reason, or another reason why a packet left the program.
        ///
        /// The number is the index of its per-CPU counter. Numbers are never reused: a removed
        /// reason keeps its line in the table, with a name that starts with `unused`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Reason {
            $(#[doc = $description] $variant = $number,)*
        }

        impl Reason {
            /// Every reason, in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the reason with this number.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Returns what happens to a packet for this reason.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self {
                    $(Self::$variant => Action::$action,)*
                }
            }

            /// Returns its name in metrics and on the command line.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Returns its meaning, for the operator.
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$variant => $description,)*
                }
            }
        }
    };
}

reasons! {
    0 Forwarded "forwarded" Forward "Packet of a known session, translated and sent.";
    1 Opened "opened" Forward "First packet of a new session, translated and sent.";
    2 Resolving "resolving" Punt "The next hop's MAC address is not known yet: the daemon keeps the packet until the neighbour answers.";
    3 NotIpv4 "not_ipv4" Pass "Not IPv4 (ARP, IPv6), or in a VLAN: left to this machine.";
    4 Truncated "truncated" Pass "The frame ends before the packet does; the kernel will discard it.";
    5 Malformed "malformed" Pass "The IPv4 header is malformed; the kernel will discard it.";
    6 IpOptions "ip_options" Pass "The IPv4 header has options, which are not translated.";
    7 Fragment "fragment" Pass "A fragment of no known session that may be for this machine itself.";
    8 UnsupportedProtocol "unsupported_protocol" Pass "Neither TCP, UDP nor ICMP.";
    9 IcmpOther "icmp_other" Pass "ICMP that is neither an echo nor an error about a known session.";
    10 Platform "platform" Pass "To or from Azure's platform address 168.63.129.16 (probe, DNS, DHCP): never translated.";
    11 NotMatched "not_matched" Pass "No session and no rule: passed to this machine's own stack (SSH, for example), which discards what is not addressed to it.";
    12 NoSession "no_session" Pass "A rule's packet that belongs to no session and cannot open one (TCP without SYN, say): this machine's kernel answers with a reset if it was sent to its own address.";
    13 NotConfigured "not_configured" Pass "The program runs, but no rules are loaded.";
    14 SourceNotAllowed "source_not_allowed" Drop "To a rule's port from an address outside the rule's sources.";
    15 TtlExpired "ttl_expired" Drop "The packet's time to live ended here.";
    16 TooBig "too_big" Drop "Larger than the next hop's MTU.";
    17 NoTarget "no_target" Drop "The rule has no target address: its name is not resolved yet.";
    18 NoRoute "no_route" Drop "The kernel has no route to the packet's destination.";
    19 NeighbourUnresolved "neighbour_unresolved" Drop "The next hop's MAC address is not known, and the daemon is not running or had no room for the packet.";
    20 EgressNotAttached "egress_not_attached" Drop "The route leads out of an interface that is not one of the router's.";
    21 PortsExhausted "ports_exhausted" Drop "No free SNAT port was found for this target.";
    22 TableFull "table_full" Drop "The flow table is full (limits.flows).";
    23 RedirectFailed "redirect_failed" Drop "The packet could not be handed to the egress interface.";
    24 StageMissing "stage_missing" Drop "A part of the program is not loaded; restart the daemon.";
    25 RouteLookupsOff "route_lookups_off" Drop "The kernel refuses route lookups because net.ipv4.conf.lo.forwarding is 0; a daemon that runs sets it again at once.";
    26 Internal "internal" Drop "An internal error while the packet was being rewritten; please report it.";
    27 HalfOpenLimit "half_open_limit" Drop "Its source has too many sessions that are still opening (limits.half_open_per_source), and none of them could make room.";
    28 Contended "contended" Drop "Two CPUs opened sessions in the same place at the same moment; the sender's next attempt will likely succeed.";
    29 IcmpError "icmp_error" Forward "An ICMP error about a known session, translated and sent.";
    30 TtlExceeded "ttl_exceeded" Answer "The packet's time to live ended here, and its sender was told (ICMP time exceeded).";
    31 FragmentationNeeded "fragmentation_needed" Answer "Larger than the next hop's MTU and not to be fragmented; its sender was told (ICMP fragmentation needed).";
    32 Rejected "rejected" Answer "No SNAT port is free for this target, and the client was told (TCP reset or ICMP unreachable).";
    33 Fragmenting "fragmenting" Punt "Larger than the next hop's MTU: the daemon sends it in fragments.";
    34 FragmentEarly "fragment_early" Punt "An early fragment, which arrived before its packet's first one: the daemon, if it runs, keeps it for a moment.";
    35 FragmentBad "fragment_bad" Drop "A fragment that overlaps another, reaches beyond 65,535 bytes, or is too small to be matched to a session.";
    36 LocalDenied "local_denied" Drop "To this machine itself, from a rule's source, and not allowed by a rule, the health port or local.allow.";
    37 Martian "martian" Drop "A source or destination address that no packet on a wire may have here: this machine's own, loopback, multicast or broadcast.";
    38 BadChecksum "bad_checksum" Drop "The checksum of the IPv4 header, of an ICMP error about a known session, or of a TCP SYN that would open one is wrong.";
    39 OtherHost "other_host" Pass "Sent to another machine's MAC address: not to be forwarded by this one.";
    40 SessionOptions "session_options" Drop "A packet of a known session with IP options, which are not translated: this machine's kernel would reset the connection.";
    41 NoSourceAddress "no_source_address" Drop "The interface that the route leads out of has no IPv4 address for a session to come from: give it one, or set snat.addresses.";
    42 RouteUnreachable "route_unreachable" Drop "The route says that the destination is unreachable (`ip route add unreachable`).";
    43 RouteProhibited "route_prohibited" Drop "The route forbids it (`ip route add prohibit`).";
    44 RouteBlackhole "route_blackhole" Drop "The route drops the packet silently (`ip route add blackhole`).";
    45 NeighbourFailed "neighbour_failed" Drop "The next hop does not answer ARP.";
    46 NetworkUnreachable "network_unreachable" Answer "No route of this router leads there, and the sender was told (ICMP network unreachable; a reset where a forward's TCP client would connect).";
    47 HostUnreachable "host_unreachable" Answer "The next hop does not answer ARP, or the route says unreachable, and the sender was told (ICMP host unreachable; a reset where a forward's TCP client would connect).";
    48 Prohibited "prohibited" Answer "The route forbids it, and the sender was told (ICMP administratively prohibited; a reset where a forward's TCP client would connect).";
    49 Refused "refused" Answer "The rule has no target address, and the client was told (TCP reset or ICMP port unreachable).";
    50 SessionUnknown "session_unknown" Answer "TCP of a masquerade that belongs to no session and cannot open one: its sender was told by a reset, and can connect again.";
    51 WrongInterface "wrong_interface" Drop "To a rule's port from one of the rule's sources, but received on an interface other than `pls`.";
    52 OpenedInPlace "opened_in_place" Forward "First packet of a new session, translated and sent; its source was at limits.half_open_per_source, so its oldest half-open session was replaced.";
    53 EthernetDenied "ethernet_denied" Drop "In a VLAN and from a source that is closed out of this machine, or of a protocol that is neither IP nor the link's own and could carry IP around local.allow (SNAP, PPPoE, MPLS, ...).";
    54 Ipv6Denied "ipv6_denied" Drop "IPv6 to this machine itself, on the interface that clients come in by (others = \"closed\": on any), and neither an answer, nor neighbour discovery, nor allowed by an entry of local.allow with an IPv6 network.";
    55 AnswerWithheld "answer_withheld" Drop "A reset or an ICMP error of this machine's own network stack about a packet of a session, or one that opens one, that got there while no program was attached: withheld, so that connections go on. At a forward's port also the reset about a segment without ACK, as a FIN or null scan sends it: it looks the same.";
}

/// Counters kept for reasons: room for more than there are, so that a new reason does not change
/// the layout.
pub const REASON_SLOTS: usize = 64;

const _: () = assert!(Reason::ALL.len() <= REASON_SLOTS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_order_and_names_are_unique() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::from_number(index as u32), Some(*reason));
            let name = reason.as_str();
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{name}");
            assert_eq!(Reason::ALL.iter().filter(|other| other.as_str() == name).count(), 1, "{name}");
            assert!(reason.description().ends_with('.'), "{name}");
        }
    }

    /// Numbers are a contract: this list only grows.
    #[test]
    fn numbers_are_never_reused() {
        let names = Reason::ALL.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().join(" ");
        assert_eq!(
            names,
            "forwarded opened resolving not_ipv4 truncated malformed ip_options fragment unsupported_protocol icmp_other \
             platform not_matched no_session not_configured source_not_allowed ttl_expired too_big no_target no_route \
             neighbour_unresolved egress_not_attached ports_exhausted table_full redirect_failed stage_missing \
             route_lookups_off internal half_open_limit contended icmp_error ttl_exceeded fragmentation_needed rejected \
             fragmenting fragment_early fragment_bad local_denied martian bad_checksum other_host \
             session_options no_source_address route_unreachable route_prohibited route_blackhole neighbour_failed network_unreachable \
             host_unreachable prohibited refused session_unknown wrong_interface opened_in_place ethernet_denied ipv6_denied answer_withheld"
        );
    }
}
