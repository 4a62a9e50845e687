//! What is asked of the kernel, and the packet's bytes, which it has.

pub(crate) mod frame;
pub(crate) mod generic_mode;
pub(crate) mod next_hop;
pub(crate) mod own_traffic;
pub(crate) mod punt;
pub(crate) mod sockets;
