//! The health of the router and its targets: pure functions and state machines without I/O or a
//! clock, and the monitor that feeds them.

pub(crate) mod answer;
pub(crate) mod bad_checksums;
pub(crate) mod capacity;
pub(crate) mod check_health;
pub(crate) mod contested;
pub(crate) mod monitor;
pub(crate) mod passive_health;
pub(crate) mod reachability;
pub(crate) mod target_health;
