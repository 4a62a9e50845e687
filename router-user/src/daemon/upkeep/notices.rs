//! Notifications that the kernel's settings or links may have changed. Their contents are not read:
//! the daemon then compares the state itself.

use std::{io, mem::MaybeUninit};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

// enum rtnetlink_groups, include/uapi/linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_NETCONF: u32 = 24;

/// A route netlink socket (rtnetlink(7)) for changes of links and of `net.ipv4.conf`.
pub(crate) struct Notices(AsyncFd<Socket>);

impl Notices {
    /// Listens from now on.
    pub(crate) fn open() -> Result<Self> {
        Self::listen().context("cannot listen for changes of this machine's settings (netlink)")
    }

    fn listen() -> Result<Self> {
        let protocol = Protocol::from(libc::NETLINK_ROUTE);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.bind(&address(&[RTNLGRP_LINK, RTNLGRP_IPV4_NETCONF])?)?;
        // SAFETY: the socket owns its descriptor, keeps it open as long as it lives, and always
        // names the same one.
        Ok(Self(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?))
    }

    /// Returns when the kernel has told of a change, or of more than it could keep for us.
    pub(super) async fn wait(&self) -> Result<()> {
        let mut ready = self.0.readable().await.context("cannot wait for changes (netlink)")?;
        // Their contents are of no interest, so a message may be cut off.
        let mut message = [MaybeUninit::uninit(); 64];
        while ready.try_io(|socket| socket.get_ref().recv(&mut message)).is_ok() {}
        Ok(())
    }
}

/// The address of a socket that is in these groups.
fn address(groups: &[u32]) -> io::Result<SockAddr> {
    let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    // SAFETY: the closure writes a whole `sockaddr_nl`, all of whose fields are integers, into
    // storage that is zeroed and large enough for any address, and says how long it is.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let netlink = storage.cast::<libc::sockaddr_nl>();
            (*netlink).nl_family = libc::AF_NETLINK as libc::sa_family_t;
            (*netlink).nl_groups = mask;
            *length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}
