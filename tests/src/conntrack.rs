//! The kernel's connection tracking, in the network namespace of the thread that asks.

use std::{fs, os::fd::AsRawFd as _};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
    },
};

/// Returns the kernel's limit of tracked sessions.
pub fn limit() -> Result<u32> {
    Ok(u32::try_from(number("/proc/sys/net/netfilter/nf_conntrack_max")?).unwrap_or(u32::MAX))
}

/// Returns the number of tracked sessions.
pub fn count() -> Result<u64> {
    number("/proc/sys/net/netfilter/nf_conntrack_count")
}

fn number(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} says {text}"))
}

/// Forgets all of them.
pub fn flush() -> Result<()> {
    forget(&[])
}

/// Forgets those with this mark (`ct mark` of nftables).
pub fn flush_marked(mark: u32) -> Result<()> {
    // CTA_MARK and CTA_MARK_MASK of enum ctattr_type
    // (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
    forget(&[(8, mark), (21, u32::MAX)])
}

/// Forgets those that have all of these attributes.
fn forget(attributes: &[(u16, u32)]) -> Result<()> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
            .context("cannot open a netlink socket")?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &request(attributes), &kernel, MsgFlags::empty())
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
/// without saying which, but for attributes that they must have.
fn request(attributes: &[(u16, u32)]) -> Vec<u8> {
    const NFNL_SUBSYS_CTNETLINK: u16 = 1;
    const IPCTNL_MSG_CT_DELETE: u16 = 2;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let length = (20 + 8 * attributes.len()) as u32;
    let mut request = Vec::new();
    request.extend(length.to_ne_bytes());
    request.extend((NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE).to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // No sequence number, and no port; then the family and the version.
    request.extend([0; 8]);
    request.extend([libc::AF_INET as u8, 0, 0, 0]);
    for (number, value) in attributes {
        request.extend(8_u16.to_ne_bytes());
        request.extend(number.to_ne_bytes());
        request.extend(value.to_be_bytes());
    }
    request
}
