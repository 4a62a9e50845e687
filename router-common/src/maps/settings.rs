//! The settings: what the daemon tells the running programs, in one small record that every packet
//! reads.

use core::{cell::UnsafeCell, mem::size_of};

use crate::{
    address::{Ipv4, Mac},
    limits::MAX_INTERFACES,
    table::{HashSeeds, Regions},
    time::Ticks,
};

/// An interface of the router, by the kernel's indexes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Interface {
    /// The configured interface, which has the addresses and routes, e.g. Azure's synthetic `eth0`.
    /// 0 is "no interface".
    pub primary: u32,
    /// Its virtual function, if there is one: hv_netvsc runs the program there too, and packets
    /// then name that device.
    pub virtual_function: u32,
    /// Its first address, the source of the router's own packets (ICMP errors); 0.0.0.0 is "none".
    pub address: Ipv4,
    /// Padding.
    pub zero: u32,
    /// Its MAC address.
    pub mac: Mac,
}

/// The kernel's indexes of an [`Interface`] and of its virtual function.
#[derive(Clone, Copy, Debug)]
struct Indexes {
    primary: u32,
    virtual_function: u32,
}

impl Indexes {
    /// Returns `true` if the index is that of this interface or of its virtual function.
    #[inline(always)]
    const fn contain(self, index: u32) -> bool {
        self.primary == index || self.virtual_function == index
    }

    /// Returns the slot of the interface that a packet came in on, where these are the indexes of
    /// the second one: 1 if the index is one of them, else 0. An index that is not known yet (of a
    /// virtual function that has just appeared) gives 0.
    #[inline(always)]
    const fn ingress_slot(self, index: u32) -> u32 {
        if self.primary != 0 && self.contain(index) { 1 } else { 0 }
    }
}

impl Interface {
    const fn indexes(&self) -> Indexes {
        Indexes { primary: self.primary, virtual_function: self.virtual_function }
    }
}

/// The side of the router that an interface is on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// It faces the Private Link Service: clients come in here. A single interface is on this side.
    Clients,
    /// It faces the firewall, and nothing else.
    Firewall,
    /// Not an interface of the router: a virtual function that has just appeared. It has the rights
    /// of neither side.
    Unknown,
}

/// The settings. Written whole by the daemon; the programs only read them, as [`Live`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// The rule set in force, see [`crate::maps::rules`]. 0 is none: everything passes.
    pub version: u32,
    /// Raised whenever a route, neighbour, link or address changes. Next hops of another generation
    /// are resolved again when they are next used. 1 to
    /// [`NextHop::GENERATIONS`](crate::entry::NextHop::GENERATIONS), then from 1 again.
    pub next_hop_generation: u32,
    /// The router's interfaces by slot. With one NIC only slot 0 is set.
    pub interfaces: [Interface; MAX_INTERFACES],
    /// The tick in which the daemon was last alive; it renews this every few seconds.
    pub daemon_seen: Ticks,
    /// Not for the programs: 1 if the daemon has switched `net.ipv4.conf.lo.forwarding` on, which
    /// is to be undone when the router is taken off.
    pub route_lookups_were_off: u32,
    /// The regions of the flow table.
    pub regions: Regions,
    /// The maximum number of half-open sessions of one source.
    pub half_open_per_source: u32,
    /// The number of port pools ([`crate::ports`]) that may be used while ports are not crowded;
    /// the others are kept for crowded ones.
    pub pools_to_spare: u32,
    /// The key of the flow table's hash.
    pub seeds: HashSeeds,
}

const _: () = assert!(size_of::<Settings>() == 112);

impl Settings {
    /// Returns the interface of a slot.
    pub const fn interface(&self, slot: u32) -> &Interface {
        &self.interfaces[slot as usize & (MAX_INTERFACES - 1)]
    }

    /// Returns the slot of the interface that a packet came in on. An index that is not known yet
    /// (of a virtual function that has just appeared) gives 0.
    pub const fn ingress_slot(&self, index: u32) -> u32 {
        self.interfaces[1].indexes().ingress_slot(index)
    }

    /// Returns the slot of the interface that a route leads out of, if it is one of the router's.
    pub const fn egress_slot(&self, index: u32) -> Option<u32> {
        egress_slot([self.interfaces[0].primary, self.interfaces[1].primary], index)
    }
}

#[inline(always)]
const fn egress_slot([first, second]: [u32; 2], index: u32) -> Option<u32> {
    if first == index {
        Some(0)
    } else if second == index {
        Some(1)
    } else {
        None
    }
}

/// The settings as the programs have them: in memory that the kernel writes, when the daemon
/// updates it, while the programs read.
///
/// Each number is read whole, but a program may see some numbers of the new settings and some of
/// the old ones. So things that belong together are one number, such as a rule set's version.
#[repr(transparent)]
pub struct Live(UnsafeCell<Settings>);

// SAFETY: read by single instructions; the kernel writes whole numbers at the same time.
unsafe impl Sync for Live {}

/// Reads a number of the settings. Volatile: every call reads once.
macro_rules! read {
    ($live:ident, $($field:tt)+) => {
        // SAFETY: within the cell's own memory, and any bits are a valid number.
        unsafe { (&raw const (*$live.0.get()).$($field)+).read_volatile() }
    };
}

impl Live {
    /// The time in ticks that the daemon counts as present after it was last alive.
    pub const DAEMON_TIMEOUT: u32 = 6;

    /// Creates a program's settings.
    pub const fn new(settings: Settings) -> Self {
        Self(UnsafeCell::new(settings))
    }

    /// Returns the version of the rule set in force, see [`Settings::version`].
    #[inline(always)]
    pub fn version(&self) -> u32 {
        read!(self, version)
    }

    /// See [`Settings::next_hop_generation`].
    #[inline(always)]
    pub fn next_hop_generation(&self) -> u32 {
        read!(self, next_hop_generation)
    }

    /// Returns the regions of the flow table.
    #[inline(always)]
    pub fn regions(&self) -> Regions {
        Regions { near: read!(self, regions.near), far: read!(self, regions.far) }
    }

    /// Returns the key of the flow table's hash.
    #[inline(always)]
    pub fn seeds(&self) -> HashSeeds {
        HashSeeds {
            words: [
                read!(self, seeds.words[0]),
                read!(self, seeds.words[1]),
                read!(self, seeds.words[2]),
                read!(self, seeds.words[3]),
            ],
        }
    }

    /// Returns the maximum number of half-open sessions of one source.
    #[inline(always)]
    pub fn half_open_per_source(&self) -> u32 {
        read!(self, half_open_per_source)
    }

    /// See [`Settings::pools_to_spare`].
    #[inline(always)]
    pub fn pools_to_spare(&self) -> u32 {
        read!(self, pools_to_spare)
    }

    /// Returns `true` if there is a daemon to hand packets to.
    #[inline(always)]
    pub fn daemon_is_there(&self, now: Ticks) -> bool {
        now.0.saturating_sub(read!(self, daemon_seen).0) <= Self::DAEMON_TIMEOUT
    }

    /// Returns the kernel's index of the interface of a slot.
    #[inline(always)]
    pub fn index(&self, slot: u32) -> u32 {
        read!(self, interfaces[slot as usize & (MAX_INTERFACES - 1)].primary)
    }

    /// Returns the first address of the interface of a slot; 0.0.0.0 is "none".
    #[inline(always)]
    pub fn address(&self, slot: u32) -> Ipv4 {
        read!(self, interfaces[slot as usize & (MAX_INTERFACES - 1)].address)
    }

    /// Returns the MAC address of the interface of a slot.
    #[inline(always)]
    pub fn mac(&self, slot: u32) -> Mac {
        read!(self, interfaces[slot as usize & (MAX_INTERFACES - 1)].mac)
    }

    #[inline(always)]
    fn first(&self) -> Indexes {
        Indexes {
            primary: read!(self, interfaces[0].primary),
            virtual_function: read!(self, interfaces[0].virtual_function),
        }
    }

    #[inline(always)]
    fn second(&self) -> Indexes {
        Indexes {
            primary: read!(self, interfaces[1].primary),
            virtual_function: read!(self, interfaces[1].virtual_function),
        }
    }

    /// As [`Settings::ingress_slot`].
    #[inline(always)]
    pub fn ingress_slot(&self, index: u32) -> u32 {
        self.second().ingress_slot(index)
    }

    /// As [`Settings::egress_slot`].
    #[inline(always)]
    pub fn egress_slot(&self, index: u32) -> Option<u32> {
        egress_slot([self.index(0), self.index(1)], index)
    }

    /// Returns the side that a packet came in on, by the kernel's index of the interface.
    #[inline(always)]
    pub fn side(&self, index: u32) -> Side {
        let (clients, firewall) = (self.first(), self.second());
        if firewall.primary == 0 || clients.contain(index) {
            Side::Clients
        } else if firewall.contain(index) {
            Side::Firewall
        } else {
            Side::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_daemon_counts_as_absent() {
        let settings = Live::new(Settings { daemon_seen: Ticks(100), ..Settings::default() });
        assert!(settings.daemon_is_there(Ticks(99)), "its clock was read a moment later than ours");
        assert!(settings.daemon_is_there(Ticks(106)));
        assert!(!settings.daemon_is_there(Ticks(107)));
    }

    fn interface(primary: u32, virtual_function: u32) -> Interface {
        Interface { primary, virtual_function, ..Interface::default() }
    }

    #[test]
    fn slots() {
        let one = Settings { interfaces: [interface(2, 3), Interface::default()], ..Settings::default() };
        assert_eq!([one.ingress_slot(2), one.ingress_slot(3), one.ingress_slot(9)], [0, 0, 0]);
        assert_eq!([one.egress_slot(2), one.egress_slot(3)], [Some(0), None]);
        let two = Settings { interfaces: [interface(2, 3), interface(4, 5)], ..Settings::default() };
        assert_eq!([two.ingress_slot(2), two.ingress_slot(4), two.ingress_slot(5)], [0, 1, 1]);
        assert_eq!([two.egress_slot(4), two.egress_slot(5), two.egress_slot(7)], [Some(1), None, None]);
        for settings in [one, two] {
            let live = Live::new(settings);
            for index in 0..10 {
                assert_eq!(live.ingress_slot(index), settings.ingress_slot(index), "{index}");
                assert_eq!(live.egress_slot(index), settings.egress_slot(index), "{index}");
            }
        }
        let (one, two) = (Live::new(one), Live::new(two));
        assert_eq!([one.side(2), one.side(3), one.side(9)], [Side::Clients; 3]);
        assert_eq!([two.side(2), two.side(3)], [Side::Clients; 2]);
        assert_eq!([two.side(4), two.side(5)], [Side::Firewall; 2]);
        assert_eq!([two.side(9), two.side(0)], [Side::Unknown; 2]);
    }
}
