//! The attachment of the root program to an interface.

use std::{os::fd::AsFd as _, path::PathBuf};

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{ProgramError, Xdp, XdpMode, links::FdLink};

use super::{Pins, sys};

/// How the program runs on an interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// In the driver, before the kernel makes a socket buffer.
    Native,
    /// In the kernel's generic receive path: works everywhere, and is slower than no XDP at all.
    Generic,
}

impl Mode {
    /// The other one.
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }

    /// `native` or `generic`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// A pinned link between the root program and an interface.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The interface's name.
    pub interface: String,
    /// Its index when the program was attached.
    pub index: u32,
    /// How the program runs.
    pub mode: Mode,
    pin: PathBuf,
}

impl Attachment {
    /// The attachment that an earlier daemon left on this interface in this mode. One of an interface that is gone is removed.
    pub(super) fn find(pins: &Pins, interface: &str, index: u32, mode: Mode) -> Result<Option<Self>> {
        let pin = pins.link(interface, mode);
        if !pin.exists() {
            return Ok(None);
        }
        let attachment = Self { interface: interface.to_owned(), index, mode, pin };
        if attachment.program_id().is_some() {
            return Ok(Some(attachment));
        }
        attachment.remove()?;
        Ok(None)
    }

    /// Takes the program off.
    pub(super) fn remove(&self) -> Result<()> {
        sys::remove_link(&self.pin).with_context(|| format!("cannot remove {}", self.pin.display()))
    }

    /// Attaches the program and pins the link.
    pub(super) fn create(
        root: &mut Xdp,
        pins: &Pins,
        interface: &str,
        index: u32,
        mode: Mode,
    ) -> Result<Self> {
        let flags = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let id = root.attach_to_if_index(index, flags).map_err(|error| explain(&error, interface, mode))?;
        // aya may have fallen back to an attachment without a link; dropping it takes it off again.
        let link = root.take_link(id).context("the attachment was lost")?;
        let link: FdLink = link.try_into().map_err(|_| {
            anyhow!(
                "{interface}: the kernel cannot attach XDP programs by link (Linux 6.1 or later is needed)"
            )
        })?;
        let pin = pins.link(interface, mode);
        link.pin(&pin).with_context(|| format!("cannot pin the attachment to {}", pin.display()))?;
        Ok(Self { interface: interface.to_owned(), index, mode, pin })
    }

    /// The id of the program that runs on the interface by this attachment now; `None` if it has been taken off, or the
    /// interface is gone.
    pub fn program_id(&self) -> Option<u32> {
        let link = sys::open_pin(&self.pin).ok()?;
        let info = sys::xdp_link_info(link.as_fd()).ok()?;
        (info.interface != 0 && info.interface == self.index).then_some(info.program)
    }
}

/// What the kernel's answer to an attachment means, and what to do.
fn explain(error: &ProgramError, interface: &str, mode: Mode) -> anyhow::Error {
    let errno =
        if let ProgramError::SyscallError(call) = error { call.io_error.raw_os_error() } else { None };
    let advice = match (errno, mode) {
        (Some(libc::EBUSY | libc::EEXIST), _) => {
            "another XDP program is attached, see `ip -d link show DEV`: stop what has put it there (another pls-router \
             with other pins?), or take it off with `ip link set dev DEV xdp off`"
        }
        (Some(libc::EOPNOTSUPP), Mode::Native) => {
            "the driver has no native XDP, or LRO is on or the MTU too large for it: `ethtool -K DEV lro off`, \
             `ip link set dev DEV mtu 1500`; or set mode = \"generic\" in [interfaces], which is slow"
        }
        (Some(libc::ERANGE | libc::EINVAL | libc::E2BIG), Mode::Native) => {
            "the MTU is too large for XDP (3506 bytes at most), LRO is on, or there are too many queues: \
             `ip link set dev DEV mtu 1500`, `ethtool -K DEV lro off`"
        }
        (Some(libc::EPERM), _) => "run as root (CAP_BPF and CAP_NET_ADMIN are needed)",
        _ => "see the kernel log",
    };
    anyhow!(
        "{interface}: cannot attach the program in {} mode: {:#}\n  fix: {}",
        mode.as_str(),
        anyhow!(
            "{error}{}",
            errno.map(|errno| format!(" ({})", std::io::Error::from_raw_os_error(errno))).unwrap_or_default()
        ),
        advice.replace("DEV", interface)
    )
}
