//! The kernel's state that the daemon follows: addresses, routes and neighbours (`netlink`), next
//! hops (`next_hops`), and this machine's own traffic (`own_traffic`).

pub(crate) mod interfaces;
pub(crate) mod netlink;
pub(crate) mod next_hop;
pub(crate) mod next_hops;
pub(crate) mod own_traffic;
