//! Chooses the session that a rule is tested with: only one that must come out, so that whatever
//! else happens is a fault of the programs.

use std::{collections::HashMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use router_common::{
    address::{Ipv4, Mac, Port},
    maps::{
        route::{Answer, Query},
        settings::Settings,
    },
    ports::{PoolKey, PortRange},
    tuple::Protocol,
};

use super::packet::{CLIENT_PORT, End};
use crate::{daemon::kernel::netlink::OwnAddresses, dataplane::RuleSetSpec};

/// The most clients that are tried for a rule: each costs a look-up of its route.
const MAX_CLIENTS: usize = 8;
/// The port of a masquerade's target ("discard"). Nothing gets there.
const DISCARD: u16 = 9;
/// Above this share of the SNAT ports for a target, a new session may find none.
const CROWDED_PERCENT: u64 = 80;
/// In no real client's network unless that is all of IPv4: TEST-NET-2 (RFC 5737).
const OF_NOBODY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// `BPF_FIB_LKUP_RET_SUCCESS`, include/uapi/linux/bpf.h.
const SUCCESS: i32 = 0;

/// A rule that can be tested.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) name: String,
    protocol: Protocol,
    sources: Vec<Ipv4Net>,
    /// The address that it listens on; `None` for any of this machine.
    listen: Option<Ipv4Addr>,
    /// The port that it listens on; 0 for a masquerade, which keeps the destination.
    port: u16,
    targets: Vec<End>,
}

/// Returns the names of the rules that are tested: the forwards, or else the masquerades.
pub(super) fn rules(spec: &RuleSetSpec) -> Vec<String> {
    let forwards = spec.forwards.iter().map(|forward| forward.name.clone());
    let masquerades = spec.masquerades.iter().map(|masquerade| masquerade.name.clone());
    if spec.forwards.is_empty() { masquerades.collect() } else { forwards.collect() }
}

impl Rule {
    /// Returns the rule with this name among those in force, which need not be those that names and
    /// targets' health call for now. `known` are targets that next hops are known of, each with its
    /// rules: those of a masquerade.
    pub(super) fn of<'a>(
        spec: &RuleSetSpec,
        mut known: impl Iterator<Item = (Ipv4Addr, &'a [String])>,
        name: &str,
    ) -> Option<Self> {
        let name = name.to_owned();
        if let Some(forward) = spec.forwards.iter().find(|forward| forward.name == name) {
            let port = forward.ports.first;
            let target = |(address, own): &(Ipv4Addr, Option<u16>)| (*address, own.unwrap_or(port));
            return Some(Self {
                name,
                protocol: forward.protocol,
                sources: forward.sources.clone(),
                listen: forward.address,
                port,
                targets: forward.targets.iter().map(target).collect(),
            });
        }
        let masquerade = spec.masquerades.iter().find(|masquerade| masquerade.name == name)?;
        let target = known.find(|(_, rules)| rules.contains(&name)).map(|(target, _)| (target, DISCARD));
        Some(Self {
            name,
            protocol: Protocol::Tcp,
            sources: masquerade.sources.clone(),
            listen: None,
            port: 0,
            targets: target.into_iter().collect(),
        })
    }
}

/// The machine at one moment.
pub(super) struct View<'a> {
    pub(super) own: &'a OwnAddresses,
    /// As the daemon has written them.
    pub(super) settings: &'a Settings,
    /// The neighbours on the interface that clients come in by.
    pub(super) neighbours: &'a [Ipv4Addr],
    /// The SNAT addresses of the rules in force; empty for those of routes.
    pub(super) snat: &'a [Ipv4Addr],
    pub(super) ports: PortRange,
    /// SNAT ports that are in use.
    pub(super) taken: &'a HashMap<PoolKey, u32>,
    /// The number of half-open sessions of a source.
    pub(super) half_open: &'a dyn Fn(Ipv4) -> u32,
}

/// A session to test with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Trial {
    pub(super) rule: String,
    pub(super) protocol: Protocol,
    pub(super) client: Ipv4Addr,
    /// The destination of the client's packets.
    pub(super) listen: End,
    /// The targets that it may get.
    pub(super) targets: Vec<Target>,
    /// The addresses that it may come from; empty for those that the ways name.
    pub(super) snat: Vec<Ipv4Addr>,
    /// The ports that it may come from.
    pub(super) ports: PortRange,
    /// The interface that the client's packets come in by: its index and MAC address.
    pub(super) entry: (u32, Mac),
}

/// A target that a session may get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Target {
    pub(super) end: End,
    /// The way there.
    pub(super) way: Way,
    /// The way from there to the client, which may be another one from each target; `None` if its
    /// next hop's MAC address is not known. Then only packets of the client are tested.
    pub(super) back: Option<Way>,
}

/// The way by which a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Way {
    /// The interface's slot, index and MAC address.
    pub(super) slot: u32,
    pub(super) interface: u32,
    pub(super) mac: Mac,
    /// The next hop's MAC address.
    pub(super) next_hop: Mac,
    /// The preferred source address.
    pub(super) source: Ipv4Addr,
}

impl View<'_> {
    /// Returns a session to test a rule with, or why it cannot be tested now: then its sessions may
    /// fail with programs that are right. `ask` asks for a route as packets do.
    ///
    /// # Errors
    /// Returns why there is none, for people.
    pub(super) fn trial(
        &self,
        rule: &Rule,
        ask: &mut dyn FnMut(&Query) -> Option<Answer>,
    ) -> Result<Trial, &'static str> {
        let door = self.settings.interface(0);
        if !door.mac.is_set() || door.primary == 0 {
            return Err("the interface that clients come in by is not known");
        }
        let Some(first) = rule.targets.first() else { return Err("there is no target") };
        let listen = if rule.port == 0 {
            *first
        } else {
            let own = Ipv4Addr::from(door.address);
            let address = rule.listen.unwrap_or(own);
            if !self.own.own.contains(&address) || self.own.broadcast.contains(&address) {
                return Err("this machine does not have the address that the rule listens on");
            }
            (address, rule.port)
        };
        if rule.targets.iter().any(|target| self.is_crowded(rule.protocol, *target)) {
            return Err("most SNAT ports for its target are in use");
        }
        if !self.snat.iter().all(|address| self.own.own.contains(address)) {
            return Err("this machine does not have all SNAT addresses");
        }
        let clients: Vec<Ipv4Addr> = self.clients(rule, listen.0).take(MAX_CLIENTS).collect();
        let mut back = |target, client| self.way(rule.protocol, target, (client, CLIENT_PORT), ask);
        let known = clients.iter().find(|client| back(*first, **client).is_some());
        let Some(&client) = known.or(clients.first()) else {
            return Err("no address of its sources can be used");
        };
        let target = |end: &End| {
            Some(Target {
                end: *end,
                way: self.way(rule.protocol, (client, CLIENT_PORT), *end, ask)?,
                back: self.way(rule.protocol, *end, (client, CLIENT_PORT), ask),
            })
        };
        let Some(targets) = rule.targets.iter().map(target).collect::<Option<Vec<_>>>() else {
            return Err("a next hop is not there");
        };
        let is_own = |target: &Target| self.own.own.contains(&target.way.source);
        if self.snat.is_empty() && !targets.iter().all(is_own) {
            return Err("a route has no source address");
        }
        Ok(Trial {
            rule: rule.name.clone(),
            protocol: rule.protocol,
            client,
            listen,
            targets,
            snat: self.snat.to_vec(),
            ports: self.ports,
            entry: (door.primary, door.mac),
        })
    }

    /// Returns addresses that clients of a rule may have, the best first: neighbours, whose MAC
    /// addresses are known, and then any. Those of sources with many half-open sessions are left
    /// alone, since one more could take the place of a real one.
    fn clients(&self, rule: &Rule, listen: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> {
        let is_source = |address: &Ipv4Addr| rule.sources.iter().any(|network| network.contains(address));
        let neighbours = self.neighbours.iter().copied().filter(is_source);
        // A few of each, since the first may be this machine's own.
        let of_networks = rule.sources.iter().flat_map(|network| network.hosts().take(3));
        let nobody = is_source(&OF_NOBODY).then_some(OF_NOBODY);
        neighbours.chain(of_networks).chain(nobody).filter(move |address| {
            let ipv4 = Ipv4::from(*address);
            ipv4.is_host()
                && ipv4 != router_common::address::AZURE_PLATFORM
                && *address != listen
                && self.own.no_target(*address).is_none()
                && (self.half_open)(ipv4) < self.settings.half_open_per_source / 2
        })
    }

    /// Returns the way of a packet, if there is one out of an interface of the router, and the next
    /// hop is known.
    fn way(
        &self,
        protocol: Protocol,
        source: End,
        destination: End,
        ask: &mut dyn FnMut(&Query) -> Option<Answer>,
    ) -> Option<Way> {
        let end = |(address, port): End| (Ipv4::from(address), Port::new(port));
        let answer = ask(&Query::new(protocol as u8, 0, end(source), end(destination)))?;
        if answer.code != SUCCESS || !answer.mac.is_set() {
            return None;
        }
        let slot = self.settings.egress_slot(answer.neighbour.interface)?;
        let interface = self.settings.interface(slot);
        Some(Way {
            slot,
            interface: interface.primary,
            mac: interface.mac,
            next_hop: answer.mac,
            source: answer.source.into(),
        })
    }

    fn is_crowded(&self, protocol: Protocol, (address, port): End) -> bool {
        let (target, target_port) = (Ipv4::from(address), Port::new(port));
        self.taken.iter().any(|(pool, taken)| {
            (pool.target, pool.target_port, pool.protocol) == (target, target_port, protocol as u8)
                && u64::from(*taken) * 100 > u64::from(self.ports.size()) * CROWDED_PERCENT
        })
    }
}

#[cfg(test)]
mod tests {
    use router_common::maps::{punt::Neighbour, settings::Interface};

    use super::*;
    use crate::dataplane::{ForwardSpec, LocalSpec, MasqueradeSpec};

    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 68);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 70);
    const TARGET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
    const MAC: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
    const NEXT: Mac = Mac::new([2, 0, 0, 0, 0, 9]);
    const OTHER_TARGET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
    const OTHER_NEXT: Mac = Mac::new([2, 0, 0, 0, 0, 8]);

    fn rule() -> Rule {
        Rule {
            name: "https".to_owned(),
            protocol: Protocol::Tcp,
            sources: vec!["10.0.2.64/26".parse().expect("a network")],
            listen: None,
            port: 443,
            targets: vec![(TARGET, 8443)],
        }
    }

    fn settings() -> Settings {
        let interface = Interface { primary: 2, address: ROUTER.into(), mac: MAC, ..Interface::default() };
        Settings {
            interfaces: [interface, Interface::default()],
            half_open_per_source: 64,
            ..Settings::default()
        }
    }

    /// Plans with this view; `known` are the addresses whose next hop is known.
    fn plan(
        change: impl FnOnce(&mut Rule, &mut Settings),
        known: &[Ipv4Addr],
        half_open: u32,
    ) -> Result<Trial, &'static str> {
        let (mut rule, mut settings) = (rule(), settings());
        change(&mut rule, &mut settings);
        let own = OwnAddresses { own: [ROUTER].into(), broadcast: [Ipv4Addr::new(10, 0, 2, 127)].into() };
        let pool = PoolKey {
            snat: ROUTER.into(),
            target: TARGET.into(),
            target_port: Port::new(8443),
            protocol: Protocol::Udp as u8,
            zero: 0,
        };
        let view = View {
            own: &own,
            settings: &settings,
            neighbours: &[Ipv4Addr::new(10, 9, 9, 9), ROUTER, CLIENT],
            snat: &[],
            ports: PortRange { first: 1024, last: 2023 },
            taken: &[(pool, 900)].into(),
            half_open: &|_| half_open,
        };
        view.trial(&rule, &mut |query| {
            let address = Ipv4Addr::from(query.destination);
            let is_known = known.contains(&address);
            // From the other target, the way to a client is by another gateway.
            let next = if Ipv4Addr::from(query.source) == OTHER_TARGET { OTHER_NEXT } else { NEXT };
            Some(Answer {
                code: if is_known { SUCCESS } else { 7 },
                neighbour: Neighbour::new(2, address.into()),
                source: ROUTER.into(),
                kernel_gave_source: true,
                mac: if is_known { next } else { Mac::new([0; 6]) },
            })
        })
    }

    #[test]
    fn a_rule_is_tested_as_it_is_in_force() {
        let all = PortRange { first: 0, last: u16::MAX };
        let forward = ForwardSpec {
            name: "web".to_owned(),
            protocol: Protocol::Udp,
            address: Some(ROUTER),
            ports: PortRange { first: 8000, last: 8010 },
            targets: vec![(TARGET, None), (OTHER_TARGET, Some(53))],
            sources: rule().sources,
            mss: 0,
        };
        let masquerade = MasqueradeSpec {
            name: "vnet".to_owned(),
            sources: rule().sources,
            destinations: vec![Ipv4Net::default()],
            mss: 0,
        };
        let mut spec = RuleSetSpec {
            forwards: vec![forward],
            masquerades: vec![masquerade],
            snat: vec![],
            ports: all,
            reject_exhausted: false,
            reject_unreachable: false,
            local: LocalSpec::default(),
        };
        assert_eq!(rules(&spec), ["web"]);
        let wanted = Rule {
            name: "web".to_owned(),
            protocol: Protocol::Udp,
            sources: rule().sources,
            listen: Some(ROUTER),
            port: 8000,
            targets: vec![(TARGET, 8000), (OTHER_TARGET, 53)],
        };
        assert_eq!(Rule::of(&spec, std::iter::empty(), "web"), Some(wanted));
        assert_eq!(Rule::of(&spec, std::iter::empty(), "gone"), None);
        spec.forwards.clear();
        assert_eq!(rules(&spec), ["vnet"]);
        let of_rules = ["vnet".to_owned()];
        let known = [(OTHER_TARGET, &[][..]), (TARGET, &of_rules[..])];
        let vnet = Rule::of(&spec, known.into_iter(), "vnet").expect("a rule");
        assert_eq!((vnet.port, vnet.targets), (0, vec![(TARGET, DISCARD)]));
    }

    #[test]
    fn each_target_has_its_own_way_back() {
        let two = |rule: &mut Rule, _: &mut Settings| rule.targets.push((OTHER_TARGET, 443));
        let trial = plan(two, &[TARGET, OTHER_TARGET, CLIENT], 0).expect("a trial");
        let next_hops = |target: &Target| (target.end.0, target.back.map(|way| way.next_hop));
        let back: Vec<_> = trial.targets.iter().map(next_hops).collect();
        assert_eq!(back, [(TARGET, Some(NEXT)), (OTHER_TARGET, Some(OTHER_NEXT))]);
    }

    #[test]
    fn a_client_is_a_neighbour_that_may_use_the_rule() {
        let trial = plan(|_, _| {}, &[TARGET, CLIENT], 0).expect("a trial");
        assert_eq!((trial.client, trial.listen), (CLIENT, (ROUTER, 443)));
        let way = Way { slot: 0, interface: 2, mac: MAC, next_hop: NEXT, source: ROUTER };
        assert_eq!(trial.targets, [Target { end: (TARGET, 8443), way, back: Some(way) }]);
    }

    #[test]
    fn without_a_known_client_its_own_packets_are_tested() {
        let trial = plan(|_, _| {}, &[TARGET], 0).expect("a trial");
        assert_eq!((trial.client, trial.targets[0].back), (CLIENT, None));
        let anyone = |rule: &mut Rule, _: &mut Settings| rule.sources = vec![Ipv4Net::default()];
        let trial = plan(anyone, &[TARGET, OF_NOBODY], 0).expect("a trial");
        assert_eq!(trial.client, OF_NOBODY, "its way back is known");
    }

    #[test]
    fn what_other_conditions_are_about_is_not_tested() {
        let refused = |change: fn(&mut Rule, &mut Settings), known: &[Ipv4Addr], half_open| {
            plan(change, known, half_open).err()
        };
        assert_eq!(refused(|_, _| {}, &[CLIENT], 0), Some("a next hop is not there"));
        assert_eq!(refused(|rule, _| rule.targets.clear(), &[TARGET], 0), Some("there is no target"));
        assert_eq!(refused(|_, _| {}, &[TARGET], 32), Some("no address of its sources can be used"));
        let elsewhere = |rule: &mut Rule, _: &mut Settings| rule.listen = Some(CLIENT);
        assert!(refused(elsewhere, &[TARGET], 0).is_some_and(|why| why.contains("listens")));
        let crowded = |rule: &mut Rule, _: &mut Settings| rule.protocol = Protocol::Udp;
        assert_eq!(refused(crowded, &[TARGET], 0), Some("most SNAT ports for its target are in use"));
        let no_mac = |_: &mut Rule, settings: &mut Settings| settings.interfaces[0].mac = Mac::new([0; 6]);
        assert!(refused(no_mac, &[TARGET], 0).is_some());
    }

    #[test]
    fn a_masquerade_keeps_the_destination() {
        let change = |rule: &mut Rule, _: &mut Settings| {
            rule.port = 0;
            rule.targets = vec![(TARGET, DISCARD)];
        };
        let trial = plan(change, &[TARGET, CLIENT], 0).expect("a trial");
        assert_eq!(trial.listen, (TARGET, DISCARD));
    }
}
