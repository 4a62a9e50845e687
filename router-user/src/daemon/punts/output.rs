//! Sends frames through a packet socket (packet(7)), which bypasses the host's firewall.
//!
//! Translated packets must not meet the firewall rules and the connection tracking for this
//! machine's own packets, which know nothing of them. The frames go
//! straight to the driver (`PACKET_QDISC_BYPASS`), as those that the programs send do.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use router_common::fragment;

/// The size of the socket's buffer: all packets queued for a neighbour may leave together.
const SEND_BUFFER: libc::c_int = 4 << 20;

/// A packet socket.
pub(crate) struct Output {
    socket: OwnedFd,
    /// The identification of the last packet that got one here.
    identification: u16,
}

impl Output {
    pub(crate) fn open() -> Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // No protocol: it receives nothing. SAFETY: takes numbers only, and its answer is looked
        // at.
        let descriptor = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error())
                .context("cannot open a packet socket (CAP_NET_RAW is needed)");
        }
        // SAFETY: the descriptor is new, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)
            .and_then(|()| set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER))
            .context("cannot set up the packet socket")?;
        Ok(Self { socket, identification: 0 })
    }

    /// Sends a frame by the interface with this index.
    pub(crate) fn send(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        // SAFETY: zero is a value of this plain structure.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = (libc::ETH_P_IP as u16).to_be();
        to.sll_ifindex = i32::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: frame and address live through the call and are as long as is said.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends an IP packet in fragments that a link takes, after this Ethernet header. Returns the
    /// number of frames.
    pub(super) fn split(
        &mut self,
        interface: u32,
        ethernet: &[u8],
        packet: &[u8],
        mtu: u16,
    ) -> io::Result<u64> {
        let mut packet = packet.to_vec();
        match packet.get_mut(4..8) {
            Some([_, _, flags, _]) if *flags & 0x40 != 0 => {
                return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
            }
            // Fragments of one packet must have one identification, and such packets have none (RFC
            // 6864). One that is a fragment already has siblings that do not come by here: it is
            // left as it is.
            Some([high @ 0, low @ 0, 0, 0]) => {
                self.identification = self.identification.checked_add(1).unwrap_or(1);
                [*high, *low] = self.identification.to_be_bytes();
            }
            _ => {}
        }
        let pieces = fragment::split(&packet, mtu).ok_or(io::ErrorKind::InvalidData)?;
        let mut frames = 0;
        for (header, data) in pieces {
            self.send(interface, &[ethernet, &header, data].concat())?;
            frames += 1;
        }
        Ok(frames)
    }
}

fn set_option(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option is an integer, which is as long as is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
