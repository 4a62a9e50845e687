//! The maximum segment size that the ends of a TCP connection announce (RFC 9293 3.7.1), lowered to
//! what a path takes.

use core::cell::Cell;

use crate::{
    checksum::Sum,
    wire::{IPV4_LENGTH, TCP_LENGTH},
};

/// The maximum length of the options of a TCP header.
pub const OPTIONS: usize = 40;
/// The maximum number of steps of a search.
pub const STEPS: u32 = OPTIONS as u32;
/// The length of the headers of a segment: IPv4 and TCP without options.
const HEADERS: u16 = (IPV4_LENGTH + TCP_LENGTH) as u16;

const END: u8 = 0;
const NOTHING: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Returns the largest segment that fits the routes of both directions, by their MTUs; 0 is an
/// unknown MTU. Returns 0 if neither is known.
#[inline(always)]
pub const fn for_routes(there: u16, back: u16) -> u16 {
    let smaller = if there == 0 || (back != 0 && back < there) { back } else { there };
    smaller.saturating_sub(HEADERS)
}

/// Returns what lowering the size at this offset of the TCP header adds to the checksum. At an odd
/// offset its bytes belong to two words, which is the same as one word with its bytes swapped.
#[inline(always)]
pub const fn change(offset: u32, old: [u8; 2], new: [u8; 2]) -> Sum {
    let ([a, b], [c, d]) = (old, new);
    if offset.is_multiple_of(2) {
        Sum::ZERO.remove(old).add(new)
    } else {
        Sum::ZERO.remove([b, a]).add([d, c])
    }
}

/// A search for the size among the options of a TCP header. In cells, since several functions of a
/// program use the same scratch.
#[derive(Clone, Debug)]
pub struct Search {
    /// The options. The array is longer than options can be, so that a masked offset is always
    /// within it.
    pub bytes: [Cell<u8>; 64],
    /// The length of the options.
    length: Cell<u32>,
    /// The offset of the next option.
    at: Cell<u32>,
    /// The offset of the size, or 0 if it was not found.
    found: Cell<u32>,
}

impl Search {
    /// Starts a search in options of this length, which the caller has loaded.
    #[inline(always)]
    pub fn start(&self, length: u32) {
        self.length.set(length);
        self.at.set(0);
        self.found.set(0);
    }

    /// Looks at one option. Returns `true` if the search is over. Malformed options end it, with
    /// nothing found.
    #[inline(always)]
    pub fn step(&self) -> bool {
        let at = self.at.get();
        if at >= self.length.get() {
            return true;
        }
        match self.byte(at) {
            END => return true,
            NOTHING => self.at.set(at + 1),
            kind => {
                let length = u32::from(self.byte(at + 1));
                if length < 2 || at + length > self.length.get() {
                    return true;
                }
                if kind == MAXIMUM_SEGMENT_SIZE {
                    if length == 4 {
                        self.found.set(at + 2);
                    }
                    return true;
                }
                self.at.set(at + length);
            }
        }
        false
    }

    /// Returns the offset of the size among the options, and the size.
    #[inline(always)]
    pub fn found(&self) -> Option<(u32, [u8; 2])> {
        // 0 is "not found": kind and length of the option come before the size.
        match self.found.get() {
            0 => None,
            at => Some((at, [self.byte(at), self.byte(at + 1)])),
        }
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        self.bytes[at as usize & 63].get()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn search(options: &[u8]) -> Option<(u32, [u8; 2])> {
        let nine = || Cell::new(9);
        let search =
            Search { bytes: [const { Cell::new(2) }; 64], length: nine(), at: nine(), found: nine() };
        for (to, option) in search.bytes.iter().zip(options) {
            to.set(*option);
        }
        search.start(options.len() as u32);
        let steps = (0..STEPS).find(|_| search.step());
        assert!(steps.is_some() || search.at >= search.length, "not finished");
        search.found()
    }

    #[test]
    fn the_size_is_found_at_any_place() {
        assert_eq!(search(&[2, 4, 5, 180]), Some((2, [5, 180])));
        assert_eq!(search(&[1, 2, 4, 5, 180]), Some((3, [5, 180])));
        assert_eq!(search(&[3, 3, 7, 2, 4, 5, 180, 0]), Some((5, [5, 180])));
        let nothing = [vec![1; 36], vec![2, 4, 5, 180]].concat();
        assert_eq!(search(&nothing), Some((38, [5, 180])));
    }

    #[test]
    fn malformed_options_have_no_size() {
        for options in [
            &[][..],
            &[0, 2, 4, 5, 180],
            &[2, 4, 5],
            &[2, 3, 5, 180],
            &[2, 0, 5, 180],
            &[2],
            &[8, 0, 2, 4, 5, 180],
            &[8, 1, 2, 4, 5, 180],
            &[8, 200, 2, 4, 5, 180],
            &[1, 1, 1, 1],
        ] {
            assert_eq!(search(options), None, "{options:?}");
        }
    }

    #[test]
    fn sizes_leave_room_for_headers() {
        assert_eq!([for_routes(1500, 1400), for_routes(1400, 1500)], [1360, 1360]);
        assert_eq!([for_routes(1500, 0), for_routes(0, 1500)], [1460, 1460], "one of them is not known");
        assert_eq!([for_routes(0, 0), for_routes(40, 1500)], [0, 0]);
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        #[test]
        fn any_options_are_searched_to_the_end(options in proptest::collection::vec(any::<u8>(), 0..=OPTIONS)) {
            if let Some((at, value)) = search(&options) {
                let at = at as usize;
                prop_assert_eq!(&options[at - 2..at], &[2, 4]);
                prop_assert_eq!(&options[at..at + 2], &value);
            }
        }

        #[test]
        fn checksums_follow_at_any_offset(
            mut bytes in proptest::collection::vec(any::<u8>(), 60),
            at in 20..58_usize,
            new in any::<[u8; 2]>(),
        ) {
            bytes[0] = 1;
            let before = Sum::ZERO.add_bytes(&bytes).checksum();
            let old = [bytes[at], bytes[at + 1]];
            bytes[at..at + 2].copy_from_slice(&new);
            prop_assert_eq!(change(at as u32, old, new).apply(before), Sum::ZERO.add_bytes(&bytes).checksum());
        }
    }
}
