//! Shared by the tests in namespaces: a separate lab for every test, once with one NIC and once
//! with two.

use std::{net::SocketAddr, time::Duration};

pub(crate) use harness::check;
use lab::{
    Lab, Nics, Options, Router,
    addresses::{ECHO_PORT, ENDPOINT},
    helper::Helper,
};
use router_user::model::{Counters, RuleCounters};

/// The time that a packet may take through the lab, on a machine that has other things to do as
/// well.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// The echo services, as the client reaches them.
pub(crate) const ECHO: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(ENDPOINT), ECHO_PORT);

/// The lab binary with the lab's own servers.
pub(crate) fn helper() -> Helper {
    Helper::new(env!("CARGO_BIN_EXE_lab"))
}

/// Returns the router to test: pls-router, or the kernel's own NAT with `LAB_ROUTER=nftables`,
/// which shows whether the test itself is right.
pub(crate) fn router() -> Router {
    match std::env::var("LAB_ROUTER").as_deref() {
        Ok("nftables") => Router::Nftables,
        Ok(other) if other != "pls-router" => panic!("LAB_ROUTER is pls-router or nftables, not {other}"),
        _ => check(Router::find()),
    }
}

/// Skips this test where `LAB_ROUTER` asks for another router.
pub(crate) fn only_pls_router() {
    if std::env::var("LAB_ROUTER").is_ok_and(|router| router == "nftables") {
        harness::skip("this is about pls-router, and LAB_ROUTER is nftables");
    }
}

/// Runs a test in a new lab.
pub(crate) fn in_lab(nics: Nics, needs_pls_router: bool, test: fn(&mut Lab)) {
    if needs_pls_router {
        only_pls_router();
    }
    test(&mut check(Lab::up(Options::new(nics, router(), helper()))));
}

/// The router's counters.
#[track_caller]
pub(crate) fn counters(lab: &Lab) -> Counters {
    check(lab.pls_router_json(&["counters"]))
}

/// The number of packets that had this reason.
#[track_caller]
pub(crate) fn reason(counters: &Counters, reason: &str) -> u64 {
    let row = counters.reasons.iter().find(|row| row.reason == reason);
    row.unwrap_or_else(|| panic!("there is no reason {reason} in {:#?}", counters.reasons)).packets
}

/// The counters of a rule.
#[track_caller]
pub(crate) fn rule<'a>(counters: &'a Counters, name: &str) -> &'a RuleCounters {
    let row = counters.rules.iter().find(|row| row.name == name);
    row.unwrap_or_else(|| panic!("there is no rule {name} in {:#?}", counters.rules))
}

/// Makes two tests of every function, one a number of NICs. Those under `pls_router` are of things
/// that only pls-router does.
macro_rules! lab_tests {
    (any: [$($any:ident),* $(,)?], pls_router: [$($own:ident),* $(,)?] $(,)?) => {
        mod one_nic {
            $(#[test] fn $any() { crate::common::in_lab(lab::Nics::One, false, super::$any); })*
            $(#[test] fn $own() { crate::common::in_lab(lab::Nics::One, true, super::$own); })*
        }
        mod two_nics {
            $(#[test] fn $any() { crate::common::in_lab(lab::Nics::Two, false, super::$any); })*
            $(#[test] fn $own() { crate::common::in_lab(lab::Nics::Two, true, super::$own); })*
        }
    };
}
