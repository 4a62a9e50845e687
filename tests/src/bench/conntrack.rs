//! The kernel's connection tracking, in the network namespace of the thread that asks.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
    },
};
use std::os::fd::AsRawFd as _;

/// Returns the kernel's limit of tracked sessions.
pub(crate) fn limit() -> Result<u32> {
    Ok(u32::try_from(number("/proc/sys/net/netfilter/nf_conntrack_max")?).unwrap_or(u32::MAX))
}

/// Returns the number of tracked sessions.
pub(crate) fn count() -> Result<u64> {
    number("/proc/sys/net/netfilter/nf_conntrack_count")
}

fn number(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} says {text}"))
}

/// Forgets all of them.
pub(crate) fn flush() -> Result<()> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
            .context("cannot open a netlink socket")?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &flush_request(), &kernel, MsgFlags::empty())
        .context("cannot ask to flush the connection tracking")?;
    let mut answer = [0; 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())
        .context("no answer from the connection tracking")?;
    // `struct nlmsghdr`, and of `struct nlmsgerr` the number, negative, or 0.
    ensure!(length >= 20, "an answer of {length} bytes from the connection tracking");
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    if error != 0 {
        return Err(Errno::from_raw(-error)).context("cannot flush the connection tracking");
    }
    Ok(())
}

/// A `struct nlmsghdr` and a `struct nfgenmsg` (include/uapi/linux/netfilter/nfnetlink.h): delete,
/// without saying which.
fn flush_request() -> [u8; 20] {
    const NFNL_SUBSYS_CTNETLINK: u16 = 1;
    const IPCTNL_MSG_CT_DELETE: u16 = 2;
    let mut request = [0; 20];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    request[0..4].copy_from_slice(&20_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE).to_ne_bytes());
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    request[16] = libc::AF_INET as u8;
    request
}
