//! Time as the data plane keeps it.

/// Coarse monotonic time, in units of 2^30 ns (about 1.07 s): `CLOCK_MONOTONIC_COARSE` shifted
/// right, because a packet can afford a shift and no more. Wraps after 146 years.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticks(pub u32);

impl Ticks {
    const SHIFT: u32 = 30;

    /// Returns the tick at this many nanoseconds of `CLOCK_MONOTONIC`.
    #[inline(always)]
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self((nanoseconds >> Self::SHIFT) as u32)
    }

    /// Returns the nanoseconds from an earlier tick to this one; 0 if it is not earlier.
    pub const fn nanoseconds_since(self, earlier: Self) -> u64 {
        (self.0.saturating_sub(earlier.0) as u64) << Self::SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_about_a_second_and_never_negative() {
        let then = Ticks::from_nanoseconds(10 << 30);
        let now = Ticks::from_nanoseconds((12 << 30) + 5);
        assert_eq!(now.nanoseconds_since(then), 2 << 30);
        assert_eq!(then.nanoseconds_since(now), 0);
    }
}
