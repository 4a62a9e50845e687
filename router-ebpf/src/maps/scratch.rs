//! Per-CPU scratch: memory for values that are too large for the stack, or that the verifier should
//! not follow.

use aya_ebpf::maps::PerCpuArray;

/// Per-CPU scratch of type `T`. Several functions of a program use it at the same time, so its
/// fields are cells.
#[repr(transparent)]
pub(crate) struct Scratch<T>(PerCpuArray<T>);

// SAFETY: each CPU has its own, and no program interrupts another one on the same CPU: XDP runs in
// the softirq that packets come in by, and what looks at packets that leave runs while that is held
// off.
unsafe impl<T> Sync for Scratch<T> {}

impl<T> Scratch<T> {
    /// Declares scratch, which starts as zero, as a map's memory does.
    ///
    /// # Safety
    /// Zero is a valid value of every field.
    pub(crate) const unsafe fn new() -> Self {
        Self(PerCpuArray::with_max_entries(1, 0))
    }

    /// Returns this CPU's. `None` never happens, but the verifier cannot know.
    #[inline(always)]
    pub(crate) fn get(&'static self) -> Option<&'static T> {
        self.0.get(0)
    }
}
