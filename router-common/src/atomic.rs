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

/// Gives `Atomic` the operations that are used on a type.
macro_rules! atomic {
    ($type:ident, $host:ident: $($operation:ident)*) => {
        impl Atomic<'_, $type> {
            #[cfg(not(target_arch = "bpf"))]
            #[inline(always)]
            fn host(&self) -> &core::sync::atomic::$host {
                // SAFETY: aligned memory that lives as long as the reference this was made from, accessed atomically only.
                unsafe { core::sync::atomic::$host::from_ptr(self.at) }
            }

            $(atomic! { @$operation $type })*
        }
    };
    (@load $type:ident) => {
        atomic! { @operation load() -> $type, $type,
            |this| core::ptr::read_volatile(this.at),
            |host| host.load(SeqCst) }
    };
    (@swap $type:ident) => {
        atomic! { @operation swap(value: $type) -> $type, $type,
            |this| core::intrinsics::atomic_xchg::<$type, SEQ_CST>(this.at, value),
            |host| host.swap(value, SeqCst) }
    };
    (@add $type:ident) => {
        atomic! { @operation add(value: $type) -> $type, $type,
            |this| core::intrinsics::atomic_xadd::<$type, $type, SEQ_CST>(this.at, value),
            |host| host.fetch_add(value, SeqCst) }
    };
    (@and $type:ident) => {
        atomic! { @operation and(value: $type) -> $type, $type,
            |this| core::intrinsics::atomic_and::<$type, $type, SEQ_CST>(this.at, value),
            |host| host.fetch_and(value, SeqCst) }
    };
    (@or $type:ident) => {
        atomic! { @operation or(value: $type) -> $type, $type,
            |this| core::intrinsics::atomic_or::<$type, $type, SEQ_CST>(this.at, value),
            |host| host.fetch_or(value, SeqCst) }
    };
    (@change $type:ident) => {
        atomic! { @operation change(from: $type, to: $type) -> bool, $type,
            |this| core::intrinsics::atomic_cxchg::<$type, SEQ_CST, SEQ_CST>(this.at, from, to).1,
            |host| host.compare_exchange(from, to, SeqCst, SeqCst).is_ok() }
    };
    (@operation $name:ident($($argument:ident: $of:ident),*) -> $result:ident, $type:ident,
        |$this:ident| $bpf:expr, |$host:ident| $on_host:expr
    ) => {
        /// As the standard library's operation: the value before, or whether it was changed.
        #[inline(always)]
        pub(crate) fn $name(&self, $($argument: $of),*) -> $result {
            #[cfg(target_arch = "bpf")]
            {
                let $this = self;
                // SAFETY: as for the host.
                unsafe { $bpf }
            }
            #[cfg(not(target_arch = "bpf"))]
            {
                use core::sync::atomic::Ordering::SeqCst;
                let $host = self.host();
                $on_host
            }
        }
    };
}

#[cfg(target_arch = "bpf")]
const SEQ_CST: core::intrinsics::AtomicOrdering = core::intrinsics::AtomicOrdering::SeqCst;

atomic!(u32, AtomicU32: load swap add and or change);
atomic!(u64, AtomicU64: load swap and or change);
