//! The programs, one in each file, which has the program's name.

pub(crate) mod answer;
pub(crate) mod ask_route;
pub(crate) mod claim;
pub(crate) mod ethernet;
pub(crate) mod forward;
pub(crate) mod fragment;
pub(crate) mod icmp_error;
pub(crate) mod ipv6;
pub(crate) mod local;
pub(crate) mod open;
pub(crate) mod own_traffic;
pub(crate) mod slow;
