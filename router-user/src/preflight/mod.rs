//! Checks that this machine can run a configuration, before anything is attached.
//!
//! [`inspect`] gathers facts and decides nothing. [`findings`] decides and looks at nothing, so its
//! tests need no such machine.

mod facts;
mod finding;
mod gather;
mod judge;

pub use facts::{
    AttachedProgram, Facts, FirewallChain, Hook, Interface, IpsecPolicy, Ipv6, Kernel, Listener, Predecessor,
    Privileges, Process, Refused, Service, SocketAccess, Ssh, SshSession, Way,
};
pub use finding::{Finding, Id};
pub use gather::{inspect, inspect_beside};
pub use judge::{Access, access, findings};

pub use crate::config::Severity;
