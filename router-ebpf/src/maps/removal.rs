//! Removes sessions where this machine's own traffic needs their ports, and opening ones that make
//! room for another of their source. All others are removed by the daemon's sweep, or by the stage
//! `claim` if a session that is over gives way to the next one of its tuple.

use router_common::{
    address::{Ipv4, Port},
    ports::PoolKey,
    session::Connection,
    table::{Slot, SlotState, Tag},
    tuple::{Direction, FlowKey, Protocol},
};

use crate::maps::{flows, pools, settings};

/// The result of a removal.
#[repr(u32)]
#[derive(Clone, Copy)]
pub(crate) enum Removal {
    /// There was no session, or another CPU is removing it.
    Nothing = 0,
    /// The session is a connection that was answered and has not ended: it stays.
    Alive = 1,
    /// The session is removed.
    Removed = 2,
}

/// Removes the session that packets with this tuple match, in either direction, as the daemon's
/// sweep does. A live connection stays.
#[inline(always)]
pub(crate) fn remove(key: &FlowKey) -> Removal {
    match remove_session(key.addresses(), key.ports(), key.protocol_number().into()) {
        1 => Removal::Alive,
        2 => Removal::Removed,
        _ => Removal::Nothing,
    }
}

/// As [`remove`], for a tuple in numbers. A global function: the verifier looks at it apart from
/// its caller.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remove_session(addresses: u64, ports: u32, protocol: u32) -> u32 {
    let (Some(settings), Some(key)) = (settings::get(), key_of(addresses, ports, protocol)) else {
        return Removal::Nothing as u32;
    };
    let Some(slot) = flows::find(&key, settings) else { return Removal::Nothing as u32 };
    let twin_key = key.twin(&slot.entry.rewrite());
    let Some(twin) = flows::find(&twin_key, settings) else { return Removal::Nothing as u32 };
    // The remains of half a session may lead to a later session.
    if twin_key.twin(&twin.entry.rewrite()) != key {
        return Removal::Nothing as u32;
    }
    let (forward, reply, client, reply_key) = match slot.tag().direction() {
        Direction::Forward => (slot, twin, key.source, twin_key),
        Direction::Reply => (twin, slot, twin_key.source, key),
    };
    if protocol == Protocol::Tcp as u32 && is_alive(forward.tag(), reply.tag()) {
        return Removal::Alive as u32;
    }
    // In this order, since the reply flow holds the port.
    let Some(tag) = retire(forward) else { return Removal::Nothing as u32 };
    if let Some(occupancy) = flows::occupancy() {
        occupancy.leave();
    }
    if tag.is_opening()
        && let Some(half_open) = flows::half_open(settings, client)
    {
        half_open.leave();
    }
    free_port(reply, &reply_key);
    Removal::Removed as u32
}

/// Removes the session whose client's flow has this tag in this slot, and leaves it counted as
/// half-open. Returns 1 if this call removed it. A global function, see above.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn session_gives_way(index: u32, tag: u32) -> u32 {
    // One after the other, or the compiler computes with what the verifier does not yet know to be
    // there.
    let Some(settings) = settings::get() else { return 0 };
    let Some(forward) = flows::at_index(index) else { return 0 };
    let key = forward.key();
    let reply_key = key.twin(&forward.entry.rewrite());
    if !forward.retire_from(Tag(tag), flows::now()) {
        return 0;
    }
    if let Some(occupancy) = flows::occupancy() {
        occupancy.leave();
    }
    if let Some(reply) = flows::find(&reply_key, settings)
        && reply_key.twin(&reply.entry.rewrite()) == key
    {
        free_port(reply, &reply_key);
    }
    1
}

/// Retires the reply flow of a session without a forward flow, and so frees its port.
#[inline(always)]
fn free_port(reply: &Slot, key: &FlowKey) {
    // Otherwise the sweep finds it.
    if retire(reply).is_some() {
        // Looked for after the flow is gone, see `Pool`.
        if let Some(pool) = pools::find(&PoolKey::of(key)).and_then(pools::pool) {
            pool.clear(key.destination_port.number());
        }
    }
}

#[inline(always)]
const fn is_alive(forward: Tag, reply: Tag) -> bool {
    let connection =
        Connection { forward: forward.seen(), reply: reply.seen(), opening: forward.is_opening() };
    !connection.is_over() && !connection.is_unanswered()
}

/// The attempts to retire a flow while packets of its session change its tag.
const ATTEMPTS: u32 = 4;

/// Retires a live flow. Returns the tag that it had, if this call retired it.
#[inline(always)]
fn retire(slot: &Slot) -> Option<Tag> {
    for _ in 0..ATTEMPTS {
        let tag = slot.tag();
        if !matches!(tag.state(), SlotState::Live) {
            return None;
        }
        if slot.retire_from(tag, flows::now()) {
            return Some(tag);
        }
    }
    None
}

/// The tuple of [`FlowKey::addresses`], [`FlowKey::ports`] and its protocol's number.
#[inline(always)]
const fn key_of(addresses: u64, ports: u32, protocol: u32) -> Option<FlowKey> {
    let Some(protocol) = Protocol::from_number(protocol as u8) else { return None };
    let source = Ipv4((addresses as u32).to_ne_bytes());
    let destination = Ipv4(((addresses >> 32) as u32).to_ne_bytes());
    let [a, b, c, d] = ports.to_ne_bytes();
    Some(FlowKey::new(protocol, source, Port([a, b]), destination, Port([c, d])))
}
