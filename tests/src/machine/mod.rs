//! A real machine as the lab's router: Debian 12 with its kernel, systemd, sshd and cloud-init, in
//! an emulator.
//!
//! The lab is made with [`Router::Machine`](crate::Router::Machine), which leaves the ends of wires
//! where the router would be. [`Machine::boot`] plugs a machine in there: `eth0` faces the Private
//! Link Service, `eth1` (with two NICs) the firewall, both as the lab's
//! [addresses](crate::addresses) say. Both are virtio NICs with as many queues as native XDP needs.
//! It has no way out of the lab, and forgets all that it has written when it is dropped.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use lab::{Lab, Nics, Options, Router, helper::Helper, machine::{Image, Machine, Seed}};
//!
//! let helper = Helper::new("target/debug/lab");
//! let options = Options::new(Nics::Two, Router::Machine, helper);
//! let options = Options { start_router: false, ..options };
//! let lab = Lab::up(options)?;
//! let image = Image::find()?;
//! let mut machine = Machine::boot(&lab, &image, &Seed::default())?;
//! machine.wait_for_ssh(Duration::from_secs(120))?;
//! println!("{}", machine.ssh("uname --kernel-release")?);
//! # Ok(())
//! # }
//! ```

mod emulated;
mod image;
mod monitor;
mod prober;
mod seed;
mod ssh;
mod traffic;
mod watch;

pub use self::{
    emulated::Machine,
    image::Image,
    prober::Prober,
    seed::Seed,
    ssh::OPERATOR,
    traffic::{Outcome, Traffic},
    watch::{Answer, Change, Watch},
};
