//! Numbers in memory that several CPUs, or the programs and the daemon, read and write at the same
//! time.
//!
//! Whatever is shared consists of these, so that a `&T` to it is all that anybody has or needs:
//! nobody makes a `&mut T` of what others may be looking at. They are laid out like the number
//! inside.
//!
//! On the host they are `core`'s atomics. For BPF, `core` has none that change memory, although the
//! kernel and the compiler do (`BPF_ATOMIC`, Linux 5.12): there the compiler's intrinsics stand in,
//! which are sequentially consistent. With `--cfg model`, the atomic ones are loom's: see
//! `model`.

use core::{
    cell::UnsafeCell,
    fmt::{self, Debug, Formatter},
    mem::{align_of, size_of},
};

/// What a model has in the place of the kernel's atomic operations.
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
    /// tries two operations in both orders only where nobody has looked at the same number in
    /// between, and so misses a change that comes right behind a look.
    pub(crate) fn take_turn() {
        TURN.fetch_add(1, Relaxed);
    }

    /// Has operations on this thread's models order nothing from now on, to show that they must.
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
/// Two who write it at the same time both succeed, and one of them last: who changes it by what it
/// was may undo what the other did. For what must not be lost there are [`AtomicU32`] and
/// [`AtomicU64`].
#[repr(transparent)]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: a number, which everybody reads and writes by atomic operations, or (in BPF) by single
// instructions.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// One that is this number.
    #[inline(always)]
    pub const fn new(number: T) -> Self {
        Self(UnsafeCell::new(number))
    }

    /// Where it is, for what is read or written in another size than its own.
    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    pub(crate) const fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}

/// Gives `Shared` its operations on a type.
macro_rules! shared {
    ($($type:ident $host:ident)*) => {
        $(
            const _: () = assert!(size_of::<Shared<$type>>() == size_of::<$type>());
            const _: () = assert!(align_of::<Shared<$type>>() == align_of::<$type>());

            impl Shared<$type> {
                /// What it is now.
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

                /// Makes it this number.
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
                    // aligned (see the assertion above), and is accessed atomically by all who have
                    // it at the same time.
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

        // SAFETY: a number, which everybody reads and writes by atomic operations.
        #[cfg(not(model))]
        unsafe impl Sync for $name {}

        impl $name {
            /// One that is this number.
            #[cfg(not(model))]
            #[inline(always)]
            pub const fn new(number: $type) -> Self {
                Self(UnsafeCell::new(number))
            }

            /// As above, in a model.
            #[cfg(model)]
            pub fn new(number: $type) -> Self {
                Self(loom::sync::atomic::$name::new(number))
            }

            #[cfg(not(any(target_arch = "bpf", model)))]
            #[inline(always)]
            fn host(&self) -> &core::sync::atomic::$name {
                // SAFETY: the cell's own memory, which lives as long as the reference, is aligned
                // (see the assertion above), and is accessed atomically by all who have it at the
                // same time.
                unsafe { core::sync::atomic::$name::from_ptr(self.0.get()) }
            }

            operation! {
                /// What it is now, in no order with anything else.
                get() -> $type,
                |cell| cell.read_volatile(),
                |host| host.load(Ordering::Relaxed),
                |model| model.load(Ordering::Relaxed)
            }
            operation! {
                /// Makes it this number, in no order with anything else: nobody else may be
                /// changing it.
                set(number: $type) -> (),
                |cell| cell.write_volatile(number),
                |host| host.store(number, Ordering::Relaxed),
                |model| model.store(number, Ordering::Relaxed)
            }
            operation! {
                /// What it is now.
                load() -> $type,
                |cell| cell.read_volatile(),
                |host| host.load(Ordering::SeqCst),
                |model| model.load(Ordering::Relaxed)
            }
            operation! {
                /// Makes it this number: what it was.
                swap(number: $type) -> $type,
                |cell| core::intrinsics::atomic_xchg::<$type, SEQ_CST>(cell, number),
                |host| host.swap(number, Ordering::SeqCst),
                |model| model::ordered(|| model.swap(number, Ordering::AcqRel))
            }
            operation! {
                /// Adds to it, and round: what it was.
                add(number: $type) -> $type,
                |cell| core::intrinsics::atomic_xadd::<$type, $type, SEQ_CST>(cell, number),
                |host| host.fetch_add(number, Ordering::SeqCst),
                |model| model::ordered(|| model.fetch_add(number, Ordering::AcqRel))
            }
            operation! {
                /// Leaves only these bits of it: what it was.
                and(bits: $type) -> $type,
                |cell| core::intrinsics::atomic_and::<$type, $type, SEQ_CST>(cell, bits),
                |host| host.fetch_and(bits, Ordering::SeqCst),
                |model| model::ordered(|| model.fetch_and(bits, Ordering::AcqRel))
            }
            operation! {
                /// Sets these bits of it: what it was.
                or(bits: $type) -> $type,
                |cell| core::intrinsics::atomic_or::<$type, $type, SEQ_CST>(cell, bits),
                |host| host.fetch_or(bits, Ordering::SeqCst),
                |model| model::ordered(|| model.fetch_or(bits, Ordering::AcqRel))
            }
            operation! {
                /// Makes it `to` if it is `from`; returns `true` if it was.
                change(from: $type, to: $type) -> bool,
                |cell| core::intrinsics::atomic_cxchg::<$type, SEQ_CST, SEQ_CST>(cell, from, to).1,
                |host| host.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok(),
                |model| model::ordered(|| model.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok())
            }
        }

        /// What it is now, in a number of one's own.
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

/// Orders what was read and written before with what is read and written after, as each operation
/// does that changes an atomic number.
#[inline(always)]
pub fn order() {
    #[cfg(target_arch = "bpf")]
    {
        // An instruction that does nothing else is not there. The stack is no other CPU's, so this
        // waits for nobody.
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
    /// A number that several change at the same time, and none of them in vain. What changes it is
    /// ordered with everything before and after.
    AtomicU32, u32
}
atomic! {
    /// As [`AtomicU32`], of 64 bits.
    AtomicU64, u64
}
