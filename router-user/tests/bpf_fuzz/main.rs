//! The programs in the kernel under made-up and damaged packets, by `BPF_PROG_TEST_RUN`.
//!
//! Frames that mean something ([`frames`]) are aimed at the rules and the live sessions of a
//! router, most are damaged ([`mutate`]), and what becomes of each is checked against a model of
//! the router that is written a second time, from bytes up ([`check`]), and what is passed to the
//! kernel against what may reach this machine itself ([`closed`]). Counters and the flow table are
//! looked at once in a while ([`campaign`]).
//!
//! `FUZZ_PACKETS` sets the number of packets in all, `FUZZ_SEED` repeats a run. Packets that once
//! went wrong are in `regressions/`, and are tried every time. Needs root.

// Its `#[test]` takes the place of the compiler's.
#[macro_use]
extern crate harness;

mod campaign;
mod check;
mod closed;
mod frames;
mod model;
mod mutate;
#[path = "../datapath/packets.rs"]
#[expect(dead_code, reason = "made for the tests of single packets, too")]
mod packets;
#[path = "../../../tests/src/random.rs"]
mod random;
mod wire;
#[path = "../datapath/world.rs"]
#[expect(dead_code, reason = "made for the tests of single packets, too")]
mod world;

use std::{fs, path::Path, process::ExitCode};

use campaign::{Campaign, packets, profile, read, seed};

fn main() -> ExitCode {
    harness::main(harness::no_root("network namespaces and BPF programs need root"))
}

/// A run of this many packets has to reach every place.
const LONG: u64 = 100_000;

fn fuzz(name: &str) {
    let mut campaign = Campaign::new(profile(name).expect("a profile"), seed());
    campaign.truncate_every_kind();
    campaign.run(packets());
    println!("{}", campaign.summary());
    if packets() >= LONG {
        assert_eq!(campaign.missing(), None, "never came up: {}", campaign.summary());
        assert!(campaign.has_moved(), "no tuple was used again: {}", campaign.summary());
    }
    campaign.leave_nothing_behind();
}

#[test]
fn one_nic() {
    fuzz("one_nic");
}

#[test]
fn two_nics() {
    fuzz("two_nics");
}

#[test]
fn crowded() {
    fuzz("crowded");
}

#[test]
fn pooled() {
    fuzz("pooled");
}

#[test]
fn closed_to_all() {
    fuzz("closed_to_all");
}

#[test]
fn regressions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf_fuzz/regressions");
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("a file");
        let (profile, packets) = read(&text).unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
        println!("{}", path.display());
        let mut campaign = Campaign::new(profile, 0);
        for given in packets {
            campaign.give(given);
            campaign.settle(true);
        }
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}
