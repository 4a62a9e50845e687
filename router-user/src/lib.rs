//! The daemon and command line of pls-router.

pub mod model;
