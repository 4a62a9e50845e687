use std::{collections::HashMap, sync::Barrier, thread};

use proptest::prelude::*;

use super::*;
use crate::{
    address::{Ipv4, Port},
    effort::tries,
    entry::FlowEntry,
    limits::MAX_RULES,
    session::Seen,
    time::Ticks,
    tuple::{Direction, FlowKey, Protocol},
};

const SEEDS: HashSeeds = HashSeeds {
    words: [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93],
};

fn entry(key: &FlowKey) -> FlowEntry {
    let entry = FlowEntry::default();
    entry.start(key, key, Ticks(1));
    entry
}

/// The table as the programs use it, on the host.
struct Table {
    buckets: Vec<Bucket>,
    regions: Regions,
}

impl Table {
    fn new(sessions: u32) -> Self {
        Self::with(Regions::of(sessions).expect("not too many"))
    }

    fn with(regions: Regions) -> Self {
        Self { buckets: (0..regions.slots() / BUCKET).map(|_| Bucket::default()).collect(), regions }
    }

    /// The number of slots.
    fn size(&self) -> u32 {
        self.buckets.len() as u32 * BUCKET
    }

    fn bucket(&self, index: u32) -> &Bucket {
        &self.buckets[(index / BUCKET) as usize]
    }

    fn slot(&self, index: u32) -> &Slot {
        &self.bucket(index).0[(index % BUCKET) as usize]
    }

    fn homes(&self, key: &FlowKey) -> [u32; 2] {
        SEEDS.homes(key, &self.regions)
    }

    fn walk(&self, key: &FlowKey, mine: u32) -> Search {
        let search = Search::default();
        self.walk_in(&search, key, mine);
        search
    }

    fn walk_in(&self, search: &Search, key: &FlowKey, mine: u32) {
        search.start(key, &self.regions, self.homes(key), mine);
        loop {
            for first in (search.home()..search.home() + search.length()).step_by(BUCKET as usize) {
                if search.look(first, self.bucket(first)) {
                    break;
                }
            }
            if !search.next_chain() {
                return;
            }
        }
    }

    fn find(&self, key: &FlowKey) -> Option<u32> {
        let found = self.walk(key, NO_SLOT).found();
        (found != NO_SLOT && self.slot(found).is_flow(key)).then_some(found)
    }

    /// The distance of a flow from the start of its chain in slots, as the fast path sees it.
    fn distance(&self, key: &FlowKey) -> u32 {
        let index = self.find(key).expect("a flow");
        let distances = self.homes(key).map(|home| index.wrapping_sub(home));
        distances.into_iter().min().expect("two of them")
    }

    fn insert(&self, key: &FlowKey) -> Result<u32, InsertError> {
        self.insert_at(key, self.walk(key, NO_SLOT).vacancy()?)
    }

    fn insert_at(&self, key: &FlowKey, vacancy: Vacancy) -> Result<u32, InsertError> {
        let (tag, entry) = (Tag::pending(key.protocol_number(), Direction::Forward, 7, false), entry(key));
        let search = Search::default();
        let walk = |mine| {
            self.walk_in(&search, key, mine);
            Some(&search)
        };
        self.slot(vacancy.index).insert(vacancy, (key, tag, &entry), walk, || Ticks(1))?;
        Ok(vacancy.index)
    }

    fn retire(&self, key: &FlowKey) -> bool {
        self.find(key).is_some_and(|index| self.slot(index).retire(key, Ticks(1)).is_some())
    }

    /// Does what the sweep does with slots that are out of quarantine.
    fn clean(&self) {
        for index in (0..self.size()).rev() {
            let slot = self.slot(index);
            let tag = slot.tag();
            match tag.state() {
                SlotState::Retired => assert!(slot.change_tag(tag, Tag::FREE)),
                SlotState::Free => {
                    let next = (index + 1 < self.size()).then(|| self.slot(index + 1));
                    let is_last = next.is_none_or(|slot| slot.tag() == Tag::EMPTY);
                    assert_eq!(slot.empty(next), is_last);
                }
                SlotState::Held => assert!(slot.release_key(tag, Ticks(1))),
                SlotState::Empty | SlotState::Busy | SlotState::Pending | SlotState::Live => {}
            }
        }
    }

    fn live(&self) -> HashMap<FlowKey, usize> {
        let mut live = HashMap::new();
        for index in 0..self.size() {
            if self.slot(index).tag().state() == SlotState::Live {
                *live.entry(self.slot(index).key()).or_default() += 1;
            }
        }
        live
    }
}

/// Two each have the same ends, and differ in the protocol.
fn key(number: u16) -> FlowKey {
    FlowKey::new(
        if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp },
        Ipv4([10, 0, 2, 69]),
        Port::new(number / 2),
        Ipv4([10, 0, 2, 68]),
        Port::new(443),
    )
}

/// A walk along a chain of one bucket: a slot in this state with this key, and one that was
/// never used.
fn look_at(there: &FlowKey, state: SlotState, key: &FlowKey) -> Search {
    let table = Table::with(Regions { near: 2, far: 0 });
    let tag = Tag::pending(there.protocol_number(), Direction::Forward, 7, false);
    table.slot(0).write(there, tag.in_state(state), &entry(there));
    table.walk(key, NO_SLOT)
}

#[test]
fn a_walk_reports_the_slots_it_meets() {
    let (key, neighbour) = (key(8), key(9));
    let vacant = Ok(Vacancy { index: 1, tag: Tag::EMPTY });
    let found = look_at(&key, SlotState::Live, &key);
    assert_eq!((found.found(), found.vacancy()), (0, Err(InsertError::Exists)));
    // It may yet be withdrawn.
    let pending = look_at(&key, SlotState::Pending, &key);
    assert_eq!(
        (pending.vacancy(), pending.may_publish()),
        (Err(InsertError::Contended), Err(InsertError::Contended))
    );
    // Its key is not known yet.
    let busy = look_at(&key, SlotState::Busy, &key);
    assert_eq!((busy.vacancy(), busy.contended.get()), (vacant, 1));
    for other in [SlotState::Live, SlotState::Pending] {
        let walk = look_at(&neighbour, other, &key);
        assert_eq!(
            (walk.vacancy(), walk.contended.get()),
            (vacant, 0),
            "between the same ends by another protocol"
        );
    }
    let gone = look_at(&key, SlotState::Retired, &key);
    assert_eq!((gone.vacancy(), gone.contended.get()), (vacant, 0));
}

#[test]
fn nothing_is_published_while_another_cpu_inserts_in_the_chain() {
    let table = Table::with(Regions { near: 2, far: 0 });
    assert!(table.slot(0).claim(Tag::EMPTY));
    assert_eq!(table.insert(&key(8)), Err(InsertError::Contended));
    assert_eq!(table.slot(1).tag().state(), SlotState::Retired);
}

/// A slot before it has become empty since the vacancy was found: no search would find the flow.
#[test]
fn nothing_is_published_after_the_end_of_its_chain() {
    let table = Table::new(1 << 10);
    let key = key(8);
    let home = table.homes(&key)[0];
    for behind in [1, 2, 5] {
        let kept = Vacancy { index: home + behind, tag: Tag::EMPTY };
        assert_eq!(table.insert_at(&key, kept), Err(InsertError::Contended), "{behind} slots behind");
        assert_eq!(table.find(&key), None);
    }
}

proptest! {
    #![proptest_config(crate::effort::cases())]

    /// Compares the table with a set: after any operations in any order, exactly the inserted flows
    /// are found. A vacancy that was kept meanwhile is as good as a new one, or refused.
    #[test]
    fn the_table_is_a_set(steps in proptest::collection::vec((0..6_u8, 0..40_u16), 1..tries(400, 20) as usize), two_regions in any::<bool>()) {
        let regions = if two_regions { Regions { near: 8, far: 64 } } else { Regions::of(16).unwrap() };
        let table = Table::with(regions);
        let mut model = std::collections::HashSet::new();
        let mut kept = HashMap::new();
        for (what, number) in steps {
            let key = key(number);
            match what {
                3 => if let Ok(vacancy) = table.walk(&key, NO_SLOT).vacancy() {
                    kept.insert(number, vacancy);
                },
                4 => if let Some(vacancy) = kept.remove(&number) {
                    match table.insert_at(&key, vacancy) {
                        Ok(_) => prop_assert!(model.insert(number)),
                        Err(InsertError::Exists) => prop_assert!(model.contains(&number)),
                        Err(error) => prop_assert_eq!(error, InsertError::Contended),
                    }
                },
                0 | 1 => match table.insert(&key) {
                    Ok(_) => prop_assert!(model.insert(number)),
                    Err(InsertError::Exists) => prop_assert!(model.contains(&number)),
                    Err(error) => prop_assert!(false, "{error:?} with {} in", model.len()),
                },
                2 => prop_assert_eq!(table.retire(&key), model.remove(&number)),
                _ => table.clean(),
            }
            for number in 0..40 {
                prop_assert_eq!(table.find(&self::key(number)).is_some(), model.contains(&number));
            }
        }
        // All gone, the table is as new after as many cleanings as it takes.
        for number in model {
            prop_assert!(table.retire(&key(number)));
        }
        table.clean();
        table.clean();
        prop_assert!((0..table.size()).all(|index| table.slot(index).tag() == Tag::EMPTY));
    }

    /// A tag returns the parts that it was built from.
    #[test]
    fn tags_round_trip(protocol in any::<u8>(), reply in any::<bool>(), rule in 0..MAX_RULES as u16, opening in any::<bool>()) {
        let direction = if reply { Direction::Reply } else { Direction::Forward };
        let tag = Tag::pending(protocol, direction, rule, opening);
        for state in [SlotState::Pending, SlotState::Live, SlotState::Retired] {
            let tag = tag.in_state(state);
            prop_assert_eq!(
                (tag.state(), tag.protocol_number(), tag.direction(), tag.rule(), tag.is_opening()),
                (state, protocol, direction, rule, opening)
            );
            prop_assert_eq!(tag.counter(), Tag::counter_of(rule, direction));
            let key = FlowKey::from_words(7, 9, protocol);
            let tag = tag.with_seen(Seen::from_bits(0xff)).0;
            let slot = Slot::default();
            slot.addresses.set(key.addresses());
            slot.ports.set(key.ports());
            slot.tag.set(tag);
            prop_assert_eq!(slot.is_flow(&key), state == SlotState::Live);
            prop_assert!(!slot.is_flow(&FlowKey::from_words(7, 9, protocol ^ 0x80)));
        }
    }
}

/// Threads insert the same keys at the same time, all in one chain: each key is live once at
/// most, and every success is there in the end.
#[test]
fn no_key_is_live_twice() {
    const THREADS: usize = 4;
    const KEYS: u16 = 24;
    for round in 0..tries(500, 2) {
        // Every chain starts in the same few slots.
        let far = if round % 2 == 0 { 0 } else { 4 };
        let table = Table::with(Regions { near: 4, far });
        let barrier = Barrier::new(THREADS);
        let wins: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        (0..KEYS).filter(|number| table.insert(&key(*number)).is_ok()).count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let live = table.live();
        assert!(live.values().all(|count| *count == 1), "{live:?}");
        assert_eq!(live.len(), wins);
        for key in live.keys() {
            assert!(table.find(key).is_some());
        }
    }
}

/// An old vacancy may be after the end of its chain, or in another key's chain.
#[test]
fn a_stale_vacancy_is_refused() {
    // Every chain starts in the first slot.
    let table = Table::with(Regions { near: 2, far: 0 });
    table.insert(&key(1)).expect("room");
    let vacancy = table.walk(&key(2), NO_SLOT).vacancy().expect("room");
    assert!(table.retire(&key(1)));
    table.clean();
    table.clean();
    assert_eq!(table.insert_at(&key(2), vacancy), Err(InsertError::Contended));
    let foreign = Vacancy { index: 100, tag: Tag::EMPTY };
    assert_eq!(table.insert_at(&key(2), foreign), Err(InsertError::Contended));
    let index = table.insert(&key(2)).expect("room");
    assert_eq!(table.find(&key(2)), Some(index));
}

fn fill(table: &Table, flows: u32) -> Vec<u32> {
    let key = |number: u32| {
        let [_, b, c, d] = number.to_be_bytes();
        let (client, here) = (Ipv4([10, 0, b, 1]), Ipv4([10, 0, 2, 68]));
        FlowKey::new(Protocol::Tcp, client, Port([c, d]), here, Port::new(443))
    };
    for number in 0..flows {
        table.insert(&key(number)).expect("room");
    }
    (0..flows).map(|number| table.distance(&key(number))).collect()
}

/// At the load of a full table, chains are nowhere near their limit, even for keys in a row.
#[test]
#[cfg_attr(miri, ignore = "a hundred thousand flows")]
fn a_full_table_has_short_chains() {
    for sessions in [1 << 15, 1 << 17] {
        let distances = fill(&Table::new(sessions), 2 * sessions);
        let longest = distances.iter().max().expect("flows");
        assert!(*longest < CHAIN / 2, "the longest chain has {longest} slots");
        // Knuth: an average successful search at half load looks at 1.5 slots.
        let average = distances.iter().copied().map(f64::from).sum::<f64>() / distances.len() as f64;
        assert!(average < 1.0, "{average} slots beyond the first on average");
    }
}

/// Forty thousand sessions, and hardly one of them is anywhere else.
#[test]
#[cfg_attr(miri, ignore = "a hundred thousand flows")]
fn few_sessions_stay_near() {
    const FLOWS: u32 = 80_000;
    let table = Table::new(1 << 18);
    let distances = fill(&table, FLOWS);
    let far = (table.regions.near + CHAIN..table.regions.slots())
        .filter(|slot| table.slot(*slot).tag() != Tag::EMPTY);
    let far = far.count();
    assert!(far < FLOWS as usize / 100, "{far} are far");
    assert!(distances.iter().all(|distance| *distance < REACH), "the fast path finds all of them");
}

#[test]
fn regions_fit_their_slots() {
    for sessions in [1, 1024, 1 << 15, (1 << 15) + 1, 1 << 20, 1 << 24] {
        let regions = Regions::of(sessions).expect("not too many");
        assert_eq!((Regions::of_slots(regions.slots()), regions.sessions()), (regions, sessions));
        for hash in [0, 1 << 31, u32::MAX] {
            let [first, second] = regions.homes(hash);
            assert!(first + CHAIN <= regions.slots(), "{sessions} sessions, {hash:#x}");
            assert!(second == NO_SLOT || second + CHAIN <= regions.slots());
            assert!(first.abs_diff(second) >= CHAIN, "chains of two regions never meet");
        }
    }
    assert_eq!(Regions::of(u32::MAX / 4), None);
}

/// A packet that has found its flow just before the sweep retires it comes too late to end the
/// opening: the sweep has.
#[test]
fn an_opening_ends_once() {
    let key = FlowKey::new(
        Protocol::Udp,
        Ipv4([10, 0, 0, 1]),
        Port::new(5000),
        Ipv4([192, 0, 2, 1]),
        Port::new(53),
    );
    let slot = Slot::default();
    let tag = Tag::pending(key.protocol_number(), Direction::Forward, 7, true);
    assert!(slot.claim(Tag::EMPTY));
    slot.write(&key, tag, &entry(&key));
    slot.publish(tag);
    assert!(slot.retire(&key, Ticks(9)).expect("it was live").is_opening(), "counted by who retires");
    assert!(!slot.end_opening(), "and not once more");
    assert_eq!(slot.tag().state(), SlotState::Retired);
}

fn live(key: &FlowKey) -> (Slot, Tag) {
    let slot = Slot::default();
    let tag = Tag::pending(key.protocol_number(), Direction::Forward, 7, false).with_seen(Seen::SYN);
    slot.write(key, tag, &entry(key));
    slot.publish(tag);
    let tag = slot.tag();
    (slot, tag)
}

/// The CPU that changes the tag first has the session, and a later one does not.
#[test]
fn an_ended_session_is_taken_over_once() {
    let key = key(8);
    let (slot, seen) = live(&key);
    slot.entry.count(100);
    assert!(slot.start_over(seen, 9, Ticks(50)) && !slot.start_over(seen, 9, Ticks(60)));
    assert!(!slot.retire_from(seen, Ticks(60)), "it is another one by now");
    let tag = slot.tag();
    assert!(slot.is_flow(&key) && tag.is_opening() && tag.rule() == 9);
    assert_eq!((slot.entry.packets(), slot.entry.opened()), (0, Ticks(50)));

    let (slot, seen) = live(&key);
    assert!(slot.retire_from(seen, Ticks(50)) && slot.retire(&key, Ticks(60)).is_none());
    assert!(!slot.start_over(seen, 9, Ticks(60)) && !slot.try_retire(&key, Ticks(60)));
    assert!(!slot.is_out_of_quarantine(Ticks(51)) && slot.is_out_of_quarantine(Ticks(50 + QUARANTINE)));
}

/// No packet finds a held key, and no other session gets it, until the sweep releases it.
#[test]
fn a_held_key_is_not_given_out() {
    let table = Table::new(1 << 10);
    let key = key(8);
    let index = table.insert(&key).expect("room");
    assert!(table.slot(index).hold(&key) && !table.slot(index).hold(&key));
    assert_eq!(table.find(&key), None);
    assert_eq!(table.insert(&key), Err(InsertError::Exists));
    let held = table.slot(index).tag();
    assert_eq!(held.state(), SlotState::Held);
    assert!(table.slot(index).release_key(held, Ticks(9)) && !table.slot(index).release_key(held, Ticks(9)));
    table.insert(&key).expect("it is free");
}
