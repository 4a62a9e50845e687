//! The services of the lab's hosts.

pub(crate) mod firewall;
pub(crate) mod internet;
pub(crate) mod nginx;
pub(crate) mod pls;
pub(crate) mod router;
