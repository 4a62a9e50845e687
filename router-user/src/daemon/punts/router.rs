//! The interface of the punt thread to the rest of the daemon.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use router_common::maps::punt::Neighbour;

use crate::{
    config::Config,
    daemon::{
        state::{Attachments, indexes},
        sync::Locked,
    },
    dataplane::{Dataplane, Departure, Replayer},
};

/// The data plane, and the interfaces that packets leave by.
pub(crate) trait Router: Send + Sync {
    /// Gives a packet that came in on the interface with this index to the programs once more.
    /// Returns the frame that is to be sent, if one is.
    ///
    /// # Errors
    /// Returns an error if the kernel does not run the program.
    fn replay(&self, interface: u32, packet: &[u8]) -> Result<Option<Departure>>;

    /// Has the programs answer packets to a neighbour that does not answer itself, for a while.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    fn note_failed(&self, neighbour: &Neighbour, hold: Duration) -> Result<()>;

    /// Has packets to a neighbour wait for its answer again.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    fn forget_failed(&self, neighbour: &Neighbour) -> Result<()>;

    /// Shows the programs that there is a daemon.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    fn show_presence(&self) -> Result<()>;

    /// Returns the MAC address of the interface with this index, which is one of the router's.
    fn mac(&self, interface: u32) -> [u8; 6];

    /// Returns the name of the interface with this index if it is one of the router's.
    fn interface_name(&self, interface: u32) -> Option<String>;
}

/// The data plane in the kernel.
pub(crate) struct KernelRouter {
    pub(crate) plane: Locked<Dataplane>,
    pub(crate) replayer: Replayer,
    pub(crate) attachments: Locked<Attachments>,
    pub(crate) config: Locked<Arc<Config>>,
}

// The data plane is locked for each call by itself, and not while a program runs: others wait for
// it.
impl Router for KernelRouter {
    fn replay(&self, interface: u32, packet: &[u8]) -> Result<Option<Departure>> {
        let settings = *self.plane.lock().settings.current();
        self.replayer.replay(&settings, interface, packet)
    }

    fn note_failed(&self, neighbour: &Neighbour, hold: Duration) -> Result<()> {
        self.plane.lock().failed_neighbours.add(neighbour, hold)
    }

    fn forget_failed(&self, neighbour: &Neighbour) -> Result<()> {
        self.plane.lock().failed_neighbours.remove(neighbour)
    }

    fn show_presence(&self) -> Result<()> {
        self.plane.lock().settings.show_presence()
    }

    fn mac(&self, interface: u32) -> [u8; 6] {
        let settings = *self.plane.lock().settings.current();
        settings.interface(settings.ingress_slot(interface)).mac.bytes()
    }

    fn interface_name(&self, interface: u32) -> Option<String> {
        let place = indexes(&self.attachments).iter().position(|index| *index == interface)?;
        self.config.get().interfaces.names().nth(place).map(str::to_owned)
    }
}
