//! Random choices of tests, from a seed. `router-user/tests/bpf_fuzz` includes this file, too.

pub(crate) use fastrand::Rng as Random;

/// Short words for random choices, beside those of [`Random`] itself.
pub(crate) trait Draw {
    /// Returns `true` in this many of a hundred cases.
    fn percent(&mut self, percent: usize) -> bool;

    /// One of these; there is at least one.
    fn pick<T: Copy>(&mut self, choices: &[T]) -> T;

    /// Returns `count` random bytes.
    fn bytes(&mut self, count: usize) -> Vec<u8>;
}

impl Draw for Random {
    fn percent(&mut self, percent: usize) -> bool {
        self.usize(..100) < percent
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.usize(..choices.len())]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.fill(&mut bytes);
        bytes
    }
}
