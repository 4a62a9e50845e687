//! The end of a wire, frame by frame.

use std::{
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    net::if_::if_nametoindex,
    sys::{
        socket::{MsgFlags, recv, send, setsockopt, sockopt},
        time::TimeVal,
    },
};

use crate::namespace::Namespace;

/// How long anything may take to come.
const LIMIT: Duration = Duration::from_secs(5);

/// Room for what comes until it is read.
const BUFFER: usize = 16 << 20;

/// A device, seen by a packet socket: packet(7).
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Wire {
    /// All that comes in by `device`, and what is sent out of it.
    pub(super) fn open(namespace: &Namespace, device: &str) -> Result<Self> {
        let socket = namespace.inside(|| open(device))??;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("cannot enlarge a packet socket")?;
        let limit = TimeVal::new(LIMIT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).context("cannot limit a packet socket")?;
        Ok(Self { socket, buffer: vec![0; 1 << 16] })
    }

    /// Sends a frame.
    pub(super) fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty());
        let sent = sent.with_context(|| format!("cannot send a frame of {} bytes", frame.len()))?;
        ensure!(sent == frame.len(), "sent {sent} of {} bytes", frame.len());
        Ok(())
    }

    /// The next frame, which has to come soon.
    pub(super) fn receive(&mut self) -> Result<&[u8]> {
        let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())
            .with_context(|| format!("nothing came within {LIMIT:?}"))?;
        Ok(&self.buffer[..length])
    }
}

fn open(device: &str) -> Result<OwnedFd> {
    let index = if_nametoindex(device).with_context(|| format!("there is no {device}"))?;
    // With protocol 0 nothing comes before the socket is bound to the device.
    // SAFETY: takes numbers only.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    ensure!(socket >= 0, "cannot open a packet socket: {}", io::Error::last_os_error());
    // SAFETY: just opened, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let on: libc::c_int = 1;
    // SAFETY: the value is an integer, of the length that is given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    ensure!(set == 0, "cannot keep out of {device} what it sends itself: {}", io::Error::last_os_error());
    // SAFETY: a plain C structure of integers and byte arrays, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address is one of packet(7), of the length that is given.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    ensure!(bound == 0, "cannot bind to {device}: {}", io::Error::last_os_error());
    Ok(socket)
}
