//! Internet checksums, updated incrementally (RFC 1071, RFC 1624).
//!
//! A checksum covers the whole packet; a rewrite changes a few 16-bit words of it. RFC 1624's
//! equation 3 gives the new checksum from the old one and the changed words alone: `HC' = ~(~HC +
//! ~m + m')`, in one's-complement arithmetic. The part that depends on the words, `~m + m'` over
//! all of them, is a [`Sum`]; [`Sum::apply`] does the rest.
//!
//! Words are taken in the machine's byte order. RFC 1071 section 2(B): the sum of byte-swapped
//! words is the byte-swapped sum, so as long as nothing mixes orders the bytes that come out are
//! right, and no word is swapped on the way.
//!
//! Two zeros: one's complement has +0 (`0x0000`) and -0 (`0xFFFF`). A sum of words that are not all
//! zero never folds to +0, so a header checksum (its complement) never comes out as `0xFFFF`; that
//! is what a checksum from scratch gives, too. In UDP over IPv4 a checksum of `0x0000` says "none"
//! (RFC 768): such a packet keeps it, and a computed zero is sent as `0xFFFF`.

/// An unfolded one's-complement sum of 16-bit words, with room for 32,768 pairs of them, which is
/// more than a packet has.
///
/// Words are added in pairs where they come in pairs: 2^16 is 1 modulo 2^16 - 1, so the upper word
/// of a pair counts as much as the lower one once everything is folded, also in the complement of a
/// pair.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sum(u64);

impl Sum {
    /// The sum of no words.
    pub const ZERO: Self = Self(0);

    /// Adds a word.
    #[inline(always)]
    pub const fn add(self, word: [u8; 2]) -> Self {
        Self(self.0 + u16::from_ne_bytes(word) as u64)
    }

    /// Adds two words.
    #[inline(always)]
    pub const fn add_pair(self, words: [u8; 4]) -> Self {
        Self(self.0 + u32::from_ne_bytes(words) as u64)
    }

    /// Subtracts a word.
    #[inline(always)]
    pub const fn remove(self, word: [u8; 2]) -> Self {
        Self(self.0 + !u16::from_ne_bytes(word) as u64)
    }

    /// Subtracts two words.
    #[inline(always)]
    pub const fn remove_pair(self, words: [u8; 4]) -> Self {
        Self(self.0 + !u32::from_ne_bytes(words) as u64)
    }

    /// Adds a folded sum.
    #[inline(always)]
    pub const fn plus_folded(self, other: Folded) -> Self {
        Self(self.0 + other.0 as u64)
    }

    /// Adds another sum.
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Subtracts another sum.
    #[inline(always)]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 + !other.fold() as u64)
    }

    /// Adds every word of `bytes`; an odd last byte counts as the first half of a word (RFC 1071).
    pub fn add_bytes(mut self, bytes: &[u8]) -> Self {
        let mut words = bytes.chunks_exact(2);
        for word in &mut words {
            self = self.add([word[0], word[1]]);
        }
        match words.remainder() {
            [last] => self.add([*last, 0]),
            _ => self,
        }
    }

    /// Returns the new value of a header, TCP or ICMP checksum whose value is `old`, where this sum
    /// is the change of the covered words.
    #[inline(always)]
    pub const fn apply(self, old: [u8; 2]) -> [u8; 2] {
        self.remove(old).checksum()
    }

    /// Returns the new value of a UDP checksum over IPv4 whose value is `old`: "none" stays "none",
    /// and zero becomes `0xFFFF`.
    #[inline(always)]
    pub const fn apply_udp(self, old: [u8; 2]) -> [u8; 2] {
        if u16::from_ne_bytes(old) == 0 {
            return old;
        }
        let new = u16::from_ne_bytes(self.apply(old));
        (if new == 0 { 0xffff } else { new }).to_ne_bytes()
    }

    /// Builds a sum from the result of `bpf_csum_diff`: words of 32 bits, carries included.
    #[inline(always)]
    pub const fn from_kernel(sum: u32) -> Self {
        Self(sum as u64)
    }

    /// Returns `true` if words that include their own checksum sum up to a valid one.
    #[inline(always)]
    pub const fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }

    /// Returns the checksum of the words, the complement of their sum, as it stands on the wire.
    #[inline(always)]
    pub const fn checksum(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// Returns the sum of the words and not its complement, as a sender leaves it in the checksum
    /// field for hardware or the kernel to finish.
    #[inline(always)]
    pub const fn partial(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// Folds the sum into one word.
    #[inline(always)]
    pub const fn folded(self) -> Folded {
        Folded(self.fold())
    }

    /// Returns the words of the sum added up, with the carries, as RFC 1071 wants it: 0 only for no
    /// words at all.
    ///
    /// The result is the sum's remainder of a division by w = 2^16 - 1, with w in place of 0. One
    /// multiplication computes it. Let the sum be q w + r with r from 1 to w. The number with a one
    /// in every word is m = (2^64 - 1) / w, so m w is -1 (modulo 2^64), and m times the sum is m r
    /// minus q: r in every word, minus q. That is below 2^32, as the sum is below 2^47. The three
    /// lower words are larger than q, since r is not 0, so the uppermost word stays r.
    #[inline(always)]
    const fn fold(self) -> u16 {
        (self.0.wrapping_mul(0x0001_0001_0001_0001) >> 48) as u16
    }
}

/// A folded sum, as an entry keeps it. Map data.
#[must_use]
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Folded(u16);

impl Folded {
    /// Builds a folded sum from a number.
    #[inline(always)]
    pub(crate) const fn from_number(number: u16) -> Self {
        Self(number)
    }

    /// Returns the sum as a number.
    #[inline(always)]
    pub(crate) const fn number(self) -> u16 {
        self.0
    }

    /// As [`Sum::apply`], with less to fold.
    #[inline(always)]
    pub const fn apply(self, old: [u8; 2]) -> [u8; 2] {
        let sum = self.0 as u32 + !u16::from_ne_bytes(old) as u32;
        // A sum of two words has at most one carry, and adding it makes no other.
        (!(sum + (sum >> 16)) as u16).to_ne_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::effort::tries;

    /// RFC 1071 section 3's example: the sum of these bytes is 0xddf2.
    #[test]
    fn sums_the_rfc_1071_example() {
        let sum = Sum::ZERO.add_bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.checksum(), (!0xddf2_u16).to_be_bytes());
    }

    /// RFC 1624 section 4's example: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives 0x0000 (equation 2
    /// of RFC 1141 gave 0xFFFF).
    #[test]
    fn updates_the_rfc_1624_example() {
        let change = Sum::ZERO.remove([0x55, 0x55]).add([0x32, 0x85]);
        assert_eq!(change.apply([0xdd, 0x2f]), [0x00, 0x00]);
    }

    #[test]
    fn an_absent_udp_checksum_stays_absent() {
        let change = Sum::ZERO.remove([0x55, 0x55]).add([0x32, 0x85]);
        assert_eq!(change.apply_udp([0, 0]), [0, 0]);
        assert_eq!(change.apply_udp([0xdd, 0x2f]), [0xff, 0xff]);
    }

    #[test]
    fn odd_byte_counts_as_high_half() {
        assert_eq!(Sum::ZERO.add_bytes(&[1, 2, 3]), Sum::ZERO.add_bytes(&[1, 2, 3, 0]));
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        /// A pair adds up like its two words, and so does its complement.
        #[test]
        fn pairs_are_two_words(pairs in proptest::collection::vec(any::<([u8; 4], bool)>(), 0..100)) {
            let (mut in_pairs, mut in_words) = (Sum::ZERO, Sum::ZERO);
            for ([a, b, c, d], add) in pairs {
                if add {
                    in_pairs = in_pairs.add_pair([a, b, c, d]);
                    in_words = in_words.add([a, b]).add([c, d]);
                } else {
                    in_pairs = in_pairs.remove_pair([a, b, c, d]);
                    in_words = in_words.remove([a, b]).remove([c, d]);
                }
            }
            prop_assert_eq!(in_pairs.checksum(), in_words.checksum());
        }
    }

    /// The largest sum there is, and those around every carry.
    #[test]
    fn every_sum_folds() {
        const LARGEST: u64 = (1 << 15) * 0xffff_ffff;
        for sum in
            [LARGEST, LARGEST - 1, 1 << 46, 0xffff_ffff, 0x1_0000_0000, 0xffff, 0x1_0000, 0x7ffe_0001_ffff]
        {
            assert_eq!(u64::from(Sum(sum).fold()) % 0xffff, sum % 0xffff, "{sum:#x}");
            assert_ne!(Sum(sum).fold(), 0, "only nothing sums up to +0");
            assert_eq!(Sum(sum).is_valid(), sum % 0xffff == 0, "{sum:#x}");
            assert!(Sum(sum - sum % 0xffff).is_valid(), "{sum:#x}");
        }
        assert!(!Sum::ZERO.is_valid());
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        #[test]
        fn folds_to_the_remainder(sum in 1..=1_u64 << 47, below in 0..47_u32) {
            let sum = (sum >> below).max(1);
            prop_assert_eq!(u64::from(Sum(sum).fold()), (sum - 1) % 0xffff + 1);
        }
    }

    /// Changing nothing changes no valid checksum, although the sum of "nothing" is -0.
    #[test]
    fn changing_nothing_changes_nothing() {
        let change = Sum::ZERO.remove([1, 2]).add([1, 2]);
        for checksum in (0..=0xfffe_u16).step_by(tries(1, 0x1fff) as usize) {
            assert_eq!(change.apply(checksum.to_be_bytes()), checksum.to_be_bytes());
        }
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        #[test]
        fn incremental_equals_from_scratch(
            mut bytes in proptest::collection::vec(any::<u8>(), 2..200),
            word in any::<prop::sample::Index>(),
            new in any::<[u8; 2]>(),
        ) {
            let at = word.index(bytes.len() / 2) * 2;
            let before = Sum::ZERO.add_bytes(&bytes).checksum();
            let change = Sum::ZERO.remove([bytes[at], bytes[at + 1]]).add(new);
            bytes[at..at + 2].copy_from_slice(&new);
            // Only for all-zero data, the two zeros differ (RFC 1624 section 3). A header is never
            // all zero.
            prop_assume!(bytes.iter().any(|byte| *byte != 0));
            prop_assert_eq!(change.apply(before), Sum::ZERO.add_bytes(&bytes).checksum());
            prop_assert_eq!(change.folded().apply(before), Sum::ZERO.add_bytes(&bytes).checksum());
        }
    }
}
