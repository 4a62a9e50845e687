use std::{collections::HashMap, path::Path, time::Instant};

use proptest::prelude::*;

use super::*;
use crate::daemon::observe::{
    check_health::Outcome,
    target_health::{Signs, TargetSigns},
};

fn forward(listen: &str, targets: &str) -> Forward {
    let text = format!(
        "[interfaces]\npls = \"eth0\"\n[[forward]]\nname = \"web\"\nprotocol = \"tcp\"\nlisten = \"{listen}\"\n\
         target = {targets}\nsources = [\"10.0.2.64/26\"]\n"
    );
    let loaded = Config::parse(&text, Path::new("test.toml")).map_err(|error| error.to_string());
    loaded.unwrap().config.forwards.remove(0)
}

/// Names with these addresses, as 10.1.0.x.
fn names(known: &[(&str, &[u8])]) -> Names {
    let addresses = |last: &[u8]| last.iter().map(|last| Ipv4Addr::new(10, 1, 0, *last)).collect();
    known
        .iter()
        .map(|(name, last)| {
            ((*name).to_owned(), crate::daemon::names::resolved::Resolved::of(addresses(last)))
        })
        .collect()
}

/// Avoids these targets.
fn avoiding(targets: &[Endpoint]) -> TargetHealth {
    let silent = Signs { answered: 0, unanswered: 3 };
    let by_target: HashMap<_, _> = targets.iter().map(|target| (*target, silent)).collect();
    let mut health = TargetHealth::default();
    health.observe(&TargetSigns { by_target }, Instant::now());
    health
}

fn used(forward: &Forward, names: &Names, health: &TargetHealth) -> Vec<u8> {
    in_use(forward, names, health).iter().map(|(address, _)| address.octets()[3]).collect()
}

#[test]
fn new_sessions_avoid_a_dead_target() {
    let web = forward("443", "[\"10.1.0.1\", \"10.1.0.2:8443\", \"db.example.com\"]");
    let names = names(&[("db.example.com", &[3, 4])]);
    let target = |last, port| (Ipv4Addr::new(10, 1, 0, last), port, Protocol::Tcp);
    assert_eq!(used(&web, &names, &avoiding(&[])), [1, 2, 3, 4]);
    assert_eq!(used(&web, &names, &avoiding(&[target(1, 443), target(3, 443)])), [2, 4]);
    assert_eq!(used(&web, &names, &avoiding(&[target(2, 443)])), [1, 2, 3, 4], "another port");
    assert_eq!(used(&web, &names, &avoiding(&[target(2, 8443)])), [1, 3, 4]);
    let all = [target(1, 443), target(2, 8443), target(3, 443), target(4, 443)];
    assert_eq!(used(&web, &names, &avoiding(&all)), [1, 2, 3, 4], "all are suspect, so all serve");
    let range = forward("8000-8010", "[\"10.1.0.1\", \"10.1.0.2\"]");
    assert_eq!(used(&range, &names, &avoiding(&[target(1, 0)])), [2]);
}

/// A target that fails the check of its rule is avoided by that rule, as is one that does not
/// answer sessions.
#[test]
fn new_sessions_avoid_a_target_that_fails_its_check() {
    let web =
        forward("443", "[\"10.1.0.1\", \"10.1.0.2\", \"10.1.0.3\"]\ncheck = { type = \"tcp\", fall = 1 }");
    let place = |last| (Ipv4Addr::new(10, 1, 0, last), 443);
    let mut health = avoiding(&[(place(3).0, 443, Protocol::Tcp)]);
    let check = web.check.as_ref().expect("a check");
    let places = [1, 2, 3].map(place).into_iter().collect();
    health.checks.follow([("web", check, places)].into_iter(), Instant::now());
    let names = Names::default();
    assert_eq!(used(&web, &names, &health), [1, 2], "not known yet");
    let mut fail = |last| {
        let outcome = Outcome::Bad("no answer".to_owned());
        health.checks.note("web", place(last), outcome, Instant::now());
        used(&web, &names, &health)
    };
    assert_eq!(fail(1), [2]);
    assert_eq!(fail(2), [1, 2, 3], "all are suspect, so all serve");
    let another = Forward { name: "another".to_owned(), ..web.clone() };
    assert_eq!(used(&another, &names, &health), [1, 2], "the check is another rule's");
}

#[test]
fn a_single_target_is_never_avoided() {
    let web = forward("443", "\"10.1.0.1\"");
    let health = avoiding(&[(Ipv4Addr::new(10, 1, 0, 1), 443, Protocol::Tcp)]);
    assert_eq!(used(&web, &Names::default(), &health), [1]);
    assert!(!is_judged(&web, &Names::default()));
    assert!(is_judged(&forward("443", "\"db.example.com\""), &names(&[("db.example.com", &[3, 4])])));
}

#[test]
fn more_addresses_than_there_is_room_for_are_cut() {
    let web = forward("443", "\"db.example.com\"");
    let many: Vec<u8> = (1..=40).collect();
    let names = names(&[("db.example.com", &many)]);
    assert_eq!(used(&web, &names, &avoiding(&[])), (1..=32).collect::<Vec<u8>>());
    // The others are there when one is dead.
    let dead = (Ipv4Addr::new(10, 1, 0, 7), 443, Protocol::Tcp);
    let chosen = used(&web, &names, &avoiding(&[dead]));
    assert!(chosen.len() == 32 && !chosen.contains(&7) && chosen.contains(&33), "{chosen:?}");
}

/// A name server may say what it likes of its own name, and takes nothing from the rule's others.
#[test]
fn a_name_of_many_addresses_leaves_the_other_targets_theirs() {
    let web = forward("443", "[\"flood.example.com\", \"10.1.0.200\", \"db.example.com\"]");
    let many: Vec<u8> = (1..=100).collect();
    let mut names = names(&[("flood.example.com", &many), ("db.example.com", &[201, 202, 203])]);
    let expected = |flood: u8| (1..=flood).chain([200, 201, 202, 203]).collect::<Vec<u8>>();
    assert_eq!(used(&web, &names, &avoiding(&[])), expected(28));
    // Two of them share what is left.
    let flood = |third| (0..100).map(|last| Ipv4Addr::new(10, 1, third, last)).collect();
    names.insert("db.example.com".to_owned(), crate::daemon::names::resolved::Resolved::of(flood(1)));
    let chosen = in_use(&web, &names, &avoiding(&[]));
    let of_db = chosen.iter().filter(|(address, _)| address.octets()[2] == 1).count();
    assert_eq!((chosen.len(), of_db), (32, 15));
}

proptest! {
    #[test]
    fn a_rule_with_targets_keeps_some(known in proptest::collection::btree_set(1..60_u8, 0..50), dead in proptest::collection::vec(1..60_u8, 0..60)) {
        let known: Vec<u8> = known.into_iter().collect();
        let web = forward("443", "\"db.example.com\"");
        let dead: Vec<Endpoint> =
            dead.into_iter().map(|last| (Ipv4Addr::new(10, 1, 0, last), 443, Protocol::Tcp)).collect();
        let health = avoiding(&dead);
        let names = names(&[("db.example.com", &known)]);
        let chosen = in_use(&web, &names, &health);
        prop_assert_eq!(chosen.is_empty(), known.is_empty());
        prop_assert!(chosen.len() <= MAX_TARGETS);
        let avoided = chosen.iter().filter(|target| health.avoids(endpoint(&web, target))).count();
        prop_assert!(avoided == 0 || avoided == known.len().min(MAX_TARGETS), "some that are avoided among some that are not");
    }
}
