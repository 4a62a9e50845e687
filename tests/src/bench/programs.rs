//! What the programs cost a packet, by `BPF_PROG_TEST_RUN`: no driver, no wires, one warm flow.
//!
//! A repeated run sees what the run before it has made of the packet: translated addresses would be another flow's, and the
//! TTL goes down by one. So the session is one whose translation changes nothing (a masquerade to the address and port that
//! the packet has already; the program does the same arithmetic whatever the numbers are), and a call repeats 250 times only,
//! from a TTL of 255: above 1 to the end. Each call begins with the packet as it was.
//!
//! The root program is what is attached to the interfaces, for good: it tail-calls the program in force through a slot of a
//! PROG_ARRAY. Its cost is the difference between a run of the root and a run of the program that it calls.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions, Xdp, XdpMode};
use lab::{Namespace, state::State};
use nix::net::if_::if_nametoindex;
use router_common::{ports::PortRange, settings::Interface};
use router_user::dataplane::{Dataplane, LoadOptions, LocalSpec, MasqueradeSpec, RuleSetSpec};
use serde::Serialize;

use super::{
    Setup, cpu,
    frames::{FRAME, Headers},
    progress,
    report::{Spread, line},
};

/// Runs by one call, see the module's documentation.
const REPEAT: u32 = 250;
/// Calls of one sample.
const CALLS: u32 = 1000;

/// `enum xdp_action`, include/uapi/linux/bpf.h.
const XDP_TX: u32 = 3;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 69);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 68);
const FIREWALL: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 66);
const TARGET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

/// Nanoseconds a packet.
#[derive(Debug, Serialize)]
pub(crate) struct Programs {
    root_and_forward_ns: Spread,
    forward_ns: Spread,
    /// The root program and its tail call: the difference of the two, sample by sample.
    root_ns: Spread,
}

impl Programs {
    pub(crate) fn table(&self) -> String {
        let mut text = "\nWhat the programs cost a packet of a known session (BPF_PROG_TEST_RUN, one warm flow, no driver):\n\n".to_owned();
        for (name, spread) in [
            ("pls_router: root, tail call, forward", self.root_and_forward_ns),
            ("forward alone", self.forward_ns),
            ("the permanent root and its tail call", self.root_ns),
        ] {
            let Spread { median, min, max } = spread;
            line(&mut text, format_args!("  {name:<38} {median:6.1} ns  ({min:.1} - {max:.1})"));
        }
        text
    }
}

/// Nanoseconds a packet, a sample each.
#[derive(Clone, Debug, Default)]
struct Samples {
    /// `pls_router`: the root, the tail call, and `forward`.
    root: Vec<f64>,
    /// `forward` alone.
    forward: Vec<f64>,
    /// The difference, sample by sample.
    difference: Vec<f64>,
}

/// Measures.
pub(crate) fn measure(setup: &Setup) -> Result<Programs> {
    progress("programs");
    let samples = sample(&setup.state, if setup.quick() { 11 } else { 51 })?;
    progress("");
    Ok(Programs {
        root_and_forward_ns: Spread::of(&samples.root)?,
        forward_ns: Spread::of(&samples.forward)?,
        root_ns: Spread::of(&samples.difference)?,
    })
}

fn sample(state: &State, samples: usize) -> Result<Samples> {
    let mut namespace = Namespace::create(&lab::state::namespace_name(state.id(), "program"))?;
    // The state removes all namespaces at once.
    namespace.leave();
    namespace.ip(&format!(
        "link add eth0 type veth peer name wire0\n\
         link set eth0 up\n\
         link set wire0 up\n\
         addr add {ROUTER}/26 dev eth0\n\
         route add default via {FIREWALL}\n\
         neigh add {FIREWALL} lladdr 02:00:00:00:00:02 dev eth0 nud permanent"
    ))?;
    // Route lookups are answered only where forwarding is on; the programs ask by this interface.
    namespace.sysctl("net/ipv4/conf/lo/forwarding", "1")?;
    namespace.inside(|| -> Result<Samples> {
        cpu::stay_on(cpu::ROUTER)?;
        let mut router = Router::new()?;
        let mut samples_of = Samples::default();
        for _ in 0..samples {
            let [root, forward] = router.sample()?;
            samples_of.root.push(root);
            samples_of.forward.push(forward);
            samples_of.difference.push(root - forward);
        }
        Ok(samples_of)
    })?
}

struct Router {
    dataplane: Dataplane,
    frame: [u8; FRAME],
    context: [[u8; 4]; 6],
}

impl Router {
    fn new() -> Result<Self> {
        let index = if_nametoindex("eth0").context("there is no eth0")?;
        let mut dataplane = Dataplane::load(&LoadOptions {
            pins: None,
            sessions: 1024,
            half_open_per_source: 1024,
            log: None,
        })?;
        let interfaces = [Interface { primary: index, ..Interface::default() }, Interface::default()];
        dataplane.settings.set_interfaces(interfaces)?;
        dataplane.local_addresses.set(&[ROUTER].into(), &[].into())?;
        let rules = RuleSetSpec {
            forwards: Vec::new(),
            masquerades: vec![MasqueradeSpec {
                name: "same".to_owned(),
                sources: vec![format!("{CLIENT}/32").parse()?],
                destinations: vec!["0.0.0.0/0".parse()?],
                mss: 0,
            }],
            snat: vec![CLIENT],
            ports: PortRange { first: 1024, last: 65535 },
            local: LocalSpec::default(),
            reject_exhausted: false,
        };
        dataplane.rules.apply(&rules, &mut dataplane.settings)?;
        // No packet comes in there. A program that is attached is in the kernel's XDP dispatcher (kernel/bpf/dispatcher.c), which
        // calls it directly; one that is not, a call would put there and take out again, which takes longer than its runs.
        for (name, device) in [("pls_router", "eth0"), ("forward", "wire0")] {
            let program = dataplane.program(name)?;
            program
                .attach(device, XdpMode::Driver)
                .with_context(|| format!("cannot put {name} on {device}"))?;
        }
        let headers = Headers { source_mac: MAC, destination_mac: MAC, source: CLIENT, destination: TARGET };
        let mut router = Self {
            dataplane,
            frame: headers.frame(255),
            context: [0, FRAME as u32, 0, index, 0, 0].map(u32::to_ne_bytes),
        };
        router.check()?;
        Ok(router)
    }

    /// Opens the session, and makes sure that what is measured is what the module says.
    fn check(&mut self) -> Result<()> {
        for name in ["pls_router", "forward"] {
            let mut out = [0; 256];
            let before = self.dataplane.counters.read()?.reasons;
            self.call(name, REPEAT, Some(&mut out))?;
            let now = self.dataplane.counters.read()?.reasons;
            let forwarded: u64 =
                [router_common::reason::Reason::Forwarded, router_common::reason::Reason::Opened]
                    .map(|reason| now[reason as usize].packets - before[reason as usize].packets)
                    .iter()
                    .sum();
            ensure!(forwarded == u64::from(REPEAT), "{name} forwarded {forwarded} packets of {REPEAT}");
            // Addresses and ports; the checksums around them have changed with the TTL.
            ensure!(
                out[26..38] == self.frame[26..38],
                "{name} has translated the packet into another flow's"
            );
            ensure!(u32::from(out[22]) == 255 - REPEAT, "{name} has left a TTL of {}", out[22]);
        }
        Ok(())
    }

    fn call(&mut self, name: &str, repeat: u32, out: Option<&mut [u8]>) -> Result<Duration> {
        let program: &mut Xdp = self.dataplane.program(name)?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(&self.frame),
            data_out: out,
            ctx_in: Some(self.context.as_flattened()),
            repeat,
            ..TestRunOptions::new()
        })?;
        ensure!(result.return_value == XDP_TX, "{name} ended with the verdict {}", result.return_value);
        Ok(result.duration)
    }

    /// Nanoseconds a packet: of the root with what it calls, and of `forward` alone. They take turns call by call, so that a
    /// machine that is slower for a while is slower for both.
    fn sample(&mut self) -> Result<[f64; 2]> {
        let mut sums = [Duration::ZERO; 2];
        for _ in 0..CALLS {
            sums[0] += self.call("pls_router", REPEAT, None)?;
            sums[1] += self.call("forward", REPEAT, None)?;
        }
        // The kernel gives whole nanoseconds, the mean of a call's runs; the mean over the calls has a fraction.
        Ok(sums.map(|sum| sum.as_nanos() as f64 / f64::from(CALLS)))
    }
}
