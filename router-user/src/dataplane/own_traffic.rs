//! The attachment of the program that sees this machine's own traffic (`own_traffic`, in
//! `router-ebpf`), to the way out of an interface.
//!
//! From Linux 6.6 on that is a link (tcx), pinned beside the root program's. Before, it is a filter
//! of the qdisc `clsact`, which stays by itself; a pin of the program, named for the interface,
//! says that there is one and whether the qdisc has come with it.

use std::{fs, io, mem, path::Path};

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, qdisc_add_clsact, qdisc_detach_program},
};

use super::pins::Pins;
use crate::sys::{
    bpf, filters,
    interface::{interface_index, interface_name},
};

/// The program's name.
pub(super) const PROGRAM: &str = "own_traffic";

/// The kinds in the name of a filter's pin: the qdisc was there before, or was added with it.
const FILTER: &str = "filter";
const FILTER_AND_QDISC: &str = "filterandqdisc";

/// The kind of attachment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// By a link, or where the kernel has none for it, as a filter.
    Any,
    /// As a filter.
    Filter,
}

/// Attaches the program to the interface with this index, or puts it in the place of an earlier
/// daemon's. `interface`: what the pin is called for; it may have another name by now.
///
/// # Errors
/// Returns an error if the kernel can neither attach it by a link nor as a filter.
pub(super) fn attach(
    program: &mut SchedClassifier,
    pins: &Pins,
    interface: &str,
    index: u32,
    hook: Hook,
) -> Result<()> {
    if hook == Hook::Filter {
        return attach_filter(program, pins, interface);
    }
    match attach_link(program, pins, interface, index) {
        Ok(()) => Ok(()),
        Err(link) => attach_filter(program, pins, interface)
            .with_context(|| format!("neither by a link ({link:#}) nor as a filter")),
    }
}

/// Returns `true` if what leaves by the interface with this index is seen by the program.
pub(super) fn is_attached(pins: &Pins, interface: &str, index: u32) -> bool {
    if let Ok(link) = bpf::open_pin(&pins.own_traffic(interface)) {
        return bpf::link_interface(&link).is_ok_and(|found| found != 0 && found == index);
    }
    [FILTER, FILTER_AND_QDISC].iter().any(|kind| pins.filter(interface, kind).exists())
        && filters::has_filters(index, filters::EGRESS).unwrap_or(false)
}

fn attach_link(program: &mut SchedClassifier, pins: &Pins, interface: &str, index: u32) -> Result<()> {
    let pin = pins.own_traffic(interface);
    let id = match bpf::open_pin(&pin) {
        Ok(link) if bpf::link_interface(&link)? == index => {
            let link: FdLink = PinnedLink::from_pin(&pin).context("cannot open the pinned link")?.into();
            let link: SchedClassifierLink = link.try_into().context("the pin is of another link")?;
            program.attach_to_link(link).map_err(explain)?
        }
        found => {
            // Of an interface that is gone.
            if found.is_ok() {
                bpf::remove_link(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
            }
            // Others may end the way of a packet: it is to be seen before.
            let first = TcAttachOptions::TcxOrder(LinkOrder::first());
            let name = interface_name(index).context("there is no such interface")?;
            program.attach_with_options(&name, TcAttachType::Egress, first).map_err(explain)?
        }
    };
    let link: FdLink = program.take_link(id)?.try_into().context("the kernel has made no link")?;
    if !pin.exists() {
        link.pin(&pin).with_context(|| format!("cannot pin the link to {}", pin.display()))?;
    }
    Ok(())
}

fn attach_filter(program: &mut SchedClassifier, pins: &Pins, interface: &str) -> Result<()> {
    let had_filter = remove_filter(interface)?;
    let brought_qdisc = match qdisc_add_clsact(interface) {
        Ok(()) => true,
        // It is there. If an earlier daemon's filter was, too, the pin says whose the qdisc is.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
            had_filter && pins.filter(interface, FILTER_AND_QDISC).exists()
        }
        Err(error) => return Err(explain(error.into())),
    };
    let options = TcAttachOptions::Netlink(NlOptions { priority: 1, ..NlOptions::default() });
    let id = program.attach_with_options(interface, TcAttachType::Egress, options).map_err(explain)?;
    // The filter stays when its owner goes; only this value would take it off.
    mem::forget(program.take_link(id)?);
    for kind in [FILTER, FILTER_AND_QDISC] {
        remove_pin(&pins.filter(interface, kind))?;
    }
    let pin = pins.filter(interface, if brought_qdisc { FILTER_AND_QDISC } else { FILTER });
    program.pin(&pin).or_else(|error| {
        // Without a pin, the filter could not be removed later.
        let kind = if brought_qdisc { FILTER_AND_QDISC } else { FILTER };
        remove_pinned_filter(&pin, kind, interface)?;
        Err(anyhow!(error)).with_context(|| format!("cannot pin the program to {}", pin.display()))
    })
}

/// Takes off the filter with this pin, and the qdisc if it was added with the filter and has no
/// other filters; then removes the pin.
pub(super) fn remove_pinned_filter(pin: &Path, kind: &str, interface: &str) -> Result<()> {
    // An interface that is gone has taken its filters with it.
    if let Ok(index) = interface_index(interface) {
        remove_filter(interface)?;
        let is_used = [filters::INGRESS, filters::EGRESS]
            .into_iter()
            .any(|way| filters::has_filters(index, way).unwrap_or(true));
        if kind == FILTER_AND_QDISC && !is_used {
            filters::remove_clsact(index)
                .with_context(|| format!("cannot remove the qdisc clsact of {interface}"))?;
        }
    }
    remove_pin(pin)
}

/// Returns `true` if this is what the pin of a filter is called for.
pub(super) fn is_filter(kind: &str) -> bool {
    kind == FILTER || kind == FILTER_AND_QDISC
}

/// Takes the router's filters off an interface. Returns `true` if there were any.
fn remove_filter(interface: &str) -> Result<bool> {
    match qdisc_detach_program(interface, TcAttachType::Egress, PROGRAM) {
        Ok(()) => Ok(true),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // There is no such qdisc.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(anyhow!(error)).with_context(|| format!("cannot take the filter off {interface}")),
    }
}

fn remove_pin(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", pin.display()))
        }
        _ => Ok(()),
    }
}

fn explain(error: ProgramError) -> anyhow::Error {
    anyhow!(error)
}
