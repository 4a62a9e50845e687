//! The attachment of the root program to an interface.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{ProgramError, Xdp, XdpMode, links::FdLink};

use super::pins::Pins;
use crate::sys::{
    bpf,
    interface::{interface_index, interface_name},
    xdp::Mode,
};

/// A pinned link between the root program and an interface.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The interface, as the configuration names it.
    pub interface: String,
    /// Its index when the program was attached.
    pub index: u32,
    /// The mode of the program.
    pub mode: Mode,
    pin: PathBuf,
    /// Held open, so that removing the pin under a running daemon does not take the program off.
    link: Arc<OwnedFd>,
    /// The id of the program that was attached.
    program: u32,
    /// That program, if this process may have it.
    root: Option<Arc<OwnedFd>>,
}

/// The way in which an attachment was lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Loss {
    /// The interface was removed, or moved to another network namespace.
    InterfaceGone,
    /// The link was detached (`bpftool link detach`, `pls-router detach --force`).
    Detached,
    /// The link holds the program with this id, which is not the router's.
    Replaced(u32),
}

/// The place of an attachment's interface now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// An interface with this index has the name that the configuration gives.
    Named(u32),
    /// None has, but the interface that the program is attached to is there under another name.
    Renamed {
        /// Its index.
        index: u32,
        /// Its name now.
        name: String,
    },
    /// There is no such interface.
    Gone,
}

impl Place {
    /// The interface's index, if there is one.
    pub fn index(&self) -> Option<u32> {
        match self {
            Self::Named(index) | Self::Renamed { index, .. } => Some(*index),
            Self::Gone => None,
        }
    }
}

impl Attachment {
    /// Finds the attachment that an earlier daemon left on this interface in this mode. Removes
    /// that of an interface that is gone.
    pub(super) fn find(pins: &Pins, interface: &str, index: u32, mode: Mode) -> Result<Option<Self>> {
        let pin = pins.link(interface, mode);
        let link = match bpf::open_pin(&pin) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", pin.display())),
        };
        let info =
            bpf::xdp_link_info(link.as_fd()).with_context(|| format!("{} is no XDP link", pin.display()))?;
        let attachment = Self {
            interface: interface.to_owned(),
            index,
            mode,
            pin,
            link: Arc::new(link),
            program: info.program,
            root: open_root(pins, interface, info.program).map(Arc::new),
        };
        if attachment.program_id().is_some() {
            return Ok(Some(attachment));
        }
        attachment.remove()?;
        Ok(None)
    }

    /// Takes the program off and removes the pin, if it is still there.
    pub(super) fn remove(&self) -> Result<()> {
        bpf::detach_link(self.link.as_fd())
            .with_context(|| format!("cannot detach the program from {}", self.interface))?;
        // Best effort: a program that is nowhere attached does no harm.
        let _ = fs::remove_file(self.root_pin());
        match fs::remove_file(&self.pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.pin.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
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
        let pinned =
            link.pin(&pin).with_context(|| format!("cannot pin the attachment to {}", pin.display()))?;
        let link = bpf::open_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
        drop(pinned);
        let info = bpf::xdp_link_info(link.as_fd()).context("cannot ask about the attachment")?;
        let interface = interface.to_owned();
        let mut attachment =
            Self { interface, index, mode, pin, link: Arc::new(link), program: info.program, root: None };
        attachment.know_root(root, pins)?;
        Ok(attachment)
    }

    /// Keeps the root program at hand if it is the one that this attachment runs, for this process
    /// and the ones after it.
    pub(super) fn know_root(&mut self, root: &Xdp, pins: &Pins) -> Result<()> {
        let fd = root.fd()?.as_fd();
        if self.root.is_some() || bpf::program_id(fd).ok() != Some(self.program) {
            return Ok(());
        }
        let pin = pins.root_program(&self.interface);
        match fs::remove_file(&pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", pin.display()));
            }
            Ok(()) | Err(_) => {}
        }
        bpf::pin(fd, &pin).with_context(|| format!("cannot pin the program to {}", pin.display()))?;
        self.root = Some(Arc::new(fd.try_clone_to_owned()?));
        Ok(())
    }

    /// Returns the program that this attachment runs, if this process may have it.
    pub fn root(&self) -> Option<Arc<OwnedFd>> {
        self.root.clone()
    }

    /// Returns the id of the program that this attachment runs on the interface; `None` if it has
    /// been taken off, or the interface is gone.
    pub fn program_id(&self) -> Option<u32> {
        let info = bpf::xdp_link_info(self.link.as_fd()).ok()?;
        (info.interface != 0 && info.interface == self.index).then_some(info.program)
    }

    /// Returns the place of its interface. The name counts more than the interface that had it when
    /// the program was attached.
    pub fn place(&self) -> Place {
        if let Ok(index) = interface_index(&self.interface) {
            return Place::Named(index);
        }
        match interface_name(self.index) {
            // The kernel reuses an index if that is asked for.
            Some(name) if self.program_id().is_some() => Place::Renamed { index: self.index, name },
            Some(_) | None => Place::Gone,
        }
    }

    /// Returns how it was lost; `None` while the router's program runs on the interface.
    pub fn loss(&self) -> Option<Loss> {
        // An interface that was moved to another network namespace keeps its program.
        if interface_name(self.index).is_none() {
            return Some(Loss::InterfaceGone);
        }
        match self.program_id() {
            Some(program) if program == self.program => None,
            Some(other) => Some(Loss::Replaced(other)),
            None => Some(Loss::Detached),
        }
    }

    /// Returns `true` if a daemon that comes after this one will find it, and the program.
    pub fn is_pinned(&self) -> bool {
        let is_there = |pin: &Path| pin.symlink_metadata().is_ok();
        is_there(&self.pin) && (self.root.is_none() || is_there(&self.root_pin()))
    }

    fn root_pin(&self) -> PathBuf {
        let links = self.pin.parent().unwrap_or(&self.pin);
        Pins::in_directory(links.parent().unwrap_or(links)).root_program(&self.interface)
    }

    /// Notes that the pin is among these now, whose directory has got another name.
    pub(super) fn move_to(&mut self, pins: &Pins) {
        self.pin = pins.link(&self.interface, self.mode);
    }

    /// Pins the link, and the program, again where the pin is missing.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses: the directory has to be there, on a BPF file system.
    pub fn pin_again(&self) -> Result<()> {
        let pin = |object: BorrowedFd<'_>, pin: &Path, what| match pin.symlink_metadata() {
            Ok(_) => Ok(()),
            Err(_) => {
                bpf::pin(object, pin).with_context(|| format!("cannot pin the {what} to {}", pin.display()))
            }
        };
        pin(self.link.as_fd(), &self.pin, "attachment")?;
        match &self.root {
            Some(root) => pin(root.as_fd(), &self.root_pin(), "program"),
            None => Ok(()),
        }
    }
}

/// Opens the program with this id, which is attached to the interface: by its pin, or by its id if
/// this process may do that.
fn open_root(pins: &Pins, interface: &str, id: u32) -> Option<OwnedFd> {
    let pin = pins.root_program(interface);
    if let Ok(program) = bpf::open_pin(&pin)
        && bpf::program_id(program.as_fd()).ok() == Some(id)
    {
        return Some(program);
    }
    let program = bpf::program_by_id(id).ok()?;
    let _ = fs::remove_file(&pin);
    // Without the pin, the next daemon does without.
    let _ = bpf::pin(program.as_fd(), &pin);
    Some(program)
}

/// Explains the kernel's refusal of an attachment, with the remedy.
fn explain(error: &ProgramError, interface: &str, mode: Mode) -> anyhow::Error {
    let errno =
        if let ProgramError::SyscallError(call) = error { call.io_error.raw_os_error() } else { None };
    let advice = match (errno, mode) {
        (Some(libc::EBUSY | libc::EEXIST), _) => {
            "another XDP program is attached, and `pls-router check` names it: stop what has put it there (another \
             pls-router with other pins?), or take it off with `ip link set dev DEV xdp off`"
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
            errno.map(|errno| format!(" ({})", io::Error::from_raw_os_error(errno))).unwrap_or_default()
        ),
        advice.replace("DEV", interface)
    )
}
