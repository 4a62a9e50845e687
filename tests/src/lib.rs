//! The lab: Azure's network around the router, in network namespaces, for the end-to-end tests.
//!
//! [`Lab::up`] brings one up, and dropping it removes it. [`addresses`] has a picture of the
//! network.

/// Prints a line to standard error. Unlike `eprintln!`, this does not panic if standard error is
/// closed: removing a lab has to go on.
macro_rules! complain {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _gone = writeln!(std::io::stderr(), $($argument)*);
    }};
}

pub mod addresses;
pub mod arp;
pub mod balancer;
pub mod client;
pub mod clients;
mod clock;
pub mod command;
pub mod conntrack;
pub mod differential;
pub mod fleet;
pub mod flood;
pub mod helper;
mod hosts;
mod interrupt;
mod lab;
pub mod link;
pub mod machine;
mod namespace;
mod packet;
pub mod paths;
mod process;
mod random;
pub mod servers;
pub mod soak;
pub mod state;
pub mod story;
pub mod target;
mod variants;
mod view;
pub mod wait;
mod wire;
pub mod witness;

pub use hosts::{
    internet::{LARGE_RECORD, front_page, large_record},
    router::rules,
};
pub use lab::{HOSTS, Hosts, Lab, Options, PROBE_INTERVAL};
pub use namespace::Namespace;
pub use process::Process;
pub use variants::{Nics, OTHER_LAYOUT, PlsPorts, Router};
