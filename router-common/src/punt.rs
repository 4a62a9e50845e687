//! Packets on their way from the program to the daemon.

use core::mem::size_of;

/// The longest IP packet that can be handed over: more than fits a single-page XDP buffer.
pub const CAPACITY: usize = 3520;

/// A translated IP packet whose next hop has no MAC address yet. The daemon sends it through the kernel's own output, which
/// asks the neighbour and holds the packet until it answers.
#[repr(C)]
pub struct Punt {
    /// The packet's length in bytes.
    pub length: u32,
    /// The packet, from its IP header on; what lies behind its length is old memory.
    pub packet: [u8; CAPACITY],
}

const _: () = assert!(size_of::<Punt>() == 4 + CAPACITY);

impl Punt {
    /// The packet in a record as it comes out of the ring buffer; `None` if the record is not one of ours.
    pub fn parse(record: &[u8]) -> Option<&[u8]> {
        let (length, packet) = record.split_first_chunk::<4>()?;
        packet.get(..usize::try_from(u32::from_ne_bytes(*length)).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_fits() {
        assert_eq!(Punt::parse(&[2, 0, 0, 0, 7, 8, 9]), Some(&[7, 8][..]));
        assert_eq!(Punt::parse(&[4, 0, 0, 0, 7, 8, 9]), None);
        assert_eq!(Punt::parse(&[4, 0]), None);
    }
}
