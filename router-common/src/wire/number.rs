//! Loads and stores of misaligned numbers in the bytes of packets.
//!
//! An IP header starts two bytes after a word boundary, so most fields of a packet are misaligned.
//! The processors that run BPF accept that, and so does the verifier for packets. But the
//! compiler's BPF target assembles such numbers byte by byte. So each load and store here is one
//! instruction of inline assembly.
//!
//! All numbers are little-endian: the first byte is the lowest. That is the order of the machines
//! that this runs on, so nothing is swapped, and a number's parts are the packet's words in their
//! order.

const _: () = assert!(cfg!(target_endian = "little"), "the BPF object is built for little-endian machines");

/// Loads and stores for one width.
macro_rules! number {
    ($type:ident, $load:ident, $store:ident, $name:literal) => {
        /// Returns the number at `OFFSET` of a header. The bounds are checked at compile time.
        #[inline(always)]
        pub(crate) fn $load<const OFFSET: usize, const LENGTH: usize>(header: &[u8; LENGTH]) -> $type {
            const { assert!(OFFSET + size_of::<$type>() <= LENGTH) };
            #[cfg(target_arch = "bpf")]
            {
                let number: u64;
                // SAFETY: reads bytes of `header`, see the assertion.
                unsafe {
                    core::arch::asm!(
                        concat!("{number} = *(", $name, " *)({header} + {offset})"),
                        number = lateout(reg) number,
                        header = in(reg) header.as_ptr(),
                        offset = const OFFSET,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                // SAFETY: a load of this width clears all other bits. This spares the compiler from
                // clearing them again.
                unsafe { core::hint::assert_unchecked(number <= u64::from($type::MAX)) };
                number as $type
            }
            #[cfg(not(target_arch = "bpf"))]
            {
                // SAFETY: reads bytes of `header`, see the assertion.
                unsafe { header.as_ptr().add(OFFSET).cast::<$type>().read_unaligned() }
            }
        }

        /// Writes a number's lower bits at `OFFSET` of a header. The bounds are checked at compile
        /// time.
        #[inline(always)]
        pub(crate) fn $store<const OFFSET: usize, const LENGTH: usize>(header: &mut [u8; LENGTH], number: impl Into<u64>) {
            const { assert!(OFFSET + size_of::<$type>() <= LENGTH) };
            let number: u64 = number.into();
            #[cfg(target_arch = "bpf")]
            // SAFETY: writes bytes of `header`, see the assertion.
            unsafe {
                core::arch::asm!(
                    concat!("*(", $name, " *)({header} + {offset}) = {number}"),
                    number = in(reg) number,
                    header = in(reg) header.as_mut_ptr(),
                    offset = const OFFSET,
                    options(nostack, preserves_flags),
                );
            }
            #[cfg(not(target_arch = "bpf"))]
            // SAFETY: writes bytes of `header`, see the assertion.
            unsafe {
                header.as_mut_ptr().add(OFFSET).cast::<$type>().write_unaligned(number as $type);
            }
        }
    };
}

number!(u16, load16, store16, "u16");
number!(u32, load32, store32, "u32");
number!(u64, load64, store64, "u64");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_loaded_and_stored_at_their_offset() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        assert_eq!(load16::<1, _>(&bytes), 0x0302);
        assert_eq!(load32::<1, _>(&bytes), 0x0504_0302);
        assert_eq!(load64::<2, _>(&bytes), 0x0a09_0807_0605_0403);
        let mut written = [0; 10];
        store64::<0, _>(&mut written, load64::<0, _>(&bytes));
        // Bits above a number's width do not matter.
        store32::<6, _>(&mut written, u64::MAX << 32 | u64::from(load32::<6, _>(&bytes)));
        store16::<8, _>(&mut written, u64::MAX << 16 | u64::from(load16::<8, _>(&bytes)));
        assert_eq!(written, bytes);
    }
}
