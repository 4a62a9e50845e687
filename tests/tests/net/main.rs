//! The router among real hosts, in network namespaces: see the `lab` crate. Needs root.
//!
//! `LAB_ROUTER=nftables` runs the tests that are not about pls-router alone against the kernel's own NAT.

#[macro_use]
mod common;

mod audit;
mod expiry;
mod floods;
mod fragments;
mod isolation;
mod lifecycle;
mod local;
mod names;
mod neighbours;
mod removal;
mod repairs;
mod starts;
mod traffic;
mod upkeep;
