//! Atomic operations on memory that the programs and the daemon share.
//!
//! The host has them in `core`. For BPF, `core` has none that change memory, although the kernel and the compiler do (`BPF_ATOMIC`, Linux
//! 5.12): there the compiler's intrinsics stand in. All are sequentially consistent.

use core::marker::PhantomData;

/// An atomic integer somewhere in shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Atomic<'a, T> {
    at: *mut T,
    memory: PhantomData<&'a T>,
}

impl<'a, T> Atomic<'a, T> {
    /// The integer of a field. Others may change it at any time, so it is only ever read or written through this.
    #[inline(always)]
    pub(crate) const fn new(field: &'a T) -> Self {
        Self { at: core::ptr::from_ref(field).cast_mut(), memory: PhantomData }
    }
}

macro_rules! atomic {
    ($type:ty, $host:ident) => {
        impl Atomic<'_, $type> {
            #[cfg(not(target_arch = "bpf"))]
            #[inline(always)]
            fn host(&self) -> &core::sync::atomic::$host {
                // SAFETY: aligned memory that lives as long as the reference this was made from, accessed atomically only.
                unsafe { core::sync::atomic::$host::from_ptr(self.at) }
            }
        }

        atomic! { $type, load() -> $type,
            |this| unsafe { core::ptr::read_volatile(this.at) },
            |atomic| atomic.load(SeqCst) }
        atomic! { $type, swap(value: $type) -> $type,
            |this| unsafe { core::intrinsics::atomic_xchg::<$type, { core::intrinsics::AtomicOrdering::SeqCst }>(this.at, value) },
            |atomic| atomic.swap(value, SeqCst) }
        atomic! { $type, add(value: $type) -> $type,
            |this| unsafe { core::intrinsics::atomic_xadd::<$type, $type, { core::intrinsics::AtomicOrdering::SeqCst }>(this.at, value) },
            |atomic| atomic.fetch_add(value, SeqCst) }
        atomic! { $type, and(value: $type) -> $type,
            |this| unsafe { core::intrinsics::atomic_and::<$type, $type, { core::intrinsics::AtomicOrdering::SeqCst }>(this.at, value) },
            |atomic| atomic.fetch_and(value, SeqCst) }
        atomic! { $type, or(value: $type) -> $type,
            |this| unsafe { core::intrinsics::atomic_or::<$type, $type, { core::intrinsics::AtomicOrdering::SeqCst }>(this.at, value) },
            |atomic| atomic.fetch_or(value, SeqCst) }
        atomic! { $type, change(from: $type, to: $type) -> bool,
            |this| unsafe {
                core::intrinsics::atomic_cxchg::<$type, { core::intrinsics::AtomicOrdering::SeqCst }, { core::intrinsics::AtomicOrdering::SeqCst }>(this.at, from, to).1
            },
            |atomic| atomic.compare_exchange(from, to, SeqCst, SeqCst).is_ok() }
    };
    ($type:ty, $name:ident($($argument:ident: $of:ty),*) -> $result:ty, |$this:ident| $bpf:expr, |$atomic:ident| $on_host:expr) => {
        impl Atomic<'_, $type> {
            /// As the standard library's operation; the value before, or whether it was changed.
            #[inline(always)]
            #[allow(dead_code, reason = "not every operation is used on every type")]
            pub(crate) fn $name(&self, $($argument: $of),*) -> $result {
                #[cfg(target_arch = "bpf")]
                {
                    let $this = self;
                    // SAFETY: as for the host.
                    $bpf
                }
                #[cfg(not(target_arch = "bpf"))]
                {
                    use core::sync::atomic::Ordering::SeqCst;
                    let $atomic = self.host();
                    $on_host
                }
            }
        }
    };
}

atomic!(u32, AtomicU32);
atomic!(u64, AtomicU64);
