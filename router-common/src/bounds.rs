//! Bounds that every verifier sees.
//!
//! The compiler leaves out a check that it knows to be unneeded, or makes it of a copy of the
//! number. Newer verifiers often come to the same conclusion; that of Linux 6.1 knows nothing of a
//! number whose bytes have been swapped, nor what the check of a copy, or of the number less
//! one, says about the number itself. `cargo xtask vm` has older ones look.

/// The same number, by an instruction that the compiler does not look into: it neither knows what
/// the number can be nor where it comes from, so that what is checked of it is checked there, and
/// of the very register that is used.
#[inline(always)]
pub fn opaque(number: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let same: u64;
        // SAFETY: does nothing.
        unsafe {
            core::arch::asm!("{0} = {0}", inlateout(reg) u64::from(number) => same, options(pure, nomem, nostack, preserves_flags));
        }
        same as u32
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        number
    }
}

/// The same number, of which the compiler knows nothing: without an instruction, where there is
/// nothing to check. What is shifted out of it stays shifted out, and is not made a mask of.
#[inline(always)]
pub fn opaque_word(number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let same: u64;
        // SAFETY: does nothing.
        unsafe {
            core::arch::asm!("/* {0} */", inlateout(reg) number => same, options(pure, nomem, nostack, preserves_flags));
        }
        same
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        number
    }
}

/// A length of 1 to `MAX`, as helpers want it that read or write so many bytes.
#[inline(always)]
pub fn length<const MAX: usize>(length: u32) -> Option<u32> {
    let last = opaque(length.wrapping_sub(1));
    if last < MAX as u32 { Some(last + 1) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_neither_nothing_nor_too_much() {
        assert_eq!([0, 1, 7, 8, u32::MAX].map(length::<7>), [None, Some(1), Some(7), None, None]);
    }
}
