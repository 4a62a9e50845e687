//! The contents of one bank of the rule maps, as a rule set has it.
//!
//! All of it is computed before anything is written, so that what is in the maps already can be
//! told from what has to be written.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use ipnet::{IpNet, Ipv4Net};
use router_common::{
    address::{Ipv4, Ipv6},
    limits::{MAX_LOCAL_ALLOW, MAX_MASQUERADES, MAX_RULES, MAX_SNAT_ADDRESSES, MAX_TARGETS},
    local::Allow,
    maps::rules::{
        Ipv6Network, ListenKey, Masquerade, NAME_LENGTH, Network, Rule, RuleSet, SourceKey, Target,
        listen_prefixes,
    },
};

use super::spec::{ForwardSpec, LocalAllowSpec, RuleSetSpec};

/// The contents of one bank.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bank {
    pub(super) rule_set: RuleSet,
    /// By number.
    pub(super) rules: Vec<Rule>,
    pub(super) masquerades: Vec<Masquerade>,
    pub(super) local_allow: Vec<Allow<Network>>,
    pub(super) local_allow_ipv6: Vec<Allow<Ipv6Network>>,
    /// Rule numbers by prefix length and key.
    pub(super) listeners: HashMap<(u32, ListenKey), u32>,
    /// By prefix length and key.
    pub(super) sources: HashMap<(u32, SourceKey), u32>,
}

impl Bank {
    /// Returns what the bank of a version has to hold for a rule set, whose rules have the numbers
    /// of their `names`.
    ///
    /// # Errors
    /// Returns an error if the rule set does not fit.
    pub(super) fn new(spec: &RuleSetSpec, names: &[Option<String>], version: u32) -> Result<Self> {
        let mut numbers: HashMap<&str, u16> = HashMap::new();
        for (position, name) in names.iter().enumerate() {
            if let Some(name) = name {
                numbers.insert(name, u16::try_from(position)?);
            }
        }
        let number = |name: &str| numbers.get(name).copied().context("a rule has no number");
        let mut rules = vec![Rule::EMPTY; MAX_RULES];
        for (rule, name) in rules.iter_mut().zip(names) {
            if let Some(name) = name {
                set_name(rule, name)?;
            }
        }
        let (mut listeners, mut sources) = (HashMap::new(), HashMap::new());
        for forward in &spec.forwards {
            let number = number(&forward.name)?;
            let rule = place(&mut rules, number)?;
            rule.mss = forward.mss;
            set_targets(rule, forward)?;
            let address = forward.address.map(Ipv4::from);
            let prefixes = listen_prefixes(version, forward.protocol, address, forward.ports);
            listeners.extend(prefixes.map(|prefix| (prefix, u32::from(number))));
            sources.extend(forward.sources.iter().map(|network| source(version, number, network)));
        }
        let mut masquerades = Vec::new();
        for masquerade in &spec.masquerades {
            let number = number(&masquerade.name)?;
            place(&mut rules, number)?.mss = masquerade.mss;
            for source in &masquerade.sources {
                masquerades.extend(masquerade.destinations.iter().map(|destination| Masquerade {
                    source: network(source),
                    destination: network(destination),
                    rule: number.into(),
                }));
            }
        }
        if masquerades.len() > MAX_MASQUERADES {
            bail!("more than {MAX_MASQUERADES} pairs of source and destination in [[masquerade]] rules");
        }
        let of_masquerades = spec.masquerades.iter().flat_map(|masquerade| &masquerade.sources);
        let all_sources = spec.forwards.iter().flat_map(|forward| &forward.sources).chain(of_masquerades);
        sources.extend(all_sources.map(|network| source(version, SourceKey::ANY_RULE, network)));
        if spec.local.allow.len() > MAX_LOCAL_ALLOW {
            bail!("more than {MAX_LOCAL_ALLOW} entries in local.allow");
        }
        let (mut local_allow, mut local_allow_ipv6) = (Vec::new(), Vec::new());
        for allow in &spec.local.allow {
            match allow.from {
                IpNet::V4(from) => local_allow.push(entry(allow, network(&from))),
                IpNet::V6(from) => {
                    let from = Ipv6Network::new(Ipv6(from.network().octets()), from.prefix_len());
                    local_allow_ipv6.push(entry(allow, from));
                }
            }
        }
        let counts = [masquerades.len(), local_allow.len(), local_allow_ipv6.len()];
        let rule_set = rule_set(spec, counts)?;
        Ok(Self { rule_set, rules, masquerades, local_allow, local_allow_ipv6, listeners, sources })
    }
}

fn place(rules: &mut [Rule], number: u16) -> Result<&mut Rule> {
    rules.get_mut(usize::from(number)).context("a rule has a number without a place")
}

fn source(version: u32, rule: u16, network: &Ipv4Net) -> ((u32, SourceKey), u32) {
    let key = SourceKey::new(version, rule, network.network().into());
    ((SourceKey::prefix(network.prefix_len()), key), 1)
}

fn entry<N>(allow: &LocalAllowSpec, from: N) -> Allow<N> {
    let LocalAllowSpec { protocol, ports, .. } = allow;
    Allow { from, first: ports.first, last: ports.last, protocol: (*protocol).into() }
}

fn rule_set(spec: &RuleSetSpec, counts: [usize; 3]) -> Result<RuleSet> {
    if spec.snat.len() > MAX_SNAT_ADDRESSES {
        bail!("more than {MAX_SNAT_ADDRESSES} SNAT addresses");
    }
    let mut snat = [Ipv4::default(); MAX_SNAT_ADDRESSES];
    for (slot, address) in snat.iter_mut().zip(&spec.snat) {
        *slot = (*address).into();
    }
    let [masquerades, local_allow, local_allow_ipv6] = counts;
    Ok(RuleSet {
        snat,
        snat_count: u32::try_from(spec.snat.len())?,
        ports: spec.ports,
        masquerade_count: u32::try_from(masquerades)?,
        local_allow_count: u32::try_from(local_allow)?,
        local_allow_ipv6_count: u32::try_from(local_allow_ipv6)?,
        others_are_closed: spec.local.others_are_closed.into(),
        health_port: spec.local.health_port.into(),
        health_port_ipv6: if spec.local.health_by_ipv6 { spec.local.health_port.into() } else { 0 },
        ephemeral: spec.local.ephemeral,
        reject_exhausted: u32::from(spec.reject_exhausted),
        reject_unreachable: u32::from(spec.reject_unreachable),
    })
}

fn set_targets(rule: &mut Rule, forward: &ForwardSpec) -> Result<()> {
    // A name may have more addresses than there is room for: the first ones serve.
    for (slot, (address, port)) in rule.targets.iter_mut().zip(&forward.targets) {
        *slot = Target::new((*address).into(), *port);
    }
    rule.target_count = u16::try_from(forward.targets.len().min(MAX_TARGETS))?;
    Ok(())
}

fn set_name(rule: &mut Rule, name: &str) -> Result<()> {
    if name.len() > NAME_LENGTH {
        bail!("the rule name `{name}` is longer than {NAME_LENGTH} bytes");
    }
    rule.name[..name.len()].copy_from_slice(name.as_bytes());
    Ok(())
}

fn network(network: &Ipv4Net) -> Network {
    Network::new(network.network().into(), network.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::{
        super::spec::{LocalSpec, MasqueradeSpec},
        *,
    };
    use router_common::{ports::PortRange, tuple::Protocol};

    fn forward(name: &str, port: u16, target: u8) -> ForwardSpec {
        ForwardSpec {
            name: name.to_owned(),
            protocol: Protocol::Tcp,
            address: None,
            ports: PortRange { first: port, last: port },
            targets: vec![([203, 0, 113, target].into(), Some(443))],
            sources: vec!["10.0.2.64/26".parse().expect("a network")],
            mss: 0,
        }
    }

    fn spec() -> RuleSetSpec {
        let network = |text: &str| vec![text.parse().expect("a network")];
        RuleSetSpec {
            forwards: vec![forward("web", 443, 1), forward("dns", 53, 2)],
            masquerades: vec![MasqueradeSpec {
                name: "vnet".to_owned(),
                sources: network("10.0.2.64/26"),
                destinations: network("0.0.0.0/0"),
                mss: 1400,
            }],
            snat: Vec::new(),
            ports: PortRange { first: 1024, last: 65535 },
            reject_exhausted: true,
            reject_unreachable: true,
            local: LocalSpec {
                allow: Vec::new(),
                others_are_closed: false,
                health_port: 8082,
                health_by_ipv6: false,
                ephemeral: PortRange { first: 1, last: 0 },
            },
        }
    }

    fn bank(spec: &RuleSetSpec) -> Bank {
        let names: Vec<_> = ["web", "dns", "vnet"].map(|name| Some(name.to_owned())).into();
        Bank::new(spec, &names, 1).expect("it fits")
    }

    #[test]
    fn another_target_is_another_entry_and_nothing_else() {
        let (before, mut changed) = (bank(&spec()), spec());
        changed.forwards[1].targets = vec![([203, 0, 113, 9].into(), None)];
        let after = bank(&changed);
        let differing: Vec<usize> =
            (0..MAX_RULES).filter(|number| before.rules[*number] != after.rules[*number]).collect();
        assert_eq!(differing, [1]);
        assert_eq!(Bank { rules: before.rules.clone(), ..after }, before);
    }

    #[test]
    fn a_source_of_several_rules_is_one_key_of_all_rules() {
        let bank = bank(&spec());
        // Of each forward, and of all rules together.
        assert_eq!(bank.sources.len(), 3);
        assert_eq!((bank.masquerades.len(), bank.rules[2].mss), (1, 1400));
        assert_eq!(
            bank.listeners.values().copied().collect::<std::collections::BTreeSet<_>>(),
            [0, 1].into()
        );
    }

    #[test]
    fn rules_that_do_not_fit_are_refused() {
        let mut spec = spec();
        spec.masquerades[0].destinations = vec![spec.masquerades[0].destinations[0]; MAX_MASQUERADES + 1];
        let names: Vec<_> = ["web", "dns", "vnet"].map(|name| Some(name.to_owned())).into();
        assert!(Bank::new(&spec, &names, 1).is_err());
        assert!(Bank::new(&self::spec(), &[], 1).is_err(), "no rule has a number");
    }
}
