//! Interfaces that come and go under the running router, and what they may be called.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lab::{
    Lab, Namespace, Nics, Options,
    addresses::{
        ECHO_PORT, FIREWALL_ONE_NIC, FIREWALL_TWO_NICS, PLATFORM, PLS_GATEWAY, PLS_NAT, ROUTER,
        ROUTER_SECOND, SSH_PORT, VNET,
    },
    client::{self, Tcp},
    link::{self, XdpPass},
    wait,
};

use crate::{
    common::{ECHO, LIMIT, check, counters, helper, only_pls_router, reason, router},
    lifecycle::{attached, without_router},
    starts::start_with,
};

/// The time that the router may take to go on after everything is there again: neighbours have to
/// be asked, and the balancer has to see it.
const RECOVERY: Duration = Duration::from_secs(10);

fn lab(nics: Nics) -> Lab {
    only_pls_router();
    check(Lab::up(Options::new(nics, router(), helper())))
}

/// A NIC of the router, with its wire.
struct Nic {
    device: &'static str,
    /// The other end, a port of this switch.
    port: &'static str,
    bridge: &'static str,
    address: Ipv4Addr,
    routes: String,
}

/// The NIC that faces the Private Link Service; with one NIC, the firewall as well.
fn pls_nic(nics: Nics) -> Nic {
    let mut routes = format!("route add {VNET} via {PLS_GATEWAY}\nroute add {PLATFORM} via {PLS_GATEWAY}\n");
    if nics == Nics::One {
        routes.push_str(&format!("route add default via {FIREWALL_ONE_NIC}\n"));
    }
    Nic { device: "eth0", port: "router", bridge: "br0", address: ROUTER, routes }
}

fn firewall_nic() -> Nic {
    let routes = format!("route add default via {FIREWALL_TWO_NICS}\n");
    Nic { device: "eth1", port: "router1", bridge: "br1", address: ROUTER_SECOND, routes }
}

impl Nic {
    fn mac(&self, lab: &Lab) -> String {
        let path = format!("/sys/class/net/{}/address", self.device);
        check(lab.hosts.router.run("cat", &[&path])).trim().to_owned()
    }

    fn remove(&self, lab: &Lab) {
        check(lab.hosts.router.ip(&format!("link del {}", self.device)));
    }

    /// Makes it again under this name, as a driver that is loaded again does; without its address.
    fn make(&self, lab: &Lab, name: &str) {
        let vnet = &lab.hosts.vnet;
        check(link::wire((&lab.hosts.router, name), (vnet, self.port)));
        check(check(XdpPass::load(lab.state())).attach(vnet, self.port));
        check(vnet.ip(&format!("link set {} master {}", self.port, self.bridge)));
    }

    fn configure(&self, lab: &Lab) {
        let Self { device, address, routes, .. } = self;
        check(lab.hosts.router.ip(&format!("addr add {address}/26 dev {device}\n{routes}")));
    }
}

/// Waits until the router takes new sessions. For the moment until it has read the address and the
/// MAC address that a NIC has just got, packets to them are this machine's own, whose kernel
/// refuses them.
#[track_caller]
fn new_sessions_open(lab: &Lab) {
    check(wait::until("a new session", RECOVERY, || {
        Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)?.echo(b"new", LIMIT)
    }));
}

/// The probe says why, then the interface comes back, first without its address, and the router
/// goes on by itself.
#[track_caller]
fn goes_on_when_it_is_back(nics: Nics, nic: &Nic, keeps_mac: bool) {
    let mut lab = lab(nics);
    let mut known = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(known.echo(b"before", LIMIT));
    let mac = nic.mac(&lab);
    nic.remove(&lab);
    let gone = format!("{}: the interface was removed", nic.device);
    check(wait::until("the reason", LIMIT, || {
        let status = lab.pls_router_status()?;
        ensure!(!status.healthy && status.reasons.iter().any(|reason| reason.contains(&gone)), "{status:#?}");
        let interface = status.interfaces.iter().find(|interface| interface.name == nic.device);
        ensure!(interface.is_some_and(|interface| !interface.attached), "{status:#?}");
        Ok(())
    }));
    nic.make(&lab, nic.device);
    if keeps_mac {
        check(lab.hosts.router.ip(&format!("link set {} address {mac}", nic.device)));
    }
    check(wait::until("the program to be back", LIMIT, || {
        attached(&lab, nic.device).context("nothing is attached")
    }));
    if nic.routes.contains("default") {
        let status = check(lab.pls_router_status());
        assert!(!status.healthy, "without an address and a route: {status:#?}");
    }
    nic.configure(&lab);
    check(lab.wait_in_service(RECOVERY));
    new_sessions_open(&lab);
    check(known.echo(b"after", LIMIT));
    let status = check(lab.pls_router_status());
    let repairs = status.repairs.iter().find(|repairs| repairs.name == nic.device);
    assert!(repairs.is_some_and(|repairs| repairs.count == 1 && repairs.problem.is_empty()), "{status:#?}");
    let log = check(lab.router()).output();
    let said = format!("{} was removed and is there again; the program is attached again", nic.device);
    assert_eq!(log.matches(&said).count(), 1, "{log}");
    // And again: the repair has not used anything up.
    nic.remove(&lab);
    nic.make(&lab, nic.device);
    check(lab.hosts.router.ip(&format!("link set {} address {mac}", nic.device)));
    nic.configure(&lab);
    check(wait::until("the second repair", RECOVERY, || {
        let status = lab.pls_router_status()?;
        let repairs = status.repairs.iter().find(|repairs| repairs.name == nic.device);
        ensure!(status.healthy && repairs.is_some_and(|repairs| repairs.count == 2), "{status:#?}");
        Ok(())
    }));
    check(lab.wait_in_service(RECOVERY));
    new_sessions_open(&lab);
    check(known.echo(b"again", LIMIT));
}

#[test]
fn the_only_nic_is_removed_and_made_again() {
    goes_on_when_it_is_back(Nics::One, &pls_nic(Nics::One), true);
}

#[test]
fn the_nic_to_the_clients_is_removed_and_made_again() {
    goes_on_when_it_is_back(Nics::Two, &pls_nic(Nics::Two), true);
}

#[test]
fn the_nic_to_the_firewall_is_removed_and_made_again_with_another_mac_address() {
    goes_on_when_it_is_back(Nics::Two, &firewall_nic(), false);
}

/// To a container and back: the program stays on the interface, but the kernel forgets where
/// packets are redirected to.
#[test]
fn an_interface_comes_back_from_another_namespace() {
    let lab = lab(Nics::Two);
    let nic = firewall_nic();
    let elsewhere = check(Namespace::create(&format!("{}-elsewhere", lab.hosts.router.name())));
    check(lab.hosts.router.ip(&format!("link set eth1 netns {}", elsewhere.name())));
    check(lab.wait_out_of_service(LIMIT));
    let (_, body) = check(lab.health());
    assert!(body.contains("eth1: the interface was removed"), "{body}");
    check(elsewhere.ip(&format!("link set eth1 netns {}", lab.hosts.router.name())));
    check(lab.hosts.router.ip("link set eth1 up"));
    nic.configure(&lab);
    check(lab.wait_in_service(RECOVERY));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"back", LIMIT));
}

#[test]
fn a_renamed_interface_is_followed_until_another_has_its_name() {
    let mut lab = lab(Nics::Two);
    let nic = firewall_nic();
    let mut known = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(
        lab.hosts
            .router
            .ip(&format!("link set eth1 down\nlink set eth1 name ens5\nlink set ens5 up\n{}", nic.routes)),
    );
    check(wait::until("a condition", LIMIT, || {
        let status = lab.pls_router_status()?;
        let is_told =
            |text: &String| text.contains("interface eth1 is called ens5 now") && text.contains("fix:");
        ensure!(status.healthy && status.degraded.iter().any(is_told), "{status:#?}");
        Ok(())
    }));
    check(known.echo(b"renamed", LIMIT));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"new", LIMIT));

    // The name counts, if there is one.
    check(lab.hosts.router.ip("link set ens5 down\naddr flush dev ens5"));
    check(lab.hosts.vnet.ip("link set router1 name router2\nlink set router2 nomaster"));
    nic.make(&lab, "eth1");
    nic.configure(&lab);
    check(lab.wait_in_service(RECOVERY));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"another", LIMIT));
    assert_eq!(attached(&lab, "ens5"), None);
    // The daemon may have read the routes a moment before they were there again.
    check(wait::until("all to be well", RECOVERY, || {
        let status = lab.pls_router_status()?;
        ensure!(status.healthy && status.degraded.is_empty(), "{status:#?}");
        Ok(())
    }));
    let log = check(lab.router()).output();
    assert!(
        log.contains("eth1: another interface has this name now; the program is attached again"),
        "{log}"
    );
}

#[test]
fn an_interface_is_known_by_its_alternative_name() {
    let lab = without_router();
    check(lab.hosts.router.ip("link property add dev eth0 altname enp1s0"));
    let configuration = lab.configuration(&lab.options.rules).replace("\"eth0\"", "\"enp1s0\"");
    let mut daemon = check(start_with(&lab, "altname.toml", configuration));
    check(daemon.wait_until(LIMIT * 2, || lab.in_service()?.then_some(()).context("not in service")));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"hello", LIMIT));
    // And when the interface has been made again, too.
    let nic = pls_nic(Nics::One);
    let mac = nic.mac(&lab);
    nic.remove(&lab);
    check(lab.wait_out_of_service(LIMIT));
    nic.make(&lab, "eth0");
    check(
        lab.hosts
            .router
            .ip(&format!("link set eth0 address {mac}\nlink property add dev eth0 altname enp1s0")),
    );
    nic.configure(&lab);
    check(lab.wait_in_service(RECOVERY));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"again", LIMIT));
    assert!(check(daemon.terminate(LIMIT * 2)).success());
    assert!(attached(&lab, "eth0").is_some());
}

/// A load balancer's floating IP (direct server return): its frontend's address is on the loopback
/// of every machine behind it.
#[test]
fn a_rule_listens_at_an_address_of_the_loopback() {
    const FLOATING: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
    let mut lab = without_router();
    check(lab.hosts.router.ip(&format!("addr add {FLOATING}/32 dev lo")));
    check(lab.hosts.pls.ip(&format!("route add {FLOATING}/32 via {ROUTER}")));
    let rules = lab.options.rules.clone();
    let listen = format!("listen = \"{ECHO_PORT}\"");
    assert_eq!(rules.matches(&listen).count(), 2);
    lab.set_rules(rules.replace(&listen, &format!("listen = \"{FLOATING}:{ECHO_PORT}\"")));
    check(lab.start_router());
    let target = SocketAddrV4::new(FLOATING, ECHO_PORT);
    let mut tcp = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], target, LIMIT));
    check(tcp.echo(b"hello", LIMIT));
    // It is this machine's own: neither masqueraded nor open.
    let before = reason(&counters(&lab), "local_denied");
    let ssh = SocketAddrV4::new(FLOATING, SSH_PORT);
    let refused =
        check(lab.hosts.pls.inside(|| client::connect_from(PLS_NAT[0], ssh, Duration::from_millis(300))));
    assert!(refused.is_err());
    let counters = counters(&lab);
    assert!(reason(&counters, "local_denied") > before, "{counters:#?}");
    assert_eq!(crate::common::rule(&counters, "vnet").sessions_opened, 0, "{counters:#?}");
}

/// Frames to a macvlan's MAC address come to the NIC below, and are not this router's.
#[test]
fn check_reports_a_macvlan_above_the_nic() {
    const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 71);
    let mut lab = without_router();
    check(lab.hosts.router.ip(&format!(
        "link add vrrp.51 link eth0 address 00:00:5e:00:01:33 type macvlan mode bridge\n\
         addr add {VIRTUAL}/32 dev vrrp.51\n\
         link set vrrp.51 up"
    )));
    check(lab.start_router());
    let says = |lab: &Lab| check(lab.pls_router(&["check"]));
    let output = says(&lab);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("warning: 10.0.2.71 is on `vrrp.51`, a macvlan above `eth0`"), "{text}");
    let rules = lab.options.rules.replacen("listen = \"443\"", &format!("listen = \"{VIRTUAL}:443\""), 1);
    check(lab.state().write("config.toml", lab.configuration(&rules)));
    let output = says(&lab);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("listens at 10.0.2.71, which is on `vrrp.51`"), "{text}");
}
