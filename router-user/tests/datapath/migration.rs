//! Sessions that move to another table.

use std::{
    collections::HashMap,
    iter,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use router_common::{
    limits::LAYOUT,
    reason::Reason,
    session::State,
    tuple::{Direction, FlowKey},
};
use router_user::dataplane::{Attachment, Dataplane, Flow, LoadOptions, Moved, RuleSetSpec};

use crate::{
    packets::{
        FIREWALL_MAC, OTHER, PLS, ROUTER, TARGET, echo_reply, echo_request, read, tcp, tcp_packet, udp_packet,
    },
    pins::OwnPins,
    world::{Setup, Verdict, World, rule_set},
};

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;

fn options(pins: &OwnPins, sessions: u32) -> LoadOptions {
    LoadOptions {
        pins: Some(pins.0.clone()),
        sessions,
        half_open_per_source: u32::MAX,
        generic: false,
        log: None,
    }
}

fn first(pins: &OwnPins, sessions: u32) -> World {
    World::with(Setup { pins: Some(pins.0.clone()), sessions, ..Setup::default() })
}

/// Takes the place of the router in whose pins this one was loaded.
fn take_the_place(world: &mut World) -> Moved {
    let taken = world.dataplane.take_the_place(iter::empty::<&mut Attachment>()).expect("a swap");
    let taken = taken.expect("it was to take another one's place");
    // Both have the same counters.
    world.moved();
    assert_eq!(taken.layout, LAYOUT);
    taken.moved.expect("a layout that is known")
}

fn client(port: u16, flags: u8, sequence: u32, acknowledgement: u32) -> Vec<u8> {
    tcp_packet((PLS, port), (ROUTER, 443), flags).numbers(sequence, acknowledgement).build()
}

fn server(port: u16, flags: u8, sequence: u32, acknowledgement: u32) -> Vec<u8> {
    tcp_packet((TARGET, 8443), (ROUTER, port), flags).numbers(sequence, acknowledgement).build()
}

/// Runs packets of sessions that there are.
#[track_caller]
fn forwards(world: &mut World, frames: &[Vec<u8>]) {
    for frame in frames {
        let ran = world.run(frame);
        assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Forwarded));
    }
}

#[track_caller]
fn connect(world: &mut World, port: u16) {
    assert_eq!(world.run(&client(port, tcp::SYN, 1000, 0)).reason, Reason::Opened);
    forwards(world, &[server(port, SYN_ACK, 5000, 1001), client(port, tcp::ACK, 1001, 5001)]);
}

/// Sessions of every kind, and a held key.
fn open_all_kinds(world: &mut World) {
    connect(world, 40_000);
    assert_eq!(world.run(&client(40_001, tcp::SYN, 1000, 0)).reason, Reason::Opened);
    assert_eq!(world.run(&client(40_002, tcp::SYN, 1000, 0)).reason, Reason::Opened);
    forwards(world, &[server(40_002, SYN_ACK, 5000, 1001)]);
    connect(world, 40_003);
    forwards(world, &[client(40_003, tcp::FIN | tcp::ACK, 1001, 5001)]);
    connect(world, 40_004);
    forwards(world, &[client(40_004, tcp::RST, 1001, 0)]);
    assert_eq!(world.run(&udp_packet((PLS, 50_000), (ROUTER, 53), b"one").build()).reason, Reason::Opened);
    assert_eq!(world.run(&udp_packet((PLS, 50_001), (ROUTER, 53), b"two").build()).reason, Reason::Opened);
    forwards(world, &[udp_packet((TARGET, 53), (ROUTER, 50_001), b"answer").build()]);
    assert_eq!(world.run(&echo_request(PLS, OTHER, 7700).build()).reason, Reason::Opened);
    forwards(world, &[echo_reply(OTHER, ROUTER, 7700).build()]);
    // Ends, and moves to another target.
    connect(world, 40_005);
    forwards(world, &[client(40_005, tcp::RST, 1001, 0)]);
    world.set_rules(other_target);
    assert_eq!(world.run(&client(40_005, tcp::SYN, 90_000, 0)).reason, Reason::Opened);
    world.set_rules(|_| {});
}

fn other_target(spec: &mut RuleSetSpec) {
    spec.forwards[0].targets = vec![(OTHER.into(), Some(9443))];
}

/// What a flow is, apart from its next hop.
fn contents(dataplane: &Dataplane) -> HashMap<FlowKey, String> {
    let text = |flow: &Flow| {
        let mut record = flow.entry;
        record.next_hop = Default::default();
        let rule = dataplane.rules.name(flow.rule());
        let session = if flow.direction() == Direction::Forward {
            dataplane.flows.session_of(flow).and_then(|session| session.state())
        } else {
            None
        };
        format!(
            "{record:?} {rule:?} {:?} {:?} {session:?} {}",
            flow.direction(),
            flow.seen(),
            flow.is_opening()
        )
    };
    dataplane.flows.flows().map(|flow| (flow.key, text(&flow))).collect()
}

#[track_caller]
fn assert_same(found: &HashMap<FlowKey, String>, expected: &HashMap<FlowKey, String>) {
    let keys = found.keys().chain(expected.keys());
    let different = keys.filter(|key| found.get(key) != expected.get(key));
    let different: Vec<_> = different.map(|key| (key, found.get(key), expected.get(key))).collect();
    assert!(different.is_empty(), "found and expected: {different:#?}");
}

#[track_caller]
fn assert_whole(world: &World, held: u64) {
    let audit = world.dataplane.flows.audit().expect("an audit");
    assert!(
        audit.half_sessions.is_empty() && audit.twice.is_empty() && audit.leaked_ports.is_empty(),
        "{audit:?}"
    );
    assert_eq!((audit.flows, audit.held), (2 * u64::from(audit.sessions), held), "{audit:?}");
    assert_eq!(world.dataplane.flows.surplus(), Default::default(), "counters");
}

fn directories(pins: &OwnPins) -> Vec<String> {
    let entries = pins.0.read_dir().expect("the pins");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<String> = entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn sessions_of_every_kind_move_to_a_table_of_another_size() {
    for size in [512, 70_000] {
        let pins = OwnPins::new(&format!("size-{size}"));
        let mut old = first(&pins, 1024);
        // Rules with other numbers than a new table would give them.
        old.set_rules(|spec| spec.forwards.rotate_left(1));
        open_all_kinds(&mut old);
        let before = contents(&old.dataplane);
        let half_open = old.dataplane.flows.half_open(router_common::address::Ipv4(PLS));
        assert_eq!((before.len(), half_open), (18, 4));

        let mut new = World::load(&options(&pins, size), 1, &rule_set());
        assert!(!new.dataplane.adopted);
        // The old programs go on.
        forwards(&mut old, &[client(40_000, tcp::ACK, 1001, 5001)]);
        let before = contents(&old.dataplane);
        assert_eq!(directories(&pins), [format!("v{LAYOUT}"), format!("v{LAYOUT}-next")]);

        let moved = take_the_place(&mut new);
        assert_eq!((moved.copied, moved.carried_over, moved.held), (9, 9, 1), "{moved:?}");
        assert_eq!((moved.ended, moved.opened_late, moved.lost, moved.refused), (0, 0, 0, 0), "{moved:?}");
        assert_same(&contents(&new.dataplane), &before);
        assert_eq!(new.dataplane.flows.half_open(router_common::address::Ipv4(PLS)), half_open);
        assert_eq!(new.dataplane.flows.capacity(), size);
        assert_whole(&new, 1);
        assert_eq!(directories(&pins), [format!("v{LAYOUT}")]);

        // By the root program of before: it is the one that stays attached.
        new.moved();
        let (verdict, frame) = old.run_quietly(&client(40_000, tcp::ACK, 1001, 5001));
        let seen = read(&frame);
        assert_eq!(verdict, Verdict::Tx);
        assert_eq!((seen.source, seen.destination), ((ROUTER, 40_000), (TARGET, 8443)));
        assert_eq!(seen.destination_mac, FIREWALL_MAC);
        assert_eq!(new.moved().reasons, [(Reason::Forwarded, 1)]);
        forwards(
            &mut new,
            &[
                server(40_001, SYN_ACK, 5000, 1001),
                client(40_001, tcp::ACK, 1001, 5001),
                client(40_002, tcp::ACK, 1001, 5001),
                server(40_003, tcp::FIN | tcp::ACK, 5001, 1002),
                udp_packet((TARGET, 53), (ROUTER, 50_000), b"answer").build(),
                echo_reply(OTHER, ROUTER, 7700).build(),
            ],
        );
        // The held port is nobody's; a new session gets another one.
        let late = new.run(&server(40_005, tcp::ACK, 5001, 1001));
        assert_ne!(late.reason, Reason::Forwarded);
        assert_eq!(new.run(&client(41_000, tcp::SYN, 1, 0)).reason, Reason::Opened);
        assert_whole(&new, 1);
    }
}

#[test]
fn what_happens_between_copy_and_swap_is_carried_over() {
    let pins = OwnPins::new("between");
    let mut old = first(&pins, 1024);
    (0..6).for_each(|number| connect(&mut old, 40_000 + number));
    assert_eq!(old.run(&client(40_010, tcp::SYN, 1000, 0)).reason, Reason::Opened);
    assert_eq!(old.run(&client(40_011, tcp::SYN, 1000, 0)).reason, Reason::Opened);

    let mut new = World::load(&options(&pins, 2048), 1, &rule_set());
    new.dataplane.copy_sessions();
    assert_eq!(new.sessions(), 8);
    // Data far ahead, a FIN, a reset, an answer, a handshake that ends, one removed, one opened.
    let mut sequence = 1001;
    for _ in 0..40 {
        forwards(
            &mut old,
            &[client(40_000, tcp::ACK, sequence, 5001), server(40_000, tcp::ACK, 5001, sequence)],
        );
        sequence += 60_000;
    }
    forwards(
        &mut old,
        &[
            client(40_001, tcp::FIN | tcp::ACK, 1001, 5001),
            server(40_002, tcp::RST | tcp::ACK, 5001, 1001),
            server(40_010, SYN_ACK, 5000, 1001),
            client(40_010, tcp::ACK, 1001, 5001),
        ],
    );
    let gone = old
        .dataplane
        .flows
        .flows()
        .find(|flow| flow.direction() == Direction::Forward && flow.key.source_port.number() == 40_003);
    let gone = old.dataplane.flows.session_of(&gone.expect("a flow")).expect("a session");
    old.dataplane.flows.remove(&gone).expect("the pools");
    // Starts over in its slots.
    forwards(&mut old, &[client(40_004, tcp::RST, 1001, 0)]);
    assert_eq!(old.run(&client(40_004, tcp::SYN, 70_000, 0)).reason, Reason::Opened);
    connect(&mut old, 40_020);
    let before = contents(&old.dataplane);

    let moved = take_the_place(&mut new);
    assert_eq!((moved.ended, moved.opened_late, moved.lost), (1, 0, 0), "{moved:?}");
    assert_same(&contents(&new.dataplane), &before);
    assert_eq!(new.dataplane.flows.half_open(router_common::address::Ipv4(PLS)), 2, "40004 and 40011");
    assert_whole(&new, 0);
    forwards(&mut new, &[client(40_000, tcp::ACK, sequence, 5001), server(40_000, tcp::ACK, 5001, sequence)]);
    let session = new.dataplane.flows.flows().find(|flow| flow.key.source_port.number() == 40_000);
    let session = new.dataplane.flows.session_of(&session.expect("a flow")).expect("a session");
    assert_eq!((session.state(), session.forward.entry.packets), (Some(State::Established), 43));
}

#[test]
fn a_successor_that_gives_up_changes_nothing() {
    let pins = OwnPins::new("gives-up");
    let mut old = first(&pins, 1024);
    connect(&mut old, 40_000);
    let before = contents(&old.dataplane);
    let mut new = World::load(&options(&pins, 2048), 1, &rule_set());
    new.dataplane.copy_sessions();
    drop(new);
    assert_eq!(directories(&pins), [format!("v{LAYOUT}")]);
    assert_same(&contents(&old.dataplane), &before);
    forwards(&mut old, &[client(40_000, tcp::ACK, 1001, 5001)]);
    connect(&mut old, 40_001);
    // The next one finds it.
    let new = World::load(&options(&pins, 1024), 1, &rule_set());
    assert!(new.dataplane.adopted);
    assert_eq!(new.sessions(), 2);
}

#[test]
fn a_table_too_small_for_the_sessions_is_refused() {
    let pins = OwnPins::new("too-small");
    let mut old = first(&pins, 1024);
    (0..40).for_each(|number| connect(&mut old, 40_000 + number));
    let error = Dataplane::load(&options(&pins, 39)).err().expect("too small");
    let text = error.to_string();
    assert!(text.contains("limits.flows = 39 is less than the 40 sessions"), "{text}");
    assert_eq!(directories(&pins), [format!("v{LAYOUT}")]);
    forwards(&mut old, &[client(40_000, tcp::ACK, 1001, 5001)]);
    connect(&mut old, 41_000);
}

#[test]
fn no_packet_of_a_session_is_lost_while_it_moves() {
    const SESSIONS: u16 = 2000;
    let pins = OwnPins::new("traffic");
    let mut old = first(&pins, 8192);
    (0..SESSIONS).for_each(|number| connect(&mut old, 30_000 + number));
    let mut new = World::load(&options(&pins, 16_384), 1, &rule_set());
    let program = old.program();
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut acknowledged = 1001;
            while !stop.load(Relaxed) {
                for port in 30_000..30_000 + SESSIONS {
                    let (verdict, _) = program.run(&client(port, tcp::ACK, acknowledged, 5001));
                    assert_eq!(verdict, Verdict::Tx, "{port}");
                    let (verdict, _) = program.run(&server(port, tcp::ACK, 5001, acknowledged));
                    assert_eq!(verdict, Verdict::Tx, "{port}");
                    sent.fetch_add(2, Relaxed);
                }
                acknowledged += 1000;
            }
        });
        let so_far = |packets| while sent.load(Relaxed) < packets && !traffic.is_finished() {};
        so_far(1000);
        let moved = take_the_place(&mut new);
        assert_eq!((moved.carried_over, moved.lost), (SESSIONS.into(), 0), "{moved:?}");
        so_far(sent.load(Relaxed) + 4 * u64::from(SESSIONS));
        stop.store(true, Relaxed);
        traffic.join().expect("every packet");
    });
    assert_whole(&new, 0);
    let packets: u64 = new.dataplane.flows.flows().map(|flow| flow.entry.packets).sum();
    let expected = sent.load(Relaxed) + 3 * u64::from(SESSIONS);
    // Counters are plain additions, of which some may be lost in the moment of the swap.
    assert!(packets <= expected && packets + 100 > expected, "{packets} of {expected}");
}
