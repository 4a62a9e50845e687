//! Bounds that every verifier sees.
//!
//! The compiler leaves out a check that it knows to be unneeded, or applies it to a copy of the
//! number. Newer verifiers often come to the same conclusion. That of Linux 6.1 knows nothing of a
//! number whose bytes were swapped, nor does it conclude from the check of a copy, or of the number
//! less one, on the number itself. `cargo xtask vm` runs the older verifiers.

/// Returns the same number, by an instruction that the compiler does not look into. So it does not
/// know the number's range or origin, and a check of the number is made where it is written, of the
/// very register that is used.
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

/// Returns the same number without an instruction, while the compiler knows nothing of it. So bits
/// that are shifted out of it stay shifted out, and the shift does not become a mask.
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

/// Returns the length if it is 1 to `MAX`, as helpers want it that read or write so many bytes.
#[inline(always)]
pub fn length<const MAX: usize>(length: u32) -> Option<u32> {
    let last = opaque(length.wrapping_sub(1));
    if last < MAX as u32 { Some(last + 1) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_from_one_to_the_maximum() {
        assert_eq!([0, 1, 7, 8, u32::MAX].map(length::<7>), [None, Some(1), Some(7), None, None]);
    }
}
