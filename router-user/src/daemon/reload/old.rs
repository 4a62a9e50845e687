//! Decides which sessions are old: the rules in force would not open them.
//!
//! Of a rule that has changed, a session is old if the rule no longer listens where its client sent
//! to, no longer has its client among its sources, or no longer has its target. Only what has
//! changed is looked at, so a name that stands for other addresses by now makes no session old.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};
use router_common::tuple::Protocol;

use crate::{
    config::{Config, Forward, Masquerade},
    daemon::{control::desired, names::resolved::Names},
    dataplane::Session,
};

/// What has changed of a rule while it had sessions.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Changed {
    listen: bool,
    sources: bool,
    /// A forward's targets, or a masquerade's destinations.
    targets: bool,
}

impl Changed {
    const ALL: Self = Self { listen: true, sources: true, targets: true };

    fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen || other.listen,
            sources: self.sources || other.sources,
            targets: self.targets || other.targets,
        }
    }
}

/// The changes of rules whose sessions go on, by the rules' names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes(HashMap<String, Changed>);

impl Changes {
    /// Returns these changes and those from one configuration to another. `has_sessions` returns
    /// `true` for a name that a rule may have had earlier.
    pub(crate) fn and(&self, now: &Config, wanted: &Config, has_sessions: impl Fn(&str) -> bool) -> Self {
        let mut all = self.0.clone();
        let mut add = |name: &str, changed: Changed| {
            if changed != Changed::default() {
                let known = all.entry(name.to_owned()).or_default();
                *known = known.or(changed);
            }
        };
        for rule in &wanted.forwards {
            match now.forwards.iter().find(|before| before.name == rule.name) {
                Some(before) => add(&rule.name, of_forward(before, rule)),
                None if has_sessions(&rule.name) => add(&rule.name, Changed::ALL),
                None => {}
            }
        }
        for rule in &wanted.masquerades {
            match now.masquerades.iter().find(|before| before.name == rule.name) {
                Some(before) => add(&rule.name, of_masquerade(before, rule)),
                None if has_sessions(&rule.name) => add(&rule.name, Changed::ALL),
                None => {}
            }
        }
        Self(all)
    }

    /// Forgets all of them: there are no old sessions any more.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

fn of_forward(before: &Forward, after: &Forward) -> Changed {
    Changed {
        listen: (before.protocol, &before.listen) != (after.protocol, &after.listen),
        sources: before.sources != after.sources,
        // Where all targets of before stay, so do their sessions.
        targets: before.targets.iter().any(|target| !after.targets.contains(target)),
    }
}

fn of_masquerade(before: &Masquerade, after: &Masquerade) -> Changed {
    Changed {
        listen: false,
        sources: before.sources != after.sources,
        targets: before.destinations != after.destinations,
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

/// Tells old sessions from others.
pub(crate) struct Judge<'a> {
    pub(crate) config: &'a Config,
    pub(crate) names: &'a Names,
    pub(crate) changes: &'a Changes,
    /// The names of rules by number.
    pub(crate) numbers: Arc<Vec<Option<String>>>,
}

impl Judge<'_> {
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
        let name = self.numbers.get(usize::from(session.forward.rule())).and_then(Option::as_ref);
        // A number without a name is of a rule that is gone.
        name.is_none_or(|name| self.is_old_for(name, &ends))
    }

    fn is_old_for(&self, name: &str, ends: &Ends) -> bool {
        let changed = self.changes.0.get(name).copied().unwrap_or_default();
        if let Some(rule) = self.config.forwards.iter().find(|rule| rule.name == name) {
            let is_target =
                |(address, port): &desired::Target| (*address, port.unwrap_or(ends.listen.1)) == ends.target;
            let (address, port) = ends.listen;
            let listens = rule.protocol == ends.protocol
                && rule.listen.address.is_none_or(|listen| listen == address)
                && rule.listen.ports.contains(&port);
            return changed.listen && !listens
                || changed.sources && !contain(&rule.sources, ends.client)
                || changed.targets && !desired::targets(rule, self.names).iter().any(is_target);
        }
        match self.config.masquerades.iter().find(|rule| rule.name == name) {
            Some(rule) => {
                changed.sources && !contain(&rule.sources, ends.client)
                    || changed.targets && !contain(&rule.destinations, ends.target.0)
                    // It was a forward.
                    || changed.listen && ends.listen.0 != ends.target.0
            }
            None => true,
        }
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
        Judge { config, names, changes: &changes, numbers: Arc::default() }.is_old_for(rule, &SESSION)
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
        let now = vnet("10.0.2.0/24", "0.0.0.0/0");
        let old = |wanted: Config| is_old(&[now.clone(), wanted], &Names::new(), "vnet");
        assert!(!old(vnet("10.0.2.64/26", "203.0.113.0/24")));
        assert!(old(vnet("10.0.3.0/24", "0.0.0.0/0")));
        assert!(old(vnet("10.0.2.0/24", "198.51.100.0/24")));
    }
}
