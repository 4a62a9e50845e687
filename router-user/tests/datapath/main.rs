//! The programs in the kernel, by `BPF_PROG_TEST_RUN`: a packet in; the packet out, the verdict,
//! and the counters that moved.
//!
//! Every test makes a new network namespace with the routes, neighbours and addresses that it
//! needs. Packets are built and checked by etherparse, which computes checksums from scratch. Needs
//! root.

// Its `#[test]` takes the place of the compiler's.
#[macro_use]
extern crate harness;

mod answers;
mod attach;
mod budget;
mod checksums;
mod counters;
mod ethernet;
mod example;
mod forward;
mod fragments;
mod generic;
mod half_open;
mod icmp;
mod ipv6;
mod loading;
mod local;
mod log;
mod masquerade;
mod migration;
mod mss;
mod neighbours;
mod own;
mod packets;
mod pass;
mod pins;
mod port_shares;
mod ports;
mod reuse;
mod routes;
mod rule_changes;
mod sides;
mod tcp;
mod vpp;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::main(harness::no_root("network namespaces and BPF programs need root"))
}
