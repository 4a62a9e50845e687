//! The bench: what `cargo xtask bench` runs.
//!
//! Each part is a function with its results: [`programs`], [`packets`], [`sessions`], [`latency`],
//! [`tcp`], [`resources`]. They share the path of packets ([`path`]), its ends ([`ends`],
//! [`frames`], [`traffic`]), one measurement along it ([`forward`]), rounds of them ([`rows`]), the
//! CPUs ([`cpu`]), and the parts of tables ([`spread`], [`report`]).

mod addresses;
pub(crate) mod arguments;
mod arms;
mod cpu;
mod daemon;
mod ends;
mod forward;
mod frames;
mod histogram;
mod labtools;
mod latency;
mod packets;
mod path;
mod probe;
mod programs;
mod report;
mod resources;
mod rows;
pub(crate) mod run;
mod sessions;
mod setup;
mod spread;
mod tcp;
#[path = "../../labtools/src/traffic.rs"]
mod traffic;
