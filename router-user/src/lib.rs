//! The daemon and command line of pls-router.

pub mod config;
pub mod model;
