//! The short form of `cargo xtask soak`: see `lab::soak::lifecycle`. Needs root.

// Its `#[test]` takes the place of the compiler's.
#[macro_use]
extern crate harness;

use std::process::ExitCode;

use lab::{
    Router,
    soak::lifecycle::{self, Options},
};

/// Of each kind.
const TIMES: u32 = 3;

fn main() -> ExitCode {
    harness::main(harness::no_root("network namespaces need root"))
}

#[test]
fn upgrades_restarts_and_crashes_lose_nothing() {
    let binary = match harness::check(Router::find()) {
        Router::PlsRouter(binary) => binary,
        Router::Nftables | Router::Machine => panic!("what is found is pls-router"),
    };
    // This is a debug build, on a machine that may have other things to do.
    let options = Options {
        binary,
        upgrades: TIMES,
        restarts: TIMES,
        crashes: TIMES,
        connections: 300,
        rate: 20_000,
        seed: 1,
    };
    let lost = harness::check(lifecycle::run(&options));
    assert!(lost.is_nothing(), "{lost}");
}
