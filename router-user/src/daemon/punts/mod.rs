//! Packets that wait for a neighbour.
//!
//! The data plane has translated them; only the next hop's MAC address is missing. They are sent through the kernel's own
//! output, which asks the neighbour and keeps the packet until it answers: the first packet of a connection is not lost,
//! and no retransmission has to be waited for.

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use router_common::punt::Punt;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::interval,
};
use tracing::debug;

use super::shared::Shared;

/// How often the data plane hears of us: well within `Settings::DAEMON_PATIENCE`.
const PRESENCE: Duration = Duration::from_secs(1);

/// Sends packets from the ring for ever.
pub(super) async fn send(ring: RingBuf<MapData>) -> Result<()> {
    // IPPROTO_RAW: the packets bring their own IP header (raw(7)).
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
        .context("cannot open a raw socket (CAP_NET_RAW is needed)")?;
    socket.set_nonblocking(true).context("cannot set up the raw socket")?;
    // SAFETY: the ring owns its descriptor, keeps it open as long as it lives, and always names the same one.
    let mut ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .context("cannot wait for packets from the data plane")?;
    loop {
        let mut ready = ring.readable_mut().await.context("cannot wait for packets from the data plane")?;
        while let Some(record) = ready.get_inner_mut().next() {
            if let Some(packet) = Punt::parse(&record)
                && let Err(error) = send_packet(&socket, packet)
            {
                debug!("cannot send a packet that waited for its neighbour: {error}");
            }
        }
        ready.clear_ready();
    }
}

fn send_packet(socket: &Socket, packet: &[u8]) -> io::Result<()> {
    let Some(destination) = packet.get(16..).and_then(<[u8]>::first_chunk::<4>) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let destination = SockAddr::from(std::net::SocketAddrV4::new(Ipv4Addr::from(*destination), 0));
    socket.send_to(packet, &destination).map(drop)
}

/// Tells the data plane for ever that there is somebody to hand packets to.
pub(super) async fn show_presence(shared: Arc<Shared>) -> Result<()> {
    let mut period = interval(PRESENCE);
    loop {
        period.tick().await;
        shared.plane().settings.show_presence()?;
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
