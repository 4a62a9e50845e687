//! A driver's data about its interface, by ioctl (`SIOCETHTOOL`). Unlike `/sys/class/net`, which
//! may show another network namespace than this process is in, an ioctl always asks the right one.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

// Numbers and layouts of <linux/ethtool.h>.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_LRO: u32 = 1 << 15;
const SIOCETHTOOL: libc::Ioctl = 0x8946;

#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    expansion_rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The name of the interface's driver.
pub(super) fn driver(interface: &str) -> Option<String> {
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        expansion_rom: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    // SAFETY: `DriverInfo` is struct ethtool_drvinfo, which is what the command writes.
    unsafe { ask(interface, &mut info) }?;
    let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    (!name.is_empty()).then_some(name)
}

/// Returns `true` if large receive offload is on.
pub(super) fn lro(interface: &str) -> Option<bool> {
    let mut value = Value { command: ETHTOOL_GFLAGS, data: 0 };
    // SAFETY: `Value` is struct ethtool_value, which is what the command writes.
    unsafe { ask(interface, &mut value) }?;
    Some(value.data & ETH_FLAG_LRO != 0)
}

/// Sends `request` to the driver of `interface`, which answers in place.
///
/// # Safety
/// `T` starts with the number of an ethtool command and has the layout of that command's structure.
unsafe fn ask<T>(interface: &str, request: &mut T) -> Option<()> {
    // Any socket will do: it only says which network namespace is meant.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    let mut name = [0; libc::IFNAMSIZ];
    // The last byte stays zero: `zip` ends one before it.
    for (to, from) in name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut call = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: std::ptr::from_mut(request).cast() },
    };
    // SAFETY: `call` is what the request wants and lives until it returns, as does what it points
    // to, which has the right layout by this function's contract.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut call) };
    (result == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_match_the_kernel() {
        assert_eq!(size_of::<DriverInfo>(), 196);
        assert_eq!(size_of::<Value>(), 8);
    }

    #[test]
    fn a_missing_interface_has_no_driver() {
        assert_eq!(driver("no-such-if"), None);
        assert_eq!(lro("no-such-if"), None);
    }
}
