//! The program `claim`: finds a free SNAT port and inserts a new session into the flow table.

use aya_ebpf::{bindings::xdp_md, cty::c_void, helpers::generated::bpf_loop};
use router_common::{
    address::{Ipv4, Port},
    maps::{settings::Live, stages::Stage},
    ports::{GUESSES, GUESSES_BEFORE_POOL, PoolKey, Take},
    reason::Reason,
    session::Seen,
    table::{InsertError, SlotState, Tag, Vacancy},
    tuple::{Direction, FlowKey, Protocol},
};

use crate::{
    kernel::{own_traffic, sockets},
    maps::{
        flows,
        half_open::{self, Admitted},
        peers, pools, rules, settings,
    },
    session::{
        answer_request,
        opening::{Claim, Earlier, NO_POOL, OPENING, Opening, Phase},
    },
    work::{Exit, Outcome, Work},
};

/// Inserts the session that was decided on into the table, or has the tuple's last session, which
/// is over, start over.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Outcome {
    let opening = OPENING.get().ok_or(Reason::Internal)?;
    if opening.earlier.get() != Earlier::Nothing as u32 {
        match take_over(work.frame.context().ctx) {
            IN_PLACE => return Err(Exit::To(Stage::Slow)),
            MOVED => return insert(work),
            HALF_OPEN_LIMIT => return Err(Reason::HalfOpenLimit.into()),
            BUSY => return Err(Reason::Contended.into()),
            // The sweep has removed the old session.
            _ => {}
        }
    }
    let source = opening.key.get().source;
    let occupancy = flows::occupancy().ok_or(Reason::Internal)?;
    if !occupancy.enter() {
        return Err(Reason::TableFull.into());
    }
    if !count_half_open(work.settings, source) {
        occupancy.leave();
        return Err(Reason::HalfOpenLimit.into());
    }
    insert(work)
}

/// Counts one more half-open session of the source, for which another one may be removed. Returns
/// `false` if there is no room; nothing is counted then.
#[inline(always)]
fn count_half_open(settings: &Live, source: Ipv4) -> bool {
    let Some(entered) = half_open::enter(settings, source) else { return false };
    if let Some(opening) = OPENING.get() {
        opening.in_place.set(u32::from(matches!(entered, Admitted::InPlace)));
    }
    true
}

// Results of `take_over`.
const GONE: u32 = 0;
/// The session has started over: its SYN is forwarded like any other packet.
const IN_PLACE: u32 = 1;
/// The old session is retired, and the new one takes its place in the counters.
const MOVED: u32 = 2;
const HALF_OPEN_LIMIT: u32 = 3;
const BUSY: u32 = 4;

/// Takes over a session that is over, as its client's SYN opens another one. The session starts
/// over in its slots if it leads to the same target from the same address, so that the target sees
/// the same port again (RFC 9293 3.6.1). Else its forward flow is retired and its port held, see
/// [`router_common::table`]. The CPU that changes the forward flow's tag has taken it over, and no
/// other. A global function, see [`insert_forward`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_over(context: *mut xdp_md) -> u32 {
    let (Some(opening), Some(settings)) = (OPENING.get(), settings::get()) else { return GONE };
    let Some(forward) = flows::find(&opening.key.get(), settings) else { return GONE };
    let (tag, rewrite, now) = (forward.tag(), forward.entry.rewrite(), flows::now());
    if !matches!(tag.state(), SlotState::Live) {
        return GONE;
    }
    opening.reply_key.set(opening.key.get().twin(&rewrite));
    let reply = flows::find(&opening.reply_key.get(), settings)
        .filter(|reply| reply.key().twin(&reply.entry.rewrite()) == opening.key.get());
    if !tag.is_opening() && !count_half_open(settings, opening.key.get().source) {
        return HALF_OPEN_LIMIT;
    }
    let stays = opening.target.get() == rewrite.destination
        && opening.target_port.get() == rewrite.destination_port
        && opening.snat.get() == rewrite.source
        && opening.ports.get().contains(rewrite.source_port.number())
        && is_own_socket(context) == 0;
    // Then its note exists, with the right time.
    let is_noted = tag.is_opening() && forward.entry.opened() == now;
    let is_mine = match reply {
        Some(reply) if stays => {
            let is_mine = forward.start_over(tag, opening.rule.get(), now);
            if is_mine {
                reply.start_reply_over(opening.rule.get(), now);
            }
            is_mine
        }
        reply => {
            let is_mine = forward.retire_from(tag, now);
            if is_mine && reply.is_some() {
                hold_reply_key(settings);
            }
            is_mine
        }
    };
    match is_mine {
        true if stays => {
            if !is_noted {
                half_open::note(
                    settings,
                    opening.key.get().source,
                    flows::index_of(&opening.key.get(), settings),
                );
            }
            IN_PLACE
        }
        true => MOVED,
        false => {
            if !tag.is_opening() {
                half_open::leave(settings, opening.key.get().source);
            }
            BUSY
        }
    }
}

/// Holds the key of the reply flow of a session that moves, unless too many are held. Then it is
/// retired, and its port is free.
#[inline(always)]
fn hold_reply_key(settings: &Live) {
    let (Some(opening), Some(occupancy)) = (OPENING.get(), flows::occupancy()) else { return };
    let Some(reply) = flows::find(&opening.reply_key.get(), settings) else { return };
    if occupancy.hold() {
        reply.hold(&opening.reply_key.get());
    } else if reply.try_retire(&opening.reply_key.get(), flows::now()) {
        unmark(&opening.reply_key.get(), NO_POOL);
    }
}

/// Inserts both flows of a session that is counted: first the reply flow, whose key claims the SNAT
/// port, then the forward flow. If that fails, the first is withdrawn: there is never half a
/// session. The first packet is then forwarded like any other.
#[inline(always)]
fn insert(work: &Work) -> Outcome {
    let source = OPENING.get().ok_or(Reason::Internal)?.key.get().source;
    let occupancy = flows::occupancy().ok_or(Reason::Internal)?;
    match insert_both(work) {
        Ok(()) => {
            let opening = OPENING.get().ok_or(Reason::Internal)?;
            half_open::note(work.settings, source, opening.slot.get());
            peers::note(work.settings, opening.target.get());
        }
        Err(InsertError::Exists) => {
            // Another CPU has opened the same session.
            half_open::leave(work.settings, source);
            occupancy.leave();
        }
        Err(error) => {
            half_open::leave(work.settings, source);
            occupancy.leave();
            return Err(match error {
                InsertError::Contended => Reason::Contended.into(),
                InsertError::Full => Reason::TableFull.into(),
                InsertError::NoPort | InsertError::Exists => no_port(work),
            });
        }
    }
    Err(Exit::To(Stage::Slow))
}

/// Ends a packet for which no SNAT port is free: its sender is told if the configuration says so.
#[inline(always)]
fn no_port(work: &Work) -> Exit {
    match rules::rule_set(work.settings.version()) {
        Some(rule_set) if rule_set.reject_exhausted != 0 => answer_request::no_port(),
        _ => Reason::PortsExhausted.into(),
    }
}

#[inline(always)]
fn insert_both(work: &Work) -> Result<(), InsertError> {
    let mut context = Callback { xdp: work.frame.context().ctx };
    // More steps than the longest search can take. SAFETY: the callback is a BPF subprogram of
    // `bpf_loop`'s signature that takes this context.
    unsafe { bpf_loop(MAX_STEPS, step as *const () as *mut c_void, (&raw mut context).cast(), 0) };
    let opening = OPENING.get().ok_or(InsertError::Full)?;
    if opening.claim.get() == Claim::Searching as u32 {
        return Err(InsertError::NoPort);
    }
    if opening.claim.get() == Claim::Full as u32 {
        return Err(InsertError::Full);
    }
    match insert_forward() {
        0 => Ok(()),
        1 => Err(InsertError::Exists),
        2 => Err(InsertError::Contended),
        _ => Err(InsertError::Full),
    }
}

/// Inserts the forward flow; if that fails, withdraws the reply flow. Returns 0 on success. A
/// global function: the verifier looks at it apart from its caller, and the caller needs less
/// stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn insert_forward() -> u32 {
    let (Some(opening), Some(settings)) = (OPENING.get(), settings::get()) else { return 3 };
    let protocol = opening.key.get().protocol_number();
    let seen = if protocol == Protocol::Tcp as u8 { Seen::SYN } else { Seen::NOTHING };
    // A masquerade serves machines on either side.
    let is_masqueraded = opening.target.get() == opening.key.get().destination;
    let tag = Tag::pending(protocol, Direction::Forward, opening.rule.get(), true)
        .for_clients_side(!is_masqueraded)
        .with_seen(seen);
    match flows::insert(&opening.key.get(), &opening.reply_key.get().reversed(), tag, opening.vacancy.get()) {
        Ok(slot) => {
            opening.slot.set(slot);
            0
        }
        Err(error) => {
            release(settings);
            match error {
                InsertError::Exists => 1,
                InsertError::Contended => 2,
                InsertError::Full | InsertError::NoPort => 3,
            }
        }
    }
}

/// The callback's context, which does not fit into a map: a pointer.
struct Callback {
    xdp: *mut xdp_md,
}

/// All ports of all addresses, and all words of their pools.
const MAX_STEPS: u32 = 2 << 20;

/// Ranges up to this size are searched port by port as quickly as by a pool.
const SMALL: u32 = 64;

/// Finds the pool of the session that is being opened, or else makes one of the first `among`, and
/// has the search go on in it. Where even all of them are too few, or the range is too small for
/// one, it goes on port by port. A global function: the verifier looks at it apart from its caller,
/// and the caller needs less stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_pool(among: u32) -> u32 {
    let Some(opening) = OPENING.get() else { return 0 };
    let key = opening.pool_key();
    let index = if among == 0 {
        pools::find(&key)
    } else if opening.ports.get().range().size() <= SMALL {
        None
    } else {
        pools::find_or_make(&key, among)
    };
    match index.and_then(|index| Some((index, pools::pool(index)?))) {
        Some((index, pool)) => {
            opening.pool.set(index);
            opening.phase.set(Phase::Pool as u32);
            opening.frees.set(pool.frees());
            // Then there is nothing to look for.
            opening.empty_words.set(if pool.is_exhausted(&opening.ports.get()) {
                opening.ports.get().range().words()
            } else {
                0
            });
        }
        None if among == pools::ALL => opening.phase.set(Phase::InTurn as u32),
        None => {}
    }
    0
}

/// Returns the number of pools that may be taken before ports are crowded.
#[inline(always)]
fn spare_pools() -> u32 {
    settings::get().map_or(0, Live::pools_to_spare)
}

/// Has the search go on with the next SNAT address, or says that all have been searched. A global
/// function, see above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn next_snat_address() -> u32 {
    let (Some(opening), Some(settings)) = (OPENING.get(), settings::get()) else { return 0 };
    opening.searched_all.set(1);
    let Some(rule_set) = rules::rule_set(settings.version()) else { return 0 };
    opening.addresses.set(opening.addresses.get() + 1);
    match rule_set.snat_address_after(opening.snat.get()) {
        Some(snat) if opening.addresses.get() < rule_set.snat_count => opening.snat.set(snat),
        _ => return 0,
    }
    opening.searched_all.set(0);
    opening.phase.set(Phase::Guess as u32);
    opening.guesses.set(0);
    opening.in_turn.set(0);
    opening.pool.set(NO_POOL);
    opening.empty_words.set(0);
    0
}

/// Goes on with the next SNAT address, as a step's answer.
#[inline(always)]
fn another_address() -> i64 {
    next_snat_address();
    // Read from the map, and not what the function returns: of that, the verifier does not see that
    // it is 0 or 1.
    match OPENING.get() {
        Some(opening) if opening.searched_all.get() == 0 => 0,
        _ => 1,
    }
}

/// Returns 1 if the reply flow of the session that is being opened would take packets from this
/// machine itself. A global function, see above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_own_socket(context: *mut xdp_md) -> u32 {
    match OPENING.get() {
        Some(opening) => u32::from(
            own_traffic::has_sent(&opening.reply_key.get())
                || sockets::owns(context, &opening.reply_key.get()),
        ),
        None => 1,
    }
}

/// One step of the search: chooses a port and tries to take it. A callback of `bpf_loop`, so that
/// the verifier looks at it once and not once an attempt; 1 ends the search.
///
/// # Safety
/// `context` points to a [`Callback`].
unsafe extern "C" fn step(_number: u32, context: *const Callback) -> i64 {
    let Some(opening) = OPENING.get() else { return 1 };
    if opening.phase.get() == Phase::Guess as u32 {
        match opening.guesses.get() {
            0 => choose_pool(0),
            GUESSES_BEFORE_POOL => choose_pool(spare_pools()),
            GUESSES => choose_pool(pools::ALL),
            _ => 0,
        };
    }
    let own = opening.key.get().source_port;
    let port = if opening.phase.get() == Phase::Guess as u32 {
        opening.guesses.set(opening.guesses.get() + 1);
        opening.ports.get().guess(opening.guesses.get() - 1, own, opening.random.get())
    } else if opening.phase.get() == Phase::Pool as u32 && opening.guesses.get() == 0 {
        // As a guess would be, the client's own port comes first, unless it is known to be taken.
        opening.guesses.set(1);
        if !opening.ports.get().range().contains(own.number()) {
            return 0;
        }
        let own = opening.ports.get().nearest(own.number());
        match pools::pool(opening.pool.get()) {
            Some(pool) if pool.take(own) => Port::new(own),
            _ => return 0,
        }
    } else if opening.phase.get() == Phase::InTurn as u32 {
        let range = opening.ports.get().range();
        if opening.in_turn.get() >= range.size() {
            return another_address();
        }
        opening.in_turn.set(opening.in_turn.get() + 1);
        let port = range.in_turn(opening.random.get(), opening.in_turn.get());
        if !opening.ports.get().contains(port.number()) {
            return 0;
        }
        port
    } else {
        let Some(pool) = pools::pool(opening.pool.get()) else { return 1 };
        let range = opening.ports.get().range();
        if opening.empty_words.get() >= range.words() {
            return another_address();
        }
        match pool.take_from(opening.word.get(), &opening.ports.get(), opening.random.get()) {
            Take::Port(number) => {
                opening.empty_words.set(0);
                Port::new(number)
            }
            Take::Lost => return 0,
            Take::AllTaken => {
                opening.word.set(range.word_after(opening.word.get()));
                opening.empty_words.set(opening.empty_words.get() + 1);
                if opening.empty_words.get() < range.words() {
                    return 0;
                }
                pool.set_exhausted(opening.frees.get(), &opening.ports.get());
                return another_address();
            }
        }
    };
    // SAFETY: the caller's promise.
    i64::from(take(opening, port, unsafe { (*context).xdp }))
}

/// Tries to take a port. Returns `true` if the search is over.
#[inline(always)]
fn take(opening: &Opening, port: Port, context: *mut xdp_md) -> bool {
    let reply =
        opening.key.get().between(opening.target.get(), opening.target_port.get(), opening.snat.get(), port);
    opening.reply_key.set(reply);
    // A client that is its own target: with this port, answers would be the very packets that they
    // answer.
    let is_own = opening.reply_key.get() == opening.key.get() || is_own_socket(context) != 0;
    // From the map again: of the one that was chosen in a pool the verifier knows every bit, and
    // would follow each by itself.
    let reply = opening.reply_key.get();
    let result = if is_own {
        Err(InsertError::Exists)
    } else {
        // Where replies leave is found out by the first of them.
        let tag =
            Tag::pending(opening.key.get().protocol_number(), Direction::Reply, opening.rule.get(), false);
        flows::insert(&reply, &opening.key.get().reversed(), tag, Vacancy::UNKNOWN).map(|_| ())
    };
    let pool = pools::pool(opening.pool.get());
    match (result, pool) {
        (Ok(()), Some(pool)) => pool.set(reply.destination_port.number()),
        // The mark that was just set is of a port that another session has, which had not marked
        // it. Looked at again after the mark is there, see `Pool`.
        (Err(_), Some(pool)) if !is_own && !flows::is_taken(&reply) => {
            pool.clear(reply.destination_port.number());
        }
        _ => {}
    }
    match result {
        Ok(()) => opening.claim.set(Claim::Claimed as u32),
        Err(InsertError::Exists | InsertError::Contended) => return false,
        Err(InsertError::Full | InsertError::NoPort) => opening.claim.set(Claim::Full as u32),
    }
    true
}

/// Gives back a port that has been taken for a session which did not come about.
#[inline(always)]
fn release(settings: &Live) {
    let Some(opening) = OPENING.get() else { return };
    if let Some(slot) = flows::find(&opening.reply_key.get(), settings) {
        slot.withdraw(slot.tag(), flows::now());
    }
    unmark(&opening.reply_key.get(), opening.pool.get());
}

/// Takes the mark off the port of a reply flow that is gone from the table, in its target's pool:
/// this one, if that is known.
#[inline(always)]
fn unmark(reply: &FlowKey, pool: u32) {
    // Where there was none, another CPU may have made one since, and marked the port. Looked for
    // after the flow is gone, see `Pool`.
    let index = if pool == NO_POOL { pools::find(&PoolKey::of(reply)) } else { Some(pool) };
    if let Some(pool) = index.and_then(pools::pool) {
        pool.clear(reply.destination_port.number());
    }
}
