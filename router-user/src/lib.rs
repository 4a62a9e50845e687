//! The daemon and command line of pls-router.

mod changes;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod dataplane;
mod findings;
mod health;
pub mod model;
pub mod policy_rules;
pub mod port_plan;
pub mod preflight;
mod private;
pub mod sys;
pub mod toml_reader;
