//! Decides which sessions are old: the rules in force would not open them.
//!
//! A session is old if its rule is gone, does not listen where its client sent to, or has not got
//! its client among its sources or its target among its targets. A name that stands for other
//! addresses by now makes no session old, so names stand for any address, except in rules whose
//! targets are known to have changed.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
};

use ipnet::{IpNet, Ipv4Net};
use router_common::tuple::Protocol;

use crate::{
    config::{Config, Forward, Host, Masquerade},
    daemon::{control::desired, names::resolved::Names},
    dataplane::Session,
};

/// The forwards whose targets have changed while they had sessions, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes(HashSet<String>);

impl Changes {
    /// Returns these changes and those from one configuration to another. `has_sessions` returns
    /// `true` for a name that a rule may have had earlier.
    pub(crate) fn and(&self, now: &Config, wanted: &Config, has_sessions: impl Fn(&str) -> bool) -> Self {
        let has_changed = |rule: &&Forward| {
            self.0.contains(&rule.name)
                || match now.forwards.iter().find(|before| before.name == rule.name) {
                    // Where all targets of before stay, so do their sessions.
                    Some(before) => before.targets.iter().any(|target| !rule.targets.contains(target)),
                    None => has_sessions(&rule.name),
                }
        };
        Self(wanted.forwards.iter().filter(has_changed).map(|rule| rule.name.clone()).collect())
    }

    /// Forgets all of them: there are no old sessions any more.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The ends of a session, as rules name them.
#[derive(Clone, Copy, Debug)]
struct Ends {
    protocol: Protocol,
    client: Ipv4Addr,
    listen: (Ipv4Addr, u16),
    target: (Ipv4Addr, u16),
}

/// A rule, as far as it says which sessions it opens.
#[derive(Clone, Debug)]
enum Rule {
    Forward {
        protocol: Protocol,
        /// `None` is any address.
        address: Option<Ipv4Addr>,
        ports: RangeInclusive<u16>,
        sources: Vec<Ipv4Net>,
        /// No address is any, no port is the client's.
        targets: Vec<(Option<Ipv4Addr>, Option<u16>)>,
    },
    Masquerade {
        sources: Vec<Ipv4Net>,
        destinations: Vec<Ipv4Net>,
    },
}

impl Rule {
    fn of_forward(rule: &Forward, names: &Names, has_changed: bool) -> Self {
        let target = |(host, (address, port)): (&Host, desired::Target)| {
            let is_exact = has_changed || matches!(host, Host::Address(_));
            (is_exact.then_some(address), port)
        };
        let mut targets: Vec<_> = desired::with_hosts(rule, names).map(target).collect();
        if !has_changed {
            // Also those that stand for no address now.
            let is_name = |host: &Host| matches!(host, Host::Name(_));
            let by_name = rule.targets.iter().filter(|target| is_name(&target.host));
            targets.extend(by_name.map(|target| (None, target.port)));
        }
        targets.sort_unstable();
        targets.dedup();
        Self::Forward {
            protocol: rule.protocol,
            address: rule.listen.address,
            ports: rule.listen.ports.clone(),
            sources: rule.sources.clone(),
            targets,
        }
    }

    fn of_masquerade(rule: &Masquerade) -> Self {
        Self::Masquerade { sources: rule.sources.clone(), destinations: rule.destinations.clone() }
    }

    /// Returns `true` if it would open a session with these ends.
    fn opens(&self, ends: &Ends) -> bool {
        match self {
            Self::Forward { protocol, address, ports, sources, targets } => {
                let ((listen, port), (target, target_port)) = (ends.listen, ends.target);
                *protocol == ends.protocol
                    && address.is_none_or(|address| address == listen)
                    && ports.contains(&port)
                    && contain(sources, ends.client)
                    && targets.iter().any(|(address, own_port)| {
                        address.is_none_or(|address| address == target)
                            && own_port.unwrap_or(port) == target_port
                    })
            }
            Self::Masquerade { sources, destinations } => {
                // Otherwise it was opened by a forward of this name.
                ends.listen == ends.target
                    && contain(sources, ends.client)
                    && contain(destinations, ends.target.0)
            }
        }
    }
}

/// Tells old sessions from others.
pub(crate) struct Judge {
    /// The rules in force by number; `None` for those that are gone.
    rules: Vec<Option<Rule>>,
}

impl Judge {
    /// Makes one for a configuration and the changes of its rules, whose names by number these are.
    pub(crate) fn new(config: &Config, names: &Names, changes: &Changes, numbers: &[Option<String>]) -> Self {
        let rule = |name: &Option<String>| {
            let name = name.as_ref()?;
            let forward = config.forwards.iter().find(|rule| rule.name == *name);
            let masquerade = config.masquerades.iter().find(|rule| rule.name == *name);
            forward
                .map(|rule| Rule::of_forward(rule, names, changes.0.contains(name)))
                .or_else(|| masquerade.map(Rule::of_masquerade))
        };
        Self { rules: numbers.iter().map(rule).collect() }
    }

    /// Returns `true` if a session is old.
    pub(crate) fn is_old(&self, session: &Session) -> bool {
        let Some(protocol) = session.protocol() else { return false };
        let (key, to) = (&session.forward.key, &session.forward.entry.rewrite);
        let ends = Ends {
            protocol,
            client: key.source.into(),
            listen: (key.destination.into(), key.destination_port.number()),
            target: (to.destination.into(), to.destination_port.number()),
        };
        self.is_old_for(session.forward.rule(), &ends)
    }

    fn is_old_for(&self, number: u16, ends: &Ends) -> bool {
        self.rules.get(usize::from(number)).and_then(Option::as_ref).is_none_or(|rule| !rule.opens(ends))
    }
}

fn contain(networks: &[Ipv4Net], address: Ipv4Addr) -> bool {
    networks.iter().any(|network| IpNet::V4(*network).contains(&IpAddr::V4(address)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::daemon::names::resolved::Resolved;

    fn config(target: &str, more: &str) -> Config {
        let text = format!(
            "[interfaces]\npls = \"eth0\"\n[[forward]]\nname = \"web\"\nprotocol = \"tcp\"\nlisten = \"443\"\n\
             target = {target}\nsources = [\"10.0.2.64/26\"]\n{more}"
        );
        Config::parse(&text, Path::new("test.toml")).expect("a configuration").config
    }

    const SESSION: Ends = Ends {
        protocol: Protocol::Tcp,
        client: Ipv4Addr::new(10, 0, 2, 69),
        listen: (Ipv4Addr::new(10, 0, 2, 68), 443),
        target: (Ipv4Addr::new(203, 0, 113, 10), 443),
    };

    /// Returns `true` if [`SESSION`] is old after reloads from one configuration to the next.
    fn is_old(configs: &[Config], names: &Names, rule: &str) -> bool {
        let mut changes = Changes::default();
        for pair in configs.windows(2) {
            changes = changes.and(&pair[0], &pair[1], |name| name == rule);
        }
        let config = configs.last().expect("a configuration");
        Judge::new(config, names, &changes, &[Some(rule.to_owned())]).is_old_for(0, &SESSION)
    }

    #[test]
    fn sessions_of_a_rule_are_old_if_it_would_not_open_them() {
        let now = config("\"203.0.113.10\"", "");
        let old = |wanted: Config| is_old(&[now.clone(), wanted], &Names::new(), "web");
        assert!(!old(now.clone()));
        assert!(!old(config("[\"203.0.113.10\", \"203.0.113.11\"]", "")), "it has its target");
        assert!(!old(config("\"203.0.113.10\"", "mss = 1400\n")));
        assert!(!old(config("\"203.0.113.10:443\"", "")), "the same in other words");
        assert!(old(config("\"203.0.113.11\"", "")));
        assert!(old(config("\"203.0.113.10:8443\"", "")));
        let mut other = now.clone();
        other.forwards[0].sources = vec!["10.0.2.70/32".parse().expect("a network")];
        assert!(old(other.clone()));
        other.forwards[0].sources = vec!["10.0.2.0/24".parse().expect("a network")];
        assert!(!old(other.clone()));
        other.forwards[0].listen.ports = 400..=450;
        assert!(!old(other.clone()));
        other.forwards[0].listen.ports = 444..=450;
        assert!(old(other.clone()));
        other.forwards[0].listen = now.forwards[0].listen.clone();
        other.forwards[0].protocol = Protocol::Udp;
        assert!(old(other.clone()));
        other.forwards[0].name = "renamed".to_owned();
        assert!(old(other), "its rule is gone");
    }

    #[test]
    fn a_name_that_moves_makes_no_session_old() {
        let now = config("\"db.example.com\"", "");
        let names: Names = [("db.example.com".to_owned(), Resolved::of(vec![[10, 1, 0, 7].into()]))].into();
        let mut wanted = now.clone();
        wanted.forwards[0].mss = None;
        wanted.forwards[0].listen.ports = 443..=444;
        assert!(!is_old(&[now.clone(), wanted], &names, "web"));
        let other = config("\"other.example.com\"", "");
        assert!(is_old(&[now, other], &names, "web"));
    }

    #[test]
    fn what_has_changed_earlier_counts_until_it_is_cut() {
        let (one, two) = (config("\"203.0.113.10\"", ""), config("\"203.0.113.11\"", ""));
        let none = Names::new();
        assert!(is_old(&[one.clone(), two.clone(), two.clone()], &none, "web"));
        assert!(!is_old(&[one.clone(), two.clone(), one.clone()], &none, "web"), "it has its target again");
        let mut gone = two.clone();
        gone.forwards[0].name = "other".to_owned();
        assert!(is_old(&[one.clone(), gone.clone(), two], &none, "web"), "another rule of its name");
        assert!(!is_old(&[one.clone(), gone, one], &none, "web"));
    }

    /// A daemon that starts has not seen what has changed before.
    #[test]
    fn changes_of_before_a_start_count_as_far_as_rules_tell() {
        let names: Names = [("db.example.com".to_owned(), Resolved::of(vec![[10, 1, 0, 7].into()]))].into();
        let old = |wanted: Config| is_old(&[wanted], &names, "web");
        assert!(old(config("\"203.0.113.11\"", "")));
        assert!(old(config("[\"203.0.113.10:8443\", \"203.0.113.11\"]", "")));
        assert!(!old(config("\"203.0.113.10\"", "")));
        assert!(!old(config("\"db.example.com\"", "")), "the name may have had its address");
        assert!(!old(config("[\"203.0.113.11\", \"unresolved.example.com\"]", "")));
        assert!(old(config("\"db.example.com:8443\"", "")), "at another port");
        let mut other = config("\"203.0.113.10\"", "");
        other.forwards[0].sources = vec!["10.0.2.70/32".parse().expect("a network")];
        assert!(old(other.clone()));
        other.forwards[0].name = "renamed".to_owned();
        assert!(old(other));
        // A forward becomes a masquerade.
        let vnet = "[[masquerade]]\nname = \"vnet\"\nsources = [\"10.0.2.0/24\"]\n\
                    destinations = [\"0.0.0.0/0\"]\n";
        assert!(is_old(&[config("\"203.0.113.10\"", vnet)], &names, "vnet"));
    }

    #[test]
    fn masquerades_keep_sessions_within_their_networks() {
        let vnet = |sources: &str, destinations: &str| {
            config(
                "\"203.0.113.10\"",
                &format!(
                    "[[masquerade]]\nname = \"vnet\"\nsources = [\"{sources}\"]\ndestinations = [\"{destinations}\"]\n"
                ),
            )
        };
        let session = Ends { listen: SESSION.target, ..SESSION };
        let old = |wanted: Config| {
            Judge::new(&wanted, &Names::new(), &Changes::default(), &[Some("vnet".to_owned())])
                .is_old_for(0, &session)
        };
        assert!(!old(vnet("10.0.2.64/26", "203.0.113.0/24")));
        assert!(old(vnet("10.0.3.0/24", "0.0.0.0/0")));
        assert!(old(vnet("10.0.2.0/24", "198.51.100.0/24")));
    }
}
