//! A router in a new network namespace, and its programs.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
    process::Command,
};

use aya::maps::{MapData, RingBuf};
use aya::programs::{TestRun as _, TestRunOptions};
use ipnet::Ipv4Net;
use router_common::{
    address::{Ipv4, Mac},
    maps::{
        punt::{Kind, Neighbour, Punted},
        settings::Interface,
        stats::{CpuStats, OwnStats},
    },
    ports::PortRange,
    reason::Reason,
    tuple::Protocol,
};
use router_user::dataplane::{
    Dataplane, Departure, ForwardSpec, LoadOptions, LocalSpec, MasqueradeSpec, RuleSetSpec,
};

use crate::packets::{FIREWALL, FIREWALL_MAC, OTHER, PLS, PLS_MAC, ROUTER, ROUTER_SECOND, STRANGER, TARGET};

/// `enum xdp_action`, include/uapi/linux/bpf.h.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Aborted,
    Drop,
    Pass,
    Tx,
    Redirect,
}

/// The result of one packet.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) verdict: Verdict,
    pub(crate) frame: Vec<u8>,
    /// The reason it was counted under: exactly one counter moved, by one packet and the frame's
    /// bytes.
    pub(crate) reason: Reason,
}

/// One router.
pub(crate) struct World {
    pub(crate) dataplane: Dataplane,
    interfaces: [u32; 2],
    before: Box<CpuStats>,
}

/// The setup of the router.
pub(crate) struct Setup {
    pub(crate) nics: usize,
    pub(crate) sessions: u32,
    pub(crate) half_open_per_source: u32,
    pub(crate) ports: PortRange,
    pub(crate) snat: Vec<[u8; 4]>,
    pub(crate) generic: bool,
    /// The directory that maps are pinned in. The test removes it.
    pub(crate) pins: Option<PathBuf>,
    pub(crate) rules: fn(&mut RuleSetSpec),
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nics: 1,
            sessions: 1024,
            half_open_per_source: u32::MAX,
            ports: PortRange { first: 1024, last: 65535 },
            snat: vec![ROUTER],
            generic: false,
            pins: None,
            rules: |_| {},
        }
    }
}

/// The rule set of most tests: `https`, `dns`, `range`, and the `vnet` masquerade.
pub(crate) fn rule_set() -> RuleSetSpec {
    let forward = |name: &str, protocol, ports: (u16, u16), target: ([u8; 4], Option<u16>)| ForwardSpec {
        name: name.to_owned(),
        protocol,
        address: None,
        ports: PortRange { first: ports.0, last: ports.1 },
        targets: vec![(target.0.into(), target.1)],
        sources: vec![network(PLS, 32)],
        mss: 0,
    };
    RuleSetSpec {
        forwards: vec![
            forward("https", Protocol::Tcp, (443, 443), (TARGET, Some(8443))),
            forward("dns", Protocol::Udp, (53, 53), (TARGET, None)),
            forward("range", Protocol::Tcp, (8000, 8010), (TARGET, None)),
        ],
        masquerades: vec![MasqueradeSpec {
            name: "vnet".to_owned(),
            sources: vec![network(PLS, 32)],
            destinations: vec![network([0; 4], 0)],
            mss: 0,
        }],
        snat: vec![ROUTER.into()],
        ports: PortRange { first: 1024, last: 65535 },
        local: LocalSpec {
            health_port: 8082,
            ephemeral: PortRange { first: 32768, last: 60999 },
            ..LocalSpec::default()
        },
        reject_exhausted: false,
        reject_unreachable: false,
    }
}

pub(crate) fn network(address: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new(address.into(), prefix).expect("a prefix length")
}

impl World {
    /// A router with one NIC and [`rule_set`].
    pub(crate) fn new() -> Self {
        Self::with(Setup::default())
    }

    /// A router as set up.
    pub(crate) fn with(setup: Setup) -> Self {
        let Setup { nics, sessions, half_open_per_source, ports, snat, generic, pins, rules } = setup;
        enter_new_namespace();
        ip("link set lo up");
        std::fs::write("/proc/sys/net/ipv4/conf/lo/forwarding", "1").expect("lo.forwarding");
        ip("link add eth0 type veth peer name wire0");
        // The MAC address that `Spec::build` sends frames to.
        ip("link set eth0 address 02:00:00:00:00:02");
        ip("link set eth0 up");
        ip("link set wire0 up");
        ip(&format!("addr add {}/26 dev eth0", Ipv4Addr::from(ROUTER)));
        let firewall_link = if nics == 2 {
            ip("link add eth1 type veth peer name wire1");
            ip("link set eth1 address 02:00:00:00:00:02");
            ip("link set eth1 up");
            ip("link set wire1 up");
            ip(&format!("addr add {}/26 dev eth1", Ipv4Addr::from(ROUTER_SECOND)));
            ip("route add default via 10.0.3.1");
            ("10.0.3.1".to_owned(), "eth1")
        } else {
            ip(&format!("route add default via {}", Ipv4Addr::from(FIREWALL)));
            (Ipv4Addr::from(FIREWALL).to_string(), "eth0")
        };
        neighbour(&firewall_link.0, FIREWALL_MAC, firewall_link.1);
        neighbour(&Ipv4Addr::from(PLS).to_string(), PLS_MAC, "eth0");
        neighbour(&Ipv4Addr::from(STRANGER).to_string(), PLS_MAC, "eth0");

        let options = LoadOptions { pins, sessions, half_open_per_source, generic, log: None };
        let mut spec = rule_set();
        spec.ports = ports;
        spec.snat = snat.into_iter().map(Into::into).collect();
        rules(&mut spec);
        Self::load(&options, nics, &spec)
    }

    /// Loads a router in this thread's namespace. With the pins of another one, it takes that one's
    /// place, or is about to, see [`Dataplane::take_the_place`].
    pub(crate) fn load(options: &LoadOptions, nics: usize, spec: &RuleSetSpec) -> Self {
        let mut dataplane = Dataplane::load(options).expect("the programs load");
        let interfaces = [index("eth0"), if nics == 2 { index("eth1") } else { 0 }];
        dataplane
            .settings
            .set_interfaces([0, 1].map(|slot| Interface {
                primary: interfaces[slot],
                address: Ipv4([ROUTER, ROUTER_SECOND][slot]),
                mac: Mac::new([mac("eth0"), if nics == 2 { mac("eth1") } else { [0; 6] }][slot]),
                ..Interface::default()
            }))
            .expect("interfaces");
        dataplane.local_addresses.set(&[ROUTER.into()].into(), &[].into()).expect("addresses");
        dataplane.rules.apply(spec, &mut dataplane.settings).expect("rules");
        let before = dataplane.counters.read().expect("counters");
        Self { dataplane, interfaces, before }
    }

    /// Puts another rule set into force: [`rule_set`], changed like this.
    pub(crate) fn set_rules(&mut self, change: impl FnOnce(&mut RuleSetSpec)) {
        let mut spec = rule_set();
        change(&mut spec);
        self.dataplane.rules.apply(&spec, &mut self.dataplane.settings).expect("rules");
    }

    /// Gives a packet to the router on `eth0`.
    pub(crate) fn run(&mut self, frame: &[u8]) -> Ran {
        self.run_on(0, frame)
    }

    /// Gives a packet to the router on the interface of this slot, and takes stock of what
    /// happened.
    pub(crate) fn run_on(&mut self, slot: usize, frame: &[u8]) -> Ran {
        let (verdict, out) = self.run_uncounted(slot, frame);
        let counted = self.moved();
        let reasons: Vec<_> = counted.reasons.iter().collect();
        let [(reason, packets)] = reasons[..] else { panic!("not exactly one reason counted: {counted:?}") };
        assert_eq!(*packets, 1, "{reason:?}");
        let received = counted.received[slot];
        assert_eq!(received, 1, "received on slot {slot}");
        let transmitted = match verdict {
            Verdict::Tx => [u64::from(slot == 0), u64::from(slot == 1)],
            Verdict::Redirect => [u64::from(slot == 1), u64::from(slot == 0)],
            Verdict::Aborted | Verdict::Drop | Verdict::Pass => [0, 0],
        };
        assert_eq!(counted.transmitted, transmitted, "{verdict:?}");
        Ran { verdict, frame: out, reason: *reason }
    }

    /// Gives a packet to the router and takes no stock: for many of them.
    pub(crate) fn run_quietly(&mut self, frame: &[u8]) -> (Verdict, Vec<u8>) {
        self.run_uncounted(0, frame)
    }

    /// Gives a packet to the router as one that came in on the interface with this index.
    pub(crate) fn run_by(&mut self, interface: u32, frame: &[u8]) -> (Verdict, Reason) {
        let (verdict, _) = Program { interface, ..self.program_of(0) }.run(frame);
        let counted = self.moved();
        let [(reason, 1)] = counted.reasons[..] else {
            panic!("not exactly one reason counted: {counted:?}")
        };
        (verdict, reason)
    }

    pub(crate) fn run_uncounted(&mut self, slot: usize, frame: &[u8]) -> (Verdict, Vec<u8>) {
        self.program_of(slot).run(frame)
    }

    /// The index of the interface of this slot.
    pub(crate) fn interface(&self, slot: usize) -> u32 {
        self.interfaces[slot]
    }

    /// Does what the daemon does with a packet that has waited, or that was held.
    pub(crate) fn replay(&mut self, record: &Handed) -> Option<Departure> {
        let replayer = self.dataplane.replayer().expect("the program is loaded");
        let settings = self.dataplane.settings.current();
        replayer.replay(settings, record.interface, &record.packet).expect("the program runs")
    }

    /// Shows the router a packet that this machine itself sends: what becomes of it, if it does not
    /// go on as it is.
    pub(crate) fn sends(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        match self.verdict_on_sent(frame) {
            (-1, out) => {
                assert_eq!(out, frame, "untouched");
                None
            }
            (7, out) => Some(out),
            (other, _) => panic!("the verdict {other}"),
        }
    }

    /// Shows the router an answer of this machine's own stack. Returns `true` if it is withheld.
    pub(crate) fn withholds(&mut self, frame: &[u8]) -> bool {
        self.moved();
        let (verdict, _) = self.verdict_on_sent(frame);
        let reasons = self.moved().reasons;
        match verdict {
            -1 => assert!(reasons.is_empty(), "{reasons:?}"),
            2 => assert_eq!(reasons, [(Reason::AnswerWithheld, 1)]),
            other => panic!("the verdict {other}"),
        }
        verdict == 2
    }

    /// Returns the verdict (include/uapi/linux/pkt_cls.h) on a packet that this machine itself
    /// sends, and the packet.
    fn verdict_on_sent(&mut self, frame: &[u8]) -> (i32, Vec<u8>) {
        let program = self.dataplane.own_traffic_program().expect("the program for own traffic");
        let mut out = vec![0; frame.len() + 128];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = program.test_run(options).expect("BPF_PROG_TEST_RUN");
        out.truncate(result.data_size_out as usize);
        (result.return_value as i32, out)
    }

    /// The root program, to be run by other threads.
    pub(crate) fn program(&mut self) -> Program {
        self.program_of(0)
    }

    fn program_of(&mut self, slot: usize) -> Program {
        let program = self.dataplane.program("pls_router").expect("the root program");
        let fd = program.fd().expect("loaded").as_fd().as_raw_fd();
        Program { fd, interface: self.interfaces[slot] }
    }

    /// The counters that have moved since this was last asked.
    pub(crate) fn moved(&mut self) -> Moved {
        let now = self.dataplane.counters.read().expect("counters");
        let before = std::mem::replace(&mut self.before, now);
        let now = &self.before;
        let reasons = Reason::ALL
            .iter()
            .map(|reason| {
                let index = *reason as usize;
                (*reason, now.reasons[index].packets - before.reasons[index].packets)
            })
            .filter(|(_, packets)| *packets > 0)
            .collect();
        let interface = |pick: fn(&router_common::maps::stats::InterfaceStats) -> u64| {
            [0, 1].map(|slot| pick(&now.interfaces[slot]) - pick(&before.interfaces[slot]))
        };
        Moved {
            reasons,
            received: interface(|stats| stats.received.packets),
            transmitted: interface(|stats| stats.transmitted.packets),
        }
    }

    /// The result for this machine's own traffic.
    pub(crate) fn own(&self) -> OwnStats {
        self.dataplane.counters.read().expect("counters").own
    }

    /// Removes all sessions, as the daemon's sweep does.
    pub(crate) fn forget_sessions(&mut self) {
        let mut sessions = Vec::new();
        self.dataplane.flows.for_each(|session| {
            sessions.push(*session);
            true
        });
        for session in sessions {
            self.dataplane.flows.remove(&session).expect("the pools");
        }
    }

    /// Returns the number of sessions.
    pub(crate) fn sessions(&self) -> usize {
        let mut count = 0;
        self.dataplane.flows.for_each(|_| {
            count += 1;
            true
        });
        assert_eq!(self.dataplane.flows.sessions(), count as u32, "as counted");
        count
    }

    /// Returns the number of entries in the flow table: always two for each session.
    pub(crate) fn entries(&self) -> usize {
        self.dataplane.flows.flows().count()
    }
}

/// The root program of a world that outlives this.
pub(crate) struct Program {
    fd: i32,
    interface: u32,
}

impl Program {
    /// One packet: the verdict, and what became of it.
    pub(crate) fn run(&self, frame: &[u8]) -> (Verdict, Vec<u8>) {
        /// The part of `union bpf_attr` for `BPF_PROG_TEST_RUN`, include/uapi/linux/bpf.h.
        #[derive(Default)]
        #[repr(C)]
        struct Attributes {
            prog_fd: u32,
            retval: u32,
            data_size_in: u32,
            data_size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            ctx_size_in: u32,
            ctx_size_out: u32,
            ctx_in: u64,
            ctx_out: u64,
            flags: u32,
            cpu: u32,
            batch_size: u32,
            zero: u32,
        }
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        let mut out = vec![0; frame.len() + 128];
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let context: [u32; 6] = [0, frame.len() as u32, 0, self.interface, 0, 0];
        let mut attributes = Attributes {
            prog_fd: self.fd as u32,
            data_size_in: frame.len() as u32,
            data_size_out: out.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            ctx_size_in: size_of_val(&context) as u32,
            ctx_in: context.as_ptr() as u64,
            ..Attributes::default()
        };
        // SAFETY: the attributes are those of the command; every buffer lives through the call and
        // has the length that is said.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<Attributes>())
        };
        assert_eq!(result, 0, "BPF_PROG_TEST_RUN: {}", std::io::Error::last_os_error());
        out.truncate(attributes.data_size_out as usize);
        let verdict = match attributes.retval {
            0 => Verdict::Aborted,
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Tx,
            4 => Verdict::Redirect,
            other => panic!("verdict {other}"),
        };
        (verdict, out)
    }
}

/// Keeps this thread on one CPU.
pub(crate) fn stay_on(cpu: usize) {
    // SAFETY: zero is a value of this plain structure, and the kernel reads it only.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    assert_eq!(result, 0, "CPU {cpu}: {}", std::io::Error::last_os_error());
}

/// A packet that the programs have given to the daemon.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Handed {
    pub(crate) kind: Kind,
    pub(crate) interface: u32,
    pub(crate) mtu: u32,
    pub(crate) neighbour: Neighbour,
    pub(crate) mac: [u8; 6],
    pub(crate) packet: Vec<u8>,
}

/// The next packet for the daemon.
pub(crate) fn next(ring: &mut RingBuf<MapData>) -> Option<Handed> {
    let record = ring.next()?;
    let Punted { kind, interface, mtu, neighbour, mac, packet } =
        Punted::parse(&record).expect("a record of ours");
    Some(Handed { kind, interface, mtu, neighbour, mac, packet: packet.to_vec() })
}

/// Counters that moved.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) reasons: Vec<(Reason, u64)>,
    pub(crate) received: [u64; 2],
    pub(crate) transmitted: [u64; 2],
}

/// Moves this thread into a new network namespace, which goes when the thread does.
pub(crate) fn enter_new_namespace() {
    // SAFETY: takes flags only, and concerns this thread only.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "these tests need root: {}", std::io::Error::last_os_error());
}

/// Runs `ip` in this thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip runs");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn neighbour(address: &str, mac: [u8; 6], interface: &str) {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    ip(&format!("neigh replace {address} lladdr {mac} dev {interface} nud permanent"));
}

/// The MAC address of an interface of this thread's namespace.
pub(crate) fn mac(interface: &str) -> [u8; 6] {
    let output = Command::new("ip").args(["-o", "link", "show", "dev", interface]).output().expect("ip runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mac =
        text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a MAC address");
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
    bytes.try_into().expect("six bytes")
}

pub(crate) fn index(interface: &str) -> u32 {
    let name = std::ffi::CString::new(interface).expect("a name");
    // SAFETY: a NUL-terminated string that lives through the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// Returns `true` if the running kernel has this version or a later one.
pub(crate) fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    numbers.next().zip(numbers.next()) >= Some((major, minor))
}

/// A second server address, so that tests read well.
pub(crate) fn other_server() -> [u8; 4] {
    OTHER
}
