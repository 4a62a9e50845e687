//! The daemon and command line of pls-router.

#[cfg(all(feature = "other-layout", not(debug_assertions)))]
compile_error!(
    "the feature other-layout is for tests of the change from one layout to another, and for no release"
);

pub mod capacity;
mod changes;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod dataplane;
mod findings;
mod health;
pub mod import;
pub mod model;
pub mod policy_rules;
pub mod port_plan;
pub mod preflight;
mod private;
mod support;
pub mod sys;
pub mod toml_reader;

/// The version of this program: its package's if `cargo xtask dist` has built it, otherwise that in
/// `Cargo.toml`.
pub const VERSION: &str = match option_env!("PLS_ROUTER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};
