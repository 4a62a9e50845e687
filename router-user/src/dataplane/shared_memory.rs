//! BPF arrays that the programs and the daemon have in their memory at the same time
//! (`BPF_F_MMAPABLE`).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
};

use router_common::{
    maps::{half_open::HalfOpen, peers::Peer},
    ports::Pool,
    shared,
    table::{Occupancy, Slot},
};

/// A type whose `&T` is valid for memory that others write at the same time.
///
/// # Safety
/// The type consists of `router_common::shared`'s numbers, which are read and written whole and for
/// which any bytes are a value, and of padding that is never written. Code that relies on more than
/// single numbers follows the type's protocol (see `router_common::table` and
/// `router_common::ports`).
pub(super) unsafe trait Shared {}

// SAFETY: a number of that kind.
unsafe impl Shared for HalfOpen {}
// SAFETY: as above.
unsafe impl Shared for Peer {}
// SAFETY: numbers of that kind.
unsafe impl Shared for Slot {}
// SAFETY: as above.
unsafe impl Shared for Occupancy {}
// SAFETY: as above.
unsafe impl Shared for Pool {}
// SAFETY: as above.
unsafe impl<T: Send, const N: usize> Shared for [shared::Shared<T>; N] {}

/// An array of `T` in the kernel's memory.
#[derive(Debug)]
pub(super) struct SharedArray<T> {
    start: NonNull<T>,
    length: usize,
    bytes: usize,
}

// SAFETY: shared with the kernel's programs anyway; `Shared` says that this is sound.
unsafe impl<T: Shared> Send for SharedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for SharedArray<T> {}

impl<T: Shared> SharedArray<T> {
    /// Maps an array of this many elements.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses.
    pub(super) fn map(map: BorrowedFd<'_>, length: u32) -> io::Result<Self> {
        let length = length as usize;
        // The kernel lays out elements at multiples of 8 (`array_map_alloc`,
        // kernel/bpf/arraymap.c), so a number of 32 bits stands alone in its 8.
        let bytes = (Self::STRIDE * length).next_multiple_of(page_size());
        // SAFETY: a new mapping of the map's own memory; the kernel checks length and rights.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, length, bytes })
    }

    /// From one element to the next, in bytes.
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Returns the number of elements.
    pub(super) fn len(&self) -> u32 {
        self.length as u32
    }

    /// An element.
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        if index >= self.length {
            return None;
        }
        // SAFETY: within the mapping, which lives as long as `self`; aligned, since the mapping
        // starts at a page and the stride is a multiple of the alignment.
        Some(unsafe { &*self.start.as_ptr().cast::<u8>().add(index * Self::STRIDE).cast() })
    }
}

impl<T> Drop for SharedArray<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

fn page_size() -> usize {
    // SAFETY: takes a constant.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}
