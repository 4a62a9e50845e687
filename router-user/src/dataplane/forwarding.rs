//! The one system setting that the data plane needs.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// The name of the setting.
pub const ROUTE_LOOKUPS: &str = "net.ipv4.conf.lo.forwarding";

/// The kernel answers a program's route lookups only where forwarding is on (`bpf_ipv4_fib_lookup`,
/// net/core/filter.c). The programs ask by the loopback interface, so only there it has to be:
/// nothing is ever received there that could be forwarded, and on the real interfaces it stays as
/// it is.
const LOOPBACK_FORWARDING: &str = "/proc/sys/net/ipv4/conf/lo/forwarding";

/// Returns `true` if route lookups are answered.
///
/// # Errors
/// Returns an error if the setting cannot be read.
pub fn route_lookups_are_on() -> Result<bool> {
    let text = fs::read_to_string(LOOPBACK_FORWARDING)
        .with_context(|| format!("cannot read {LOOPBACK_FORWARDING}"))?;
    Ok(text.trim() != "0")
}

/// Returns `true` if the kernel forwards (`net.ipv4.ip_forward`): the default of the setting for
/// route lookups.
///
/// # Errors
/// Returns an error if the setting cannot be read.
pub(super) fn kernel_forwards() -> Result<bool> {
    const ALL: &str = "/proc/sys/net/ipv4/ip_forward";
    let text = fs::read_to_string(ALL).with_context(|| format!("cannot read {ALL}"))?;
    Ok(text.trim() != "0")
}

/// Switches the answers to route lookups on or off.
///
/// # Errors
/// Returns an error if the setting cannot be written.
pub fn switch_route_lookups(on: bool) -> Result<()> {
    fs::write(Path::new(LOOPBACK_FORWARDING), if on { "1" } else { "0" }).with_context(|| {
        format!("cannot write {LOOPBACK_FORWARDING} (run as root; sysctl {ROUTE_LOOKUPS}=1)")
    })
}

/// Switches route lookups off if the kernel does not forward: then a router has switched them on.
/// Another layout's note of that cannot be read.
///
/// # Errors
/// Returns an error if the setting cannot be read or written.
pub(super) fn restore_route_lookups() -> Result<()> {
    if kernel_forwards()? { Ok(()) } else { switch_route_lookups(false) }
}
