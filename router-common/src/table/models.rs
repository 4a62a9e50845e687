//! Models of the flow table's protocol: the actions of two or three CPUs, or of a CPU and the
//! sweep, at the same time, in every order that loom finds and that a memory model as weak as the
//! kernel's allows. `cargo xtask test` checks them (`RUSTFLAGS="--cfg model" cargo test -p
//! router-common --lib models`).
//!
//! Each model has mutations: the same without one of the protocol's barriers or checks, which must
//! fail.

use loom::{
    model::Builder,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    thread,
};

use super::*;
use crate::{
    address::{Ipv4, Port},
    entry::FlowEntry,
    shared::model::order_nothing,
    time::Ticks,
    tuple::{Direction, FlowKey, Protocol},
};

/// Checks a model of two threads, with as many preemptions as it takes to find what mutations
/// break.
fn check(model: impl Fn() + Sync + Send + 'static) {
    check_within(3, model);
}

/// As [`check`], with this many preemptions: a model of three threads has far more orders.
fn check_within(changes: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(changes);
    builder.check(model);
}

const NOW: Ticks = Ticks(9);
/// The only chain starts in slot 0, and has as many slots as a chain in a near region.
const REGIONS: Regions = Regions { near: BUCKET, far: BUCKET };

/// The smallest possible table.
#[derive(Default)]
struct Table([Bucket; (REACH / BUCKET) as usize]);

impl Table {
    fn slot(&self, index: u32) -> &Slot {
        &self.0[(index / BUCKET) as usize].0[(index % BUCKET) as usize]
    }

    fn walk(&self, key: &FlowKey, mine: u32) -> Search {
        let search = Search::default();
        self.walk_in(&search, key, mine);
        search
    }

    fn walk_in(&self, search: &Search, key: &FlowKey, mine: u32) {
        search.start(key, &REGIONS, [0, NO_SLOT], mine);
        let _ = (0..).zip(&self.0).any(|(number, bucket)| search.look(number * BUCKET, bucket));
    }

    /// Inserts the flow of a key into a vacancy, or where there is room for it now.
    fn insert(
        &self,
        key: &FlowKey,
        vacancy: Option<Vacancy>,
        seen_behind_the_claim: impl FnOnce(&Search),
    ) -> Result<u32, InsertError> {
        let vacancy = match vacancy {
            Some(vacancy) => vacancy,
            None => self.walk(key, NO_SLOT).vacancy()?,
        };
        let entry = FlowEntry::default();
        let search = Search::default();
        let walk = |mine| {
            self.walk_in(&search, key, mine);
            seen_behind_the_claim(&search);
            Some(&search)
        };
        let flow = (key, tag(key, false), &entry);
        self.slot(vacancy.index).insert(vacancy, flow, walk, || NOW)?;
        Ok(vacancy.index)
    }

    /// Puts a flow into a slot before the model begins.
    fn put(&self, index: u32, key: &FlowKey, opening: bool) {
        let slot = self.slot(index);
        slot.write(key, tag(key, opening), &FlowEntry::default());
        slot.publish(tag(key, opening));
    }

    fn live(&self, key: &FlowKey) -> usize {
        (0..REACH).filter(|index| self.slot(*index).is_flow(key)).count()
    }
}

/// Accepts the result of the walk after the claim.
fn all(_: &Search) {}

fn tag(key: &FlowKey, opening: bool) -> Tag {
    Tag::pending(key.protocol_number(), Direction::Forward, 7, opening)
}

fn key(number: u16) -> FlowKey {
    let (client, here) = (Ipv4([10, 0, 2, 69]), Ipv4([10, 0, 2, 68]));
    FlowKey::new(Protocol::Tcp, client, Port::new(number), here, Port::new(443))
}

/// Two CPUs insert the same key: at most one of them succeeds, and the table agrees. `seen` changes
/// the result of the walk after the claim.
fn two_insert(vacancies: [Option<Vacancy>; 2], seen: fn(&Search)) {
    check(move || {
        let table = Arc::new(Table::default());
        let other = {
            let table = Arc::clone(&table);
            thread::spawn(move || table.insert(&key(1), vacancies[1], seen).is_ok())
        };
        let won = table.insert(&key(1), vacancies[0], seen).is_ok();
        let wins = usize::from(won) + usize::from(other.join().expect("a thread"));
        assert!(wins <= 1, "twice");
        assert_eq!(table.live(&key(1)), wins, "who has it");
        assert_eq!(table.walk(&key(1), NO_SLOT).found() != NO_SLOT, wins == 1, "it is found");
    });
}

/// The vacancies of two CPUs that have searched at the same time.
const BESIDE_EACH_OTHER: [Option<Vacancy>; 2] =
    [Some(Vacancy { index: 0, tag: Tag::EMPTY }), Some(Vacancy { index: 1, tag: Tag::EMPTY })];

#[test]
fn no_key_is_live_twice() {
    two_insert([None; 2], all);
}

#[test]
fn no_key_is_live_twice_in_two_slots() {
    // The first slot comes before the second, which no walk reaches while the first is empty.
    two_insert(BESIDE_EACH_OTHER, all);
}

#[test]
#[should_panic(expected = "twice")]
fn without_barriers_a_key_is_live_twice() {
    order_nothing();
    two_insert(BESIDE_EACH_OTHER, |search| search.met_own.set(1));
}

/// Mutation: the chain is not searched again once the slot has been claimed.
#[test]
#[should_panic(expected = "twice")]
fn without_the_walk_after_the_claim_a_key_is_live_twice() {
    two_insert(BESIDE_EACH_OTHER, |search| {
        search.found.set(NO_SLOT);
        search.contended.set(0);
        search.met_own.set(1);
    });
}

/// Two CPUs have found the same slot for different keys.
fn two_claim(seen: fn(&Slot) -> Tag) {
    check(move || {
        let table = Arc::new(Table::default());
        let claim = move |table: &Table, number| {
            let vacancy = Vacancy { index: 0, tag: seen(table.slot(0)) };
            table.insert(&key(number), Some(vacancy), all).is_ok()
        };
        let other = {
            let table = Arc::clone(&table);
            thread::spawn(move || claim(&table, 2))
        };
        let first = claim(&table, 1);
        let second = other.join().expect("a thread");
        assert_eq!([table.live(&key(1)), table.live(&key(2))], [first, second].map(usize::from), "lost");
    });
}

#[test]
fn a_slot_is_claimed_once() {
    two_claim(|_| Tag::EMPTY);
}

/// Mutation: any slot is taken for free.
#[test]
#[should_panic(expected = "lost")]
fn without_a_comparison_a_claim_loses_a_flow() {
    two_claim(Slot::tag);
}

/// A CPU puts a flow after a free slot, where it has found room while a flow was in that slot. At
/// the same time the sweep empties the free slot, so that walks end there. And another CPU takes
/// the free slot for another flow.
fn one_inserts_and_the_sweep_empties(seen: fn(&Search), empty: fn(&Slot, &Slot) -> bool, another: bool) {
    check_within(if another { 1 } else { 3 }, move || {
        let table = Arc::new(Table::default());
        table.slot(0).tag.set(Tag::FREE.0);
        let spawn = |work: fn(&Table) -> bool| {
            let table = Arc::clone(&table);
            thread::spawn(move || work(&table))
        };
        let kept = Vacancy { index: 1, tag: Tag::EMPTY };
        let inserter = {
            let table = Arc::clone(&table);
            thread::spawn(move || table.insert(&key(1), Some(kept), seen).is_ok())
        };
        let other = another.then(|| spawn(|table| table.insert(&key(2), None, all).is_ok()));
        empty(table.slot(0), table.slot(1));
        for (number, thread) in [(1, Some(inserter)), (2, other)] {
            let inserted = thread.is_some_and(|thread| thread.join().expect("a thread"));
            let found = table.walk(&key(number), NO_SLOT).found();
            assert_eq!(found != NO_SLOT, inserted, "{number} is lost");
        }
    });
}

fn empty(slot: &Slot, next: &Slot) -> bool {
    slot.empty(Some(next))
}

#[test]
fn no_flow_is_put_after_the_end_of_its_chain() {
    one_inserts_and_the_sweep_empties(all, empty, false);
}

#[test]
fn no_flow_is_lost_where_a_slot_is_emptied_and_taken() {
    one_inserts_and_the_sweep_empties(all, empty, true);
}

#[test]
#[should_panic(expected = "1 is lost")]
fn without_passing_its_slot_a_flow_is_lost() {
    one_inserts_and_the_sweep_empties(|search| search.met_own.set(1), empty, false);
}

/// Mutation: the sweep looks at the next slot only before it empties one.
#[test]
#[should_panic(expected = "1 is lost")]
fn without_a_second_look_the_sweep_loses_a_flow() {
    let once = |slot: &Slot, next: &Slot| next.tag() == Tag::EMPTY && slot.change_tag(Tag::FREE, Tag::EMPTY);
    one_inserts_and_the_sweep_empties(all, once, false);
}

#[test]
#[should_panic(expected = "1 is lost")]
fn without_barriers_the_sweep_loses_a_flow() {
    order_nothing();
    one_inserts_and_the_sweep_empties(all, empty, false);
}

/// The sweep and a CPU retire a flow, while another CPU ends its opening: it is retired once, and
/// its opening ends once.
fn two_retire(retire_from: fn(&Slot, Tag) -> bool) {
    check(move || {
        let table = Arc::new(Table::default());
        table.put(0, &key(1), true);
        let seen = table.slot(0).tag();
        let cpu = {
            let table = Arc::clone(&table);
            thread::spawn(move || retire_from(table.slot(0), seen))
        };
        let reply = {
            let table = Arc::clone(&table);
            thread::spawn(move || table.slot(0).end_opening())
        };
        let by_sweep = table.slot(0).retire(&key(1), NOW);
        let by_cpu = cpu.join().expect("a thread").then_some(seen);
        assert!(by_sweep.is_none() || by_cpu.is_none(), "it went twice");
        let tags = [by_sweep, by_cpu];
        let with_it = tags.into_iter().flatten().filter(|tag| tag.is_opening()).count();
        assert_eq!(with_it + usize::from(reply.join().expect("a thread")), 1, "openings");
        assert_eq!(table.slot(0).tag().state(), SlotState::Retired);
    });
}

#[test]
fn a_flow_is_retired_once() {
    two_retire(|slot, seen| slot.retire_from(seen, NOW));
}

#[test]
#[should_panic(expected = "it went twice")]
fn without_a_comparison_a_flow_is_retired_twice() {
    two_retire(|slot, seen| {
        slot.tag.swap(seen.retired().0);
        true
    });
}

/// A session that is over starts over, while the sweep removes it: it is counted as half-open as
/// often as it is taken out of the count.
fn one_starts_over_and_the_sweep_retires(start_over: fn(&Slot, Tag) -> bool) {
    check(move || {
        let table = Arc::new(Table::default());
        table.put(0, &key(1), false);
        let seen = table.slot(0).tag();
        let cpu = {
            let table = Arc::clone(&table);
            thread::spawn(move || start_over(table.slot(0), seen))
        };
        let retired = table.slot(0).retire(&key(1), NOW);
        let left = !cpu.join().expect("a thread");
        let ended = retired.is_some_and(Tag::is_opening);
        let stays = table.slot(0).is_flow(&key(1));
        assert!(retired.is_none() || !stays, "it is gone and there");
        assert_eq!(usize::from(left) + usize::from(ended) + usize::from(stays), 1, "counted");
    });
}

#[test]
fn a_session_starts_over_or_is_removed() {
    one_starts_over_and_the_sweep_retires(|slot, seen| slot.start_over(seen, 7, NOW));
}

#[test]
#[should_panic(expected = "it is gone and there")]
fn without_a_comparison_a_removed_session_starts_over() {
    one_starts_over_and_the_sweep_retires(|slot, _| {
        let tag = tag(&key(1), true).in_state(SlotState::Live);
        slot.tag.swap(tag.0);
        true
    });
}

/// A packet has found its flow and ends the opening, while the sweep retires the flow, frees the
/// slot, and another CPU puts another flow there.
fn a_slot_is_used_again(quarantine: bool) {
    check(move || {
        let table = Arc::new(Table::default());
        table.put(0, &key(1), true);
        // An XDP program runs for microseconds, and the quarantine lasts seconds.
        let is_over = Arc::new(AtomicBool::new(false));
        let packet = {
            let (table, is_over) = (Arc::clone(&table), Arc::clone(&is_over));
            thread::spawn(move || {
                let ended = table.slot(0).is_flow(&key(1)) && table.slot(0).end_opening();
                is_over.store(true, Release);
                ended
            })
        };
        let slot = table.slot(0);
        let retired = slot.retire(&key(1), NOW).expect("it is live");
        if !quarantine || is_over.load(Acquire) {
            slot.free(slot.tag(), NOW);
            table.put(0, &key(2), true);
        }
        let ended = packet.join().expect("a thread");
        assert_eq!(usize::from(ended) + usize::from(retired.is_opening()), 1, "ended once");
        assert!(!slot.is_flow(&key(2)) || slot.tag().is_opening(), "another's was ended");
    });
}

#[test]
fn a_slot_in_quarantine_is_not_reused() {
    a_slot_is_used_again(true);
}

#[test]
#[should_panic(expected = "ended")]
fn without_quarantine_a_packet_ends_another_sessions_opening() {
    a_slot_is_used_again(false);
}

/// A session that is over moves to another target, while another session tries to get its port: it
/// does not, since its target may still send.
fn one_moves_and_one_wants_its_port(leave: fn(&Slot, &FlowKey) -> bool) {
    check(move || {
        let table = Arc::new(Table::default());
        table.put(0, &key(1), false);
        let mover = {
            let table = Arc::clone(&table);
            thread::spawn(move || leave(table.slot(0), &key(1)))
        };
        assert!(table.insert(&key(1), None, all).is_err(), "given");
        assert!(mover.join().expect("a thread"));
    });
}

#[test]
fn a_held_port_is_not_given_out() {
    one_moves_and_one_wants_its_port(Slot::hold);
}

#[test]
#[should_panic(expected = "given")]
fn a_port_that_is_not_held_is_given_out() {
    one_moves_and_one_wants_its_port(|slot, key| slot.try_retire(key, NOW));
}
