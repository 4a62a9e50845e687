//! Programs for the ends of the lab's and the bench's wires, and for the soak's bad weather; nothing here is part of the router.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::needless_pass_by_value,
        reason = "what #[xdp] and #[classifier] call gives its context away"
    )
)]

#[cfg(target_arch = "bpf")]
#[path = "labtools/buckets.rs"]
mod buckets;
#[cfg(target_arch = "bpf")]
#[path = "labtools/probe.rs"]
mod probe;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        EbpfContext as _,
        bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT, xdp_action},
        helpers::{bpf_get_prandom_u32, bpf_redirect},
        macros::{classifier, map, xdp},
        maps::{DevMap, PerCpuArray},
        programs::{TcContext, XdpContext},
    };
    use router_common::checksum::Sum;

    /// The headers of the bench's packets: Ethernet, IPv4 without options, UDP.
    const HEADERS: usize = 42;
    const ETHER_TYPE: usize = 12;
    const IP_START: usize = 14;
    const IP_PROTOCOL: usize = 23;
    const IP_CHECKSUM: usize = 24;
    const IP_SOURCE: usize = 26;
    const IP_DESTINATION: usize = 30;
    const UDP_SOURCE: usize = 34;
    const UDP_DESTINATION: usize = 36;
    const UDP_CHECKSUM: usize = 40;

    /// Flows are dealt to this many source addresses in turn (a Private Link Service has up to eight), a port later each time.
    const SOURCES: u32 = 8;
    /// After so many flows, the next ones go to the next destination port: each needs a SNAT port of its own there.
    const FLOWS_A_PORT: u32 = 1 << 15;

    /// How many flows `generate` makes. Set when it is loaded.
    #[unsafe(no_mangle)]
    static FLOWS: u32 = 1;

    /// The headers of the first flow, with the checksums that are right for it. Set when `generate` is loaded.
    #[unsafe(no_mangle)]
    static TEMPLATE: [u8; HEADERS] = [0; HEADERS];

    /// The addresses that `sink` expects, source and destination as they are on the wire. Set when it is loaded.
    #[unsafe(no_mangle)]
    static EXPECTED: [u8; 8] = [0; 8];

    /// Which bits of them it compares. Set when it is loaded.
    #[unsafe(no_mangle)]
    static EXPECTED_MASK: [u8; 8] = [0; 8];

    /// The first UDP port of the bench's packets, as a number, and how many there are. Set when `sink` is loaded.
    #[unsafe(no_mangle)]
    static PORTS: [u32; 2] = [0; 2];

    /// Of a million IPv4 packets, how many `weather` loses, holds up, and doubles. Set when it is loaded.
    #[unsafe(no_mangle)]
    static WEATHER_SHARES: [u32; 3] = [0; 3];

    /// The index of the device that `weather` sends to what is held up, and copies. Set when it is loaded.
    #[unsafe(no_mangle)]
    static DETOUR: u32 = 0;

    /// What `generate` remembers from one packet to the next.
    #[repr(C)]
    struct Generator {
        /// Packets made.
        packets: u64,
        /// The next packet's flow.
        flow: u64,
    }

    /// Written by the CPU that generates; the bench reads.
    #[map]
    static GENERATOR: PerCpuArray<Generator> = PerCpuArray::with_max_entries(1, 0);

    /// Packets with the expected addresses, and others to the bench's port. Written by the CPU that sinks; the bench reads.
    #[map]
    static SUNK: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

    /// What `weather` did to IPv4 packets.
    #[repr(C)]
    struct Weather {
        /// Let through.
        passed: u64,
        lost: u64,
        /// Sent the long way round, where others overtake them.
        held_up: u64,
        /// Let through, with a copy the long way round.
        doubled: u64,
    }

    /// Written by the CPU that a packet is handled on; the soak reads.
    #[map]
    static WEATHER: PerCpuArray<Weather> = PerCpuArray::with_max_entries(1, 0);

    /// For `redirect`: by the index of the interface that a packet came in on, the one that it leaves by. Written by the bench.
    #[map]
    static OTHER_SIDE: DevMap = DevMap::with_max_entries(64, 0);

    /// Passes every packet.
    ///
    /// A veth takes frames from XDP_TX or a redirect only if its peer polls with NAPI, which it does once a
    /// program is attached (`veth_xdp_xmit`, `drivers/net/veth.c`); otherwise they vanish without a trace.
    #[xdp]
    fn xdp_pass(_ctx: XdpContext) -> u32 {
        xdp_action::XDP_PASS
    }

    /// Makes the next packet: for `BPF_PROG_TEST_RUN` with live frames, which sends what is `XDP_TX` out of the interface
    /// that the packet is said to have come in on.
    ///
    /// The kernel recycles pages without restoring them: they come back as the router has left them. So all headers are
    /// written every time.
    #[xdp]
    fn generate(ctx: XdpContext) -> u32 {
        let Some(generator) = GENERATOR.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
        let Some(headers) = headers(&ctx) else { return xdp_action::XDP_ABORTED };
        // SAFETY: the value is this CPU's own, and XDP programs do not interrupt each other.
        let generator = unsafe { &mut *generator };
        // SAFETY: `headers` checked the bounds, and nothing else refers to the packet.
        let headers = unsafe { &mut *headers };
        *headers = setting(&TEMPLATE);

        let flow = generator.flow as u32;
        // Compared and not divided: a division would cost as much as the rest.
        generator.flow = if flow + 1 >= setting(&FLOWS) { 0 } else { u64::from(flow + 1) };
        generator.packets += 1;

        // The low half of the source address, and both ports.
        let at_port = flow % FLOWS_A_PORT;
        let old = [word(headers, IP_SOURCE + 2), word(headers, UDP_SOURCE), word(headers, UDP_DESTINATION)];
        let new = [
            plus(old[0], at_port % SOURCES),
            plus(old[1], at_port / SOURCES),
            plus(old[2], flow / FLOWS_A_PORT),
        ];
        let address = Sum::ZERO.remove(old[0]).add(new[0]);
        let all = address.remove(old[1]).add(new[1]).remove(old[2]).add(new[2]);
        set_word(headers, IP_SOURCE + 2, new[0]);
        set_word(headers, UDP_SOURCE, new[1]);
        set_word(headers, UDP_DESTINATION, new[2]);
        set_word(headers, IP_CHECKSUM, address.apply(word(headers, IP_CHECKSUM)));
        set_word(headers, UDP_CHECKSUM, all.apply_udp(word(headers, UDP_CHECKSUM)));
        xdp_action::XDP_TX
    }

    /// Counts and drops the bench's packets, and turns probes round; passes all others (ARP, iperf3).
    #[xdp]
    fn sink(ctx: XdpContext) -> u32 {
        if let Some(verdict) = crate::probe::bounce(&ctx) {
            return verdict;
        }
        let Some(headers) = headers(&ctx) else { return xdp_action::XDP_PASS };
        // SAFETY: `headers` checked the bounds, and nobody writes to the packet.
        let headers = unsafe { &*headers };
        let [first, ports] = setting(&PORTS);
        // IPv4 (RFC 894) without options, UDP (RFC 768).
        let ours = word(headers, ETHER_TYPE) == [0x08, 0x00]
            && headers[IP_START] == 0x45
            && headers[IP_PROTOCOL] == 17
            && u32::from(u16::from_be_bytes(word(headers, UDP_DESTINATION))).wrapping_sub(first) < ports;
        if !ours {
            return xdp_action::XDP_PASS;
        }
        if let Some(sunk) = SUNK.get_ptr_mut(0) {
            // SAFETY: the value is this CPU's own, and XDP programs do not interrupt each other.
            let [as_expected, other] = unsafe { &mut *sunk };
            let (source, destination) = (quad(headers, IP_SOURCE), quad(headers, IP_DESTINATION));
            let addresses = u64::from(source) << 32 | u64::from(destination);
            let difference = addresses ^ u64::from_be_bytes(setting(&EXPECTED));
            if difference & u64::from_be_bytes(setting(&EXPECTED_MASK)) == 0 {
                *as_expected += 1;
            } else {
                *other += 1;
            }
        }
        xdp_action::XDP_DROP
    }

    /// Sends every packet out of the other interface without looking at it: what is left of a router when it does nothing.
    #[xdp]
    fn redirect(ctx: XdpContext) -> u32 {
        OTHER_SIDE.redirect(ctx.ingress_ifindex() as u32, 0).unwrap_or(xdp_action::XDP_ABORTED)
    }

    /// Bad weather on a wire: loses, holds up and doubles IPv4 packets by chance.
    #[classifier]
    fn weather(ctx: TcContext) -> i32 {
        const PASS: i32 = TC_ACT_OK;
        // SAFETY: the context is valid for as long as the program runs.
        let protocol = unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).protocol };
        if protocol != u32::from(0x0800_u16.to_be()) {
            return PASS;
        }
        let Some(weather) = WEATHER.get_ptr_mut(0) else { return PASS };
        // SAFETY: the value is this CPU's own. What runs in between, on the same CPU, is a copy on its way into `DETOUR`, where
        // no such program is.
        let weather = unsafe { &mut *weather };
        let [loss, hold_up, double] = setting(&WEATHER_SHARES);
        // SAFETY: a helper without arguments.
        let chance = ((u64::from(unsafe { bpf_get_prandom_u32() }) * 1_000_000) >> 32) as u32;
        if chance < loss {
            weather.lost += 1;
            return TC_ACT_SHOT;
        }
        if chance < loss + hold_up {
            weather.held_up += 1;
            // SAFETY: a helper with plain numbers.
            return unsafe { bpf_redirect(setting(&DETOUR), 0) } as i32;
        }
        if chance < loss + hold_up + double && ctx.clone_redirect(setting(&DETOUR), 0).is_ok() {
            weather.doubled += 1;
        } else {
            weather.passed += 1;
        }
        PASS
    }

    /// A value that is set when the program is loaded.
    #[inline(always)]
    pub(crate) fn setting<T: Copy>(setting: &'static T) -> T {
        // SAFETY: a valid reference to plain data. Volatile, since it is not the value that the compiler sees.
        unsafe { core::ptr::read_volatile(setting) }
    }

    #[inline(always)]
    fn word(headers: &[u8; HEADERS], at: usize) -> [u8; 2] {
        [headers[at], headers[at + 1]]
    }

    #[inline(always)]
    fn quad(headers: &[u8; HEADERS], at: usize) -> u32 {
        u32::from_be_bytes([headers[at], headers[at + 1], headers[at + 2], headers[at + 3]])
    }

    #[inline(always)]
    fn set_word(headers: &mut [u8; HEADERS], at: usize, value: [u8; 2]) {
        [headers[at], headers[at + 1]] = value;
    }

    /// The word, read as a number, plus `more`.
    #[inline(always)]
    fn plus(word: [u8; 2], more: u32) -> [u8; 2] {
        u16::from_be_bytes(word).wrapping_add(more as u16).to_be_bytes()
    }

    #[inline(always)]
    fn headers(ctx: &XdpContext) -> Option<*mut [u8; HEADERS]> {
        let start = ctx.data();
        if start + HEADERS > ctx.data_end() { None } else { Some(start as *mut [u8; HEADERS]) }
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
