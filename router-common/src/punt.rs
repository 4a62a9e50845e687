//! Packets on their way from the programs to the daemon.

use core::mem::size_of;

use crate::packet::IPV4_LENGTH;

/// The longest IP packet that can be handed over: more than fits a single-page XDP buffer.
pub const CAPACITY: usize = 3520;

/// What the daemon is to do with a packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Translated, but the next hop has no MAC address yet: the kernel's own output asks the neighbour and holds the packet until it
    /// answers.
    Send = 0,
    /// Translated, but larger than the next hop takes: to be sent in fragments.
    Split = 1,
    /// A fragment, not translated, that came before its datagram's first: to be held for a moment.
    Hold = 2,
    /// The IP header of a first fragment, others of whose datagram are held: they can be told whose they are now.
    Release = 3,
}

impl Kind {
    const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Send),
            1 => Some(Self::Split),
            2 => Some(Self::Hold),
            3 => Some(Self::Release),
            _ => None,
        }
    }
}

/// A record in the ring: an IP packet with room for `ROOM` bytes.
#[repr(C)]
pub struct Record<const ROOM: usize> {
    /// A [`Kind`], as its number.
    pub kind: u32,
    /// [`Kind::Split`]: what the next hop takes, in bytes (not known in [`Kind::Send`]). [`Kind::Hold`]: the index of the interface that it came in on.
    pub detail: u32,
    /// The packet's length in bytes.
    pub length: u32,
    /// The packet, from its IP header on; what lies behind its length is old memory.
    pub packet: [u8; ROOM],
}

/// A record for a whole packet.
pub type Punt = Record<CAPACITY>;
/// A record for [`Kind::Release`].
pub type Notice = Record<IPV4_LENGTH>;

const _: () = assert!(size_of::<Punt>() == 12 + CAPACITY);
const _: () = assert!(size_of::<Notice>() == 12 + IPV4_LENGTH);

/// A record as it comes out of the ring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Punted<'a> {
    /// What to do with the packet.
    pub kind: Kind,
    /// See [`Record::detail`].
    pub detail: u32,
    /// The packet, from its IP header on.
    pub packet: &'a [u8],
}

impl<'a> Punted<'a> {
    /// Reads a record; `None` if it is not one of ours.
    pub fn parse(record: &'a [u8]) -> Option<Self> {
        let (kind, rest) = record.split_first_chunk::<4>()?;
        let (detail, rest) = rest.split_first_chunk::<4>()?;
        let (length, packet) = rest.split_first_chunk::<4>()?;
        Some(Self {
            kind: Kind::from_number(u32::from_ne_bytes(*kind))?,
            detail: u32::from_ne_bytes(*detail),
            packet: packet.get(..usize::try_from(u32::from_ne_bytes(*length)).ok()?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_fits() {
        let record = [2, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 7, 8, 6];
        assert_eq!(Punted::parse(&record), Some(Punted { kind: Kind::Hold, detail: 9, packet: &[7, 8] }));
        assert_eq!(Punted::parse(&record[..13]), None);
        assert_eq!(Punted::parse(&record[..11]), None);
        assert_eq!(Punted::parse(&[4, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
