//! Packets that the data plane does not send itself.
//!
//! Those that wait for a neighbour are translated; only the next hop's MAC address is missing. They are sent through the kernel's own
//! output (`output`), which asks the neighbour and keeps the packet until it answers: the first packet of a connection is not
//! lost, and no retransmission has to be waited for. Those that are too large for the next hop go the same way, in fragments. Fragments
//! that came before the first of their datagram are held (`held`) until that has come, and then given to the program for
//! fragments again.

mod held;
mod output;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use router_common::{
    fragment::FragmentKey,
    punt::{Kind, Punted},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{interval, timeout},
};
use tracing::debug;

use self::{
    held::{Fragment, Held},
    output::Output,
};
use super::shared::Shared;

/// How often the data plane hears of us: well within `Settings::DAEMON_PATIENCE`.
const PRESENCE: Duration = Duration::from_secs(1);

/// Does for ever what the data plane asks for in the ring.
pub(super) async fn serve(shared: Arc<Shared>, ring: RingBuf<MapData>) -> Result<()> {
    let mut desk = Desk { shared, output: Output::open()?, held: Held::default() };
    // SAFETY: the ring owns its descriptor, keeps it open as long as it lives, and always names the same one.
    let mut ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .context("cannot wait for packets from the data plane")?;
    loop {
        let patience = if desk.held.is_empty() { Duration::MAX } else { held::LIMIT };
        let Ok(ready) = timeout(patience, ring.readable_mut()).await else {
            desk.held.expire(Instant::now());
            continue;
        };
        let mut ready = ready.context("cannot wait for packets from the data plane")?;
        while let Some(record) = ready.get_inner_mut().next() {
            if let Some(punted) = Punted::parse(&record)
                && let Err(error) = desk.handle(&punted)
            {
                debug!("cannot send a packet of the data plane: {error:#}");
            }
        }
        ready.clear_ready();
    }
}

struct Desk {
    shared: Arc<Shared>,
    output: Output,
    held: Held,
}

impl Desk {
    fn handle(&mut self, punted: &Punted<'_>) -> Result<()> {
        let packet = punted.packet;
        match punted.kind {
            Kind::Send => self.output.send(packet)?,
            Kind::Split => self.output.split(packet, u16::try_from(punted.detail)?)?,
            Kind::Hold => {
                let fragment = Fragment { interface: punted.detail, packet: packet.to_vec() };
                self.held.hold(key(packet)?, fragment, Instant::now());
            }
            Kind::Release => {
                // What one fails by, the others fail by, too.
                for fragment in self.held.release(&key(packet)?, Instant::now()) {
                    self.replay(&fragment)?;
                }
            }
        }
        Ok(())
    }

    /// Gives a fragment to the data plane once more. What is not to be sent has its reason counted, or is in the ring.
    fn replay(&mut self, fragment: &Fragment) -> Result<()> {
        let translated = self.shared.state().plane.replay_fragment(fragment.interface, &fragment.packet)?;
        Ok(translated.map_or(Ok(()), |packet| self.output.send(&packet))?)
    }
}

fn key(packet: &[u8]) -> Result<FragmentKey> {
    packet.first_chunk().map(FragmentKey::new).context("a packet without a header")
}

/// Tells the data plane for ever that there is somebody to hand packets to.
pub(super) async fn show_presence(shared: Arc<Shared>) -> Result<()> {
    let mut period = interval(PRESENCE);
    loop {
        period.tick().await;
        shared.state().plane.settings.show_presence()?;
    }
}

/// Passes the programs' own log on for ever.
pub(super) async fn log(logger: EbpfLogger<&'static dyn log::Log>) -> Result<()> {
    // SAFETY: the logger owns its ring's descriptor, keeps it open as long as it lives, and always names the same one.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
        .context("cannot wait for the programs' log")?;
    loop {
        let mut ready = logger.readable_mut().await.context("cannot wait for the programs' log")?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
