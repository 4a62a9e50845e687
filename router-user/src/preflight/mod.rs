//! Whether this machine can run a configuration: looked at before anything is attached.
//!
//! [`inspect`] gathers facts and decides nothing; [`findings`] decides and looks at nothing, so
//! that what it says is tested without the machines it is about.

mod facts;
mod gather;
mod judge;

use std::fmt;

pub use facts::{
    AttachedProgram, Facts, FirewallChain, Hook, Interface, IpsecPolicy, Ipv6, Kernel, Listener, Predecessor,
    Privileges, Process, Refused, Service, SocketAccess, Ssh, SshSession, Way,
};
pub use gather::inspect;
pub use judge::{Access, access, findings};

pub use crate::config::Severity;

/// The name of our program as the kernel shows it.
pub const PROGRAM_NAME: &str = "pls_router";

/// One thing that is wrong, doubtful or worth knowing on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// An error keeps the router from working; a warning does not, and a note is about what may
    /// well be meant.
    pub severity: Severity,
    /// What is wrong and where, in one line.
    pub text: String,
    /// What to do about it: the command where there is one.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  fix: {}", self.severity, self.text, self.fix)
    }
}
