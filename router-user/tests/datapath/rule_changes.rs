//! Rule sets that take the place of others while packets come.

use std::{
    net::Ipv4Addr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use router_common::{limits::MAX_RULES, ports::PortRange, reason::Reason};
use router_user::dataplane::{ForwardSpec, RuleSetSpec};

use crate::{
    packets::{PLS, ROUTER, read, tcp, tcp_packet},
    world::{World, network, rule_set},
};

/// The rule set of the other tests, whose rule `https` leads to these targets.
fn leading_to(targets: &[([u8; 4], u16)]) -> RuleSetSpec {
    let mut spec = rule_set();
    spec.forwards[0].targets =
        targets.iter().map(|(address, port)| (Ipv4Addr::from(*address), Some(*port))).collect();
    spec
}

/// The largest number of rules, each of the largest size.
fn largest() -> RuleSetSpec {
    let mut spec = rule_set();
    spec.masquerades.clear();
    let model = spec.forwards[0].clone();
    let forwards = (0..MAX_RULES as u16).map(|number| {
        let mut forward = model.clone();
        forward.name = format!("rule-{number}");
        forward.address = Some([10, 1, (number >> 8) as u8, number as u8].into());
        forward.ports = PortRange { first: 1, last: 65534 };
        forward.targets = (0..32).map(|host| ([203, 0, 113, host].into(), None)).collect();
        forward.sources = (0..128).map(|net| network([10, 2, net, 0], 24)).collect();
        forward
    });
    spec.forwards = forwards.collect();
    spec
}

#[test]
fn another_target_costs_one_update_of_a_rule() {
    let mut world = World::new();
    let (rules, settings) = (world.dataplane.rules.clone(), &mut world.dataplane.settings);
    let (one, other) = (leading_to(&[([203, 0, 113, 1], 443)]), leading_to(&[([203, 0, 113, 2], 443)]));
    rules.apply(&one, settings).expect("rules");
    rules.follow_up(&one, settings.version()).expect("rules");
    for spec in [&other, &one] {
        let before = rules.writes();
        rules.apply(spec, settings).expect("rules");
        assert_eq!(rules.writes() - before, 1, "until it is in force");
        rules.follow_up(spec, settings.version()).expect("rules");
        assert_eq!(rules.writes() - before, 2, "with the other bank");
        rules.follow_up(spec, settings.version()).expect("rules");
        assert_eq!(rules.writes() - before, 2, "nothing differs any more");
    }
    rules.apply(&other, settings).expect("rules");
    let ran = world.run(&tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).build());
    assert_eq!((ran.reason, read(&ran.frame).destination), (Reason::Opened, ([203, 0, 113, 2], 443)));
}

#[test]
fn a_rule_that_is_gone_leaves_nothing_behind_in_either_bank() {
    let mut world = World::new();
    let with = rule_set();
    let mut without = rule_set();
    without.forwards.remove(0);
    for spec in [&with, &without, &with, &without] {
        world.dataplane.rules.apply(spec, &mut world.dataplane.settings).expect("rules");
    }
    for _ in 0..2 {
        let ran = world.run(&tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).build());
        // The source is one of other rules.
        assert_eq!(ran.reason, Reason::LocalDenied);
        world.dataplane.rules.apply(&without, &mut world.dataplane.settings).expect("rules");
    }
}

/// A number that other rules get is none that sessions have, and its counters start from nothing.
#[test]
fn sessions_keep_their_rules_number() {
    let mut world = World::new();
    let rules = world.dataplane.rules.clone();
    let number = rules.number("https").expect("a number");
    assert_eq!(world.run(&tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).build()).reason, Reason::Opened);
    // Other rules under all numbers, twice over.
    let others = |prefix: char, count: usize| {
        let mut spec = rule_set();
        let model = spec.forwards[0].clone();
        let forward = |port: usize| {
            let port = 1000 + port as u16;
            let ports = PortRange { first: port, last: port };
            ForwardSpec { name: format!("{prefix}-{port}"), ports, ..model.clone() }
        };
        spec.forwards = (0..count).map(forward).collect();
        spec.masquerades.clear();
        spec
    };
    for prefix in ['a', 'b', 'c'] {
        let spec = others(prefix, MAX_RULES - 1);
        world.dataplane.rules.apply(&spec, &mut world.dataplane.settings).expect("rules");
        assert_eq!(rules.name(number).as_deref(), Some("https"), "{prefix}");
    }
    let stats = world.dataplane.counters.read().expect("counters");
    assert_eq!(rules.counted(number, &stats).opened, 1);

    let mut session = None;
    world.dataplane.flows.for_each(|found| {
        session = Some(*found);
        false
    });
    world.dataplane.flows.remove(&session.expect("a session")).expect("removal");
    let spec = others('d', MAX_RULES);
    world.dataplane.rules.apply(&spec, &mut world.dataplane.settings).expect("rules");
    assert!(rules.name(number).is_some_and(|name| name.starts_with("d-")));
    let stats = world.dataplane.counters.read().expect("counters");
    assert_eq!((stats.rule(number).opened, rules.counted(number, &stats).opened), (1, 0));
}

/// The programs read a target's address and port one by one, and the kernel writes an entry in
/// pieces. So a packet goes to one target or another, and never to half of each, only as long as no
/// entry that they read is written: until versions are switched, packets go where they went.
#[test]
fn the_rules_in_force_are_never_written() {
    let mut world = World::new();
    let (rules, program) = (world.dataplane.rules.clone(), world.program());
    let settings = &mut world.dataplane.settings;
    let mut port = 20_000;
    let mut leads_to = || {
        port += 1;
        let (_, frame) = program.run(&tcp_packet((PLS, port), (ROUTER, 443), tcp::SYN).build());
        read(&frame).destination
    };
    let mut before = leads_to();
    for host in 1..=6 {
        let target = ([203, 0, 113, host], 1000 + u16::from(host));
        let spec = leading_to(&[target]);
        let version = settings.version();
        let switch = |version| {
            assert_eq!(leads_to(), before, "all is written, and nothing is in force");
            settings.set_version(version)
        };
        rules.apply_by(&spec, version, switch).expect("rules");
        assert_eq!(leads_to(), target);
        // Also where the other bank still has the rules of before.
        if host % 2 == 0 {
            rules.follow_up(&spec, settings.version()).expect("rules");
            assert_eq!(leads_to(), target);
        }
        before = target;
    }
}

/// Readers of the settings, such as the daemon, wait for a switch of versions at most.
#[test]
fn nothing_waits_while_the_largest_rule_set_is_written() {
    let mut world = World::new();
    let (rules, program) = (world.dataplane.rules.clone(), world.program());
    let settings = Mutex::new(&mut world.dataplane.settings);
    let version = settings.lock().expect("settings").version();
    let (is_begun, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let spec = largest();
            is_begun.store(true, Ordering::Relaxed);
            let switched = rules
                .apply_by(&spec, version, |version| settings.lock().expect("settings").set_version(version));
            is_over.store(true, Ordering::Relaxed);
            switched.expect("the rule set fits");
        });
        while !is_begun.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let mut served = 0;
        while !is_over.load(Ordering::Relaxed) {
            settings.lock().expect("settings").show_presence().expect("settings");
            assert!(rules.number("https").is_some() || is_over.load(Ordering::Relaxed));
            program.run(&tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).build());
            served += 1;
            std::thread::sleep(Duration::from_micros(100));
        }
        assert!(served > 20, "served {served} times while 100,000 entries were written");
    });
}
