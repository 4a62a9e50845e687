//! Several routers behind the load balancer. The acts, with what each of them checks, are those of
//! `cargo xtask lab --routers 3`.

use std::time::Duration;

use lab::{
    Nics, Options,
    fleet::story::{Size, Stage},
};

use crate::common::{check, helper, only_pls_router, router};

const SIZE: Size =
    Size { connections: 10, sockets: 3, drain: Duration::from_secs(3), healthy_for: Duration::from_secs(3) };

/// Plays an act on three routers that have connections.
fn play(nics: Nics, act: impl FnOnce(&mut Stage)) {
    only_pls_router();
    let options = Options { routers: 3, ..Options::new(nics, router(), helper()) };
    let mut stage = check(Stage::up(options, SIZE));
    stage.spread();
    act(&mut stage);
    assert!(stage.story.passed(), "{}: see the scenes", stage.story.summary());
}

#[test]
fn flows_are_spread_over_two_nics_as_well() {
    play(Nics::Two, |_| {});
}

#[test]
fn a_drained_router_keeps_its_connections_and_ends_empty() {
    play(Nics::One, |stage| stage.drain(1));
}

#[test]
fn a_dead_vm_takes_exactly_its_own_connections_with_it() {
    play(Nics::One, |stage| stage.death(2));
}

#[test]
fn the_first_vm_can_die_as_well() {
    play(Nics::Two, |stage| stage.death(0));
}

#[test]
fn upgrades_in_turn_lose_no_connection() {
    play(Nics::One, Stage::upgrades);
}

#[test]
fn an_outage_takes_all_routers_out_and_gives_none_of_them_up() {
    play(Nics::One, Stage::outage);
}
