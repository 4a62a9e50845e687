//! The buckets that times are counted in. The program that counts and the bench that reads them
//! share this file.

/// Buckets for each doubling of the time: none is wider than 1/64 of the times in it.
pub(crate) const A_DOUBLING: u32 = 64;
/// The number of buckets for all 32-bit numbers.
pub(crate) const BUCKETS: usize = 27 * A_DOUBLING as usize;

/// Returns the index of the bucket that counts a time.
///
/// Up to twice [`A_DOUBLING`], each number has a separate bucket. From there on the highest bit
/// gives the doubling, and the six bits after it the bucket.
#[inline(always)]
pub(crate) const fn bucket(time: u32) -> usize {
    if time < A_DOUBLING {
        return time as usize;
    }
    let shift = time.ilog2() - A_DOUBLING.ilog2();
    ((shift + 1) * A_DOUBLING + (time >> shift) % A_DOUBLING) as usize
}
