//! Sending packets that are translated already.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
};

use anyhow::{Context as _, Result};
use router_common::fragment;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The kernel's own output, for packets that bring their IP header.
pub(super) struct Output {
    socket: Socket,
    /// The identification of the last packet that got one here.
    identification: u16,
}

impl Output {
    pub(super) fn open() -> Result<Self> {
        // IPPROTO_RAW: the packets bring their own IP header (raw(7)).
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
            .context("cannot open a raw socket (CAP_NET_RAW is needed)")?;
        socket.set_nonblocking(true).context("cannot set up the raw socket")?;
        // Connection tracking would wait for the other fragments of a datagram, which do not come this way (ip(7)).
        set_option(&socket, libc::SOL_IP, libc::IP_NODEFRAG, 1).context("cannot set up the raw socket")?;
        Ok(Self { socket, identification: 0 })
    }

    /// Sends a packet. One that the link does not take, and that may be fragmented, goes in fragments.
    pub(super) fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        match self.send_whole(packet) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                self.split(packet, path_mtu(destination(packet)?)?)
            }
            result => result,
        }
    }

    /// Sends a packet in fragments that a link takes.
    pub(super) fn split(&mut self, packet: &[u8], mtu: u16) -> io::Result<()> {
        let mut packet = packet.to_vec();
        match packet.get_mut(4..8) {
            Some([_, _, flags, _]) if *flags & 0x40 != 0 => {
                return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
            }
            // The kernel gives every packet that has no identification one of its own (`raw_send_hdrinc`, net/ipv4/raw.c), and fragments
            // must have the same. One that is a fragment already has siblings that do not come by here: it is left as it is, and lost
            // if its datagram has the identification 0, one of 65,536.
            Some([high @ 0, low @ 0, 0, 0]) => {
                self.identification = self.identification.checked_add(1).unwrap_or(1);
                [*high, *low] = self.identification.to_be_bytes();
            }
            _ => {}
        }
        let pieces = fragment::split(&packet, mtu).ok_or(io::ErrorKind::InvalidData)?;
        for (header, data) in pieces {
            self.send_whole(&[&header, data].concat())?;
        }
        Ok(())
    }

    fn send_whole(&self, packet: &[u8]) -> io::Result<()> {
        let to = SockAddr::from(SocketAddrV4::new(destination(packet)?, 0));
        self.socket.send_to(packet, &to).map(drop)
    }
}

fn destination(packet: &[u8]) -> io::Result<Ipv4Addr> {
    let address = packet.get(16..).and_then(<[u8]>::first_chunk::<4>).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Ipv4Addr::from(*address))
}

/// What the route to an address takes, in bytes. Sends nothing.
fn path_mtu(to: Ipv4Addr) -> io::Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // Any port: it only has the kernel look the route up.
    socket.connect((to, 9))?;
    let (mut mtu, mut length): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the option is an integer, which is as long as is said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_MTU,
            (&raw mut mtu).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn set_option(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
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
