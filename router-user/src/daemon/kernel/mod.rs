//! What the daemon asks of the kernel and follows there: addresses, routes and neighbours
//! (`netlink`), the data plane's next hops (`next_hops`), and this machine's own traffic
//! (`own_traffic`).

pub(crate) mod interfaces;
pub(crate) mod netlink;
pub(crate) mod next_hop;
pub(crate) mod next_hops;
pub(crate) mod own_traffic;
