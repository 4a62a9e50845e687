//! Descriptions of layouts: how to read what a data plane has pinned, by the number of its layout.
//!
//! A description is frozen. It names offsets and bits itself and uses none of `router_common`'s map
//! types, so it stays right when those change. A layout's description is kept for at least one
//! version after the layout has gone. While a layout is the current one, tests compare its
//! description with the map types.

mod layout_9;

use anyhow::{Result, ensure};
use router_common::{shared::Shared, tuple::FlowKey};

use crate::dataplane::moving::MovedFlow;

/// Every description.
static KNOWN: [Description; 1] = [layout_9::DESCRIPTION];

/// A slot of any layout as the memory has it: a cache line of numbers.
pub(super) type RawSlot = [Shared<u64>; SLOT_WORDS];

/// The number of 64-bit words of a slot, in every layout so far.
pub(super) const SLOT_WORDS: usize = 8;

/// A description of one layout.
pub(super) struct Description {
    /// The number of the layout.
    pub(super) layout: u32,
    /// The size of a value of `FLOWS` in bytes, and how many slots it has.
    pub(super) bucket_bytes: u32,
    pub(super) slots_per_bucket: u32,
    /// Returns `true` if the second word of a slot says that a flow or a held key is in it. Most
    /// slots are empty, and are passed over by this alone.
    pub(super) is_used: fn(u64) -> bool,
    /// Reads a slot: the flow or the held key that is in it.
    pub(super) read_slot: fn(&[u64; SLOT_WORDS]) -> Option<MovedFlow>,
    /// The offset in the one value of `OCCUPANCY` of the number of sessions that there may be, in
    /// bytes. With 0 there, the programs open no session, and drop the packets that would.
    pub(super) capacity: usize,
    /// The size of a value of `SETTINGS`.
    pub(super) settings_bytes: usize,
    /// Reads `SETTINGS`.
    pub(super) read_settings: fn(&[u8]) -> Option<MovedSettings>,
    /// The size of a value of `RULES`.
    pub(super) rule_bytes: usize,
    /// The number of rules, and the index in `RULES` of the first of a version's.
    pub(super) rules: u32,
    pub(super) first_rule: fn(version: u32) -> u32,
    /// The bytes of a rule's name in its value of `RULES`.
    pub(super) rule_name: std::ops::Range<usize>,
    /// The offset of the counter of packets that found no room in the table, in the value of
    /// `STATS` of each CPU.
    pub(super) refused: usize,
}

/// The part of another data plane's settings that matters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct MovedSettings {
    /// The rule set in force; 0 is none.
    pub(super) version: u32,
    /// `true` if `detach` is to switch route lookups off.
    pub(super) route_lookups_were_off: bool,
}

impl Description {
    /// Returns the description of a layout, if there is one.
    pub(super) fn of(layout: u32) -> Option<&'static Self> {
        KNOWN.iter().find(|known| known.layout == layout)
    }

    /// Reads the flow or the held key that is in a slot, if it stays there meanwhile.
    pub(super) fn read(&self, slot: &RawSlot) -> Option<MovedFlow> {
        if !(self.is_used)(slot[1].get()) {
            return None;
        }
        let words = || slot.each_ref().map(|word: &Shared<u64>| word.get());
        let flow = (self.read_slot)(&words())?;
        let again = (self.read_slot)(&words())?;
        (flow.identity() == again.identity()).then_some(flow)
    }

    /// Returns the number of slots of a `FLOWS` with values of this size.
    pub(super) fn slots(&self, value_size: u32, max_entries: u32) -> Result<u32> {
        ensure!(
            value_size == self.bucket_bytes,
            "FLOWS has values of {value_size} bytes, and layout {} of {}",
            self.layout,
            self.bucket_bytes
        );
        Ok(max_entries * self.slots_per_bucket)
    }
}

/// Returns a key if a slot holds one of a protocol that the router translates.
fn key(protocol: u8, addresses: u64, ports: u32) -> Option<FlowKey> {
    use router_common::{
        address::{Ipv4, Port},
        tuple::Protocol,
    };
    let address = |word: u32| Ipv4(word.to_le_bytes());
    let port = |word: u16| Port(word.to_le_bytes());
    Some(FlowKey::new(
        Protocol::from_number(protocol)?,
        address(addresses as u32),
        port(ports as u16),
        address((addresses >> 32) as u32),
        port((ports >> 16) as u16),
    ))
}

/// Returns the number at an offset.
fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use router_common::limits::LAYOUT;

    use super::*;

    #[test]
    fn every_layout_has_one_description() {
        for (at, known) in KNOWN.iter().enumerate() {
            assert!(KNOWN.iter().skip(at + 1).all(|other| other.layout != known.layout));
        }
        assert!(Description::of(0).is_none());
        assert_eq!(
            Description::of(LAYOUT).is_some(),
            !cfg!(feature = "other-layout"),
            "the current layout needs a description, for tables of another size and for the next layout"
        );
    }
}
