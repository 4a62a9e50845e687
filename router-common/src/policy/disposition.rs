//! Decides how a packet leaves after the look-up of its next hop: to the next hop, through the
//! daemon, as an answer to its sender, or not at all.

use crate::{answer::reply_to, reason::Reason};

/// A packet that is about to leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Departure {
    /// The length of its IP packet on the wire, in bytes.
    pub length: u16,
    /// Set if the packet must not be fragmented.
    pub dont_fragment: bool,
    /// The outcome if it is too big for its next hop.
    pub too_big: TooBig,
    /// The outcome if there is no next hop.
    pub no_next_hop: NoNextHop,
}

/// The outcome of a packet that is too big for its next hop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TooBig {
    /// The daemon splits it if it may, else its sender is told (RFC 1191): a whole packet, or the
    /// first fragment of one.
    SplitOrAnswer,
    /// The daemon splits it if it may, else it is dropped: a later fragment, about which no ICMP
    /// error may be sent (RFC 1122 3.2.2).
    SplitOrDrop,
    /// It is dropped: an ICMP error, which is never that long (RFC 1812 4.3.2.3) and must not be
    /// answered (RFC 1122 3.2.2).
    Drop,
}

/// The outcome of a packet without a next hop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoNextHop {
    /// It waits for its neighbour, or its sender may be told: any packet that is forwarded.
    WaitOrAnswer,
    /// It waits for its neighbour, or is dropped for this reason: a packet that the router would
    /// answer, and which it was about to drop for that reason anyway.
    WaitOrDrop(Reason),
}

impl Departure {
    /// A packet of a session, or one that opens one.
    #[inline(always)]
    pub const fn of_packet(length: u16, dont_fragment: bool) -> Self {
        Self { length, dont_fragment, too_big: TooBig::SplitOrAnswer, no_next_hop: NoNextHop::WaitOrAnswer }
    }

    /// A fragment that is not the first of its datagram.
    #[inline(always)]
    pub const fn of_later_fragment(length: u16, dont_fragment: bool) -> Self {
        Self { too_big: TooBig::SplitOrDrop, ..Self::of_packet(length, dont_fragment) }
    }

    /// An ICMP error about a session.
    #[inline(always)]
    pub const fn of_icmp_error(length: u16) -> Self {
        Self { too_big: TooBig::Drop, ..Self::of_packet(length, true) }
    }

    /// The router's own answer to a packet that is otherwise dropped for this reason. It is shorter
    /// than any link's MTU.
    #[inline(always)]
    pub const fn of_answer(dropped_for: Reason) -> Self {
        Self {
            length: 0,
            dont_fragment: false,
            too_big: TooBig::Drop,
            no_next_hop: NoNextHop::WaitOrDrop(dropped_for),
        }
    }

    /// Returns `true` if the packet is longer than this MTU.
    #[inline(always)]
    pub const fn is_too_big(&self, mtu: u16) -> bool {
        self.length > mtu
    }
}

/// The look-ups of [`dispose`], made only where the answer matters.
pub trait Circumstances {
    /// Returns `true` if there is a daemon to hand packets to.
    fn daemon_is_there(&self) -> bool;

    /// Returns `true` if senders are told of what cannot be forwarded (`answers.unreachable`).
    fn answers_unreachable(&self) -> bool;
}

/// The way in which a packet leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disposition {
    /// By its next hop.
    Transmit,
    /// By way of the daemon, which splits it for the next hop once it is translated.
    Split,
    /// It is handed to the daemon as it was received, which gives it back when its neighbour has
    /// answered.
    Wait,
    /// It is dropped for this reason, and its sender is told; of the next hop's MTU if that is too
    /// small.
    Answer(Reason),
    /// It is dropped for this reason.
    Drop(Reason),
}

/// Decides how a packet leaves whose next hop has been looked up: `next_hop` is the MTU of its
/// route, or the reason why there is none.
#[inline(always)]
pub fn dispose(
    next_hop: Result<u16, Reason>,
    packet: &Departure,
    circumstances: &impl Circumstances,
) -> Disposition {
    match next_hop {
        Ok(mtu) => fit(mtu, packet, circumstances),
        Err(Reason::Resolving) => await_neighbour(packet, circumstances),
        Err(reason) => match packet.no_next_hop {
            NoNextHop::WaitOrAnswer => refuse(reason, circumstances),
            NoNextHop::WaitOrDrop(dropped_for) => Disposition::Drop(dropped_for),
        },
    }
}

/// Decides how a packet ends that cannot be forwarded for this reason, which is not its size.
#[inline(always)]
pub fn refuse(reason: Reason, circumstances: &impl Circumstances) -> Disposition {
    if reply_to(reason).is_some() && circumstances.answers_unreachable() {
        Disposition::Answer(reason)
    } else {
        Disposition::Drop(reason)
    }
}

#[inline(always)]
fn await_neighbour(packet: &Departure, circumstances: &impl Circumstances) -> Disposition {
    if circumstances.daemon_is_there() {
        return Disposition::Wait;
    }
    Disposition::Drop(match packet.no_next_hop {
        NoNextHop::WaitOrAnswer => Reason::NeighbourUnresolved,
        NoNextHop::WaitOrDrop(dropped_for) => dropped_for,
    })
}

#[inline(always)]
fn fit(mtu: u16, packet: &Departure, circumstances: &impl Circumstances) -> Disposition {
    if !packet.is_too_big(mtu) {
        return Disposition::Transmit;
    }
    match packet.too_big {
        TooBig::SplitOrAnswer if packet.dont_fragment => Disposition::Answer(Reason::TooBig),
        TooBig::SplitOrAnswer | TooBig::SplitOrDrop
            if !packet.dont_fragment && circumstances.daemon_is_there() =>
        {
            Disposition::Split
        }
        TooBig::SplitOrAnswer | TooBig::SplitOrDrop | TooBig::Drop => Disposition::Drop(Reason::TooBig),
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use super::*;

    /// The daemon is there, and senders are told.
    #[derive(Clone, Copy, Debug)]
    struct Now {
        daemon: bool,
        answers: bool,
    }

    impl Circumstances for Now {
        fn daemon_is_there(&self) -> bool {
            self.daemon
        }

        fn answers_unreachable(&self) -> bool {
            self.answers
        }
    }

    const MTU: u16 = 1500;

    fn circumstances() -> impl Iterator<Item = Now> {
        [false, true].into_iter().flat_map(|daemon| [false, true].map(|answers| Now { daemon, answers }))
    }

    /// Every way that a packet can leave, by whether it may be fragmented.
    fn departures(length: u16) -> [(&'static str, Departure); 7] {
        [
            ("packet", Departure::of_packet(length, false)),
            ("packet, DF", Departure::of_packet(length, true)),
            ("later fragment", Departure::of_later_fragment(length, false)),
            ("later fragment, DF", Departure::of_later_fragment(length, true)),
            ("ICMP error", Departure::of_icmp_error(length)),
            ("answer", Departure { length, ..Departure::of_answer(Reason::TtlExpired) }),
            (
                "answer, DF",
                Departure { length, dont_fragment: true, ..Departure::of_answer(Reason::TtlExpired) },
            ),
        ]
    }

    #[test]
    fn a_packet_that_fits_is_transmitted() {
        for length in [0, 20, MTU - 1, MTU] {
            for (name, packet) in departures(length) {
                for now in circumstances() {
                    let disposition = dispose(Ok(MTU), &packet, &now);
                    assert_eq!(disposition, Disposition::Transmit, "{name}, {length}, {now:?}");
                }
            }
        }
    }

    #[test]
    fn a_packet_that_is_too_big_is_split_answered_or_dropped() {
        const DROP: Disposition = Disposition::Drop(Reason::TooBig);
        const SPLIT: Disposition = Disposition::Split;
        const ANSWER: Disposition = Disposition::Answer(Reason::TooBig);
        // Without the daemon, and with it. Whether senders are told of what is unreachable is
        // another matter than this (RFC 1191).
        let table = [
            ("packet", DROP, SPLIT),
            ("packet, DF", ANSWER, ANSWER),
            ("later fragment", DROP, SPLIT),
            ("later fragment, DF", DROP, DROP),
            ("ICMP error", DROP, DROP),
            ("answer", DROP, DROP),
            ("answer, DF", DROP, DROP),
        ];
        for length in [MTU + 1, 9000, u16::MAX] {
            for ((name, packet), (of, alone, with_daemon)) in departures(length).into_iter().zip(table) {
                assert_eq!(name, of);
                for now in circumstances() {
                    let disposition = dispose(Ok(MTU), &packet, &now);
                    let wanted = if now.daemon { with_daemon } else { alone };
                    assert_eq!(disposition, wanted, "{name}, {length}, {now:?}");
                }
            }
        }
    }

    #[test]
    fn a_packet_waits_for_its_neighbour_with_the_daemon() {
        for length in [20, MTU + 1] {
            for (name, packet) in departures(length) {
                for now in circumstances() {
                    let wanted = match packet.no_next_hop {
                        _ if now.daemon => Disposition::Wait,
                        NoNextHop::WaitOrAnswer => Disposition::Drop(Reason::NeighbourUnresolved),
                        NoNextHop::WaitOrDrop(reason) => Disposition::Drop(reason),
                    };
                    assert_eq!(dispose(Err(Reason::Resolving), &packet, &now), wanted, "{name}, {now:?}");
                }
            }
        }
    }

    /// Of every reason: those of a look-up, and whatever else there is.
    #[test]
    fn senders_are_told_of_no_next_hop_as_configured() {
        for reason in Reason::ALL.iter().copied().filter(|reason| *reason != Reason::Resolving) {
            for (name, packet) in departures(MTU) {
                for now in circumstances() {
                    let wanted = match packet.no_next_hop {
                        NoNextHop::WaitOrDrop(dropped_for) => Disposition::Drop(dropped_for),
                        NoNextHop::WaitOrAnswer if now.answers && reply_to(reason).is_some() => {
                            Disposition::Answer(reason)
                        }
                        NoNextHop::WaitOrAnswer => Disposition::Drop(reason),
                    };
                    assert_eq!(dispose(Err(reason), &packet, &now), wanted, "{name}, {reason:?}, {now:?}");
                }
            }
        }
    }

    /// A look-up costs a call in the kernel.
    #[test]
    fn nothing_is_looked_up_that_does_not_matter() {
        struct Nothing;
        impl Circumstances for Nothing {
            fn daemon_is_there(&self) -> bool {
                unreachable!("the daemon does not matter")
            }

            fn answers_unreachable(&self) -> bool {
                unreachable!("the configuration does not matter")
            }
        }
        for (_, packet) in departures(MTU) {
            dispose(Ok(MTU), &packet, &Nothing);
        }
        dispose(Ok(MTU), &Departure::of_packet(MTU + 1, true), &Nothing);
        dispose(Err(Reason::RouteBlackhole), &Departure::of_packet(MTU, false), &Nothing);
        dispose(Err(Reason::NoRoute), &Departure::of_answer(Reason::NoRoute), &Nothing);
    }
}
