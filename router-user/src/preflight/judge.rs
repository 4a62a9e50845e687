//! From facts to findings.

mod access;
mod ipv6;
mod logins;
mod routing;

pub use access::{Access, access};

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::facts::{AttachedProgram, Facts, Interface};
use super::{Finding, Severity};
use crate::config::{Config, Host, Mode, closest};
use crate::port_plan;

/// The oldest kernel that the tests run on. The newest helper in use, bpf_xdp_load_bytes, came with
/// 5.18.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// The first kernel that attaches programs to an interface's way out without a qdisc (tcx).
const WITHOUT_QDISC: (u32, u32) = (6, 6);

/// The largest MTU with which a frame still fits one page beside what the driver keeps there: 4096
/// less 256 of headroom (XDP_PACKET_HEADROOM), 320 for `skb_shared_info` and 14 of Ethernet header.
const MAX_NATIVE_MTU: u32 = 4096 - 256 - 320 - 14;

/// Drivers known to run XDP programs natively. Others may as well: that is for them to say when we
/// attach.
const NATIVE_DRIVERS: &[&str] = &[
    "bnxt_en",
    "ena",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "netdevsim",
    "nfp",
    "qede",
    "sfc",
    "stmmaceth",
    "thunder-nicvf",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
];

/// Where systemd mounts the BPF file system.
const BPF_FS: &str = "/sys/fs/bpf";

/// The name of our own process, whose sockets are no obstacle: `run` replaces it or finds it by its
/// own means.
const OWN_PROCESS: &str = "pls-router";

/// What is wrong or doubtful when `config` is run on a machine of which `facts` are known: errors
/// first.
#[must_use]
pub fn findings(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::default();
    privileges(&mut found, facts);
    kernel(&mut found, facts);
    own_traffic(&mut found, facts);
    match &facts.interfaces {
        Ok(interfaces) => {
            for name in config.interfaces.names() {
                match interfaces.iter().find(|interface| interface.is_called(name)) {
                    Some(interface) => {
                        one_interface(&mut found, config, interface);
                        macvlans(&mut found, config, interface, interfaces);
                    }
                    None => no_interface(&mut found, name, interfaces),
                }
            }
            one_by_two_names(&mut found, config, interfaces);
            generic_redirects(&mut found, config);
            addresses(&mut found, config, interfaces);
        }
        Err(why) => found.error(
            format!("the network interfaces cannot be listed: {why}"),
            "run this as root (sudo), in the network namespace of the router",
        ),
    }
    listeners(&mut found, config, facts);
    if let Some(kernel) = &facts.own_ports {
        let snat = port_plan::snat_ports(config, kernel);
        for overlap in port_plan::plan(config, snat, kernel).left {
            found.warning(overlap.to_string(), overlap.fix());
        }
    }
    logins::logins(&mut found, config, &facts.ssh);
    ipv6::services(&mut found, config, &facts.ipv6);
    routing::routing(&mut found, config, facts);
    if facts.ip_forward == Some(true) {
        found.warning(
            "the kernel forwards packets too (net.ipv4.ip_forward is 1): what this router leaves alone may \
             go on untranslated, and past its rules",
            "sysctl -w net.ipv4.ip_forward=0, and remove it from /etc/sysctl.d; this router does not need it",
        );
    }
    for refused in &facts.refused {
        found.error(format!("{}: {}", refused.key, refused.why), &*refused.fix);
    }
    if facts.pins_on_bpffs == Some(false) {
        pins(&mut found, &config.admin.pins);
    }
    for predecessor in &facts.predecessors {
        let on = match predecessor.interfaces.as_slice() {
            [] => "on no interface".to_owned(),
            interfaces => format!("on {}", listed(interfaces)),
        };
        found.warning(
            format!(
                "another version's data plane is at {}, {on}: `run` takes its place, and its sessions are lost",
                predecessor.directory.display()
            ),
            "nothing, if that is meant; `pls-router detach` takes it off now",
        );
    }
    found.sorted()
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn push(&mut self, severity: Severity, text: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding { severity, text: text.into(), fix: fix.into() });
    }

    fn error(&mut self, text: impl Into<String>, fix: impl Into<String>) {
        self.push(Severity::Error, text, fix);
    }

    fn warning(&mut self, text: impl Into<String>, fix: impl Into<String>) {
        self.push(Severity::Warning, text, fix);
    }

    fn note(&mut self, text: impl Into<String>, fix: impl Into<String>) {
        self.push(Severity::Note, text, fix);
    }

    fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| match finding.severity {
            Severity::Error => 0,
            Severity::Warning => 1,
            Severity::Note => 2,
        });
        self.0
    }
}

fn privileges(found: &mut Findings, facts: &Facts) {
    let Some(privileges) = facts.privileges else {
        return;
    };
    let lacking = match (privileges.bpf, privileges.net_admin) {
        (true, true) => return,
        (false, true) => "CAP_BPF",
        (true, false) => "CAP_NET_ADMIN",
        (false, false) => "CAP_BPF and CAP_NET_ADMIN",
    };
    found.error(
        format!("this process may not load and attach programs: it lacks {lacking}"),
        "run it as root (sudo), or as the service: systemctl start pls-router",
    );
}

fn kernel(found: &mut Findings, facts: &Facts) {
    let Some(kernel) = &facts.kernel else {
        return;
    };
    if kernel.version < OLDEST_KERNEL {
        let (major, minor) = OLDEST_KERNEL;
        found.error(
            format!("the kernel {} is too old: {major}.{minor} is the oldest that works", kernel.release),
            "use an image with a newer one, e.g. Ubuntu 24.04, Debian 12 or Azure Linux 3",
        );
    }
}

fn own_traffic(found: &mut Findings, facts: &Facts) {
    if let (Some(kernel), Some(false)) = (&facts.kernel, facts.traffic_control)
        && kernel.version < WITHOUT_QDISC
    {
        found.warning(
            format!(
                "what this machine itself sends cannot be seen: the kernel {} lacks the module sch_ingress or cls_bpf; a session with \
                 the same port may take the answers to a datagram or ping of its own",
                kernel.release
            ),
            "install the rest of the kernel's modules (on Ubuntu: linux-modules-extra), or use Linux 6.6 or later",
        );
    }
}

fn no_interface(found: &mut Findings, name: &str, interfaces: &[Interface]) {
    let names: Vec<&str> =
        interfaces.iter().filter(|other| !other.loopback).map(|other| other.name.as_str()).collect();
    let fix = match closest(name, &names) {
        Some(meant) => format!("did you mean `{meant}`? Change [interfaces]"),
        None => "name one of these in [interfaces]".to_owned(),
    };
    found.error(format!("there is no interface `{name}`; this machine has {}", listed(&names)), fix);
}

fn one_interface(found: &mut Findings, config: &Config, interface: &Interface) {
    let name = &interface.name;
    let native = config.interfaces.mode == Mode::Native;
    if !interface.up {
        found.error(format!("interface `{name}` is down"), format!("ip link set dev {name} up"));
    }
    match &interface.master {
        Some((master, Some(driver))) if driver == "hv_netvsc" => found.error(
            format!(
                "interface `{name}` is the SR-IOV half of `{master}`: a program on it sees only a part of the packets"
            ),
            format!("write \"{master}\" in [interfaces]: it hands the program on to `{name}`"),
        ),
        Some((master, Some(driver))) if driver == "vrf" => found.error(
            format!(
                "interface `{name}` is in the VRF `{master}`, whose routes are in a table of their own: this router would send \
                 packets by the others"
            ),
            format!("take it out (ip link set dev {name} nomaster), or name another interface"),
        ),
        Some((master, _)) => found.warning(
            format!("interface `{name}` is a port of `{master}`: its packets are taken before `{master}` sees them"),
            format!("take it out (ip link set dev {name} nomaster), or name another interface"),
        ),
        None => {}
    }
    if native {
        native_support(found, interface);
    }
    for program in &interface.programs {
        other_program(found, name, program);
    }
}

fn one_by_two_names(found: &mut Findings, config: &Config, interfaces: &[Interface]) {
    let (pls, firewall) = (&config.interfaces.pls, &config.interfaces.firewall);
    let both = |interface: &&Interface| interface.is_called(pls) && interface.is_called(firewall);
    if pls != firewall && interfaces.iter().any(|interface| both(&interface)) {
        found.error(
            format!("`pls` and `firewall` of [interfaces], `{pls}` and `{firewall}`, are names of one interface"),
            format!("write \"{pls}\" for both, or leave `firewall` out: packets then leave by the NIC that they came in by"),
        );
    }
}

/// Addresses on a macvlan: frames to its MAC address come in by the interface below, where the data
/// plane leaves them to the kernel (`other_host`), since the macvlan may be anybody's, a
/// container's for one.
fn macvlans(found: &mut Findings, config: &Config, below: &Interface, interfaces: &[Interface]) {
    let above = |interface: &&Interface| interface.macvlan_above == Some(below.index);
    for macvlan in interfaces.iter().filter(above).filter(|macvlan| !macvlan.addresses.is_empty()) {
        let what = format!("`{}`, a macvlan above `{}`", macvlan.name, below.name);
        let fix = format!(
            "put the address on `{}` itself (keepalived: without `use_vmac`), with its own MAC address",
            below.name
        );
        let mut is_listened_at = false;
        for forward in &config.forwards {
            if let Some(address) =
                forward.listen.address.filter(|address| macvlan.addresses.contains(address))
            {
                is_listened_at = true;
                found.error(
                    format!(
                        "forward `{}` listens at {address}, which is on {what}: frames to that MAC address are \
                         not this router's",
                        forward.name
                    ),
                    fix.clone(),
                );
            }
        }
        if !is_listened_at {
            found.warning(
                format!(
                    "{} is on {what}: what comes there is left to the kernel, also what a rule listens for at \
                     every address",
                    listed(&macvlan.addresses)
                ),
                fix,
            );
        }
    }
}

/// In generic mode, packets that offloads have joined can be turned round on one interface, where
/// they are cut when they leave. The kernel does not redirect them to another one
/// (`xdp_ok_fwd_dev`, include/linux/filter.h).
fn generic_redirects(found: &mut Findings, config: &Config) {
    let names: Vec<&str> = config.interfaces.names().collect();
    if let (Mode::Generic, [first, second]) = (config.interfaces.mode, &names[..]) {
        found.warning(
            format!(
                "mode \"generic\" with two interfaces: packets larger than the MTU, as GRO and other machines' offloads (TSO) make them, \
                 cannot go from `{first}` to `{second}` or back, and are lost without a counter"
            ),
            format!(
                "ethtool -K {first} gro off; ethtool -K {second} gro off; of a veth, at the other end: ethtool -K DEVICE tso off gso off"
            ),
        );
    }
}

fn native_support(found: &mut Findings, interface: &Interface) {
    let name = &interface.name;
    let generic = "write mode = \"generic\" in [interfaces] (several times slower)";
    if interface.loopback {
        found.error(
            format!("interface `{name}` is the loopback: no packet to forward comes in there"),
            "name another",
        );
        return;
    }
    match &interface.driver {
        Some(driver) if !NATIVE_DRIVERS.contains(&driver.as_str()) => found.warning(
            format!(
                "interface `{name}` has the driver {driver}, which is not known to run XDP programs natively"
            ),
            format!("try it; if attaching fails, {generic}"),
        ),
        Some(driver) if driver == "veth" => found.warning(
            format!(
                "interface `{name}` is a veth: its other end may leave checksums unfinished and packets larger than any wire takes \
                 (checksum and segmentation offload), and native XDP drops what is so (bad_checksum)"
            ),
            format!("at the other end: ethtool -K DEVICE tx off tso off gso off; or {generic}"),
        ),
        Some(_) | None => {}
    }
    if interface.lro == Some(true) {
        found.error(
            format!("interface `{name}` joins received packets (LRO), and XDP needs them as they came"),
            format!("ethtool -K {name} lro off"),
        );
    }
    if interface.mtu > MAX_NATIVE_MTU {
        found.error(
            format!(
                "interface `{name}` has an MTU of {}: native XDP takes at most {MAX_NATIVE_MTU}, a frame in a page",
                interface.mtu
            ),
            format!("ip link set dev {name} mtu {MAX_NATIVE_MTU}"),
        );
    }
}

fn other_program(found: &mut Findings, interface: &str, program: &AttachedProgram) {
    if program.ours {
        return;
    }
    let mode = program.mode.map_or("offloaded", Mode::as_str);
    let mut text = format!("interface `{interface}` has another XDP program: ");
    match &program.name {
        Some(name) => text.push_str(&format!("`{name}`, id {}, {mode}", program.id)),
        None => text.push_str(&format!("id {}, {mode}", program.id)),
    }
    if let Some(ago) = program.loaded_ago {
        text.push_str(&format!(", loaded {} ago", roughly(ago)));
    }
    if let Some(uid) = program.uid {
        text.push_str(&format!(" by user {uid}"));
    }
    if !program.holders.is_empty() {
        text.push_str(&format!(", held by {}", listed(&program.holders)));
    }
    if !program.pins.is_empty() {
        let pins: Vec<_> = program.pins.iter().map(|pin| pin.display()).collect();
        text.push_str(&format!(", pinned at {}", listed(&pins)));
    }
    let kind = match program.mode {
        Some(Mode::Native) => "xdpdrv",
        Some(Mode::Generic) => "xdpgeneric",
        None => "xdpoffload",
    };
    let detach = format!("ip link set dev {interface} {kind} off");
    let fix = match (program.holders.first(), program.pins.first()) {
        (Some(holder), _) => format!("stop {holder}; if the program stays, {detach}"),
        (None, Some(pin)) => format!("rm {}; if the program stays, {detach}", pin.display()),
        (None, None) => detach,
    };
    found.error(text, fix);
}

fn addresses(found: &mut Findings, config: &Config, interfaces: &[Interface]) {
    let on = |loopback: bool| {
        let some = interfaces.iter().filter(move |interface| interface.loopback == loopback);
        some.flat_map(|interface| interface.addresses.iter().copied())
    };
    let on_links: Vec<Ipv4Addr> = on(false).collect();
    // A load balancer with a floating IP (direct server return) sends to an address that its
    // machines have on the loopback.
    let mine: Vec<Ipv4Addr> =
        on_links.iter().copied().chain(on(true).filter(|address| !address.is_loopback())).collect();
    let has = |addresses: &[Ipv4Addr]| {
        if addresses.is_empty() { "none".to_owned() } else { listed(addresses) }
    };
    for forward in &config.forwards {
        if let Some(address) = forward.listen.address.filter(|address| !mine.contains(address)) {
            found.error(
                format!(
                    "forward `{}` listens at {address}, which is not this machine's; its are {}",
                    forward.name,
                    has(&mine)
                ),
                format!(
                    "change `listen`, or add the address: ip addr add {address}/32 dev {}",
                    config.interfaces.pls
                ),
            );
        }
        for target in &forward.targets {
            if let Host::Address(address) = target.host
                && mine.contains(&address)
            {
                found.error(
                    format!("forward `{}` leads to {address}, which is this machine itself", forward.name),
                    "name another target: what is forwarded leaves this machine",
                );
            }
        }
    }
    for address in config.snat.addresses.iter().filter(|address| !mine.contains(address)) {
        found.error(
            format!("`addresses` of [snat] has {address}, which is not this machine's; its are {}: no reply would come back", has(&mine)),
            format!("leave it out, or add it: ip addr add {address}/32 dev {} (and to the NIC in Azure)", config.interfaces.firewall),
        );
    }
    let firewall = interfaces.iter().find(|interface| interface.is_called(&config.interfaces.firewall));
    if config.snat.addresses.is_empty() && firewall.is_some_and(|firewall| firewall.addresses.is_empty()) {
        let name = &config.interfaces.firewall;
        found.error(
            format!("interface `{name}` has no IPv4 address for new sessions to come from"),
            format!("give it one (ip addr add ADDRESS/PREFIX dev {name}), or write `addresses` in [snat]"),
        );
    }
}

fn listeners(found: &mut Findings, config: &Config, facts: &Facts) {
    let wanted = [("the probe ([health])", config.health.listen), ("metrics ([admin])", config.admin.listen)];
    for (what, wanted) in wanted {
        let taken = facts.listeners.iter().find(|listener| {
            let own = listener.process.as_ref().is_some_and(|process| process.name == OWN_PROCESS);
            !own && collide(wanted, listener.address, listener.port)
        });
        let Some(listener) = taken else {
            continue;
        };
        let port = wanted.port();
        let (by, fix) = match &listener.process {
            Some(process) => (format!(" by {process}"), format!("stop {process}, or change `listen`")),
            None => {
                (String::new(), format!("see who: ss -ltnp 'sport = :{port}'; stop it, or change `listen`"))
            }
        };
        found.error(format!("the port of {what}, {port}, is taken{by}"), fix);
    }
}

/// Whether binding `wanted` fails because of a socket that listens at `address` and `port`.
fn collide(wanted: SocketAddr, address: IpAddr, port: u16) -> bool {
    // An unspecified IPv6 address takes IPv4 too, unless the socket says otherwise; few do.
    let either_any = wanted.ip().is_unspecified() || address.is_unspecified();
    wanted.port() == port && (wanted.ip() == address || either_any)
}

fn pins(found: &mut Findings, pins: &Path) {
    if pins.starts_with(BPF_FS) {
        found.warning(
            format!("there is no BPF file system at {BPF_FS} yet; `run` mounts one if it may, but systemd should have"),
            format!("mount -t bpf bpf {BPF_FS}"),
        );
    } else {
        found.error(
            format!("`pins` of [admin], {}, is not on a BPF file system", pins.display()),
            format!("leave `pins` out (it is below {BPF_FS} then), or mount one: mount -t bpf bpf DIRECTORY"),
        );
    }
}

fn listed<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A time as one says it: "40 seconds", "3 hours".
fn roughly(time: Duration) -> String {
    let seconds = time.as_secs();
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
