//! Access to the bytes of frames and headers.

/// A frame that can be read and written at an offset: the one door to packet bytes.
///
/// In the kernel this is the XDP context, where every access is a bounds check that the verifier
/// sees; on the host, a slice.
pub trait Frame {
    /// Returns the frame's length in bytes.
    fn length(&self) -> usize;

    /// Returns the `N` bytes at `offset`; `None` if the frame, or the part of it that can be seen
    /// here, ends before.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;

    /// The mutable version of [`bytes`](Self::bytes).
    fn bytes_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]>;
}

impl Frame for [u8] {
    fn length(&self) -> usize {
        self.len()
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.get(offset..)?.first_chunk()
    }

    fn bytes_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        self.get_mut(offset..)?.first_chunk_mut()
    }
}

/// Returns the `N` bytes at `OFFSET` of a header. The bounds are checked at compile time.
#[inline(always)]
pub(crate) const fn field<const OFFSET: usize, const N: usize, const LENGTH: usize>(
    header: &[u8; LENGTH],
) -> [u8; N] {
    const { assert!(OFFSET + N <= LENGTH) };
    let mut bytes = [0; N];
    let mut at = 0;
    while at < N {
        bytes[at] = header[OFFSET + at];
        at += 1;
    }
    bytes
}

/// The mutable version of [`field`].
#[inline(always)]
pub(crate) const fn field_mut<const OFFSET: usize, const N: usize, const LENGTH: usize>(
    header: &mut [u8; LENGTH],
) -> &mut [u8; N] {
    const { assert!(OFFSET + N <= LENGTH) };
    // SAFETY: OFFSET + N <= LENGTH, so the bytes lie in `header`, whose exclusive borrow the result
    // carries on; an array of bytes has no alignment.
    unsafe { &mut *header.as_mut_ptr().add(OFFSET).cast() }
}
