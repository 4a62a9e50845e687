//! The end of a wire, frame by frame.

use std::{
    io, mem,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{MsgFlags, recv, send, setsockopt, sockopt},
        time::TimeVal,
    },
};

use crate::namespace::Namespace;

/// The time that anything may take to come.
const LIMIT: Duration = Duration::from_secs(5);

/// Room for what comes until it is read.
const BUFFER: usize = 16 << 20;

/// A device, seen by a packet socket: packet(7).
#[derive(Debug)]
pub(crate) struct Wire {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Wire {
    /// All that comes in by `device`, and what is sent out of it.
    pub(crate) fn open(namespace: &Namespace, device: &str) -> Result<Self> {
        let socket = namespace.inside(|| open(device))??;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("cannot enlarge a packet socket")?;
        let limit = TimeVal::new(LIMIT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).context("cannot limit a packet socket")?;
        Ok(Self { socket, buffer: vec![0; 1 << 16] })
    }

    /// Sends a frame.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty());
        let sent = sent.with_context(|| format!("cannot send a frame of {} bytes", frame.len()))?;
        ensure!(sent == frame.len(), "sent {sent} of {} bytes", frame.len());
        Ok(())
    }

    /// The next frame, if one is there.
    pub(crate) fn take(&mut self) -> Result<Option<&[u8]>> {
        match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(Some(&self.buffer[..length])),
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error).context("a packet socket has failed"),
        }
    }

    /// Waits until a frame is there, but not longer than this.
    pub(crate) fn wait(&self, limit: Duration) -> Result<()> {
        let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut sockets, limit) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for a packet socket"),
        }
    }

    /// From now on only IPv4 packets with such a destination come.
    pub(crate) fn keep_only(&self, network: Ipv4Addr, prefix: u8) -> Result<()> {
        const LENGTH: u16 = 0xffff;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        // Classic BPF, Documentation/networking/filter.rst: the type after the two MAC addresses,
        // then the destination.
        let mut program = [
            step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 12),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 4, 0x0800),
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 30),
            step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, network.to_bits()),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::from(LENGTH)),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ];
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the option's value is this structure, and the steps that it points to are there
        // until the call returns.
        let set = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const filter).cast(),
                size_of_val(&filter) as libc::socklen_t,
            )
        };
        ensure!(set == 0, "cannot filter a packet socket: {}", io::Error::last_os_error());
        Ok(())
    }

    /// The next frame, which has to come soon.
    pub(crate) fn receive(&mut self) -> Result<&[u8]> {
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
    // SAFETY: the descriptor was just opened, and nothing else owns it.
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
