//! pls-router beside the kernel's own NAT, packet by packet: see `lab::differential`. Needs root.
//!
//! `cargo xtask test differential --sequences N --seed S` runs others than the usual ones. Without
//! xtask, `LAB_SEQUENCES` is the number of sequences (2,000; 0: until interrupted), `LAB_SEED` the
//! first one's seed, `LAB_CATEGORIES` what packets there are beside the usual ones (names as in
//! `lab::differential::category`, or `all`).

// Its `#[test]` takes the place of the compiler's.
#[macro_use]
extern crate harness;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use lab::{
    Nics, Router,
    differential::{self, Mode},
};

/// The number that `cargo xtask test` promises.
const SEQUENCES: u64 = 2_000;
/// The same of those whose ports are used again: they wait for timeouts.
const LIVES: u64 = 1_000;
/// The same every time: what passes today has to pass tomorrow.
const SEED: u64 = 1;

fn main() -> ExitCode {
    harness::main(harness::no_root("network namespaces need root"))
}

/// A number from the environment.
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Returns a new seed, for runs of more than the usual sequences.
fn another_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(SEED, |time| time.as_secs() << 20)
}

/// The binary to test.
fn router() -> PathBuf {
    match harness::check(Router::find()) {
        Router::PlsRouter(binary) => binary,
        Router::Nftables | Router::Machine => panic!("what is found is pls-router"),
    }
}

fn compare(nics: Nics, binary: fn() -> Option<PathBuf>, categories: &str, mode: Mode) {
    let usual = match mode {
        Mode::Packets => SEQUENCES,
        Mode::Lives => LIVES,
    };
    let mut sequences = variable("LAB_SEQUENCES").unwrap_or(usual);
    let default = || if sequences == 0 { another_seed() } else { SEED };
    let seed = variable("LAB_SEED").unwrap_or_else(default);
    let categories = std::env::var("LAB_CATEGORIES").unwrap_or_else(|_| categories.to_owned());
    let binary = binary();
    if binary.is_none() && sequences == 0 {
        // The kernel's own mistakes are of no interest.
        sequences = usual;
    }
    let options = differential::Options { nics, binary, sequences, seed, categories, mode };
    harness::check(differential::run(&options));
}

#[test]
fn differential_with_one_nic() {
    compare(Nics::One, || Some(router()), "", Mode::Packets);
}

#[test]
fn differential_with_two_nics() {
    compare(Nics::Two, || Some(router()), "", Mode::Packets);
}

/// The comparison itself must find no difference between two equal routers, with all kinds of
/// packets. Any difference here is a defect of the comparison.
#[test]
fn differential_of_the_kernel_and_itself() {
    compare(Nics::One, || None, "all", Mode::Packets);
}

/// The same ports again, after a close, a refusal, a reset or the end of a timeout, and where rules
/// have changed meanwhile.
#[test]
fn differential_over_time_with_one_nic() {
    compare(Nics::One, || Some(router()), "", Mode::Lives);
}

#[test]
fn differential_over_time_with_two_nics() {
    compare(Nics::Two, || Some(router()), "", Mode::Lives);
}

#[test]
fn differential_over_time_of_the_kernel_and_itself() {
    compare(Nics::One, || None, "", Mode::Lives);
}
