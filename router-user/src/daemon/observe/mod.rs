//! Judgements about the router by what was seen of it: pure functions and state machines, without
//! I/O and without a clock; and the monitor that feeds them.

pub(crate) mod bad_checksums;
pub(crate) mod capacity;
pub(crate) mod contested;
pub(crate) mod monitor;
pub(crate) mod passive_health;
pub(crate) mod reachability;
pub(crate) mod target_health;
