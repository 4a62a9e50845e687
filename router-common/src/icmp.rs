//! ICMP errors about packets that the router has translated (RFC 792; RFC 5508 section 4).
//!
//! An error quotes the packet that it is about: its IP header and at least 8 bytes of what follows
//! (RFC 792), often more (RFC 1812 4.3.2.3). The quoted packet is the translated one, so its sender
//! cannot match the error to anything until the quote is translated back.
//!
//! The checksum of the quote's IP header is not verified, although RFC 5508 REQ-3 a) asks for that:
//! some routers quote headers that they have already changed, and an error that names a session's
//! tuple is better delivered than lost.

use core::cell::Cell;

use crate::{
    address::{Ipv4, Port},
    checksum::Sum,
    rewrite::Rewrite,
    tuple::{FlowKey, Protocol},
    wire::{ICMP_LENGTH, TCP_LENGTH, icmp, ipv4, tcp, udp},
};

/// The bytes of a message that there is room for. Routers quote so much that the packet has 576
/// bytes at most (RFC 1812 4.3.2.3).
///
/// Miri looks at each cell whenever a reference to all is passed on, and takes seconds for one
/// message of the usual size.
pub const CAPACITY: usize = if cfg!(miri) { 256 } else { 1024 };
/// The part of a message that translation may change: the ICMP header, the longest IP header, and
/// TCP's up to its checksum.
pub const HEAD: usize = QUOTE + 60 + TCP_LENGTH;

/// The start of the quoted packet.
const QUOTE: usize = ICMP_LENGTH;
const QUOTE_FRAGMENT: usize = QUOTE + ipv4::FRAGMENT;
const QUOTE_PROTOCOL: usize = QUOTE + ipv4::PROTOCOL;
const QUOTE_CHECKSUM: usize = QUOTE + ipv4::CHECKSUM;
const QUOTE_SOURCE: usize = QUOTE + ipv4::SOURCE;
const QUOTE_DESTINATION: usize = QUOTE + ipv4::DESTINATION;

/// The bytes of the transport header that every quote has.
const MINIMUM_QUOTED: usize = 8;

/// An ICMP message, or its start if it is longer than there is room for. In cells, since it lives
/// in scratch.
#[derive(Debug)]
pub struct Message {
    /// Its length on the wire.
    pub length: Cell<u32>,
    /// Its bytes. Those after its length are old memory.
    pub bytes: [Cell<u8>; CAPACITY],
}

impl Message {
    /// Creates a message of this length, with these bytes.
    #[cfg(not(target_arch = "bpf"))]
    pub fn new(length: u32, bytes: [u8; CAPACITY]) -> Self {
        Self { length: Cell::new(length), bytes: bytes.map(Cell::new) }
    }

    /// Returns a copy of its bytes.
    #[cfg(not(target_arch = "bpf"))]
    pub fn to_bytes(&self) -> [u8; CAPACITY] {
        core::array::from_fn(|at| self.bytes[at].get())
    }

    /// Returns the tuple of the quoted packet, as the router that made the error has seen it.
    /// Returns `None` if this is not an error, or if the quote is too short or of a packet that the
    /// router does not translate.
    #[inline(always)]
    pub fn quoted(&self) -> Option<FlowKey> {
        let [first, _] = self.word(QUOTE);
        let l4 = self.l4();
        if !icmp::is_end_to_end_error(self.bytes[icmp::TYPE].get()) || first >> 4 != 4 || first & 0x0f < 5 {
            return None;
        }
        if self.length.get() < (l4 + MINIMUM_QUOTED) as u32
            // There are no ports in a later fragment.
            || u16::from_be_bytes(self.word(QUOTE_FRAGMENT)) & ipv4::FRAGMENT_OFFSET != 0
        {
            return None;
        }
        let protocol = self.protocol()?;
        let (source_port, destination_port) = match protocol {
            Protocol::Tcp | Protocol::Udp => {
                (Port(self.word(l4 + tcp::SOURCE_PORT)), Port(self.word(l4 + tcp::DESTINATION_PORT)))
            }
            // Without an identifier, a request has the tuple of a reply, and its direction is not
            // known.
            Protocol::Icmp if self.word(l4 + icmp::IDENTIFIER) == [0, 0] => return None,
            Protocol::Icmp => match self.word(l4 + icmp::TYPE) {
                [icmp::ECHO_REQUEST, 0] => (Port(self.word(l4 + icmp::IDENTIFIER)), Port([0, 0])),
                [icmp::ECHO_REPLY, 0] => (Port([0, 0]), Port(self.word(l4 + icmp::IDENTIFIER))),
                _ => return None,
            },
        };
        let source = self.address(QUOTE_SOURCE);
        let destination = self.address(QUOTE_DESTINATION);
        Some(FlowKey::new(protocol, source, source_port, destination, destination_port))
    }

    /// Translates the quote back into the packet that the router had received, and keeps all
    /// checksums as right as they were. `rewrite` is that of the flow which the error travels with,
    /// whose packets answer the quoted one. The caller has checked the quote with
    /// [`quoted`](Self::quoted).
    #[inline(always)]
    pub fn translate(&self, rewrite: &Rewrite) {
        let Some(protocol) = self.protocol() else { return };
        let l4 = self.l4();
        let addresses = self
            .set_address(QUOTE_SOURCE, rewrite.destination)
            .plus(self.set_address(QUOTE_DESTINATION, rewrite.source));
        let header = addresses.apply(self.word(QUOTE_CHECKSUM));
        let header = self.replace(QUOTE_CHECKSUM, header);
        let ports = match protocol {
            Protocol::Tcp | Protocol::Udp => self
                .replace(l4 + tcp::SOURCE_PORT, rewrite.destination_port.0)
                .plus(self.replace(l4 + tcp::DESTINATION_PORT, rewrite.source_port.0)),
            Protocol::Icmp => {
                // One of the two is zero, see `FlowKey`.
                let ([a, b], [c, d]) = (rewrite.destination_port.0, rewrite.source_port.0);
                self.replace(l4 + icmp::IDENTIFIER, [a | c, b | d])
            }
        };
        let transport = match protocol {
            Protocol::Tcp if self.length.get() < (l4 + tcp::CHECKSUM + 2) as u32 => Sum::ZERO,
            Protocol::Tcp => {
                let new = addresses.plus(ports).apply(self.word(l4 + tcp::CHECKSUM));
                self.replace(l4 + tcp::CHECKSUM, new)
            }
            Protocol::Udp => {
                let new = addresses.plus(ports).apply_udp(self.word(l4 + udp::CHECKSUM));
                self.replace(l4 + udp::CHECKSUM, new)
            }
            Protocol::Icmp => {
                let new = ports.apply(self.word(l4 + icmp::CHECKSUM));
                self.replace(l4 + icmp::CHECKSUM, new)
            }
        };
        let change = addresses.plus(header).plus(ports).plus(transport);
        let new = change.apply(self.word(icmp::CHECKSUM));
        self.put(icmp::CHECKSUM, new);
    }

    /// Returns the offset of the quoted packet's transport header.
    #[inline(always)]
    const fn l4(&self) -> usize {
        QUOTE + (self.bytes[QUOTE].get() & 0x0f) as usize * 4
    }

    #[inline(always)]
    const fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.bytes[QUOTE_PROTOCOL].get())
    }

    /// Returns the word at an even offset.
    #[inline(always)]
    const fn word(&self, at: usize) -> [u8; 2] {
        let at = at & (CAPACITY - 2);
        [self.bytes[at].get(), self.bytes[at + 1].get()]
    }

    #[inline(always)]
    fn put(&self, at: usize, new: [u8; 2]) {
        let at = at & (CAPACITY - 2);
        self.bytes[at].set(new[0]);
        self.bytes[at + 1].set(new[1]);
    }

    /// Replaces the word at an even offset. Returns the change of the checksums that cover it.
    #[inline(always)]
    fn replace(&self, at: usize, new: [u8; 2]) -> Sum {
        let change = Sum::ZERO.remove(self.word(at)).add(new);
        self.put(at, new);
        change
    }

    #[inline(always)]
    const fn address(&self, at: usize) -> Ipv4 {
        let ([a, b], [c, d]) = (self.word(at), self.word(at + 2));
        Ipv4([a, b, c, d])
    }

    #[inline(always)]
    fn set_address(&self, at: usize, new: Ipv4) -> Sum {
        let change = new.sum().minus(self.address(at).sum());
        let [a, b, c, d] = new.0;
        self.put(at, [a, b]);
        self.put(at + 2, [c, d]);
        change
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::effort::tries;

    /// A packet to be quoted: an IP header of `ihl` words, and what follows.
    fn packet(protocol: Protocol, ihl: u8, key: &FlowKey, payload: &[u8], checksum: bool) -> Vec<u8> {
        let mut l4 = match protocol {
            Protocol::Tcp => [&key.source_port.0[..], &key.destination_port.0, &[7; 16]].concat(),
            Protocol::Udp => [&key.source_port.0[..], &key.destination_port.0, &[0, 0, 0, 0]].concat(),
            Protocol::Icmp if key.destination_port.number() == 0 => {
                [&[8, 0, 0, 0][..], &key.source_port.0, &[0, 1]].concat()
            }
            Protocol::Icmp => [&[0, 0, 0, 0][..], &key.destination_port.0, &[0, 1]].concat(),
        };
        l4.extend_from_slice(payload);
        let length = l4.len() as u16;
        if protocol == Protocol::Udp {
            l4[4..6].copy_from_slice(&length.to_be_bytes());
        }
        let at = match protocol {
            Protocol::Tcp => tcp::CHECKSUM,
            Protocol::Udp => udp::CHECKSUM,
            Protocol::Icmp => icmp::CHECKSUM,
        };
        l4[at..at + 2].fill(0);
        if checksum {
            let pseudo = match protocol {
                Protocol::Icmp => Sum::ZERO,
                Protocol::Tcp | Protocol::Udp => key
                    .source
                    .sum()
                    .plus(key.destination.sum())
                    .add([0, protocol as u8])
                    .add(length.to_be_bytes()),
            };
            let mut sum = pseudo.add_bytes(&l4).checksum();
            if protocol == Protocol::Udp && sum == [0, 0] {
                sum = [0xff, 0xff];
            }
            l4[at..at + 2].copy_from_slice(&sum);
        }
        let mut ip = vec![0; usize::from(ihl) * 4];
        ip[0] = 0x40 | ihl;
        ip[2..4].copy_from_slice(&(u16::from(ihl) * 4 + length).to_be_bytes());
        ip[8] = 1;
        ip[9] = protocol as u8;
        ip[12..16].copy_from_slice(&key.source.0);
        ip[16..20].copy_from_slice(&key.destination.0);
        ip[20..].fill(1);
        let sum = Sum::ZERO.add_bytes(&ip).checksum();
        ip[10..12].copy_from_slice(&sum);
        [ip, l4].concat()
    }

    fn error(quote: &[u8]) -> Message {
        let mut bytes = [0xee; CAPACITY];
        bytes[..8].copy_from_slice(&[11, 0, 0, 0, 0, 0, 0, 0]);
        bytes[8..8 + quote.len()].copy_from_slice(quote);
        let length = 8 + quote.len();
        let sum = Sum::ZERO.add_bytes(&bytes[..length]).checksum();
        bytes[2..4].copy_from_slice(&sum);
        Message::new(length as u32, bytes)
    }

    fn key(protocol: Protocol) -> FlowKey {
        let port = Port::new(if protocol == Protocol::Icmp { 0 } else { 443 });
        FlowKey::new(protocol, Ipv4([10, 0, 0, 1]), Port::new(5000), Ipv4([192, 0, 2, 1]), port)
    }

    #[test]
    fn only_whole_quotes_of_translated_protocols_count() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            let quote = packet(protocol, 5, &key(protocol), &[], true);
            assert_eq!(error(&quote[..28]).quoted(), Some(key(protocol)));
            assert_eq!(error(&quote[..27]).quoted(), None, "too short");
            let options = packet(protocol, 15, &key(protocol), &[], true);
            assert_eq!(error(&options[..68]).quoted(), Some(key(protocol)));
            assert_eq!(error(&options[..67]).quoted(), None, "too short, with options");
            for (at, byte, what) in [
                (0, 0x65, "version"),
                (0, 0x44, "header length"),
                (7, 1, "a later fragment"),
                (6, 0x10, "a later fragment"),
                (9, 47, "GRE"),
                (9, 4, "IPIP"),
            ] {
                let mut quote = quote.clone();
                quote[at] = byte;
                assert_eq!(error(&quote).quoted(), None, "{what}");
            }
            let mut first = quote.clone();
            first[6] = 0x20;
            assert_eq!(error(&first).quoted(), Some(key(protocol)), "a first fragment has ports");
            let message = error(&quote);
            for kind in 0..=u8::MAX {
                message.bytes[0].set(kind);
                assert_eq!(message.quoted().is_some(), matches!(kind, 3 | 4 | 11 | 12), "type {kind}");
            }
        }
        let mut quote = packet(Protocol::Icmp, 5, &key(Protocol::Icmp), &[], true);
        quote[20] = 13;
        assert_eq!(error(&quote).quoted(), None, "ICMP, but no echo");
        for kind in [0, 8] {
            let mut quote = packet(Protocol::Icmp, 5, &key(Protocol::Icmp), &[], true);
            quote[20] = kind;
            quote[24..26].fill(0);
            assert_eq!(error(&quote).quoted(), None, "an echo without an identifier");
        }
    }

    /// Every checksum that there is, both zeros among them: before, after, and of the message.
    #[test]
    fn both_zeros_come_out_as_from_scratch() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            let sent = key(protocol);
            let translated =
                sent.between(Ipv4([10, 9, 8, 7]), Port::new(6000), sent.destination, sent.destination_port);
            for word in (0..=u16::MAX).step_by(tries(1, 0xffff) as usize) {
                let message = error(&packet(protocol, 5, &translated, &word.to_be_bytes(), true));
                message.translate(&Rewrite::to(&sent.reversed()));
                let wanted = error(&packet(protocol, 5, &sent, &word.to_be_bytes(), true));
                assert_eq!(message.to_bytes(), wanted.to_bytes(), "{protocol:?} {word:#x}");
            }
        }
    }

    fn protocols() -> impl Strategy<Value = Protocol> {
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Icmp)]
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        /// The error about a translated packet becomes, byte for byte, the error about the original
        /// packet.
        #[test]
        fn the_quote_becomes_what_was_sent(
            protocol in protocols(),
            ihl in 5..=15_u8,
            (sent, translated) in any::<([u8; 12], [u8; 12])>(),
            reply in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 0..tries(600, 100) as usize),
            checksum in any::<bool>(),
            quoted in 8..tries(700, 200) as usize,
        ) {
            let key = |bytes: [u8; 12]| {
                let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
                let (mut source, mut destination) = (Port([i, j]), Port([k, l]));
                if protocol == Protocol::Icmp {
                    let (identifier, other) =
                        if reply { (&mut destination, &mut source) } else { (&mut source, &mut destination) };
                    *other = Port([0, 0]);
                    // An echo with the identifier 0 belongs to no session.
                    if identifier.number() == 0 {
                        *identifier = Port([0, 1]);
                    }
                }
                FlowKey::new(protocol, Ipv4([a, b, c, d]), source, Ipv4([e, f, g, h]), destination)
            };
            let (sent, translated) = (key(sent), key(translated));
            // Only UDP has an optional checksum.
            let checksum = checksum || protocol != Protocol::Udp;
            // Half a checksum cannot be kept right.
            let quoted = if quoted == tcp::CHECKSUM + 1 { quoted + 1 } else { quoted };
            let quote = |key| {
                let packet = packet(protocol, ihl, key, &payload, checksum);
                let length = packet.len().min(usize::from(ihl) * 4 + quoted);
                error(&packet[..length])
            };
            let message = quote(&translated);
            prop_assert_eq!(message.quoted(), Some(translated));
            message.translate(&Rewrite::to(&sent.reversed()));
            prop_assert_eq!(message.quoted(), Some(sent));
            let wanted = quote(&sent);
            // Both UDP checksums were computed from scratch, so zero has the same form in both.
            prop_assert_eq!(message.length.get(), wanted.length.get());
            prop_assert_eq!(&message.to_bytes()[..], &wanted.to_bytes()[..]);
        }

        /// For any bytes, nothing after the head is touched, and a valid checksum stays valid.
        #[test]
        fn any_bytes_are_translated_safely(
            bytes in proptest::collection::vec(any::<u8>(), CAPACITY),
            length in 8..=CAPACITY,
            protocol in protocols(),
            rewrite in any::<[u8; 12]>(),
        ) {
            let mut before: [u8; CAPACITY] = bytes.try_into().expect("its length");
            before[0] = 3;
            before[QUOTE] = 0x40 | before[QUOTE] & 0x0f;
            before[QUOTE_FRAGMENT..QUOTE_FRAGMENT + 2].fill(0);
            before[QUOTE_PROTOCOL] = protocol as u8;
            before[icmp::CHECKSUM..icmp::CHECKSUM + 2].fill(0);
            let sum = Sum::ZERO.add_bytes(&before[..length]).checksum();
            before[icmp::CHECKSUM..icmp::CHECKSUM + 2].copy_from_slice(&sum);
            let message = Message::new(length as u32, before);
            let [a, b, c, d, e, f, g, h, i, j, k, l] = rewrite;
            if message.quoted().is_some() {
                message.translate(&Rewrite {
                    source: Ipv4([a, b, c, d]),
                    destination: Ipv4([e, f, g, h]),
                    source_port: Port([i, j]),
                    destination_port: Port([k, l]),
                });
            }
            let after = message.to_bytes();
            prop_assert_eq!(&before[HEAD.min(length)..], &after[HEAD.min(length)..]);
            prop_assert!(Sum::ZERO.add_bytes(&after[..length]).is_valid());
        }
    }
}
