//! The way that sessions take and their source addresses, by the kernel's own routes and rules.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::ensure;
use lab::{
    Lab, Nics, Options,
    addresses::{ECHO_PORT, ENDPOINT, FIREWALL_ONE_NIC, PLS_NAT, PLS_SUBNET, ROUTER},
    client::{Tcp, Udp},
    rules, wait,
};
use router_user::model::{Flow, Status};

use crate::common::{ECHO, LIMIT, check, helper, in_lab, only_pls_router, router};

/// A gateway that is not there.
const UNUSED: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 99);
/// An address that the router's NIC or the firewall gets besides.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 90);
/// The time that a gateway may be dead before that is noticed: it is asked every two seconds, three
/// times in three seconds.
const NOTICED: Duration = Duration::from_secs(20);

fn one_nic(test: fn(&mut Lab)) {
    in_lab(Nics::One, true, test);
}

/// A connection to the echo service, used once.
#[track_caller]
fn talk(lab: &Lab) {
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"hello", LIMIT));
}

/// Waits until `status` has the daemon agree with `is_so`.
#[track_caller]
fn wait_for(lab: &Lab, what: &str, limit: Duration, is_so: impl Fn(&Status) -> bool) -> Status {
    check(wait::until(what, limit, || {
        let status = lab.pls_router_status()?;
        ensure!(is_so(&status), "{status:#?}");
        Ok(status)
    }))
}

/// The sources of a rule's sessions.
#[track_caller]
fn sources(lab: &Lab, rule: &str) -> Vec<std::net::IpAddr> {
    let flows: Vec<Flow> = check(lab.pls_router_json(&["flows", "--rule", rule]));
    let mut sources: Vec<_> = flows.iter().map(|flow| flow.snat.ip()).collect();
    sources.dedup();
    sources
}

/// Everything leads elsewhere but what goes to the service's port.
fn a_rule_by_port_leads_to_the_firewall(lab: &mut Lab) {
    check(lab.hosts.router.ip(&format!(
        "neigh replace {UNUSED} lladdr 02:00:00:00:00:99 dev eth0 nud permanent\n\
         route replace default via {UNUSED}\n\
         route add default via {FIREWALL_ONE_NIC} table 100\n\
         rule add ipproto tcp dport {ECHO_PORT} lookup 100\n\
         rule add ipproto udp dport {ECHO_PORT} lookup 100"
    )));
    talk(lab);
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(udp.echo(b"hello", LIMIT));
}

#[test]
fn policy_rules_by_port_hold() {
    in_lab(Nics::One, false, a_rule_by_port_leads_to_the_firewall);
}

#[test]
fn status_reports_the_routes_that_sessions_take() {
    one_nic(|lab| {
        a_rule_by_port_leads_to_the_firewall(lab);
        let via = |status: &Status, rule: &str| {
            let next_hop = status.next_hops.iter().find(|hop| hop.rules.iter().any(|one| one == rule));
            next_hop.and_then(|hop| hop.via)
        };
        wait_for(lab, "the router to see the rules", LIMIT, |status| {
            via(status, "echo-tcp") == Some(FIREWALL_ONE_NIC.into())
                && via(status, "https") == Some(UNUSED.into())
        });
    });
}

#[test]
fn policy_rules_that_do_not_apply_to_sessions_are_reported() {
    one_nic(|lab| {
        let named = |status: &Status| {
            status
                .degraded
                .iter()
                .any(|reason| reason.starts_with("policy rule 99 (iif eth0, lookup 100) is not followed: "))
        };
        assert!(!named(&check(lab.pls_router_status())));
        check(lab.hosts.router.ip("rule add iif eth0 lookup 100 priority 99"));
        let status = wait_for(lab, "the rule to be named", LIMIT, named);
        assert!(status.healthy, "{status:#?}");
        let said = String::from_utf8_lossy(&check(lab.pls_router(&["check"])).stdout).into_owned();
        assert!(said.contains("warning: policy rule 99 (iif eth0, lookup 100) is not followed"), "{said}");
        check(lab.hosts.router.ip("rule del priority 99"));
        wait_for(lab, "the rule to be forgotten", LIMIT, |status| !named(status));
    });
}

#[test]
fn firewall_and_ipsec_rules_for_forwarded_packets_are_reported() {
    one_nic(|lab| {
        let said = || String::from_utf8_lossy(&check(lab.pls_router(&["check"])).stdout).into_owned();
        let before = said();
        assert!(!before.contains("IPsec") && !before.contains("host's firewall"), "{before}");
        check(lab.hosts.router.nft(
            "table inet host {\n\
             chain forward { type filter hook forward priority 0; policy drop; ct state established accept; }\n\
             chain output { type filter hook output priority 0; policy accept; }\n\
             }",
        ));
        let policy = "xfrm policy add src 10.0.0.0/8 dst 203.0.113.0/24 dir out \
                      tmpl src 10.0.2.68 dst 10.0.2.66 proto esp mode tunnel";
        check(lab.hosts.router.ip(policy));
        let after = said();
        for finding in [
            "the host's firewall has rules for packets that the kernel forwards, inet host forward (1 rule, policy drop)",
            "this machine has IPsec policies (out 10.0.0.0/8 to 203.0.113.0/24)",
        ] {
            assert!(after.contains(finding), "no \"{finding}\" in {after}");
        }
        assert!(!after.contains("host output"), "it lets everything through: {after}");
        talk(lab);
    });
}

/// The NIC has a link-local address first, as some images have, and one of another network.
#[test]
fn sessions_come_from_the_gateways_network() {
    one_nic(|lab| {
        check(lab.hosts.router.ip(&format!(
            "addr flush dev eth0\n\
             addr add 169.254.10.1/16 dev eth0 scope link\n\
             addr add 192.168.5.2/24 dev eth0\n\
             addr add {ROUTER}/26 dev eth0\n\
             route add default via {FIREWALL_ONE_NIC}"
        )));
        wait_for(lab, "the router to see its addresses", LIMIT, |status| {
            status.healthy && status.snat_addresses == [ROUTER]
        });
        talk(lab);
        assert_eq!(sources(lab, "echo-tcp"), [ROUTER]);
    });
}

#[test]
fn sessions_come_from_the_source_of_their_route() {
    one_nic(|lab| {
        talk(lab);
        check(lab.hosts.router.ip(&format!(
            "addr add {SECOND}/26 dev eth0\n\
             route replace default via {FIREWALL_ONE_NIC} src {SECOND}"
        )));
        let status = wait_for(lab, "the router to see the route", LIMIT, |status| {
            status.snat_addresses == [SECOND] || !status.degraded.is_empty()
        });
        if status.snat_addresses != [SECOND] {
            let untold = format!("the route to 0.0.0.0/0 has the source {SECOND}");
            assert!(status.degraded.iter().any(|reason| reason.starts_with(&untold)), "{status:#?}");
            return;
        }
        talk(lab);
        let mut sources = sources(lab, "echo-tcp");
        sources.sort_unstable();
        assert_eq!(sources, [ROUTER, SECOND], "a session that has begun stays as it is");
    });
}

/// One of two NICs faces the clients, and a target as well.
#[test]
fn sessions_come_from_the_nic_that_they_leave_by() {
    const PORT: u16 = 7100;
    only_pls_router();
    let mut options = Options::new(Nics::Two, router(), helper());
    let near = format!(
        "[[forward]]\nname = \"near\"\nprotocol = \"udp\"\nlisten = \"{PORT}\"\ntarget = \"{}:{PORT}\"\n\
         sources = [\"{PLS_SUBNET}\"]\n",
        PLS_NAT[1]
    );
    options.rules = format!("{near}\n{}", rules());
    let lab = check(Lab::up(options));
    let udp = check(Udp::open(&lab.hosts.serverless, (ENDPOINT, PORT).into()));
    check(wait::until("a session", LIMIT, || {
        udp.send(b"hello")?;
        let flows: Vec<Flow> = lab.pls_router_json(&["flows", "--rule", "near"])?;
        ensure!(!flows.is_empty(), "none yet");
        Ok(())
    }));
    assert_eq!(sources(&lab, "near"), [ROUTER]);
    talk(&lab);
    assert_eq!(sources(&lab, "echo-tcp"), [lab::addresses::ROUTER_SECOND]);
    let status = check(lab.pls_router_status());
    assert_eq!(status.snat_addresses, [ROUTER, lab::addresses::ROUTER_SECOND]);
}

#[test]
fn a_dead_gateway_is_left_out_until_it_answers() {
    one_nic(|lab| {
        let Lab { hosts, .. } = &*lab;
        for name in ["fib_multipath_use_neigh", "fib_multipath_hash_policy"] {
            check(hosts.router.sysctl(&format!("net/ipv4/{name}"), "1"));
        }
        check(hosts.firewall.ip(&format!("addr add {SECOND}/32 dev vnet")));
        check(hosts.router.ip(&format!(
            "nexthop add id 1 via {FIREWALL_ONE_NIC} dev eth0\n\
             nexthop add id 2 via {SECOND} dev eth0\n\
             nexthop add id 3 group 1/2\n\
             route replace default nhid 3"
        )));
        let many = || (0..20).for_each(|_| talk(lab));
        many();
        let is_named = |status: &Status| {
            let named = format!("one gateway of a multipath route, {SECOND}, does not answer ARP on eth0: ");
            status.degraded.iter().any(|reason| reason.starts_with(&named))
        };
        check(hosts.firewall.ip(&format!("addr del {SECOND}/32 dev vnet")));
        let status = wait_for(lab, "the dead gateway to be named", NOTICED, is_named);
        assert!(status.healthy, "{status:#?}");
        many();
        check(hosts.firewall.ip(&format!("addr add {SECOND}/32 dev vnet")));
        wait_for(lab, "the gateway to be back", NOTICED, |status| !is_named(status));
        many();
    });
}

#[test]
fn ipv4_sessions_use_an_ipv6_gateway() {
    one_nic(|lab| {
        let Lab { hosts, .. } = &*lab;
        check(hosts.firewall.sysctl("net/ipv6/conf/vnet/disable_ipv6", "0"));
        check(hosts.router.sysctl("net/ipv6/conf/eth0/disable_ipv6", "0"));
        check(hosts.firewall.ip("addr add fe80::66/64 dev vnet nodad"));
        check(hosts.router.ip("addr add fe80::68/64 dev eth0 nodad"));
        check(
            hosts
                .router
                .run("ip", &["-4", "route", "replace", "default", "via", "inet6", "fe80::66", "dev", "eth0"]),
        );
        let gateway: std::net::IpAddr = "fe80::66".parse().expect("an address");
        wait_for(lab, "the gateway to answer", NOTICED, |status| {
            status.healthy && status.next_hops.iter().all(|hop| hop.via == Some(gateway) && hop.resolved)
        });
        talk(lab);
        assert_eq!(sources(lab, "echo-tcp"), [ROUTER]);
    });
}
