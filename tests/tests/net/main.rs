//! The router among real hosts, in network namespaces: see the `lab` crate. Needs root.
//!
//! `LAB_ROUTER=nftables` runs the tests that are not about pls-router alone against the kernel's
//! own NAT.

// Its `#[test]` takes the place of the compiler's.
#[macro_use]
extern crate harness;

#[macro_use]
mod common;

mod audit;
mod drain;
mod example;
mod expiry;
mod faults;
mod fleet;
mod floods;
mod follows;
mod fragments;
mod guides;
mod hand_over;
mod health;
mod import;
mod interfaces;
mod isolation;
mod layouts;
mod lifecycle;
mod local;
mod migration;
mod names;
mod neighbours;
mod own;
mod privileges;
mod probe;
mod reload;
mod removal;
mod repairs;
mod routes;
mod self_test;
mod sockets;
mod starts;
mod support;
mod traffic;
mod unattached;
mod unreachable;
mod upkeep;
mod waiting;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::main(harness::no_root("network namespaces need root"))
}
