//! Programs for the ends of the lab's and the bench's wires, and for the soak's bad weather;
//! nothing here is part of the router.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::needless_pass_by_value,
        reason = "what #[xdp] and #[classifier] call gives its context away"
    )
)]

#[cfg(target_arch = "bpf")]
mod buckets;
#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod probe;
#[cfg(target_arch = "bpf")]
mod traffic;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        EbpfContext as _,
        bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT, bpf_fib_lookup, xdp_action},
        cty::c_void,
        helpers::{
            bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_redirect,
            generated::{bpf_fib_lookup as look_up_route, bpf_loop},
        },
        macros::{classifier, map, xdp},
        maps::{Array, DevMap, PerCpuArray},
        programs::{TcContext, XdpContext},
    };
    use router_common::checksum::Sum;

    use crate::frame::{
        self, DESTINATION_PORT, ETHER_DESTINATION, ETHER_SOURCE, ETHER_TYPE, IP_CHECKSUM, IP_DESTINATION,
        IP_PROTOCOL, IP_SOURCE, IP_START, SOURCE_PORT, TCP_CHECKSUM, TCP_PAYLOAD, UDP_CHECKSUM, UDP_PAYLOAD,
        head, quad, set_word, swap, word,
    };
    use crate::traffic::{
        CPUS, Expected, Flow, Generator, HEAD, LEARN, LEARNT, PATIENCE, REPLY, SOURCES, Sunk, TCP, TIMED,
        Traffic,
    };

    /// Nanoseconds from one look at what has arrived to the next: each takes a cache line away from
    /// the CPU that counts there.
    const LOOK: u64 = 1_000;
    /// More turns than [`PATIENCE`] takes, at some 25 nanoseconds each.
    const TURNS: u32 = 1 << 21;

    /// Shares of a million IPv4 packets that `weather` loses, holds up, and doubles. Set when it is
    /// loaded.
    #[unsafe(no_mangle)]
    static WEATHER_SHARES: [u32; 3] = [0; 3];

    /// The index of the device that `weather` sends to what is held up, and copies. Set when it is
    /// loaded.
    #[unsafe(no_mangle)]
    static DETOUR: u32 = 0;

    /// The packets that `generate` sends. The bench writes this while nothing is sent.
    #[map]
    static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(1, 0);

    /// Written by the CPU that generates, and by the bench while nothing is sent.
    #[map]
    static GENERATOR: PerCpuArray<Generator> = PerCpuArray::with_max_entries(1, 0);

    /// The packets that `sink` expects. The bench writes this while nothing is sent.
    #[map]
    static EXPECTED: Array<Expected> = Array::with_max_entries(1, 0);

    /// Indexed by CPU. Not a per-CPU map, since the generator's CPU reads it. Written by the CPU
    /// that sinks; the bench reads.
    #[map]
    static SUNK: Array<Sunk> = Array::with_max_entries(CPUS, 0);

    /// The source port that a flow's packets arrived with, by the flow's number. Written by `sink`,
    /// read by `generate`, one after the other.
    #[map]
    static LEARNT_PORTS: Array<u32> = Array::with_max_entries(LEARNT, 0);

    /// The effects of `weather` on IPv4 packets.
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

    /// The interface that a packet leaves by: for `redirect` by the index of the one that it came
    /// in on, for `route` by the index that the kernel's routes name. Written by the bench.
    #[map]
    static EGRESS: DevMap = DevMap::with_max_entries(64, 0);

    /// Passes every packet.
    ///
    /// A veth takes frames from XDP_TX or a redirect only if its peer polls with NAPI, which it
    /// does once a program is attached (`veth_xdp_xmit`, `drivers/net/veth.c`); otherwise they
    /// vanish without a trace.
    #[xdp]
    fn xdp_pass(_ctx: XdpContext) -> u32 {
        xdp_action::XDP_PASS
    }

    /// Makes the next packet: for `BPF_PROG_TEST_RUN` with live frames, which sends what is
    /// `XDP_TX` out of the interface that the packet is said to have come in on.
    ///
    /// The kernel recycles pages without restoring them: they come back as the router has left
    /// them. So all headers are written every time.
    #[xdp]
    fn generate(ctx: XdpContext) -> u32 {
        let (Some(generator), Some(traffic)) = (GENERATOR.get_ptr_mut(0), TRAFFIC.get(0)) else {
            return xdp_action::XDP_ABORTED;
        };
        let Some(head) = head(&ctx) else { return xdp_action::XDP_ABORTED };
        // SAFETY: the value is this CPU's own, and XDP programs do not interrupt each other.
        if unsafe { (*generator).in_batch } == 0 {
            pace(traffic);
        }
        // SAFETY: as above; `pace` is done with it.
        let generator = unsafe { &mut *generator };
        generator.in_batch += 1;
        if generator.in_batch >= traffic.batch {
            generator.in_batch = 0;
        }
        if let Some(verdict) = crate::probe::take_turn(&ctx) {
            return verdict;
        }
        generator.made += 1;
        let flow = generator.flow(traffic);
        // Not assigned: that would be a call of `memmove`, which goes byte by byte.
        // SAFETY: `head` checked the bounds, nothing else refers to the packet, and its page begins
        // so that this is aligned.
        unsafe { core::ptr::copy_nonoverlapping(&raw const traffic.head, head.cast(), 1) };
        // SAFETY: `head` checked the bounds, and nothing else refers to the packet.
        let head = unsafe { &mut *head };

        let mut ip = Sum::ZERO;
        let mut ports = Sum::ZERO;
        if traffic.flags & REPLY == 0 {
            let source = plus(word(head, IP_SOURCE + 2), flow.at % SOURCES);
            ip = change(head, IP_SOURCE + 2, source, ip);
            let source = plus(word(head, SOURCE_PORT), flow.at / SOURCES);
            ports = change(head, SOURCE_PORT, source, ports);
            let destination = plus(word(head, DESTINATION_PORT), flow.port);
            ports = change(head, DESTINATION_PORT, destination, ports);
        } else {
            let Some(learnt) = LEARNT_PORTS.get(flow.number) else { return xdp_action::XDP_ABORTED };
            let source = plus(word(head, SOURCE_PORT), flow.port);
            ports = change(head, SOURCE_PORT, source, ports);
            ports = change(head, DESTINATION_PORT, (*learnt as u16).to_be_bytes(), ports);
        }
        set_word(head, IP_CHECKSUM, ip.apply(word(head, IP_CHECKSUM)));
        let all = ip.plus(ports);
        if traffic.flags & TCP == 0 {
            let all = number(head, UDP_PAYLOAD, flow, all);
            set_word(head, UDP_CHECKSUM, all.apply_udp(word(head, UDP_CHECKSUM)));
        } else {
            let all = number(head, TCP_PAYLOAD, flow, all);
            set_word(head, TCP_CHECKSUM, all.apply(word(head, TCP_CHECKSUM)));
        }
        xdp_action::XDP_TX
    }

    /// Waits until the next batch may be made.
    #[inline(always)]
    fn pace(traffic: &Traffic) {
        if traffic.period != 0
            && let Some(generator) = GENERATOR.get_ptr_mut(0)
        {
            // SAFETY: this CPU's own.
            let mut due = unsafe { (*generator).schedule(now(), traffic.period) };
            // SAFETY: the callback is a BPF subprogram of `bpf_loop`'s signature that takes this
            // context.
            unsafe { bpf_loop(TURNS, is_due as *const () as *mut c_void, (&raw mut due).cast(), 0) };
        }
        if traffic.window != 0 {
            let mut wait = Wait {
                since: now(),
                look: 0,
                arrived: u64::MAX,
                window: u64::from(traffic.window),
                cpu: traffic.sink_cpu,
            };
            // SAFETY: the callback is a BPF subprogram of `bpf_loop`'s signature that takes this
            // context.
            unsafe { bpf_loop(TURNS, has_room as *const () as *mut c_void, (&raw mut wait).cast(), 0) };
        }
    }

    /// A callback of `bpf_loop`: whether the time has come.
    ///
    /// # Safety
    /// `due` points to a time.
    unsafe extern "C" fn is_due(_turn: u32, due: *const u64) -> i64 {
        // SAFETY: the caller's promise.
        i64::from(now() >= unsafe { *due })
    }

    /// The number of packets that `generate` waits for before a batch.
    struct Wait {
        /// When something has arrived the last time.
        since: u64,
        /// When to look the next time.
        look: u64,
        /// The number of packets that had arrived at that time.
        arrived: u64,
        window: u64,
        cpu: u32,
    }

    /// A callback of `bpf_loop`: ends it when fewer packets than the window are under way, or none
    /// arrives any more.
    ///
    /// # Safety
    ///
    /// `wait` points to a [`Wait`] that nothing else uses.
    unsafe extern "C" fn has_room(_turn: u32, wait: *mut Wait) -> i64 {
        // SAFETY: the caller's promise.
        let wait = unsafe { &mut *wait };
        let now = now();
        if now < wait.look {
            return 0;
        }
        wait.look = now + LOOK;
        let (Some(sunk), Some(generator)) = (SUNK.get_ptr(wait.cpu), GENERATOR.get_ptr_mut(0)) else {
            return 1;
        };
        // SAFETY: another CPU writes them, whole words each; volatile, so that they are read now.
        let arrived = unsafe {
            (&raw const (*sunk).packets).read_volatile() + (&raw const (*sunk).otherwise).read_volatile()
        };
        // SAFETY: this CPU's own, and `generate` does not use it while it waits.
        let generator = unsafe { &mut *generator };
        if generator.under_way(arrived) < wait.window {
            return 1;
        }
        if arrived != wait.arrived {
            wait.arrived = arrived;
            wait.since = now;
        } else if now - wait.since > PATIENCE {
            generator.write_off(arrived);
            return 1;
        }
        0
    }

    /// Counts and drops the bench's packets, and plays its part with probes; passes all others
    /// (ARP, iperf3).
    #[xdp]
    fn sink(ctx: XdpContext) -> u32 {
        if let Some(verdict) = crate::probe::handle(&ctx) {
            return verdict;
        }
        let (Some(head), Some(expected)) = (head(&ctx), EXPECTED.get(0)) else { return xdp_action::XDP_PASS };
        // SAFETY: `head` checked the bounds, and nothing else writes to the packet.
        let head = unsafe { &*head };
        let tcp = expected.flags & TCP != 0;
        let port =
            if expected.flags & REPLY != 0 { word(head, SOURCE_PORT) } else { word(head, DESTINATION_PORT) };
        let [first, ports] = expected.ports;
        let ours = frame::is_of(head, if tcp { frame::TCP } else { frame::UDP })
            && u32::from(u16::from_be_bytes(port)).wrapping_sub(first) < ports;
        if !ours {
            return xdp_action::XDP_PASS;
        }
        // SAFETY: a helper without arguments.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        let Some(sunk) = SUNK.get_ptr_mut(cpu) else { return xdp_action::XDP_ABORTED };
        // SAFETY: this CPU's own but for readers, and XDP programs do not interrupt each other.
        let sunk = unsafe { &mut *sunk };
        let (source, destination) = (quad(head, IP_SOURCE), quad(head, IP_DESTINATION));
        let addresses = u64::from(source) << 32 | u64::from(destination);
        if (addresses ^ expected.addresses) & expected.mask == 0 {
            sunk.packets += 1;
        } else {
            sunk.otherwise += 1;
        }
        if expected.flags & TIMED != 0 {
            sunk.last = now();
            if sunk.first == 0 {
                sunk.first = sunk.last;
            }
        }
        if expected.flags & LEARN != 0 {
            let flow = if tcp { quad(head, TCP_PAYLOAD) } else { quad(head, UDP_PAYLOAD) };
            if let Some(learnt) = LEARNT_PORTS.get_ptr_mut(flow) {
                // SAFETY: one CPU sinks while ports are learnt.
                unsafe { *learnt = u32::from(u16::from_be_bytes(word(head, SOURCE_PORT))) };
            }
        }
        xdp_action::XDP_DROP
    }

    /// Sends every packet out of the other interface without looking at it: what is left of a
    /// router when it does nothing.
    #[xdp]
    fn redirect(ctx: XdpContext) -> u32 {
        EGRESS.redirect(ctx.ingress_ifindex() as u32, 0).unwrap_or(xdp_action::XDP_ABORTED)
    }

    /// The same as `redirect`, with new MAC addresses: the work that no router can leave out.
    #[xdp]
    fn readdress(ctx: XdpContext) -> u32 {
        let Some(head) = head(&ctx) else { return xdp_action::XDP_ABORTED };
        // SAFETY: `head` checked the bounds, and nothing else refers to the packet.
        let head = unsafe { &mut *head };
        swap::<6>(head, ETHER_SOURCE, ETHER_DESTINATION);
        EGRESS.redirect(ctx.ingress_ifindex() as u32, 0).unwrap_or(xdp_action::XDP_ABORTED)
    }

    /// Sends every packet back where it came from, but for its MAC addresses without looking at it:
    /// the same with one interface.
    #[xdp]
    fn turn(ctx: XdpContext) -> u32 {
        let Some(head) = head(&ctx) else { return xdp_action::XDP_ABORTED };
        // SAFETY: `head` checked the bounds, and nothing else refers to the packet.
        let head = unsafe { &mut *head };
        swap::<6>(head, ETHER_SOURCE, ETHER_DESTINATION);
        xdp_action::XDP_TX
    }

    /// Forwards every IPv4 packet by the kernel's routes and neighbours, asked for each packet,
    /// without NAT.
    #[xdp]
    fn route(ctx: XdpContext) -> u32 {
        const IP_TTL: usize = 22;
        const AF_INET: u8 = 2;
        let Some(head) = head(&ctx) else { return xdp_action::XDP_PASS };
        // SAFETY: `head` checked the bounds, and nothing else refers to the packet.
        let head = unsafe { &mut *head };
        if word(head, ETHER_TYPE) != [0x08, 0x00] || head[IP_TTL] <= 1 {
            return xdp_action::XDP_PASS;
        }
        // SAFETY: all of it may be zero.
        let mut wanted: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        wanted.family = AF_INET;
        wanted.l4_protocol = head[IP_PROTOCOL];
        wanted.ifindex = ctx.ingress_ifindex() as u32;
        wanted.__bindgen_anon_1.tot_len = u16::from_be_bytes(word(head, IP_START + 2));
        wanted.__bindgen_anon_3.ipv4_src = quad(head, IP_SOURCE).to_be();
        wanted.__bindgen_anon_4.ipv4_dst = quad(head, IP_DESTINATION).to_be();
        // SAFETY: the context is valid for as long as the program runs, and the length is the
        // structure's.
        let found =
            unsafe { look_up_route(ctx.as_ptr(), &raw mut wanted, size_of::<bpf_fib_lookup>() as i32, 0) };
        if found != 0 {
            return xdp_action::XDP_PASS;
        }
        let old = word(head, IP_TTL);
        let sum = change(head, IP_TTL, [old[0] - 1, old[1]], Sum::ZERO);
        set_word(head, IP_CHECKSUM, sum.apply(word(head, IP_CHECKSUM)));
        let mut at = 0;
        while at < 6 {
            head[ETHER_DESTINATION + at] = wanted.dmac[at];
            head[ETHER_SOURCE + at] = wanted.smac[at];
            at += 1;
        }
        EGRESS.redirect(wanted.ifindex, 0).unwrap_or(xdp_action::XDP_ABORTED)
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
        // SAFETY: the value is this CPU's own. What runs in between, on the same CPU, is a copy on
        // its way into `DETOUR`, where no such program is.
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
        // SAFETY: a valid reference to plain data. Volatile, since it is not the value that the
        // compiler sees.
        unsafe { core::ptr::read_volatile(setting) }
    }

    /// The clock, in nanoseconds.
    #[inline(always)]
    pub(crate) fn now() -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    /// Changes a word; what of checksums changes with it, on top of `sum`.
    #[inline(always)]
    fn change(head: &mut [u8; HEAD], at: usize, value: [u8; 2], sum: Sum) -> Sum {
        let sum = sum.remove(word(head, at)).add(value);
        set_word(head, at, value);
        sum
    }

    /// Writes a flow's number where there are zeros, as [`change`] does.
    #[inline(always)]
    fn number(head: &mut [u8; HEAD], at: usize, flow: Flow, sum: Sum) -> Sum {
        let [a, b, c, d] = flow.number.to_be_bytes();
        set_word(head, at, [a, b]);
        set_word(head, at + 2, [c, d]);
        sum.add([a, b]).add([c, d])
    }

    /// The word, read as a number, plus `more`.
    #[inline(always)]
    fn plus(word: [u8; 2], more: u32) -> [u8; 2] {
        u16::from_be_bytes(word).wrapping_add(more as u16).to_be_bytes()
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

/// The programs exist for the BPF target only; the crate still builds for the host, where its lints
/// run.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
