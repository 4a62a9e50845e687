use std::{collections::HashMap, net::Ipv4Addr, path::Path, time::Instant};

use router_common::tuple::Protocol;

use super::*;
use crate::daemon::{
    kernel::next_hop::Problem,
    names::resolved::Resolved,
    observe::{
        check_health::Outcome,
        target_health::{Signs, TargetSigns},
    },
};

/// Two rules by name.
fn config() -> Config {
    let rule = |name: &str, port: u16, target: &str| {
        format!(
            "[[forward]]\nname = \"{name}\"\nprotocol = \"tcp\"\nlisten = \"{port}\"\ntarget = {target}\n\
             sources = [\"10.0.2.64/26\"]\n"
        )
    };
    let text = format!(
        "[interfaces]\npls = \"eth0\"\n{}{}",
        rule("db", 5432, "\"db.example.com\""),
        rule("web", 443, "\"web.example.com\"")
    );
    Config::parse(&text, Path::new("test.toml")).map_err(|error| error.to_string()).unwrap().config
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, last)
}

fn names(known: &[(&str, &[u8], &str)]) -> Names {
    let resolved = |(name, last, problem): &(&str, &[u8], &str)| {
        let mut resolved = Resolved::of(last.iter().copied().map(address).collect());
        resolved.problem = (!problem.is_empty()).then(|| (*problem).to_owned());
        ((*name).to_owned(), resolved)
    };
    known.iter().map(resolved).collect()
}

fn next_hop(rules: &[&str], last: u8, resolved: bool) -> NextHop {
    NextHop {
        rules: rules.iter().map(|rule| (*rule).to_owned()).collect(),
        target: address(last).into(),
        via: None,
        interface: None,
        mac: None,
        source: None,
        problem: (!resolved).then(|| Problem::NotAsked("no answer".to_owned())),
    }
}

/// Returns the details of the conditions `down`, and of those `degraded`.
fn judged(
    config: &Config,
    names: &Names,
    health: &TargetHealth,
    next_hops: &[NextHop],
) -> (Vec<String>, Vec<String>) {
    let mut conditions = Conditions::at(Instant::now());
    judge(&mut conditions, config, names, health, next_hops);
    (conditions.details(Severity::Down), conditions.details(Severity::Degraded))
}

#[track_caller]
fn check(names: &Names, next_hops: &[NextHop], problems: &[&str], degraded: &[&str]) {
    assert_eq!(
        judged(&config(), names, &TargetHealth::default(), next_hops),
        (owned(problems), owned(degraded))
    );
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn one_name_does_not_take_the_others_out() {
    check(&names(&[("db.example.com", &[1], ""), ("web.example.com", &[2], "")]), &[], &[], &[]);
    check(
        &names(&[("db.example.com", &[], "gone"), ("web.example.com", &[2], "")]),
        &[],
        &[],
        &["rule db: no target: new sessions are refused", "target db.example.com: no address: gone"],
    );
    check(
        &names(&[("db.example.com", &[1], "gone"), ("web.example.com", &[2], "")]),
        &[],
        &[],
        &["target db.example.com: cannot be resolved again: gone"],
    );
}

#[test]
fn without_any_target_nothing_is_forwarded() {
    check(
        &names(&[("db.example.com", &[], "gone"), ("web.example.com", &[], "silence")]),
        &[],
        &[
            "no forward rule has a target",
            "target db.example.com: no address: gone",
            "target web.example.com: no address: silence",
        ],
        &["rule db: no target: new sessions are refused", "rule web: no target: new sessions are refused"],
    );
}

#[test]
fn a_next_hop_is_a_problem_when_no_forward_has_any() {
    let names = names(&[("db.example.com", &[1, 3], ""), ("web.example.com", &[2, 3], "")]);
    let (db, web, both) = (["db"], ["web"], ["db", "web"]);
    let all = [next_hop(&db, 1, true), next_hop(&web, 2, true), next_hop(&both, 3, true)];
    check(&names, &all, &[], &[]);
    let shared_one_gone = [next_hop(&db, 1, true), next_hop(&web, 2, true), next_hop(&both, 3, false)];
    check(&names, &shared_one_gone, &[], &["rule db, web: no next hop to 10.1.0.3: no answer"]);
    // A target on the link that is down, say: what other rules do is worth more than what this one
    // cannot.
    let web_lost = [next_hop(&db, 1, true), next_hop(&web, 2, false), next_hop(&both, 3, false)];
    let texts =
        ["rule web: no next hop to 10.1.0.2: no answer", "rule db, web: no next hop to 10.1.0.3: no answer"];
    check(&names, &web_lost, &[], &texts);
    let all_lost = [next_hop(&web, 2, false), next_hop(&both, 3, false)];
    check(&names, &all_lost, &texts, &[]);
    // The next hop of a new target is not known yet.
    check(&names, &[next_hop(&web, 2, false)], &[], &texts[..1]);
}

#[test]
fn a_forward_without_a_target_is_no_way_either() {
    let names = names(&[("db.example.com", &[], "gone"), ("web.example.com", &[2], "")]);
    check(
        &names,
        &[next_hop(&["web"], 2, false)],
        &["rule web: no next hop to 10.1.0.2: no answer"],
        &["rule db: no target: new sessions are refused", "target db.example.com: no address: gone"],
    );
}

/// Clients of a masquerade do not come by the load balancer.
#[test]
fn masquerades_count_where_there_is_no_forward() {
    let names = names(&[("db.example.com", &[1], ""), ("web.example.com", &[2], "")]);
    let lost = next_hop(&["vnet"], 9, false);
    let text = ["rule vnet: no next hop to 10.1.0.9: no answer"];
    check(&names, &[next_hop(&["db"], 1, true), next_hop(&["web"], 2, true), lost.clone()], &[], &text);

    let alone = "[interfaces]\npls = \"eth0\"\n[[masquerade]]\nname = \"vnet\"\nsources = [\"10.0.2.0/24\"]\n\
                 destinations = [\"10.1.0.0/16\", \"10.2.0.0/16\"]\n";
    let config =
        Config::parse(alone, Path::new("test.toml")).map_err(|error| error.to_string()).unwrap().config;
    let judge =
        |next_hops: &[NextHop]| judged(&config, &Names::default(), &TargetHealth::default(), next_hops);
    let half = judge(&[next_hop(&["vnet"], 1, true), lost.clone()]);
    assert_eq!(half, (owned(&[]), owned(&text)));
    let none = judge(&[lost]);
    assert_eq!(none, (owned(&text), owned(&[])));
}

#[test]
fn what_is_wrong_with_a_rule_s_targets_is_said() {
    let many: Vec<u8> = (1..=40).collect();
    let names = names(&[("db.example.com", &many, ""), ("web.example.com", &[50, 51], "")]);
    let silent = Signs { answered: 0, unanswered: 3 };
    let by_target: HashMap<_, _> = [50, 51].map(|last| ((address(last), 443, Protocol::Tcp), silent)).into();
    let mut health = TargetHealth::default();
    health.observe(&TargetSigns { by_target }, Instant::now());
    let (down, degraded) = judged(&config(), &names, &health, &[]);
    assert_eq!(down, [""; 0]);
    assert_eq!(
        degraded,
        [
            "rule db: its targets have 40 addresses; 32 of them are used",
            "rule web: none of its 2 targets answers new sessions"
        ]
    );
}

/// A forward, with more keys of its own.
fn forward(name: &str, port: u16, target: &str, more: &str) -> String {
    format!(
        "[[forward]]\nname = \"{name}\"\nprotocol = \"tcp\"\nlisten = \"{port}\"\ntarget = {target}\n\
         sources = [\"10.0.2.64/26\"]\n{more}\n"
    )
}

fn parse(rules: &str, require: &str) -> Config {
    let text = format!("[interfaces]\npls = \"eth0\"\n{rules}[health]\nrequire = {require}\n");
    Config::parse(&text, Path::new("test.toml")).map_err(|error| error.to_string()).unwrap().config
}

/// A rule with two targets that are checked, and one that is not.
fn checked(require_targets: &str, require_rules: &str) -> Config {
    let check = format!("check = {{ type = \"tcp\", fall = 1, require = \"{require_targets}\" }}");
    let rules = [
        forward("web", 443, "[\"10.1.0.1\", \"10.1.0.2\"]", &check),
        forward("db", 5432, "\"10.1.0.3\"", ""),
        "[[masquerade]]\nname = \"vnet\"\nsources = [\"10.0.2.0/24\"]\ndestinations = [\"10.9.0.0/16\"]\n"
            .to_owned(),
    ];
    parse(&rules.concat(), require_rules)
}

/// The check of web's targets has failed at these addresses.
fn failing(config: &Config, last: &[u8]) -> TargetHealth {
    let mut health = TargetHealth::default();
    let places = [1, 2].map(|last| (address(last), 443));
    let checks = config.forwards.iter().filter_map(|forward| {
        Some((forward.name.as_str(), forward.check.as_ref()?, places.into_iter().collect()))
    });
    health.checks.follow(checks, Instant::now());
    for last in last {
        let outcome = Outcome::Bad("it refuses connections".to_owned());
        health.checks.note("web", (address(*last), 443), outcome, Instant::now());
    }
    health
}

const FAILED_ONE: &str = "rule web: target 10.1.0.1:443 fails its check: it refuses connections";
const FAILED_TWO: &str = "rule web: target 10.1.0.2:443 fails its check: it refuses connections";
const NONE_PASSES: &str =
    "rule web: none of its 2 targets passes its check; 10.1.0.1:443: it refuses connections";
const SOME_FAIL: &str = "rule web: 1 of its 2 targets fail their check; 10.1.0.1:443: it refuses connections";

/// Judges `config` with these targets of web failing.
fn judged_by_checks(config: &Config, failed: &[u8], next_hops: &[NextHop]) -> (Vec<String>, Vec<String>) {
    judged(config, &Names::default(), &failing(config, failed), next_hops)
}

#[test]
fn a_rule_is_healthy_by_any_or_all_of_its_targets() {
    let any = checked("any", "\"any\"");
    assert_eq!(judged_by_checks(&any, &[], &[]), (owned(&[]), owned(&[])));
    assert_eq!(judged_by_checks(&any, &[1], &[]), (owned(&[]), owned(&[FAILED_ONE])));
    let both = owned(&[NONE_PASSES, FAILED_ONE, FAILED_TWO]);
    assert_eq!(judged_by_checks(&any, &[1, 2], &[]), (owned(&[]), both), "another forward is there");
    let all = checked("all", "\"any\"");
    assert_eq!(judged_by_checks(&all, &[], &[]), (owned(&[]), owned(&[])));
    assert_eq!(judged_by_checks(&all, &[1], &[]), (owned(&[]), owned(&[SOME_FAIL, FAILED_ONE])));
}

#[test]
fn the_router_is_down_when_no_forward_can_be_reached_for_whatever_reason() {
    let config = checked("any", "\"any\"");
    let no_way = next_hop(&["db"], 3, false);
    let lost = "rule db: no next hop to 10.1.0.3: no answer";
    assert_eq!(
        judged_by_checks(&config, &[1, 2], std::slice::from_ref(&no_way)),
        (owned(&[NONE_PASSES, lost]), owned(&[FAILED_ONE, FAILED_TWO]))
    );
    assert_eq!(judged_by_checks(&config, &[1], &[no_way]), (owned(&[]), owned(&[FAILED_ONE, lost])));
}

#[test]
fn all_forwards_may_be_required() {
    let config = checked("any", "\"all\"");
    assert_eq!(
        judged_by_checks(&config, &[1, 2], &[]),
        (owned(&[NONE_PASSES]), owned(&[FAILED_ONE, FAILED_TWO]))
    );
    assert_eq!(judged_by_checks(&config, &[2], &[]), (owned(&[]), owned(&[FAILED_TWO])));
    let lost = [next_hop(&["db"], 3, false), next_hop(&["vnet"], 9, false)];
    assert_eq!(
        judged_by_checks(&config, &[], &lost),
        (
            owned(&["rule db: no next hop to 10.1.0.3: no answer"]),
            owned(&["rule vnet: no next hop to 10.1.0.9: no answer"])
        ),
        "clients of a masquerade do not come by the load balancer"
    );
    // One of two targets.
    let partly = [next_hop(&["web"], 1, false), next_hop(&["web"], 2, true)];
    let text = ["rule web: no next hop to 10.1.0.1: no answer"];
    assert_eq!(judged_by_checks(&config, &[], &partly), (owned(&[]), owned(&text)));
    // A rule without a target.
    let rules = [forward("db", 5432, "\"db.example.com\"", ""), forward("web", 443, "\"10.1.0.1\"", "")];
    let config = parse(&rules.concat(), "\"all\"");
    let names = names(&[("db.example.com", &[], "gone")]);
    assert_eq!(
        judged(&config, &names, &TargetHealth::default(), &[]),
        (
            owned(&["rule db: no target: new sessions are refused"]),
            owned(&["target db.example.com: no address: gone"])
        )
    );
}

#[test]
fn only_the_required_rules_matter() {
    let config = checked("any", "[\"db\", \"vnet\"]");
    let three = owned(&[NONE_PASSES, FAILED_ONE, FAILED_TWO]);
    assert_eq!(judged_by_checks(&config, &[1, 2], &[]), (owned(&[]), three));
    let text = ["rule vnet: no next hop to 10.1.0.9: no answer"];
    assert_eq!(judged_by_checks(&config, &[], &[next_hop(&["vnet"], 9, false)]), (owned(&text), owned(&[])));
    // No forward at all can be reached, and none is required.
    let lost = [next_hop(&["web"], 1, false), next_hop(&["db"], 3, false)];
    let texts =
        ["rule web: no next hop to 10.1.0.1: no answer", "rule db: no next hop to 10.1.0.3: no answer"];
    let config = checked("any", "[\"vnet\"]");
    assert_eq!(judged_by_checks(&config, &[], &lost), (owned(&[]), owned(&texts)));
    let without = names(&[("db.example.com", &[], "gone"), ("web.example.com", &[], "gone")]);
    let rules = [
        forward("web", 443, "\"web.example.com\"", ""),
        "[[masquerade]]\nname = \"vnet\"\nsources = [\"10.0.2.0/24\"]\ndestinations = [\"10.9.0.0/16\"]\n"
            .to_owned(),
    ];
    let (down, _) = judged(&parse(&rules.concat(), "[\"vnet\"]"), &without, &TargetHealth::default(), &[]);
    assert_eq!(down, [""; 0]);
}

/// Passive health is a suspicion.
#[test]
fn what_sessions_have_shown_is_never_the_probe_s_matter() {
    let config = parse(&forward("web", 443, "[\"10.1.0.1\", \"10.1.0.2\"]", ""), "\"all\"");
    let silent = Signs { answered: 0, unanswered: 3 };
    let by_target: HashMap<_, _> = [1, 2].map(|last| ((address(last), 443, Protocol::Tcp), silent)).into();
    let mut health = TargetHealth::default();
    health.observe(&TargetSigns { by_target }, Instant::now());
    let text = owned(&["rule web: none of its 2 targets answers new sessions"]);
    assert_eq!(judged(&config, &Names::default(), &health, &[]), (owned(&[]), text));
}
