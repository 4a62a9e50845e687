//! The cases in which pls-router deliberately behaves differently from the kernel.

use super::{
    category::Category,
    observe::Seen,
    plan::{Body, Sequence, Step},
    topology::Side,
};
use crate::packet::{ACK, Damage, FIN, RST, SYN, TIME_EXCEEDED, UNREACHABLE};

/// A datagram that the two routers have made different things of.
pub(super) struct Case<'a> {
    pub(super) sequence: &'a Sequence,
    /// Its packets: one, or its fragments.
    pub(super) steps: Vec<&'a Step>,
    pub(super) oracle: &'a [Seen],
    pub(super) ours: &'a [Seen],
    /// Returns `true` if they differ only in how a router's own ICMP errors are made; see
    /// [`abridge`](super::observe::abridge).
    pub(super) same_but_for_quotes: &'a dyn Fn() -> bool,
}

/// A difference that is meant.
pub(super) struct Difference {
    pub(super) name: &'static str,
    /// The category whose packets show it.
    pub(super) category: Category,
    pub(super) reason: &'static str,
    pub(super) applies: fn(&Case<'_>) -> bool,
}

/// All of them.
pub(super) const DIFFERENCES: &[Difference] = &[
    Difference {
        name: "segments out of state",
        category: Category::OutOfState,
        reason: "a segment of a known session is forwarded whatever its flags, since its ends know best what it means to them; \
                 the kernel does not translate what its own idea of the connection rules out, so that it gets a reset from the \
                 router or is lost",
        applies: |case| {
            case.follows(Category::OutOfState)
                && case.all_tcp()
                && case.oracle.iter().all(|seen| seen.own)
                && (case.is_forwarded_by_ours()
                    || case.has_ended_at(case.ours)
                    || case.is_too_long_for_ours())
        },
    },
    Difference {
        name: "segments without ACK",
        category: Category::OutOfState,
        reason: "a segment that neither acknowledges nor opens anything, and is of no session, gets no answer at the port of a forward, as a scan by \
                 FIN or null segments sends it: this machine's reset looks like that about a SYN that no program has seen, which is withheld; \
                 the kernel lets its reset out",
        applies: |case| {
            let is_bare = |step: &&Step| {
                matches!(step.body, Body::Tcp { flags, .. } if flags & (SYN | ACK | RST) == 0)
                    && step.from == Side::Client
            };
            let is_reset = |seen: &Seen| seen.own && seen.is_reset() && Some(seen.side) == case.sender();
            case.steps.iter().all(is_bare)
                && case.oracle.iter().all(is_reset)
                && !case.oracle.is_empty()
                && case.ours.is_empty()
        },
    },
    Difference {
        name: "unknown connections",
        category: Category::OutOfState,
        reason: "a segment of a masquerade's that belongs to no session and opens none is answered by a reset, as if from where it was to go \
                 (RFC 9293 3.10.7.1), so that a connection which a restart has ended does not hang; the kernel does not translate it, and it \
                 is lost",
        applies: |case| {
            case.all_tcp()
                && case.opens_nothing()
                && !case.oracle.iter().any(|seen| seen.own)
                && matches!(case.ours, [seen] if seen.own && seen.is_reset() && Some(seen.side) == case.sender())
        },
    },
    Difference {
        name: "what a server has reset",
        category: Category::Late,
        reason: "a connection that its server has reset is over, so the client's next SYN goes where the rules of now lead, and nothing of the old \
                 server's reaches the client any more; the kernel sends it where the last one went (unless a FIN or the client's own reset \
                 was there, too), for as long as nf_conntrack_tcp_timeout_close says",
        applies: |case| {
            let Some(this) = case.steps.first() else { return false };
            let session = &case.sequence.sessions[this.session];
            let goes_to =
                |seen: &Seen| !seen.own && seen.side == Side::Server && seen.goes_to(session.server);
            let goes_back = |seen: &Seen| !seen.own && seen.side == Side::Client;
            let is_right = match this.from {
                Side::Client if session.refused => case.ours.iter().all(|seen| seen.own),
                Side::Client => matches!(case.ours, [seen] if goes_to(seen)),
                Side::Server if this.spice == Some(Category::Late) => !case.ours.iter().any(goes_back),
                Side::Server => matches!(case.ours, [seen] if goes_back(seen)),
            };
            case.all_tcp() && case.comes_after_a_servers_reset() && is_right
        },
    },
    Difference {
        name: "late segments of a server that is used again",
        category: Category::Late,
        reason: "what a server sends late for its last connection reaches the client while the next one opens with the same server: the client \
                 knows it by its numbers and resets it (RFC 9293 3.10.7.3), as it does where the server has missed the end of the last \
                 connection (RFC 5961 4); the kernel does not translate it, so that it is lost or gets a reset from the router",
        applies: |case| {
            case.all_tcp()
                && case
                    .steps
                    .iter()
                    .all(|step| step.spice == Some(Category::Late) && step.from == Side::Server)
                && case.oracle.iter().all(|seen| seen.own)
                && case.is_forwarded_by_ours()
        },
    },
    Difference {
        name: "other protocols of a masquerade",
        category: Category::Protocol,
        reason: "only TCP, UDP and ICMP are translated: without ports, sessions of several clients with one server cannot be told \
                 apart",
        applies: |case| {
            let forwarded = |seen: &Seen| !seen.own;
            case.steps.iter().all(|step| matches!(step.body, Body::Other { .. }))
                && case.oracle.iter().all(forwarded)
                && !case.ours.iter().any(forwarded)
        },
    },
    Difference {
        name: "short errors",
        category: Category::Ttl,
        reason: "an error quotes 8 bytes behind the IP header, as RFC 792 asks for and every sender can do with, where the kernel quotes \
                 what fits into 576 bytes; its precedence is RFC 1812's, without the type of service of what it quotes; and it is never \
                 fragmented, so that it needs no identification (RFC 6864)",
        applies: |case| {
            let is_error =
                |seen: &Seen| seen.own && matches!(seen.icmp_kind(), Some(TIME_EXCEEDED | UNREACHABLE));
            case.ours.iter().all(is_error) && (case.same_but_for_quotes)()
        },
    },
    Difference {
        name: "errors that are not told",
        category: Category::Ttl,
        reason: "that a packet's time ended at the router, or that it is too large, is not told to who may not use it, nor of what it \
                 would not have forwarded anyway; the kernel looks at that before it looks at its rules and behind the IP header",
        applies: |case| {
            let is_error =
                |seen: &Seen| seen.own && matches!(seen.icmp_kind(), Some(TIME_EXCEEDED | UNREACHABLE));
            let has_no_way = |step: &&Step| {
                step.source.is_some()
                    || matches!(step.body, Body::Other { .. })
                    || step.damage.is_some_and(|damage| !matches!(damage, Damage::Trailer(_)))
            };
            (case.steps.iter().all(has_no_way) || case.has_no_connection())
                && !case.oracle.is_empty()
                && case.oracle.iter().all(is_error)
                && case.ours.is_empty()
        },
    },
    Difference {
        name: "errors about connections that are over",
        category: Category::IcmpError,
        reason: "a reset does not end a session at once, since it may be forged, and an error that comes late still finds it; the kernel \
                 forgets a connection that was refused. And an error is translated only if the session's present connection may have sent what \
                 it quotes, which is no longer so once a SYN has begun another one; the kernel does not look what a connection has sent",
        applies: |case| {
            let is_error = |step: &&Step| matches!(step.body, Body::Error(_));
            let to = case.sender().map(Side::other);
            let is_forwarded_by_oracle =
                || matches!(case.oracle, [seen] if !seen.own && Some(seen.side) == to);
            let is_late = case.comes_after_a_reset() && case.oracle.is_empty() && case.is_forwarded_by_ours();
            let is_about_another =
                case.comes_after_another_syn() && is_forwarded_by_oracle() && case.ours.is_empty();
            case.steps.iter().all(is_error) && (is_late || is_about_another)
        },
    },
    Difference {
        name: "IP options",
        category: Category::IpOptions,
        reason: "packets with IP options are not translated but dropped, of a session as of who may use a rule: they are hardly ever \
                 anything good, and most networks drop them (RFC 7126). A SYN with them leaves no session, so what its server sends goes to a \
                 port of this machine that nobody has, whose kernel answers with a reset",
        applies: |case| {
            let is_dropped = case.all_have_options() && !case.oracle.is_empty() && case.ours.is_empty();
            let has_no_session = case.all_tcp()
                && case.sender() == Some(Side::Server)
                && case.opened_with_options()
                && case.ours.iter().all(|seen| seen.own && seen.is_reset());
            is_dropped || has_no_session
        },
    },
    Difference {
        name: "IP options of outsiders",
        category: Category::IpOptions,
        reason: "who may not use any rule reaches the machine itself as if it were no router, and nothing there is looked at behind IP \
                 options; the oracle's firewall looks at ports all the same",
        applies: |case| {
            let is_answered_by_the_stack = |seen: &Seen| seen.own && Some(seen.side) == case.sender();
            case.all_have_options()
                && case.steps.iter().all(|step| step.source.is_some())
                && case.oracle.is_empty()
                && case.ours.iter().all(is_answered_by_the_stack)
        },
    },
    Difference {
        name: "tiny fragments",
        category: Category::Fragment,
        reason: "a first fragment has all of a TCP header, and no other one has any of it (RFC 1858, RFC 3128); the kernel puts the \
                 datagram together, and then knows",
        applies: |case| {
            case.all_tcp()
                && case
                    .steps
                    .iter()
                    .any(|step| step.cut.is_some_and(|cut| cut.offset == 0 && cut.length < TCP_HEADER))
                && !case.oracle.is_empty()
                && case.ours.is_empty()
        },
    },
    Difference {
        name: "damaged SYNs",
        category: Category::Malformed,
        reason: "a SYN whose checksum is wrong opens no session: its target discards it, so it would only hold a port; the oracle takes its \
                 veth's word for it that checksums are right",
        applies: |case| {
            let is_damaged_syn = |step: &&Step| {
                step.damage == Some(Damage::L4Checksum)
                    && matches!(step.body, Body::Tcp { flags, .. } if flags & SYN != 0)
            };
            case.steps.iter().all(is_damaged_syn) && !case.oracle.is_empty() && case.ours.is_empty()
        },
    },
    Difference {
        name: "fragments of what never is complete",
        category: Category::Fragment,
        reason: "fragments are translated as they come, and not put together before; the receiver discards what stays incomplete",
        applies: |case| {
            let to = case.sender().map(Side::other);
            let is_piece = |seen: &Seen| !seen.own && Some(seen.side) == to && seen.is_fragment();
            case.steps.iter().all(|step| step.cut.is_some())
                && case.oracle.is_empty()
                && case.ours.iter().all(is_piece)
        },
    },
];

/// TCP's header without options.
const TCP_HEADER: usize = 20;

impl Case<'_> {
    /// Returns `true` if this step, or one before it in its session, was added for this category.
    fn follows(&self, category: Category) -> bool {
        let Some(this) = self.steps.first() else { return false };
        // To its last fragment: before that, the oracle does not have the whole of it.
        let last = self.sequence.steps.iter().rposition(|step| step.number == this.number);
        let until = self.sequence.steps.iter().take(last.map_or(0, |last| last + 1));
        until.into_iter().any(|step| step.session == this.session && step.spice == Some(category))
    }

    /// Returns `true` if its session has been reset before.
    fn comes_after_a_reset(&self) -> bool {
        let Some(this) = self.steps.first() else { return false };
        let mut before = self.sequence.steps.iter().take_while(|step| step.number != this.number);
        before.any(|step| {
            step.session == this.session && matches!(step.body, Body::Tcp { flags, .. } if flags & RST != 0)
        })
    }

    /// Returns `true` if its client has opened more than one connection of its session before.
    fn comes_after_another_syn(&self) -> bool {
        let Some(this) = self.steps.first() else { return false };
        let before = self.sequence.steps.iter().take_while(|step| step.number != this.number);
        let opens = |step: &&Step| {
            step.session == this.session
                && step.from == Side::Client
                && matches!(step.body, Body::Tcp { flags, .. } if flags & (SYN | ACK) == SYN)
        };
        before.filter(opens).count() > 1
    }

    /// Returns `true` if every SYN of its client before it had IP options, and there was one.
    fn opened_with_options(&self) -> bool {
        let Some(this) = self.steps.first() else { return false };
        let before = self.sequence.steps.iter().take_while(|step| step.number != this.number);
        let mut syns = before.filter(|step| {
            step.session == this.session
                && step.from == Side::Client
                && matches!(step.body, Body::Tcp { flags, .. } if flags & (SYN | ACK) == SYN)
        });
        let first = syns.next();
        first.is_some_and(|first| syns.chain([first]).all(|step| !step.options.is_empty()))
    }

    /// Returns `true` if a server has reset a connection of this tuple after it had opened, and the
    /// rules lead elsewhere since.
    fn comes_after_a_servers_reset(&self) -> bool {
        let Some(this) = self.steps.first() else { return false };
        let before = || self.sequence.steps.iter().take_while(|step| step.number != this.number);
        let answers = |step: &Step| matches!(step.body, Body::Tcp { flags, .. } if flags & SYN != 0);
        let resets = |step: &&Step| {
            step.from == Side::Server && matches!(step.body, Body::Tcp { flags, .. } if flags & RST != 0)
        };
        let mut reset = before().filter(resets).filter(|reset| {
            before().any(|step| step.session == reset.session && step.from == Side::Server && answers(step))
        });
        let sessions = &self.sequence.sessions;
        reset.any(|reset| {
            let old = &sessions[reset.session];
            sessions[reset.session..].iter().any(|session| session.server != old.server || session.refused)
        })
    }

    /// Returns `true` if a router has sent a time exceeded error.
    fn has_ended_at(&self, seen: &[Seen]) -> bool {
        let has_ended = |seen: &Seen| seen.own && seen.icmp_kind() == Some(TIME_EXCEEDED);
        self.steps.iter().all(|step| step.ttl <= 1) && !seen.is_empty() && seen.iter().all(has_ended)
    }

    /// Returns `true` if pls-router has only sent a fragmentation needed error.
    fn is_too_long_for_ours(&self) -> bool {
        matches!(self.ours, [seen] if seen.own && seen.icmp_kind() == Some(UNREACHABLE))
    }

    /// Returns `true` if no packet has opened the connection yet.
    fn has_no_connection(&self) -> bool {
        let Some(this) = self.steps.first() else { return false };
        let mut until =
            self.sequence.steps.iter().take_while(|step| step.number != this.number).chain([*this]);
        let opens = |step: &Step| matches!(step.body, Body::Tcp { flags, .. } if flags & SYN != 0);
        self.all_tcp() && !until.any(|step| step.session == this.session && opens(step))
    }

    /// Returns `true` if neither this packet nor one before it opens its connection.
    fn opens_nothing(&self) -> bool {
        let Some(this) = self.steps.first() else { return false };
        let mut until =
            self.sequence.steps.iter().take_while(|step| step.number != this.number).chain([*this]);
        let opens = |step: &Step| matches!(step.body, Body::Tcp { flags, .. } if flags & (SYN | ACK | RST | FIN) == SYN);
        !until.any(|step| step.session == this.session && opens(step))
    }

    fn all_have_options(&self) -> bool {
        self.steps.iter().all(|step| !step.options.is_empty())
    }

    fn sender(&self) -> Option<Side> {
        self.steps.first().map(|step| step.from)
    }

    fn all_tcp(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.body, Body::Tcp { .. }))
    }

    /// Returns `true` if pls-router has only forwarded it.
    fn is_forwarded_by_ours(&self) -> bool {
        let to = self.sender().map(Side::other);
        matches!(self.ours, [seen] if !seen.own && Some(seen.side) == to)
    }
}
