//! From facts to findings.

mod access;
mod ipv6;
mod logins;
mod routing;

pub use access::{Access, access};

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::facts::{AttachedProgram, Facts, Interface, Listener, OWN_PROCESS};
use super::finding::{Finding, Findings, Id, listed};
use crate::config::{Config, Host, Mode, closest};
use crate::port_plan;
use crate::sys::bpffs::MOUNT_POINT;

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

/// Returns the findings about running `config` on a machine with these `facts`, errors first.
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
            (Id::InterfacesUnreadable, ""),
            format!("the network interfaces cannot be listed: {why}"),
            "run this as root (sudo), in the network namespace of the router",
        ),
    }
    listeners(&mut found, config, facts);
    if let Some(kernel) = &facts.own_ports {
        let snat = port_plan::snat_ports(config, kernel);
        for overlap in port_plan::plan(config, snat, kernel).left {
            found.warning((Id::PortsShared, ""), overlap.to_string(), overlap.fix());
        }
    }
    logins::logins(&mut found, config, &facts.ssh);
    ipv6::services(&mut found, config, &facts.ipv6);
    routing::routing(&mut found, config, facts);
    if facts.ip_forward == Some(true) {
        found.warning(
            (Id::KernelForwards, ""),
            "the kernel forwards packets too (net.ipv4.ip_forward is 1): packets that this router leaves alone may be forwarded untranslated, and past its rules",
            "sysctl -w net.ipv4.ip_forward=0, and remove it from /etc/sysctl.d; this router does not need it",
        );
    }
    for refused in &facts.refused {
        found.error(
            (Id::PathUntrusted, refused.key),
            format!("{}: {}", refused.key, refused.why),
            &*refused.fix,
        );
    }
    if facts.pins_on_bpffs == Some(false) {
        pins(&mut found, &config.admin.pins);
    }
    for predecessor in &facts.predecessors {
        let on = match predecessor.interfaces.as_slice() {
            [] => "on no interface".to_owned(),
            interfaces => format!("on {}", listed(interfaces)),
        };
        let directory = predecessor.directory.to_string_lossy();
        let found_there = format!("another version's data plane is at {directory}, {on}");
        let of = (Id::PredecessorFound, &*directory);
        if predecessor.sessions_move {
            found.note(of, format!("{found_there}: `run` takes its place, with its sessions"), "nothing");
        } else {
            found.warning(
                of,
                format!("{found_there}: `run` takes its place, and its sessions are lost"),
                "nothing, if that is intended; `pls-router detach` takes it off now",
            );
        }
    }
    found.sorted()
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
        (Id::PrivilegesMissing, ""),
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
            (Id::KernelTooOld, ""),
            format!("the kernel {} is too old: {major}.{minor} is the oldest that works", kernel.release),
            "use an image with a newer one, e.g. Ubuntu 24.04, Debian 12 or Azure Linux 3",
        );
    }
}

fn own_traffic(found: &mut Findings, facts: &Facts) {
    if let (Some(kernel), Some(false)) = (&facts.kernel, facts.traffic_control)
        && kernel.version < WITHOUT_QDISC
    {
        found.warning((Id::OwnTrafficUnseen, ""),
            format!(
                "this machine's own traffic cannot be seen: the kernel {} lacks the module sch_ingress or cls_bpf, and a session with the same port may take the answers to its datagrams and pings",
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
    found.error(
        (Id::InterfaceMissing, name),
        format!("there is no interface `{name}`; this machine has {}", listed(&names)),
        fix,
    );
}

fn one_interface(found: &mut Findings, config: &Config, interface: &Interface) {
    let name = &interface.name;
    let native = config.interfaces.mode == Mode::Native;
    if !interface.up {
        found.error(
            (Id::InterfaceDown, name),
            format!("interface `{name}` is down"),
            format!("ip link set dev {name} up"),
        );
    }
    match &interface.master {
        Some((master, Some(driver))) if driver == "hv_netvsc" => found.error((Id::InterfaceEnslaved, name),
            format!(
                "interface `{name}` is the SR-IOV half of `{master}`: a program on it sees only a part of the packets"
            ),
            format!("write \"{master}\" in [interfaces]: it hands the program on to `{name}`"),
        ),
        Some((master, Some(driver))) if driver == "vrf" => found.error((Id::InterfaceEnslaved, name),
            format!(
                "interface `{name}` is in the VRF `{master}`, which has its own routing table: this router would use the main one"
            ),
            format!("take it out (ip link set dev {name} nomaster), or name another interface"),
        ),
        Some((master, _)) => found.warning((Id::InterfaceEnslaved, name),
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
        found.error((Id::InterfaceTwice, pls),
            format!("`pls` and `firewall` of [interfaces], `{pls}` and `{firewall}`, are names of one interface"),
            format!("write \"{pls}\" for both, or leave `firewall` out: packets then leave by the NIC that they came in by"),
        );
    }
}

/// Checks addresses on a macvlan. Frames to its MAC address come in by the interface below, where
/// the data plane passes them to the kernel (`other_host`), since the macvlan may be a container's.
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
                found.error((Id::MacvlanAddress, &macvlan.name),
                    format!(
                        "forward `{}` listens at {address}, which is on {what}: this router does not take frames to that MAC address",
                        forward.name
                    ),
                    fix.clone(),
                );
            }
        }
        if !is_listened_at {
            found.warning((Id::MacvlanAddress, &macvlan.name),
                format!(
                    "{} is on {what}: the kernel gets its packets, even where a rule listens at every address",
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
        found.warning((Id::GenericRedirect, ""),
            format!(
                "mode \"generic\" with two interfaces: packets that GRO or another machine's TSO has made larger than the MTU cannot go from `{first}` to `{second}` or back, and are lost without being counted"
            ),
            format!(
                "ethtool -K {first} gro off; ethtool -K {second} gro off; for a veth, at the other end: ethtool -K DEVICE tso off gso off"
            ),
        );
    }
}

fn native_support(found: &mut Findings, interface: &Interface) {
    let name = &interface.name;
    let generic = "write mode = \"generic\" in [interfaces] (several times slower)";
    if interface.loopback {
        found.error(
            (Id::InterfaceLoopback, name),
            format!("interface `{name}` is the loopback: no packet to forward comes in there"),
            "name another",
        );
        return;
    }
    match &interface.driver {
        Some(driver) if !NATIVE_DRIVERS.contains(&driver.as_str()) => found.warning((Id::DriverUnknown, name),
            format!(
                "interface `{name}` has the driver {driver}, which is not known to run XDP programs natively"
            ),
            format!("try it; if attaching fails, {generic}"),
        ),
        Some(driver) if driver == "veth" => found.warning((Id::VethOffloads, name),
            format!(
                "interface `{name}` is a veth: its other end may leave checksums unfinished and packets larger than the MTU (checksum and segmentation offload), and native XDP drops them (bad_checksum)"
            ),
            format!("at the other end: ethtool -K DEVICE tx off tso off gso off; or {generic}"),
        ),
        Some(_) | None => {}
    }
    if interface.lro == Some(true) {
        found.error(
            (Id::LroOn, name),
            format!("interface `{name}` merges received packets (LRO), and XDP needs each as it arrived"),
            format!("ethtool -K {name} lro off"),
        );
    }
    if interface.mtu > MAX_NATIVE_MTU {
        found.error((Id::MtuTooLarge, name),
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
    found.error((Id::OtherProgram, interface), text, fix);
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
                (Id::ListenAddressMissing, &forward.name),
                format!(
                    "forward `{}` listens at {address}, which is not an address of this machine; it has {}",
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
                    (Id::TargetIsLocal, &forward.name),
                    format!("forward `{}` leads to {address}, which is this machine itself", forward.name),
                    "name another target: forwarded packets leave this machine",
                );
            }
        }
    }
    for address in config.snat.addresses.iter().filter(|address| !mine.contains(address)) {
        found.error((Id::SnatAddressMissing, &address.to_string()),
            format!("`addresses` of [snat] has {address}, which is not an address of this machine; it has {}: no reply would come back", has(&mine)),
            format!("leave it out, or add it: ip addr add {address}/32 dev {} (and to the NIC in Azure)", config.interfaces.firewall),
        );
    }
    let firewall = interfaces.iter().find(|interface| interface.is_called(&config.interfaces.firewall));
    if config.snat.addresses.is_empty() && firewall.is_some_and(|firewall| firewall.addresses.is_empty()) {
        let name = &config.interfaces.firewall;
        found.error(
            (Id::SourceAddressMissing, name),
            format!("interface `{name}` has no IPv4 address to send new sessions from"),
            format!("give it one (ip addr add ADDRESS/PREFIX dev {name}), or write `addresses` in [snat]"),
        );
    }
}

/// The id of the process that starts services, and has the sockets of their socket units.
const SERVICE_MANAGER: u32 = 1;

fn listeners(found: &mut Findings, config: &Config, facts: &Facts) {
    let wanted = [("the probe ([health])", config.health.listen), ("metrics ([admin])", config.admin.listen)];
    for (what, wanted) in wanted {
        for listener in facts.listeners.iter().filter(|listener| collide(wanted, listener)) {
            taken(found, what, wanted, listener);
        }
    }
}

/// Judges a socket that listens where the daemon is to listen.
fn taken(found: &mut Findings, what: &str, wanted: SocketAddr, listener: &Listener) {
    let port = wanted.port();
    let id = port.to_string();
    let of = (Id::PortTaken, id.as_str());
    match &listener.process {
        Some(process) if process.name == OWN_PROCESS => {}
        Some(process) if process.pid == SERVICE_MANAGER => {
            // The daemon takes what a socket unit or the daemon before has left, at exactly its
            // address. What the one before had elsewhere it closes.
            let fits = listener.address == wanted.ip();
            let at = SocketAddr::new(listener.address, port);
            let fix = "systemctl list-sockets shows the unit: stop it, or make its ListenStream= and `listen` the same";
            match (listener.keeps_api, fits) {
                (true, true) => {}
                (false, false) => found.error(
                    of,
                    format!("systemd listens at {at} for a socket unit, where {what} is to be at {wanted}"),
                    fix,
                ),
                (true, false) | (false, true) => found.warning(
                    of,
                    format!(
                        "systemd listens at {at}: {what} can be at {wanted} only if that is for pls-router"
                    ),
                    fix,
                ),
            }
        }
        Some(process) => found.error(
            of,
            format!("the port of {what}, {port}, is taken by {process}"),
            format!("stop {process}, or change `listen`"),
        ),
        None => found.error(
            of,
            format!("the port of {what}, {port}, is taken"),
            format!("find it: ss -ltnp 'sport = :{port}'; stop it, or change `listen`"),
        ),
    }
}

/// Returns `true` if binding `wanted` fails because of a socket that listens.
fn collide(wanted: SocketAddr, Listener { address, port, .. }: &Listener) -> bool {
    // An unspecified IPv6 address takes IPv4 too, unless the socket says otherwise; few do.
    let either_any = wanted.ip().is_unspecified() || address.is_unspecified();
    wanted.port() == *port && (wanted.ip() == *address || either_any)
}

fn pins(found: &mut Findings, pins: &Path) {
    if pins.starts_with(MOUNT_POINT) {
        found.warning((Id::BpffsMissing, MOUNT_POINT),
            format!("there is no BPF file system at {MOUNT_POINT} yet; systemd should have mounted one, and `run` will try to"),
            format!("mount -t bpf bpf {MOUNT_POINT}"),
        );
    } else {
        found.error(
            (Id::BpffsMissing, &pins.to_string_lossy()),
            format!("`pins` of [admin], {}, is not on a BPF file system", pins.display()),
            format!(
                "leave `pins` out (it is below {MOUNT_POINT} then), or mount one: mount -t bpf bpf DIRECTORY"
            ),
        );
    }
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
