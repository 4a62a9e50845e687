//! Access to the kernel: packet bytes, routes, neighbours, sockets, and packets for the daemon.

pub(crate) mod frame;
pub(crate) mod generic_mode;
pub(crate) mod next_hop;
pub(crate) mod own_traffic;
pub(crate) mod punt;
pub(crate) mod sockets;
