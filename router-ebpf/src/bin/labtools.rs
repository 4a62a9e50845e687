//! XDP programs for the ends of the lab's wires; nothing here is part of the router.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

    /// Passes every packet.
    ///
    /// A veth takes frames from XDP_TX or a redirect only if its peer polls with NAPI, which it does once a
    /// program is attached (`veth_xdp_xmit`, `drivers/net/veth.c`); otherwise they vanish without a trace.
    #[xdp]
    pub fn xdp_pass(_ctx: XdpContext) -> u32 {
        xdp_action::XDP_PASS
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

/// The programs exist for the BPF target only; the crate still builds for the host, where its lints run.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
