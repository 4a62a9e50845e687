//! Access to packet bytes, all of which is bounds-checked here.

use aya_ebpf::{
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use router_common::wire::{Frame, TAG_LENGTH};

/// The length of both Ethernet addresses.
const ADDRESSES: usize = 12;

/// The frame of an XDP context.
pub(crate) struct XdpFrame {
    context: XdpContext,
    /// Computed once: the compiler reads the context again after every write to memory that might
    /// be in it.
    length: usize,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(context: XdpContext) -> Self {
        let length = length_of(&context);
        Self { context, length }
    }

    /// The context, for helpers and tail calls.
    #[inline(always)]
    pub(crate) const fn context(&self) -> &XdpContext {
        &self.context
    }

    /// The interface that the frame came in on.
    #[inline(always)]
    pub(crate) fn ingress_index(&self) -> u32 {
        self.context.ingress_ifindex() as u32
    }

    /// Resizes the frame: it shrinks at its tail and grows at its head, so that all offsets shift.
    /// Drivers leave headroom before every packet, but not all leave tailroom after a small one
    /// (veth does not). `None` if there is no room.
    #[inline(always)]
    pub(crate) fn resize(&mut self, length: usize) -> Option<()> {
        let change = length as i32 - self.length() as i32;
        // SAFETY: `&mut self` means that there is no reference to the bytes, which may move.
        let result = unsafe {
            if change <= 0 {
                bpf_xdp_adjust_tail(self.context.ctx, change)
            } else if change & 1 == 0 {
                bpf_xdp_adjust_head(self.context.ctx, -change)
            } else {
                // The frame goes on starting at an even address, see `at`.
                match bpf_xdp_adjust_head(self.context.ctx, -change - 1) {
                    0 => bpf_xdp_adjust_tail(self.context.ctx, -1),
                    error => error,
                }
            }
        };
        // The first of two steps may have succeeded.
        self.length = length_of(&self.context);
        (result == 0).then_some(())
    }

    /// Removes the tag after the Ethernet addresses. `None` if the frame is too short.
    #[inline(always)]
    pub(crate) fn untag(&mut self) -> Option<()> {
        let addresses: [u8; ADDRESSES] = *self.bytes(0)?;
        // Including the EtherType after it.
        *self.bytes_mut::<{ ADDRESSES + 2 }>(TAG_LENGTH)?.first_chunk_mut()? = addresses;
        // SAFETY: `&mut self` means that there is no reference to the bytes, which may move. The
        // start moves by an even number, see `at`.
        let result = unsafe { bpf_xdp_adjust_head(self.context.ctx, TAG_LENGTH as i32) };
        self.length = length_of(&self.context);
        (result == 0).then_some(())
    }

    /// Returns the first `N` bytes, if the frame is that long.
    #[inline(always)]
    pub(crate) fn headers<const N: usize>(&mut self) -> Option<Headers<'_, N>> {
        let length = self.length;
        Some(Headers { bytes: self.bytes_mut(0)?, length })
    }

    /// Returns a pointer to the `N` bytes at `offset`, if they are in the frame.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        let frame = self.context.data();
        // SAFETY: drivers start packets at a word, or two bytes after one for the IP header's sake
        // (`NET_IP_ALIGN`). The kernel's own verifier, too, takes them to start at an even address
        // (`check_pkt_ptr_alignment`, kernel/bpf/verifier.c), and `resize` moves the start by even
        // numbers. Without this, the compiler makes every number of two bytes and two shifts. Nor
        // is there a packet at 0, which the compiler would otherwise ask for wherever a reference
        // to its start may be missing.
        unsafe { core::hint::assert_unchecked(frame & 1 == 0 && frame != 0) };
        let start = frame + offset;
        if start + N > self.context.data_end() { None } else { Some(start as *mut [u8; N]) }
    }
}

/// The first `N` bytes of a frame, which are known to exist: code that accesses nothing else checks
/// the end of the frame once.
pub(crate) struct Headers<'a, const N: usize> {
    bytes: &'a mut [u8; N],
    /// Of the whole frame.
    length: usize,
}

impl<const N: usize> Frame for Headers<'_, N> {
    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn bytes<const M: usize>(&self, offset: usize) -> Option<&[u8; M]> {
        self.bytes[..].bytes(offset)
    }

    #[inline(always)]
    fn bytes_mut<const M: usize>(&mut self, offset: usize) -> Option<&mut [u8; M]> {
        self.bytes[..].bytes_mut(offset)
    }
}

/// Returns the current length of a frame.
#[inline(always)]
fn length_of(context: &XdpContext) -> usize {
    let length = context.data_end() - context.data();
    // SAFETY: no frame is longer, and none ends before it starts. The compiler need not cut what is
    // counted to 32 bits then.
    unsafe { core::hint::assert_unchecked(length <= u32::MAX as usize) };
    length
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        // SAFETY: `at` checked that the bytes are in the frame, which stays where it is while there
        // is a reference to it: moving it and writing to it take `&mut self`.
        Some(unsafe { &*self.at(offset)? })
    }

    #[inline(always)]
    fn bytes_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        // SAFETY: as above, and `&mut self` makes this the only reference.
        Some(unsafe { &mut *self.at(offset)? })
    }
}
