use std::net::IpAddr;
use std::path::PathBuf;

use super::super::facts::{
    FirewallChain, Hook, IpsecPolicy, Ipv6, Kernel, Listener, Predecessor, Privileges, Process, Refused,
    Service, SocketAccess, Ssh, SshSession, Way,
};
use ipnet::Ipv4Net;
use router_common::ports::PortRange;

use super::*;
use crate::config::Protocol;
use crate::config::Severity;
use crate::policy_rules::PolicyRule;
use crate::port_plan::PortSet;

fn config(extra: &str) -> Config {
    let text = format!(
        "interfaces = {{ pls = \"eth0\" }}\n\
         forward = [{{ name = \"https\", protocol = \"tcp\", listen = \"10.0.2.68:443\",\
         target = \"203.0.113.10\", sources = [\"10.0.2.64/26\"] }}]\n\
         [snat]\n{extra}"
    );
    Config::parse(&text, Path::new("test.toml")).map_err(|error| error.to_string()).unwrap().config
}

pub(super) fn interface(name: &str) -> Interface {
    Interface {
        name: name.to_owned(),
        index: 2,
        up: true,
        mtu: 1500,
        addresses: vec![Ipv4Addr::new(10, 0, 2, 68)],
        driver: Some("hv_netvsc".to_owned()),
        lro: Some(false),
        ..Interface::default()
    }
}

/// As Linux has it.
fn usual_ports() -> port_plan::Kernel {
    port_plan::Kernel { range: PortRange { first: 32_768, last: 60_999 }, reserved: PortSet::new() }
}

pub(super) fn good() -> Facts {
    Facts {
        privileges: Some(Privileges { bpf: true, net_admin: true }),
        kernel: Some(Kernel { release: "6.8.0-azure".to_owned(), version: (6, 8) }),
        interfaces: Ok(vec![interface("eth0")]),
        listeners: Vec::new(),
        ssh: Ssh::default(),
        ipv6: Ipv6::default(),
        traffic_control: Some(true),
        own_ports: Some(usual_ports()),
        ip_forward: Some(false),
        policy_rules: Some(Vec::new()),
        ways: Vec::new(),
        ipsec: Some(Vec::new()),
        firewall: Vec::new(),
        pins_on_bpffs: Some(true),
        api: SocketAccess::Root,
        predecessors: Vec::new(),
        refused: Vec::new(),
    }
}

fn with_interface(change: impl FnOnce(&mut Interface)) -> Facts {
    let mut eth0 = interface("eth0");
    change(&mut eth0);
    Facts { interfaces: Ok(vec![eth0]), ..good() }
}

#[track_caller]
fn check(config: &Config, facts: &Facts, expected: &[&str]) {
    let found: Vec<String> = findings(config, facts).iter().map(ToString::to_string).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_good_machine_has_no_findings() {
    check(&config(""), &good(), &[]);
}

#[test]
fn unknown_facts_are_not_findings() {
    let facts = Facts {
        privileges: None,
        kernel: None,
        interfaces: Ok(vec![Interface { driver: None, lro: None, ..interface("eth0") }]),
        listeners: Vec::new(),
        ssh: Ssh::default(),
        ipv6: Ipv6::default(),
        traffic_control: None,
        own_ports: None,
        ip_forward: None,
        policy_rules: None,
        ways: Vec::new(),
        ipsec: None,
        firewall: Vec::new(),
        pins_on_bpffs: None,
        api: SocketAccess::Root,
        predecessors: Vec::new(),
        refused: Vec::new(),
    };
    check(&config(""), &facts, &[]);
}

#[test]
fn privileges_and_kernel() {
    let facts = Facts {
        privileges: Some(Privileges { bpf: false, net_admin: true }),
        kernel: Some(Kernel { release: "5.15.0-1".to_owned(), version: (5, 15) }),
        ..good()
    };
    check(
        &config(""),
        &facts,
        &[
            "error: this process may not load and attach programs: it lacks CAP_BPF\n  \
             fix: run it as root (sudo), or as the service: systemctl start pls-router",
            "error: the kernel 5.15.0-1 is too old: 6.1 is the oldest that works\n  \
             fix: use an image with a newer one, e.g. Ubuntu 24.04, Debian 12 or Azure Linux 3",
        ],
    );
}

#[test]
fn findings_have_an_id_and_a_subject() {
    let found = findings(&config(""), &with_interface(|eth0| (eth0.up, eth0.lro) = (false, Some(true))));
    let ids: Vec<_> = found.iter().map(|finding| (finding.id.as_str(), finding.subject.as_str())).collect();
    assert_eq!(ids, [("interface_down", "eth0"), ("lro_on", "eth0")]);
}

#[test]
fn a_misspelt_interface() {
    let lo = Interface { loopback: true, ..interface("lo") };
    let mut facts = Facts { interfaces: Ok(vec![lo, interface("eth1"), interface("enP1")]), ..good() };
    let no_eth0 = "error: there is no interface `eth0`; this machine has eth1, enP1\n  \
                   fix: did you mean `eth1`? Change [interfaces]";
    check(&config(""), &facts, &[no_eth0]);
    facts.interfaces = Err("permission denied".to_owned());
    check(
        &config(""),
        &facts,
        &["error: the network interfaces cannot be listed: permission denied\n  \
           fix: run this as root (sudo), in the network namespace of the router"],
    );
}

#[test]
fn a_veth_s_other_end_may_leave_work_to_hardware() {
    let facts = with_interface(|interface| interface.driver = Some("veth".to_owned()));
    check(
        &config(""),
        &facts,
        &[
            "warning: interface `eth0` is a veth: its other end may leave checksums unfinished and packets larger than the MTU (checksum and segmentation offload), and native XDP drops them (bad_checksum)\n  \
           fix: at the other end: ethtool -K DEVICE tx off tso off gso off; or write mode = \"generic\" in [interfaces] (several times slower)",
        ],
    );
}

#[test]
fn generic_mode_does_not_redirect_merged_packets() {
    let facts = Facts {
        interfaces: good().interfaces.map(|mut all| {
            let second = all.iter().find(|interface| interface.name == "eth0").cloned();
            all.extend(second.map(|eth0| Interface { name: "eth1".to_owned(), index: 9, ..eth0 }));
            all
        }),
        ..good()
    };
    let text = |firewall| {
        format!(
            "interfaces = {{ pls = \"eth0\", firewall = \"{firewall}\", mode = \"generic\" }}\n\
             masquerade = [{{ name = \"m\", sources = [\"10.0.0.0/8\"], destinations = [\"0.0.0.0/0\"] }}]\n"
        )
    };
    let findings = |firewall| {
        let loaded = Config::parse(&text(firewall), Path::new("test.toml"));
        let config = loaded.map_err(|error| error.to_string()).unwrap().config;
        findings(&config, &facts)
    };
    let is_named =
        |firewall| findings(firewall).iter().any(|one| one.text.contains("cannot go from `eth0` to `eth1`"));
    assert!(is_named("eth1"));
    assert!(!is_named("eth0"));
}

#[test]
fn alternative_interface_names_are_accepted() {
    let facts = with_interface(|interface| {
        interface.name = "ens5".to_owned();
        interface.alternative_names = vec!["enp0s5".to_owned(), "eth0".to_owned()];
    });
    check(&config(""), &facts, &[]);
    let text = "interfaces = { pls = \"eth0\", firewall = \"ens5\" }\n\
                masquerade = [{ name = \"m\", sources = [\"10.0.0.0/8\"], destinations = [\"0.0.0.0/0\"] }]\n";
    let twice =
        Config::parse(text, Path::new("test.toml")).map_err(|error| error.to_string()).unwrap().config;
    check(
        &twice,
        &facts,
        &["error: `pls` and `firewall` of [interfaces], `eth0` and `ens5`, are names of one interface\n  \
           fix: write \"eth0\" for both, or leave `firewall` out: packets then leave by the NIC that they came in by"],
    );
}

#[test]
fn a_loopback_address_is_local() {
    let lo = Interface {
        loopback: true,
        index: 1,
        addresses: vec![Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 0, 2, 68)],
        ..interface("lo")
    };
    let eth0 = Interface { addresses: vec![Ipv4Addr::new(10, 0, 2, 70)], ..interface("eth0") };
    let facts = Facts { interfaces: Ok(vec![lo, eth0]), ..good() };
    check(&config(""), &facts, &[]);
    let mut elsewhere = config("");
    elsewhere.forwards[0].listen.address = Some(Ipv4Addr::LOCALHOST);
    check(
        &elsewhere,
        &facts,
        &[
            "error: forward `https` listens at 127.0.0.1, which is not an address of this machine; it has 10.0.2.70, 10.0.2.68\n  \
           fix: change `listen`, or add the address: ip addr add 127.0.0.1/32 dev eth0",
        ],
    );
}

#[test]
fn another_versions_data_plane_is_reported() {
    let left = |directory: &str, interfaces: &[&str]| Predecessor {
        directory: directory.into(),
        interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
        sessions_move: directory.ends_with("v9"),
    };
    let predecessors = vec![
        left("/sys/fs/bpf/pls-router/v3", &[]),
        left("/sys/fs/bpf/pls-router/v5", &["eth0", "eth1"]),
        left("/sys/fs/bpf/pls-router/v9", &["eth0"]),
    ];
    check(
        &config(""),
        &Facts { predecessors, ..good() },
        &[
            "warning: another version's data plane is at /sys/fs/bpf/pls-router/v3, on no interface: `run` takes its \
             place, and its sessions are lost\n  fix: nothing, if that is intended; `pls-router detach` takes it off now",
            "warning: another version's data plane is at /sys/fs/bpf/pls-router/v5, on eth0, eth1: `run` takes its \
             place, and its sessions are lost\n  fix: nothing, if that is intended; `pls-router detach` takes it off now",
            "note: another version's data plane is at /sys/fs/bpf/pls-router/v9, on eth0: `run` takes its place, with \
             its sessions\n  fix: nothing",
        ],
    );
}

#[test]
fn directories_that_run_refuses() {
    let refused = |key, why: &str, fix: &str| Refused { key, why: why.to_owned(), fix: fix.to_owned() };
    let open = "/srv/pins may be written by others (mode 0777), who could change what is in it";
    check(
        &config(""),
        &Facts { refused: vec![refused("admin.pins", open, "chmod go-w /srv/pins")], ..good() },
        &[
            "error: admin.pins: /srv/pins may be written by others (mode 0777), who could change what is in it\n  \
           fix: chmod go-w /srv/pins",
        ],
    );
}

/// keepalived's `use_vmac`, or a container's network.
#[test]
fn macvlan_addresses_are_reported() {
    let vrrp = |address| Interface {
        index: 7,
        macvlan_above: Some(2),
        addresses: vec![address],
        ..interface("vrrp.51")
    };
    let fix =
        "fix: put the address on `eth0` itself (keepalived: without `use_vmac`), with its own MAC address";
    let eth0 = || Interface { addresses: vec![Ipv4Addr::new(10, 0, 2, 4)], ..interface("eth0") };
    let listened = Facts { interfaces: Ok(vec![eth0(), vrrp(Ipv4Addr::new(10, 0, 2, 68))]), ..good() };
    check(
        &config(""),
        &listened,
        &[&format!(
            "error: forward `https` listens at 10.0.2.68, which is on `vrrp.51`, a macvlan above `eth0`: this router does not take frames to that MAC address\n  {fix}"
        )],
    );
    let other =
        Facts { interfaces: Ok(vec![interface("eth0"), vrrp(Ipv4Addr::new(10, 0, 2, 99))]), ..good() };
    check(
        &config(""),
        &other,
        &[&format!(
            "warning: 10.0.2.99 is on `vrrp.51`, a macvlan above `eth0`: the kernel gets its packets, even where a rule listens at every address\n  {fix}"
        )],
    );
    let mut elsewhere = vrrp(Ipv4Addr::new(10, 0, 2, 99));
    elsewhere.macvlan_above = Some(3);
    check(&config(""), &Facts { interfaces: Ok(vec![interface("eth0"), elsewhere]), ..good() }, &[]);
}

#[test]
fn requirements_of_native_xdp() {
    let facts = with_interface(|eth0| {
        eth0.up = false;
        eth0.lro = Some(true);
        eth0.mtu = 9000;
        eth0.driver = Some("e1000".to_owned());
    });
    let down = "error: interface `eth0` is down\n  fix: ip link set dev eth0 up";
    check(
        &config(""),
        &facts,
        &[
            down,
            "error: interface `eth0` merges received packets (LRO), and XDP needs each as it arrived\n  \
             fix: ethtool -K eth0 lro off",
            "error: interface `eth0` has an MTU of 9000: native XDP takes at most 3506, a frame in a page\n  \
             fix: ip link set dev eth0 mtu 3506",
            "warning: interface `eth0` has the driver e1000, which is not known to run XDP programs natively\n  \
             fix: try it; if attaching fails, write mode = \"generic\" in [interfaces] (several times slower)",
        ],
    );
    let mut generic = config("");
    generic.interfaces.mode = Mode::Generic;
    check(&generic, &facts, &[down]);
    check(&config(""), &with_interface(|eth0| eth0.mtu = 3506), &[]);
}

#[test]
fn a_virtual_function_is_not_the_interface_to_name() {
    let facts = with_interface(|eth0| eth0.master = Some(("eth7".to_owned(), Some("hv_netvsc".to_owned()))));
    check(
        &config(""),
        &facts,
        &[
            "error: interface `eth0` is the SR-IOV half of `eth7`: a program on it sees only a part of the packets\n  \
           fix: write \"eth7\" in [interfaces]: it hands the program on to `eth0`",
        ],
    );
    let facts = with_interface(|eth0| eth0.master = Some(("br0".to_owned(), Some("bridge".to_owned()))));
    check(
        &config(""),
        &facts,
        &["warning: interface `eth0` is a port of `br0`: its packets are taken before `br0` sees them\n  \
           fix: take it out (ip link set dev eth0 nomaster), or name another interface"],
    );
}

fn program() -> AttachedProgram {
    AttachedProgram {
        id: 41,
        mode: Some(Mode::Native),
        name: Some("xdp_dispatcher".to_owned()),
        ours: false,
        loaded_ago: Some(Duration::from_secs(7300)),
        uid: Some(0),
        holders: vec![Process { pid: 812, name: "cilium-agent".to_owned() }],
        pins: vec![PathBuf::from("/sys/fs/bpf/xdp/link")],
    }
}

#[test]
fn another_program_is_reported_with_its_details() {
    check(
        &config(""),
        &with_interface(|eth0| eth0.programs = vec![program()]),
        &["error: interface `eth0` has another XDP program: `xdp_dispatcher`, id 41, native, \
           loaded 2 hours ago by user 0, held by cilium-agent (process 812), pinned at /sys/fs/bpf/xdp/link\n  \
           fix: stop cilium-agent (process 812); if the program stays, ip link set dev eth0 xdpdrv off"],
    );
    let unknown = AttachedProgram {
        mode: Some(Mode::Generic),
        name: None,
        loaded_ago: None,
        uid: None,
        holders: Vec::new(),
        pins: Vec::new(),
        ..program()
    };
    check(
        &config(""),
        &with_interface(|eth0| eth0.programs = vec![unknown]),
        &["error: interface `eth0` has another XDP program: id 41, generic\n  \
           fix: ip link set dev eth0 xdpgeneric off"],
    );
    let ours = AttachedProgram { ours: true, ..program() };
    check(&config(""), &with_interface(|eth0| eth0.programs = vec![ours]), &[]);
}

#[test]
fn addresses_must_be_local() {
    let mut config = config("addresses = [\"10.0.2.70\"]\n");
    config.forwards[0].targets[0].host = Host::Address(Ipv4Addr::new(10, 0, 2, 69));
    let facts = with_interface(|eth0| eth0.addresses = vec![Ipv4Addr::new(10, 0, 2, 69)]);
    check(
        &config,
        &facts,
        &[
            "error: forward `https` listens at 10.0.2.68, which is not an address of this machine; it has 10.0.2.69\n  \
             fix: change `listen`, or add the address: ip addr add 10.0.2.68/32 dev eth0",
            "error: forward `https` leads to 10.0.2.69, which is this machine itself\n  \
             fix: name another target: forwarded packets leave this machine",
            "error: `addresses` of [snat] has 10.0.2.70, which is not an address of this machine; it has 10.0.2.69: \
             no reply would come back\n  \
             fix: leave it out, or add it: ip addr add 10.0.2.70/32 dev eth0 (and to the NIC in Azure)",
        ],
    );
}

#[test]
fn an_interface_without_an_address_is_an_error() {
    let mut config = config("");
    config.forwards[0].listen.address = None;
    check(
        &config,
        &with_interface(|eth0| eth0.addresses.clear()),
        &["error: interface `eth0` has no IPv4 address to send new sessions from\n  \
           fix: give it one (ip addr add ADDRESS/PREFIX dev eth0), or write `addresses` in [snat]"],
    );
}

#[test]
fn a_taken_port() {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let nginx = Process { pid: 5, name: "nginx".to_owned() };
    let listener = |port, process| Listener { address: any, port, process, keeps_api: false };
    let facts =
        Facts { listeners: vec![listener(8082, Some(nginx.clone())), listener(9090, None)], ..good() };
    check(
        &config(""),
        &facts,
        &[
            "error: the port of the probe ([health]), 8082, is taken by nginx (process 5)\n  \
             fix: stop nginx (process 5), or change `listen`",
            "error: the port of metrics ([admin]), 9090, is taken\n  \
             fix: find it: ss -ltnp 'sport = :9090'; stop it, or change `listen`",
        ],
    );
    let daemon = Process { pid: 5, name: OWN_PROCESS.to_owned() };
    check(&config(""), &Facts { listeners: vec![listener(8082, Some(daemon))], ..good() }, &[]);
}

/// systemd has the daemon's sockets while none runs, and those of any socket unit.
#[test]
fn a_port_at_which_systemd_listens() {
    const FIX: &str = "fix: systemctl list-sockets shows the unit: stop it, or make its ListenStream= and `listen` the same";
    let [any, one] = [Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 2, 68)].map(IpAddr::V4);
    let held = |address, keeps_api| {
        let manager = Process { pid: 1, name: "systemd".to_owned() };
        Listener { address, port: 8082, process: Some(manager), keeps_api }
    };
    let judged = |listeners: Vec<Listener>, expected: &[String]| {
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        check(&config(""), &Facts { listeners, ..good() }, &expected);
    };
    let doubt = |at: &str| {
        format!(
            "warning: systemd listens at {at}: the probe ([health]) can be at 0.0.0.0:8082 only if that is for \
             pls-router\n  {FIX}"
        )
    };
    judged(vec![held(any, true)], &[]);
    judged(vec![held(any, false)], &[doubt("0.0.0.0:8082")]);
    judged(vec![held(one, true)], &[doubt("10.0.2.68:8082")]);
    let refused = format!(
        "error: systemd listens at 10.0.2.68:8082 for a socket unit, where the probe ([health]) is to be at \
         0.0.0.0:8082\n  {FIX}"
    );
    judged(vec![held(one, false)], std::slice::from_ref(&refused));
    // Each of several is told, and errors come first.
    judged(vec![held(any, false), held(one, false)], &[refused, doubt("0.0.0.0:8082")]);
}

fn ssh(ports: &[u16], session: Option<(&str, u16)>) -> Facts {
    let session = session.map(|(peer, port)| SshSession { peer: peer.parse().unwrap(), port });
    Facts { ssh: Ssh { ports: ports.to_vec(), session }, ..good() }
}

#[test]
fn closed_to_others_without_an_ssh_entry_warns() {
    let closed = config("[local]\nothers = \"closed\"\n");
    let nobody = |ports: &str, fix: &str| {
        format!(
            "warning: no client can log in by SSH ({ports}): others = \"closed\", and no entry of `allow` in [local] allows it; existing connections stay\n  fix: {fix}"
        )
    };
    let network = "write allow = [\"tcp/22 from NETWORK\"] in [local], NETWORK being the one to log in from";
    check(&closed, &ssh(&[], None), &[&nobody("port 22", network)]);
    let network =
        "write allow = [\"tcp/2222 from NETWORK\"] in [local], NETWORK being the one to log in from";
    check(&closed, &ssh(&[2222, 2223], None), &[&nobody("ports 2222, 2223", network)]);
    let peer = "write allow = [\"tcp/22 from 10.0.9.7/32\"] in [local] (where this session comes from)";
    check(&closed, &ssh(&[22], Some(("10.0.9.7", 22))), &[&nobody("port 22", peer)]);

    let entry = |entry: &str| config(&format!("[local]\nothers = \"closed\"\nallow = [\"{entry}\"]\n"));
    let network = "add \"tcp/22 from NETWORK\" to `allow` in [local], NETWORK being the one to log in from";
    for other in ["udp/22", "icmp", "tcp/23-1024"] {
        check(&entry(other), &ssh(&[22], None), &[&nobody("port 22", network)]);
    }
    for good in ["tcp/22", "tcp", "tcp/20-30 from 10.0.9.0/24"] {
        check(&entry(good), &ssh(&[22], None), &[]);
        check(&entry(good), &ssh(&[22], Some(("10.0.9.7", 22))), &[]);
    }
    check(&entry("tcp/2223"), &ssh(&[2222, 2223], None), &[]);
}

#[test]
fn rules_for_every_address_without_an_ssh_entry_warn() {
    let rules = |local: &str| {
        let mut config = config(local);
        config.forwards[0].sources = vec!["0.0.0.0/1".parse().unwrap(), "10.0.2.0/24".parse().unwrap()];
        let masquerade = "interfaces.pls = \"eth0\"\nmasquerade = [{ name = \"vnet\", sources = [\"128.0.0.0/1\"], \
                          destinations = [\"10.0.0.0/8\"] }]\n";
        config.masquerades = Config::parse(masquerade, Path::new("test.toml")).unwrap().config.masquerades;
        config
    };
    let nobody = "warning: no client can log in by SSH (port 22): the `sources` of rules are every address there is, and no entry of `allow` in [local] allows it; existing connections stay\n  \
                  fix: write allow = [\"tcp/22 from NETWORK\"] in [local], NETWORK being the one to log in from";
    check(&rules(""), &good(), &[nobody]);
    check(&rules("[local]\nallow = [\"tcp/22 from 10.0.9.0/24\"]\n"), &good(), &[]);
    let mut half = rules("");
    half.masquerades.clear();
    check(&half, &good(), &[]);
}

#[test]
fn closing_out_the_own_ssh_session_warns() {
    let closed_out = |peer: &str, why: &str, fix: &str| {
        format!(
            "warning: no client can log in by SSH (port 2222) from {peer}, where this session comes from: {why}, and no entry of `allow` in [local] allows it; this session and other existing ones stay\n  fix: {fix}"
        )
    };
    let source = ssh(&[22], Some(("10.0.2.70", 2222)));
    let in_sources = "it is in `sources` of the rule `https`";
    let write = "write allow = [\"tcp/2222 from 10.0.2.70/32\"] in [local]";
    check(&config(""), &source, &[&closed_out("10.0.2.70", in_sources, write)]);
    let allow = |allow: &str| config(&format!("[local]\n{allow}\n"));
    let add = "add \"tcp/2222 from 10.0.2.70/32\" to `allow` in [local]";
    for other in ["allow = [\"tcp/22\"]", "allow = [\"tcp/2222 from 10.0.2.64/30\"]"] {
        check(&allow(other), &source, &[&closed_out("10.0.2.70", in_sources, add)]);
    }
    check(&allow("allow = [\"tcp/2222 from 10.0.2.64/26\"]"), &source, &[]);

    let other = ssh(&[22], Some(("10.0.9.7", 2222)));
    check(&config(""), &other, &[]);
    let add = "add \"tcp/2222 from 10.0.9.7/32\" to `allow` in [local]";
    let closed = allow("others = \"closed\"\nallow = [\"tcp/22\"]");
    check(&closed, &other, &[&closed_out("10.0.9.7", "others = \"closed\"", add)]);
}

#[test]
fn ip_forward_warns() {
    check(
        &config(""),
        &Facts { ip_forward: Some(true), ..good() },
        &[
            "warning: the kernel forwards packets too (net.ipv4.ip_forward is 1): packets that this router leaves alone may be forwarded untranslated, and past its rules\n  \
           fix: sysctl -w net.ipv4.ip_forward=0, and remove it from /etc/sysctl.d; this router does not need it",
        ],
    );
}

#[test]
fn pins_need_a_bpf_file_system() {
    let mut config = config("");
    let facts = Facts { pins_on_bpffs: Some(false), ..good() };
    check(
        &config,
        &facts,
        &[
            "warning: there is no BPF file system at /sys/fs/bpf yet; systemd should have mounted one, and `run` will try to\n  \
           fix: mount -t bpf bpf /sys/fs/bpf",
        ],
    );
    config.admin.pins = PathBuf::from("/var/lib/pins");
    check(
        &config,
        &facts,
        &["error: `pins` of [admin], /var/lib/pins, is not on a BPF file system\n  \
           fix: leave `pins` out (it is below /sys/fs/bpf then), or mount one: mount -t bpf bpf DIRECTORY"],
    );
}

#[test]
fn overlapping_ports_are_reported() {
    check(&config("ports = \"1024-59999\""), &good(), &[]);
    check(
        &config("ports = \"1024-65535\""),
        &good(),
        &[
            "warning: the kernel may give this machine's own sockets the ports 32768-60999, which `ports` of [snat] gives to \
           sessions: a session or a connection of this machine may have to give way\n  \
           fix: leave at least 1000 ports of net.ipv4.ip_local_port_range out of `ports` of [snat] (without `ports`, they are chosen so)",
        ],
    );
}

#[test]
fn old_kernels_need_modules_for_own_traffic() {
    let facts = |release: &str, version| Facts {
        kernel: Some(Kernel { release: release.to_owned(), version }),
        traffic_control: Some(false),
        ..good()
    };
    check(&config(""), &facts("6.6.1", (6, 6)), &[]);
    let found = findings(&config(""), &facts("6.1.0-1", (6, 1)));
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!(finding.severity, Severity::Warning);
    assert!(finding.text.contains("6.1.0-1 lacks the module sch_ingress or cls_bpf"), "{finding}");
}

#[test]
fn an_interface_in_a_vrf_is_refused() {
    let facts = with_interface(|eth0| eth0.master = Some(("blue".to_owned(), Some("vrf".to_owned()))));
    check(
        &config(""),
        &facts,
        &[
            "error: interface `eth0` is in the VRF `blue`, which has its own routing table: this router would use the main one\n  \
           fix: take it out (ip link set dev eth0 nomaster), or name another interface",
        ],
    );
}

#[test]
fn policy_rules_that_are_not_followed_are_named() {
    let rule = |incoming: &str| PolicyRule {
        priority: 99,
        incoming: Some(incoming.to_owned()),
        mark: None,
        action: "lookup 100".to_owned(),
    };
    let facts = Facts { policy_rules: Some(vec![rule("eth0"), rule("eth7")]), ..good() };
    check(
        &config(""),
        &facts,
        &[
            "warning: policy rule 99 (iif eth0, lookup 100) is not followed: sessions may take another way than the kernel's \
           forwarding\n  \
           fix: select by from, to, ipproto, sport or dport instead (ip rule), which sessions are routed by",
        ],
    );
}

/// Two NICs, and one that the router does not work on; the target's replies come back to one of
/// them.
fn machine_of_many_interfaces() -> Facts {
    let nic = |name: &str, networks: &[&str]| {
        let networks: Vec<Ipv4Net> = networks.iter().map(|network| network.parse().unwrap()).collect();
        let addresses = networks.iter().map(Ipv4Net::addr).collect();
        Interface { networks, addresses, ..interface(name) }
    };
    let lo = Interface { loopback: true, ..nic("lo", &["127.0.0.1/8", "192.0.2.7/32"]) };
    let eth0 = nic("eth0", &["169.254.10.1/16", "192.168.5.2/24", "10.0.2.68/26", "10.0.2.70/26"]);
    let way = |gateway: [u8; 4]| Way {
        target: Ipv4Addr::new(203, 0, 113, 10),
        interface: "eth0".to_owned(),
        gateway: Some(gateway.into()),
    };
    Facts {
        interfaces: Ok(vec![lo, eth0, nic("eth1", &["10.0.3.4/26"]), nic("eth2", &["10.0.4.4/26"])]),
        ways: vec![way([10, 0, 2, 65])],
        ..good()
    }
}

#[test]
fn unroutable_snat_addresses_are_reported() {
    let facts = machine_of_many_interfaces();
    let two_nics = |address: &str| {
        let text = format!(
            "interfaces = {{ pls = \"eth0\", firewall = \"eth1\" }}\n\
             forward = [{{ name = \"https\", protocol = \"tcp\", listen = \"10.0.2.68:443\",\
             target = \"203.0.113.10\", sources = [\"10.0.2.64/26\"] }}]\n\
             snat.addresses = [\"{address}\"]"
        );
        Config::parse(&text, Path::new("test.toml")).map_err(|error| error.to_string()).unwrap().config
    };
    for good in ["10.0.2.68", "10.0.2.70", "192.0.2.7"] {
        check(&two_nics(good), &facts, &[]);
    }
    let bad = [
        (
            "10.0.3.4",
            "warning",
            "an address of `eth1`, but 203.0.113.10 is reached by `eth0`: its replies may not come back",
        ),
        (
            "10.0.4.4",
            "error",
            "an address of `eth2`, which is not an interface of the router: replies would arrive there",
        ),
        (
            "192.168.5.2",
            "warning",
            "which is not in the network of 10.0.2.65, by which 203.0.113.10 is reached: its replies may not come back",
        ),
    ];
    for (address, severity, what) in bad {
        let finding = format!(
            "{severity}: `addresses` of [snat] has {address}, {what}\n  fix: leave `addresses` of [snat] out: each session then gets the source address of its route"
        );
        check(&two_nics(address), &facts, &[&finding]);
    }
}

#[test]
fn bypassed_ipsec_and_firewall_are_reported() {
    let network = |text: &str| text.parse().unwrap();
    let chain = |name: &str, hook, rules| FirewallChain { name: name.to_owned(), hook, rules, drops: true };
    let facts = Facts {
        ipsec: Some(vec![IpsecPolicy {
            direction: "out",
            source: network("10.0.0.0/8"),
            destination: network("203.0.113.0/24"),
        }]),
        firewall: vec![
            chain("inet filter forward", Hook::Forward, Some(2)),
            chain("ip filter FORWARD (iptables-legacy)", Hook::Forward, None),
            chain("inet filter output", Hook::Output, Some(1)),
        ],
        ..good()
    };
    let fix = "fix: restrict `sources` of the rules, or filter at the firewall after this router; `nft list ruleset` shows them";
    check(
        &config(""),
        &facts,
        &[
            "warning: this machine has IPsec policies (out 10.0.0.0/8 to 203.0.113.0/24): packets that this router forwards are \
             neither encrypted nor checked by them\n  \
             fix: route traffic that needs IPsec past this router, or let the firewall do it; ip xfrm policy shows them",
            &format!(
                "warning: the host's firewall has rules for packets that the kernel forwards, inet filter forward (2 rules, \
                 policy drop), ip filter FORWARD (iptables-legacy): packets that this router forwards do not pass them\n  {fix}"
            ),
            &format!(
                "warning: the host's firewall has rules for packets that the kernel sends, inet filter output (1 rule, policy \
                 drop): packets that this router forwards do not pass them\n  {fix}"
            ),
        ],
    );
}

/// Checks what is said of these services by IPv6, on a machine whose interfaces all have IPv6
/// addresses.
#[track_caller]
fn check_ipv6(config: &Config, services: &[(Protocol, u16)], expected: &[&str]) {
    let names = ["eth0", "eth1"];
    let process = || Some(Process { pid: 7, name: "server".to_owned() });
    let service =
        |(protocol, port): &(Protocol, u16)| Service { protocol: *protocol, port: *port, process: process() };
    let facts = Facts {
        interfaces: Ok(names.map(interface).into()),
        ipv6: Ipv6 {
            interfaces: names.map(str::to_owned).into(),
            services: services.iter().map(service).collect(),
        },
        ..good()
    };
    let said: Vec<String> = findings(config, &facts)
        .into_iter()
        .filter(|finding| finding.text.contains("by IPv6"))
        .map(|finding| format!("{}: {}", finding.severity, finding.text))
        .collect();
    assert_eq!(said, expected);
}

#[test]
fn ipv6_services_are_listed() {
    const SSH: (Protocol, u16) = (Protocol::Tcp, 22);
    const SNMP: (Protocol, u16) = (Protocol::Udp, 161);
    const HEALTH: (Protocol, u16) = (Protocol::Tcp, 8082);
    check_ipv6(&config(""), &[], &[]);
    let nobody = "note: by IPv6 on eth0, no other machine reaches tcp/22 (server), udp/161 (server)";
    check_ipv6(&config(""), &[SSH, SNMP], &[nobody]);
    let allow = "[local]\nallow = [\"tcp/22\", \"tcp/22 from fd00:9::/64\", \"tcp/20-23 from fe80::/10\"]\n";
    let by_name = "note: by IPv6 on eth0, no other machine reaches udp/161 (server), and tcp/22 (server) is reached from \
                   fd00:9::/64 and fe80::/10";
    check_ipv6(&config(allow), &[SSH, SNMP], &[by_name]);
    check_ipv6(
        &config(""),
        &[HEALTH],
        &["note: by IPv6 on eth0, no other machine reaches tcp/8082 (server)"],
    );
    let probe = "note: by IPv6 on eth0, tcp/8082 (server) is reached from everywhere";
    check_ipv6(&config("[health]\nlisten = \"[::]:8082\"\n"), &[HEALTH], &[probe]);
    let two = |local: &str| {
        let mut config = config(local);
        config.interfaces.firewall = "eth1".to_owned();
        config
    };
    let closed = "note: by IPv6 on eth0, no other machine reaches tcp/22 (server)";
    let open = "note: by IPv6 on eth1, anyone on that link reaches tcp/22 (server)";
    check_ipv6(&two(""), &[SSH], &[closed, open]);
    let both = "note: by IPv6 on eth0, eth1, no other machine reaches tcp/22 (server)";
    check_ipv6(&two("[local]\nothers = \"closed\"\n"), &[SSH], &[both]);
}

#[test]
fn a_session_by_ipv6_is_closed_out_unless_it_is_allowed() {
    let session = ssh(&[22], Some(("fd00:9::7", 22)));
    check(
        &config(""),
        &session,
        &[
            "warning: no client can log in by SSH (port 22) from fd00:9::7, where this session comes from: IPv6 is closed \
           on `eth0`, where clients come in, and no entry of `allow` in [local] allows it; this session and other existing ones stay\n  fix: write allow = [\"tcp/22 from fd00:9::7/128\"] in [local]",
        ],
    );
    for (allow, is_good) in
        [("tcp/22 from fd00:9::/64", true), ("tcp/22", false), ("tcp/22 from 0.0.0.0/0", false)]
    {
        let found = findings(&config(&format!("[local]\nallow = [\"{allow}\"]\n")), &session);
        assert_eq!(found.is_empty(), is_good, "{allow}: {found:?}");
    }
}
