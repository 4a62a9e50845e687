//! What tests draw by lot, from a seed. `router-user/tests/bpf_fuzz` has this file, too.

pub(crate) use fastrand::Rng as Random;

/// What [`Random`] itself has no short word for.
pub(crate) trait Draw {
    /// True in this many of a hundred cases.
    fn percent(&mut self, percent: usize) -> bool;

    /// One of these; there is at least one.
    fn pick<T: Copy>(&mut self, choices: &[T]) -> T;

    /// So many bytes.
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
