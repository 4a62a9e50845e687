//! The types in BPF maps and in the ring to the daemon: what the two halves say to each other.

pub mod half_open;
pub mod openings;
pub mod own;
pub mod peers;
pub mod punt;
pub mod route;
pub mod rules;
pub mod settings;
pub mod stages;
pub mod stats;
