//! Layout 9.

use router_common::{
    entry::{FlowRecord, NextHop},
    rewrite::Rewrite,
    session::Seen,
    tcp,
    time::Ticks,
    tuple::Direction,
};

use super::{Description, MovedSettings, SLOT_WORDS, key, number};
use crate::dataplane::moving::MovedFlow;

pub(super) const DESCRIPTION: Description = Description {
    layout: 9,
    bucket_bytes: 128,
    slots_per_bucket: 2,
    is_used,
    read_slot,
    capacity: 4,
    settings_bytes: 112,
    read_settings,
    rule_bytes: 292,
    rules: 512,
    first_rule: |version| (version & 1) * 512,
    rule_name: 0..32,
    // Number 22 of counters of 16 bytes, which begin with packets.
    refused: 22 * 16,
};

// The tag, from the lowest bit on: protocol (8 bits), state (3), opening, TCP flags (8), unused,
// clients' side only, direction, rule (9).
const LIVE: u32 = 3;
const HELD: u32 = 6;
const STATE_SHIFT: u32 = 8;
const OPENING_SHIFT: u32 = 11;
const SEEN_SHIFT: u32 = 12;
const CLIENTS_SIDE_SHIFT: u32 = 21;
const REPLY_SHIFT: u32 = 22;
const RULE_SHIFT: u32 = 23;

// Bits of the TCP flags in the tag besides those of the TCP header.
const ADOPTED: u8 = 0x10;
const RESET_AHEAD: u8 = 0x08;

/// The bits of the tick in which a session was opened.
const OPENED_BITS: u32 = 24;
/// The bits below the count of bytes.
const SENT_BITS: u32 = 16;

fn is_used(ports_and_tag: u64) -> bool {
    matches!((ports_and_tag >> (32 + STATE_SHIFT)) as u32 & 7, LIVE | HELD)
}

// The words of a slot: addresses of the key (source, destination); its ports, and above them the
// tag; addresses of the rewrite; packets above the tick of opening; bytes above the upper half of
// the sequence number that was sent; next hop; ports of the rewrite, below the change of the
// header's checksum and the MTU; the sequence number that is expected, and above it the tick of the
// last packet.
fn read_slot(words: &[u64; SLOT_WORDS]) -> Option<MovedFlow> {
    let [addresses, ports_and_tag, to_addresses, packets, bytes, _next_hop, to_ports, times] = *words;
    let tag = (ports_and_tag >> 32) as u32;
    let bit = |shift: u32| tag >> shift & 1 != 0;
    if !is_used(ports_and_tag) {
        return None;
    }
    let is_held = tag >> STATE_SHIFT & 7 == HELD;
    let to = key(tag as u8, to_addresses, to_ports as u32)?;
    let seen = (tag >> SEEN_SHIFT) as u8;
    let last_seen = (times >> 32) as u32;
    let opened = packets as u32 & ((1 << OPENED_BITS) - 1);
    let age = last_seen.wrapping_sub(opened) & ((1 << OPENED_BITS) - 1);
    Some(MovedFlow {
        key: key(tag as u8, addresses, ports_and_tag as u32)?,
        is_held,
        direction: if bit(REPLY_SHIFT) { Direction::Reply } else { Direction::Forward },
        rule: (tag >> RULE_SHIFT) as u16,
        is_opening: bit(OPENING_SHIFT),
        is_for_clients_side: bit(CLIENTS_SIDE_SHIFT),
        seen: Seen::restored(
            seen & (tcp::SYN | tcp::FIN | tcp::RST),
            seen & RESET_AHEAD != 0,
            seen & ADOPTED != 0,
        ),
        record: FlowRecord {
            rewrite: Rewrite::to(&to),
            next_hop: NextHop::default(),
            opened: Ticks(last_seen.wrapping_sub(age)),
            last_seen: Ticks(last_seen),
            packets: packets >> OPENED_BITS,
            bytes: bytes >> SENT_BITS,
            expects: times as u32,
            sent: bytes as u16,
        },
    })
}

fn read_settings(bytes: &[u8]) -> Option<MovedSettings> {
    let version = number(bytes, 0)?;
    Some(MovedSettings { version, route_lookups_were_off: number(bytes, 60)? != 0 })
}

/// Compares the description with the map types, as long as they are of this layout.
#[cfg(all(test, not(feature = "other-layout")))]
mod tests {
    use std::mem::{offset_of, size_of};

    use proptest::prelude::*;
    use router_common::{
        address::{Ipv4, Port},
        entry::FlowEntry,
        limits::{LAYOUT, MAX_RULES},
        maps::{
            rules::{Rule, rule_index},
            settings::Settings,
            stats::{Counter, CpuStats},
        },
        reason::Reason,
        table::{BUCKET, Bucket, Occupancy, Slot, SlotState, Tag},
        tuple::{FlowKey, Protocol},
    };

    use super::*;

    const _: () =
        assert!(LAYOUT == DESCRIPTION.layout, "remove this module: the layout is not the current one");

    #[test]
    fn sizes_and_offsets_are_those_of_the_map_types() {
        assert_eq!(DESCRIPTION.bucket_bytes as usize, size_of::<Bucket>());
        assert_eq!(DESCRIPTION.slots_per_bucket, BUCKET);
        assert_eq!(size_of::<Slot>(), SLOT_WORDS * 8);
        assert_eq!(DESCRIPTION.capacity, offset_of!(Occupancy, capacity));
        assert_eq!(DESCRIPTION.settings_bytes, size_of::<Settings>());
        assert_eq!(DESCRIPTION.rule_bytes, size_of::<Rule>());
        assert_eq!(DESCRIPTION.rules as usize, MAX_RULES);
        assert_eq!(DESCRIPTION.rule_name.start, offset_of!(Rule, name));
        assert_eq!(DESCRIPTION.rule_name.end, offset_of!(Rule, targets));
        assert!((1..5).all(|version| (DESCRIPTION.first_rule)(version) == rule_index(version, 0)));
        let counter = offset_of!(CpuStats, reasons) + Reason::TableFull as usize * size_of::<Counter>();
        assert_eq!(DESCRIPTION.refused, counter + offset_of!(Counter, packets));
        assert_eq!(offset_of!(Settings, version), 0);
        assert_eq!(offset_of!(Settings, route_lookups_were_off), 60);
    }

    fn keys() -> impl Strategy<Value = FlowKey> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Icmp)];
        (protocol, any::<[[u8; 4]; 2]>(), any::<[[u8; 2]; 2]>()).prop_map(
            |(protocol, [from, to], [by, at])| {
                FlowKey::new(protocol, Ipv4(from), Port(by), Ipv4(to), Port(at))
            },
        )
    }

    /// The words of a slot.
    fn words(slot: &Slot) -> [u64; SLOT_WORDS] {
        // SAFETY: a slot is as many words, asserted above, of numbers that nobody writes now.
        unsafe { std::ptr::from_ref(slot).cast::<[u64; SLOT_WORDS]>().read() }
    }

    proptest! {
        #[test]
        fn a_flow_is_read_as_the_map_types_have_it(
            key in keys(),
            to in keys(),
            (opened, age) in (1 << 24..1_u32 << 30, 0_u32..1 << 24),
            (packets, bytes) in (0_u64..1 << 40, 0_u64..1 << 48),
            (expects, sent) in any::<(u32, u16)>(),
            (rule, seen) in (0..MAX_RULES as u16, any::<u8>()),
            (is_opening, is_for_clients_side, is_held, is_reply) in any::<(bool, bool, bool, bool)>(),
        ) {
            let record = FlowRecord {
                rewrite: Rewrite::to(&to),
                next_hop: NextHop::default(),
                opened: Ticks(opened),
                last_seen: Ticks(opened + age),
                packets,
                bytes,
                expects,
                sent,
            };
            let entry = FlowEntry::default();
            entry.restore(&key, &record);
            prop_assert_eq!(entry.read(), record);
            let seen = Seen::from_bits(seen).with_other(Seen::NOTHING);
            let direction = if is_reply { Direction::Reply } else { Direction::Forward };
            let tag = Tag::pending(key.protocol_number(), direction, rule, is_opening)
                .for_clients_side(is_for_clients_side)
                .with_seen(seen);
            let slot = Slot::default();
            slot.write(&key, tag, &entry);
            prop_assert_eq!(read_slot(&words(&slot)), None, "packets do not find it yet");
            slot.publish(tag);
            if is_held {
                prop_assert!(slot.hold(&key));
            }
            let flow = read_slot(&words(&slot)).expect("a flow");
            prop_assert_eq!(flow.key, key);
            prop_assert_eq!(flow.is_held, is_held);
            prop_assert_eq!(flow.is_held, slot.tag().state() == SlotState::Held);
            prop_assert_eq!(flow.direction, direction);
            prop_assert_eq!(flow.rule, rule);
            prop_assert_eq!(flow.is_opening, is_opening);
            prop_assert_eq!(flow.is_for_clients_side, is_for_clients_side);
            prop_assert_eq!(flow.seen.with_other(Seen::NOTHING), seen);
            prop_assert_eq!(flow.record, record);
            prop_assert!(slot.retire(&key, Ticks(1)).is_some() != is_held);
            if !is_held {
                prop_assert_eq!(read_slot(&words(&slot)), None, "it is retired");
            }
        }
    }
}
