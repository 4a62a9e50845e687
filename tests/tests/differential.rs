//! pls-router beside the kernel's own NAT, packet by packet: see `lab::differential`. Needs root.
//!
//! `LAB_SEQUENCES` is the number of sequences (2,000; 0: until interrupted), `LAB_SEED` the first one's seed.

use std::time::{SystemTime, UNIX_EPOCH};

use lab::{Nics, Router, differential};

/// As many as `cargo xtask test` promises.
const SEQUENCES: u64 = 2_000;
/// The same every time: what passes today has to pass tomorrow.
const SEED: u64 = 1;

/// A number from the environment.
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Who looks for more than the usual sequences wants other ones every time.
fn another_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(SEED, |time| time.as_secs() << 20)
}

fn compare(nics: Nics) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return;
    }
    let Router::PlsRouter(binary) = Router::find().expect("there is a pls-router") else {
        panic!("what is found is pls-router");
    };
    let sequences = variable("LAB_SEQUENCES").unwrap_or(SEQUENCES);
    let default = || if sequences == 0 { another_seed() } else { SEED };
    let seed = variable("LAB_SEED").unwrap_or_else(default);
    let options = differential::Options { nics, binary, sequences, seed };
    if let Err(error) = differential::run(&options) {
        panic!("{error:#}");
    }
}

#[test]
fn one_nic() {
    compare(Nics::One);
}

#[test]
fn two_nics() {
    compare(Nics::Two);
}
