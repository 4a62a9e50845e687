//! Numbers in memory that several CPUs, or the programs and the daemon, read and write at the same
//! time.
//!
//! Shared memory consists of these, so a `&T` to it is all that code has or needs, and no code
//! makes a `&mut T` to memory that others may be reading. They have the layout of the number
//! inside.
//!
//! On the host they are `core`'s atomics. For BPF, `core` has no atomics that change memory,
//! although the kernel and the compiler do (`BPF_ATOMIC`, Linux 5.12): there the compiler's
//! intrinsics take their place, which are sequentially consistent. With `--cfg model`, the atomic
//! ones are loom's: see `model`.

use core::{
    cell::UnsafeCell,
    fmt::{self, Debug, Formatter},
    mem::{align_of, size_of},
};

/// The kernel's atomic operations, as a model has them.
#[cfg(model)]
pub(crate) mod model {
    use std::cell::Cell;

    use loom::sync::atomic::{
        AtomicU32,
        Ordering::{Relaxed, SeqCst},
        fence,
    };

    std::thread_local! {
        static UNORDERED: Cell<bool> = const { Cell::new(false) };
    }

    loom::lazy_static! {
        static ref TURN: AtomicU32 = AtomicU32::new(0);
    }

    /// Has an operation take its turn, before or after each of the other threads'. By itself, loom
    /// tries two operations in both orders only if no thread has read the same number in between,
    /// and so misses a change that follows directly after a read.
    pub(crate) fn take_turn() {
        TURN.fetch_add(1, Relaxed);
    }

    /// Turns off the ordering of operations on this thread's models, to show that they need it.
    #[cfg(test)]
    pub(crate) fn order_nothing() {
        UNORDERED.set(true);
    }

    /// As [`super::order`].
    pub(crate) fn order() {
        if !UNORDERED.get() {
            fence(SeqCst);
        }
    }

    /// Orders an operation with everything before and after, as the kernel does ("fully ordered",
    /// Documentation/atomic_t.txt).
    pub(crate) fn ordered<T>(operation: impl FnOnce() -> T) -> T {
        order();
        let result = operation();
        order();
        result
    }
}

/// A number that is read and written whole, in no order with anything else.
///
/// If two CPUs write it at the same time, both succeed, one of them last. So a CPU that changes it
/// based on its old value may undo another one's change. [`AtomicU32`] and [`AtomicU64`] are for
/// changes that must not be lost.
#[repr(transparent)]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: a number that is read and written by atomic operations only, or (in BPF) by single
// instructions.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Creates a shared number.
    #[inline(always)]
    pub const fn new(number: T) -> Self {
        Self(UnsafeCell::new(number))
    }

    /// Returns its address, to read or write it in another size than its own.
    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    pub(crate) const fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}

/// Implements the operations of `Shared` for a type.
macro_rules! shared {
    ($($type:ident $host:ident)*) => {
        $(
            const _: () = assert!(size_of::<Shared<$type>>() == size_of::<$type>());
            const _: () = assert!(align_of::<Shared<$type>>() == align_of::<$type>());

            impl Shared<$type> {
                /// Returns the number.
                #[inline(always)]
                pub fn get(&self) -> $type {
                    #[cfg(target_arch = "bpf")]
                    {
                        // SAFETY: the cell's own memory, whole and aligned: one load.
                        unsafe { self.0.get().read_volatile() }
                    }
                    #[cfg(not(target_arch = "bpf"))]
                    {
                        self.host().load(core::sync::atomic::Ordering::Relaxed)
                    }
                }

                /// Sets the number.
                #[inline(always)]
                pub fn set(&self, number: $type) {
                    #[cfg(target_arch = "bpf")]
                    {
                        // SAFETY: as above: one store.
                        unsafe { self.0.get().write_volatile(number) }
                    }
                    #[cfg(not(target_arch = "bpf"))]
                    {
                        self.host().store(number, core::sync::atomic::Ordering::Relaxed);
                    }
                }

                #[cfg(not(target_arch = "bpf"))]
                #[inline(always)]
                fn host(&self) -> &core::sync::atomic::$host {
                    // SAFETY: the cell's own memory, which lives as long as the reference, is
                    // aligned (see the assertion above), and is accessed atomically by all code
                    // that has it at the same time.
                    unsafe { core::sync::atomic::$host::from_ptr(self.0.get()) }
                }
            }

            impl Default for Shared<$type> {
                fn default() -> Self {
                    Self::new(0)
                }
            }

            impl Debug for Shared<$type> {
                fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
                    self.get().fmt(to)
                }
            }
        )*
    };
}

shared!(u16 AtomicU16 u32 AtomicU32 u64 AtomicU64);

/// Defines an operation of an atomic number: by the compiler's intrinsics, by `core`, and in a
/// model.
macro_rules! operation {
    ($(#[$doc:meta])* $name:ident($($argument:ident: $of:ident),*) -> $result:ty,
        |$cell:ident| $bpf:expr, |$host:ident| $on_host:expr, |$model:ident| $in_model:expr
    ) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(&self, $($argument: $of),*) -> $result {
            #[cfg(target_arch = "bpf")]
            {
                let $cell = self.0.get();
                // SAFETY: the cell's own memory, whole and aligned: one instruction.
                unsafe { $bpf }
            }
            #[cfg(not(any(target_arch = "bpf", model)))]
            {
                use core::sync::atomic::Ordering;
                let $host = self.host();
                $on_host
            }
            #[cfg(model)]
            {
                use core::sync::atomic::Ordering;
                model::take_turn();
                let $model = &self.0;
                $in_model
            }
        }
    };
}

/// Defines an atomic number.
macro_rules! atomic {
    ($(#[$doc:meta])* $name:ident, $type:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        pub struct $name(
            #[cfg(not(model))] UnsafeCell<$type>,
            #[cfg(model)] loom::sync::atomic::$name,
        );

        #[cfg(not(model))]
        const _: () = assert!(size_of::<$name>() == size_of::<$type>() && align_of::<$name>() == align_of::<$type>());

        // SAFETY: a number that is read and written by atomic operations only.
        #[cfg(not(model))]
        unsafe impl Sync for $name {}

        impl $name {
            /// Creates an atomic number.
            #[cfg(not(model))]
            #[inline(always)]
            pub const fn new(number: $type) -> Self {
                Self(UnsafeCell::new(number))
            }

            /// Creates an atomic number, in a model.
            #[cfg(model)]
            pub fn new(number: $type) -> Self {
                Self(loom::sync::atomic::$name::new(number))
            }

            #[cfg(not(any(target_arch = "bpf", model)))]
            #[inline(always)]
            fn host(&self) -> &core::sync::atomic::$name {
                // SAFETY: the cell's own memory, which lives as long as the reference, is aligned
                // (see the assertion above), and is accessed atomically by all code that has it at
                // the same time.
                unsafe { core::sync::atomic::$name::from_ptr(self.0.get()) }
            }

            operation! {
                /// Returns the number, in no order with anything else.
                get() -> $type,
                |cell| cell.read_volatile(),
                |host| host.load(Ordering::Relaxed),
                |model| model.load(Ordering::Relaxed)
            }
            operation! {
                /// Sets the number, in no order with anything else. No other CPU may be changing
                /// it.
                set(number: $type) -> (),
                |cell| cell.write_volatile(number),
                |host| host.store(number, Ordering::Relaxed),
                |model| model.store(number, Ordering::Relaxed)
            }
            operation! {
                /// Returns the number.
                load() -> $type,
                |cell| cell.read_volatile(),
                |host| host.load(Ordering::SeqCst),
                |model| model.load(Ordering::Relaxed)
            }
            operation! {
                /// Sets the number. Returns the old one.
                swap(number: $type) -> $type,
                |cell| core::intrinsics::atomic_xchg::<$type, SEQ_CST>(cell, number),
                |host| host.swap(number, Ordering::SeqCst),
                |model| model::ordered(|| model.swap(number, Ordering::AcqRel))
            }
            operation! {
                /// Adds to the number, which wraps. Returns the old one.
                add(number: $type) -> $type,
                |cell| core::intrinsics::atomic_xadd::<$type, $type, SEQ_CST>(cell, number),
                |host| host.fetch_add(number, Ordering::SeqCst),
                |model| model::ordered(|| model.fetch_add(number, Ordering::AcqRel))
            }
            operation! {
                /// Clears all bits but these. Returns the old number.
                and(bits: $type) -> $type,
                |cell| core::intrinsics::atomic_and::<$type, $type, SEQ_CST>(cell, bits),
                |host| host.fetch_and(bits, Ordering::SeqCst),
                |model| model::ordered(|| model.fetch_and(bits, Ordering::AcqRel))
            }
            operation! {
                /// Sets these bits. Returns the old number.
                or(bits: $type) -> $type,
                |cell| core::intrinsics::atomic_or::<$type, $type, SEQ_CST>(cell, bits),
                |host| host.fetch_or(bits, Ordering::SeqCst),
                |model| model::ordered(|| model.fetch_or(bits, Ordering::AcqRel))
            }
            operation! {
                /// Sets the number to `to` if it is `from`. Returns `true` if it was.
                change(from: $type, to: $type) -> bool,
                |cell| core::intrinsics::atomic_cxchg::<$type, SEQ_CST, SEQ_CST>(cell, from, to).1,
                |host| host.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok(),
                |model| model::ordered(|| model.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok())
            }
        }

        /// Copies the number as it is now.
        impl Clone for $name {
            fn clone(&self) -> Self {
                Self::new(self.load())
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new(0)
            }
        }

        impl Debug for $name {
            fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
                self.load().fmt(to)
            }
        }
    };
}

/// Orders all earlier reads and writes before all later ones, as every operation does that changes
/// an atomic number.
#[inline(always)]
pub fn order() {
    #[cfg(target_arch = "bpf")]
    {
        // BPF has no instruction that is a barrier and nothing else. The stack belongs to this CPU
        // alone, so this waits for no other one.
        AtomicU64::new(0).swap(0);
    }
    #[cfg(not(any(target_arch = "bpf", model)))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    #[cfg(model)]
    model::order();
}

#[cfg(target_arch = "bpf")]
const SEQ_CST: core::intrinsics::AtomicOrdering = core::intrinsics::AtomicOrdering::SeqCst;

atomic! {
    /// A number that several CPUs change at the same time, without losing a change. A change is
    /// ordered with everything before and after.
    AtomicU32, u32
}
atomic! {
    /// The 64-bit version of [`AtomicU32`].
    AtomicU64, u64
}
