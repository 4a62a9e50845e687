//! Putting a configuration's rules in force.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    maps::{Array, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use ipnet::{IpNet, Ipv4Net};
use router_common::{
    address::{Ipv4, Ipv6},
    limits::{MAX_LOCAL_ALLOW, MAX_MASQUERADES, MAX_RULES, MAX_SNAT_ADDRESSES, MAX_TARGETS},
    local::{Allow, allow_index},
    maps::rules::{
        Ipv6Network, ListenKey, Masquerade, NAME_LENGTH, Network, Rule, RuleSet, SourceKey, Target, bank,
        listen_prefixes, masquerade_index, rule_index,
    },
    ports::PortRange,
    tuple::Protocol,
};

use super::{object::take, settings::SettingsTable};

/// A configuration's rules with every name resolved: what the programs are to do.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleSetSpec {
    /// The `[[forward]]` rules.
    pub forwards: Vec<ForwardSpec>,
    /// The `[[masquerade]]` rules.
    pub masquerades: Vec<MasqueradeSpec>,
    /// The addresses that new sessions get.
    pub snat: Vec<Ipv4Addr>,
    /// The ports that new sessions get.
    pub ports: PortRange,
    /// Whether a client is told when none of them is free.
    pub reject_exhausted: bool,
    /// Whether clients are told when their packets cannot be forwarded.
    pub reject_unreachable: bool,
    /// What of this machine itself can be reached.
    pub local: LocalSpec,
}

/// What of this machine itself can be reached by those who may use a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalSpec {
    /// What is allowed by name.
    pub allow: Vec<LocalAllowSpec>,
    /// Whether everybody else is held to it, too.
    pub others_are_closed: bool,
    /// The port of the health probe, which everybody reaches.
    pub health_port: u16,
    /// `true` if it is answered by IPv6.
    pub health_by_ipv6: bool,
    /// The ports that the kernel gives to this machine's own sockets
    /// (`net.ipv4.ip_local_port_range`).
    pub ephemeral: PortRange,
}

/// Something that is allowed.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalAllowSpec {
    /// The IP protocol number; of ICMP, echo requests are meant.
    pub protocol: u8,
    /// The ports; 0 to 65535 for a protocol without ports.
    pub ports: PortRange,
    /// From where.
    pub from: IpNet,
}

/// A `[[forward]]` rule.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardSpec {
    /// Its name.
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address it listens on; `None` is every address of this machine.
    pub address: Option<Ipv4Addr>,
    /// The ports it listens on.
    pub ports: PortRange,
    /// Where it leads. Without a port, the client's is kept.
    pub targets: Vec<(Ipv4Addr, Option<u16>)>,
    /// Who may use it.
    pub sources: Vec<Ipv4Net>,
    /// What TCP connections are kept to, as in [`Rule::mss`].
    pub mss: u16,
}

/// A `[[masquerade]]` rule.
#[derive(Clone, Debug, PartialEq)]
pub struct MasqueradeSpec {
    /// Its name.
    pub name: String,
    /// Who may use it.
    pub sources: Vec<Ipv4Net>,
    /// Which destinations it covers.
    pub destinations: Vec<Ipv4Net>,
    /// What TCP connections are kept to, as in [`Rule::mss`].
    pub mss: u16,
}

/// The rules, and which rule has which number. A clone is the same table.
///
/// A rule keeps its number as long as it keeps its name, across rule sets and daemons: counters and
/// sessions go by it.
#[derive(Clone)]
pub struct RuleTable {
    /// Has a lock of its own, since to write a large rule set takes a while.
    writer: Arc<Mutex<Writer>>,
    /// The names of the rules in force by number.
    names: Arc<Mutex<Names>>,
}

/// Names of rules by number.
type Names = Arc<Vec<Option<String>>>;

impl RuleTable {
    pub(super) fn new(ebpf: &mut Ebpf, version: u32) -> Result<Self> {
        let writer = Writer::new(ebpf, version)?;
        let names = Arc::new(Mutex::new(Arc::new(writer.names.clone())));
        Ok(Self { writer: Arc::new(Mutex::new(writer)), names })
    }

    /// Returns the names of the rules by number: of those in force, and of those that were and
    /// whose numbers no other rule has got since.
    pub fn names(&self) -> Arc<Vec<Option<String>>> {
        lock(&self.names).clone()
    }

    /// Returns the name of the rule with this number, if there is or was one.
    pub fn name(&self, number: u16) -> Option<String> {
        self.names().get(usize::from(number))?.clone()
    }

    /// Returns the number of the rule with this name.
    pub fn number(&self, name: &str) -> Option<u16> {
        let position = self.names().iter().position(|known| known.as_deref() == Some(name))?;
        u16::try_from(position).ok()
    }

    /// Puts a rule set in force, at once and whole: the program reads the old one until the new one
    /// is complete.
    ///
    /// # Errors
    /// When a map cannot be written or the rule set does not fit. The old one stays in force.
    pub fn apply(&self, spec: &RuleSetSpec, settings: &mut SettingsTable) -> Result<()> {
        let version = settings.version();
        self.apply_by(spec, version, |version| settings.set_version(version))
    }

    /// Does what [`apply`](Self::apply) does while the rule set of `version` is in force. `switch`
    /// puts the next version in force. Only `switch` needs the settings, so that whoever shares
    /// them does not wait while a large rule set is written.
    ///
    /// # Errors
    /// As there, and when `switch` fails.
    pub fn apply_by(
        &self,
        spec: &RuleSetSpec,
        version: u32,
        switch: impl FnOnce(u32) -> Result<()>,
    ) -> Result<()> {
        let mut writer = lock(&self.writer);
        let version = version.wrapping_add(1).max(1);
        let names = writer.write(spec, version)?;
        switch(version)?;
        *lock(&self.names) = Arc::new(names.clone());
        writer.names = names;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rule maps.
struct Writer {
    rule_sets: Array<MapData, RuleSet>,
    rules: Array<MapData, Rule>,
    masquerades: Array<MapData, Masquerade>,
    local_allow: Array<MapData, Allow<Network>>,
    local_allow_ipv6: Array<MapData, Allow<Ipv6Network>>,
    listeners: LpmTrie<MapData, ListenKey, u32>,
    sources: LpmTrie<MapData, SourceKey, u32>,
    names: Vec<Option<String>>,
}

impl Writer {
    fn new(ebpf: &mut Ebpf, version: u32) -> Result<Self> {
        let mut table = Self {
            rule_sets: take(ebpf, "RULE_SETS")?.try_into()?,
            rules: take(ebpf, "RULES")?.try_into()?,
            masquerades: take(ebpf, "MASQUERADES")?.try_into()?,
            local_allow: take(ebpf, "LOCAL_ALLOW")?.try_into()?,
            local_allow_ipv6: take(ebpf, "LOCAL_ALLOW_IPV6")?.try_into()?,
            listeners: take(ebpf, "LISTENERS")?.try_into()?,
            sources: take(ebpf, "SOURCES")?.try_into()?,
            names: vec![None; MAX_RULES],
        };
        if version != 0 {
            for number in 0..MAX_RULES as u16 {
                let rule =
                    table.rules.get(&rule_index(version, number), 0).context("cannot read the rules")?;
                let Some(name) = name(&rule) else { continue };
                table.names[usize::from(number)] = Some(name);
            }
        }
        Ok(table)
    }

    /// Writes the rule set of a version that is not in force yet. Returns the names of its rules by
    /// number.
    fn write(&mut self, spec: &RuleSetSpec, version: u32) -> Result<Vec<Option<String>>> {
        let names = self.number_rules(spec)?;
        let number = |name: &str| -> Result<u16> {
            let position = names.iter().position(|known| known.as_deref() == Some(name));
            Ok(u16::try_from(position.context("a rule has no number")?)?)
        };
        self.clear_bank(version)?;
        for (position, name) in names.iter().enumerate() {
            let mut rule = Rule::EMPTY;
            if let Some(name) = name {
                set_name(&mut rule, name)?;
            }
            if let Some(forward) = spec.forwards.iter().find(|forward| Some(&forward.name) == name.as_ref()) {
                set_targets(&mut rule, forward)?;
                rule.mss = forward.mss;
            }
            if let Some(masquerade) = spec.masquerades.iter().find(|rule| Some(&rule.name) == name.as_ref()) {
                rule.mss = masquerade.mss;
            }
            self.rules
                .set(rule_index(version, u16::try_from(position)?), rule, 0)
                .context("cannot write a rule")?;
        }
        for forward in &spec.forwards {
            let number = number(&forward.name)?;
            let address = forward.address.map(Ipv4::from);
            for (prefix, key) in listen_prefixes(version, forward.protocol, address, forward.ports) {
                self.listeners
                    .insert(&Key::new(prefix, key), u32::from(number), 0)
                    .with_context(|| format!("cannot write where rule `{}` listens", forward.name))?;
            }
            for source in &forward.sources {
                let key = SourceKey::new(version, number, source.network().into());
                self.sources
                    .insert(&Key::new(SourceKey::prefix(source.prefix_len()), key), 1, 0)
                    .with_context(|| format!("cannot write the sources of rule `{}`", forward.name))?;
            }
        }
        let pairs = self.write_masquerades(version, spec, number)?;
        let allowed = self.write_local(version, spec)?;
        let rule_set = rule_set(spec, pairs, allowed)?;
        self.rule_sets.set(bank(version), rule_set, 0).context("cannot write the rule set")?;
        Ok(names)
    }

    /// Writes who is closed out and what is allowed; how many entries that are for IPv4, and for
    /// IPv6.
    fn write_local(&mut self, version: u32, spec: &RuleSetSpec) -> Result<[u32; 2]> {
        let forwards = spec.forwards.iter().flat_map(|forward| &forward.sources);
        let masquerades = spec.masquerades.iter().flat_map(|masquerade| &masquerade.sources);
        for source in forwards.chain(masquerades) {
            let key = SourceKey::new(version, SourceKey::ANY_RULE, source.network().into());
            self.sources
                .insert(&Key::new(SourceKey::prefix(source.prefix_len()), key), 1, 0)
                .context("cannot write the sources of all rules")?;
        }
        if spec.local.allow.len() > MAX_LOCAL_ALLOW {
            bail!("more than {MAX_LOCAL_ALLOW} entries in local.allow");
        }
        let mut counts = [0, 0];
        for allow in &spec.local.allow {
            let [ipv4, ipv6] = &mut counts;
            match allow.from {
                IpNet::V4(from) => {
                    let index = allow_index(version, *ipv4);
                    self.local_allow
                        .set(index, entry(allow, network(&from)), 0)
                        .context("cannot write local.allow")?;
                    *ipv4 += 1;
                }
                IpNet::V6(from) => {
                    let index = allow_index(version, *ipv6);
                    let from = Ipv6Network::new(Ipv6(from.network().octets()), from.prefix_len());
                    self.local_allow_ipv6
                        .set(index, entry(allow, from), 0)
                        .context("cannot write local.allow")?;
                    *ipv6 += 1;
                }
            }
        }
        Ok(counts)
    }

    fn write_masquerades(
        &mut self,
        version: u32,
        spec: &RuleSetSpec,
        number: impl Fn(&str) -> Result<u16>,
    ) -> Result<u32> {
        let mut position = 0;
        for masquerade in &spec.masquerades {
            let rule = u32::from(number(&masquerade.name)?);
            for source in &masquerade.sources {
                for destination in &masquerade.destinations {
                    if position as usize >= MAX_MASQUERADES {
                        bail!(
                            "more than {MAX_MASQUERADES} pairs of source and destination in [[masquerade]] rules"
                        );
                    }
                    let pair =
                        Masquerade { source: network(source), destination: network(destination), rule };
                    self.masquerades
                        .set(masquerade_index(version, position), pair, 0)
                        .with_context(|| format!("cannot write rule `{}`", masquerade.name))?;
                    position += 1;
                }
            }
        }
        Ok(position)
    }

    /// Numbers for the rules of a rule set: the old ones for names that stay; for new names,
    /// numbers that no rule has had, and only then those of rules that are gone.
    fn number_rules(&self, spec: &RuleSetSpec) -> Result<Vec<Option<String>>> {
        let wanted: Vec<&String> = spec
            .forwards
            .iter()
            .map(|forward| &forward.name)
            .chain(spec.masquerades.iter().map(|masquerade| &masquerade.name))
            .collect();
        let mut names = self.names.clone();
        for name in &wanted {
            if names.iter().flatten().any(|known| known == *name) {
                continue;
            }
            let free = names.iter().position(Option::is_none).or_else(|| {
                names.iter().position(|known| known.as_ref().is_some_and(|known| !wanted.contains(&known)))
            });
            match free {
                Some(position) => names[position] = Some((*name).clone()),
                None => bail!("more than {MAX_RULES} rules"),
            }
        }
        Ok(names)
    }

    /// Removes what the rule set before the last one has left in the bank of a new version.
    fn clear_bank(&mut self, version: u32) -> Result<()> {
        let listeners: Vec<_> =
            self.listeners.keys().collect::<Result<_, MapError>>().context("cannot read the rules")?;
        for key in listeners.iter().filter(|key| key.data().bank() == bank(version)) {
            self.listeners.remove(key).context("cannot remove an old rule")?;
        }
        let sources: Vec<_> =
            self.sources.keys().collect::<Result<_, MapError>>().context("cannot read the rules")?;
        for key in sources.iter().filter(|key| key.data().bank() == bank(version)) {
            self.sources.remove(key).context("cannot remove an old rule")?;
        }
        Ok(())
    }
}

fn entry<N>(allow: &LocalAllowSpec, from: N) -> Allow<N> {
    let LocalAllowSpec { protocol, ports, .. } = allow;
    Allow { from, first: ports.first, last: ports.last, protocol: (*protocol).into() }
}

fn rule_set(
    spec: &RuleSetSpec,
    masquerade_count: u32,
    [local_allow_count, local_allow_ipv6_count]: [u32; 2],
) -> Result<RuleSet> {
    if spec.snat.len() > MAX_SNAT_ADDRESSES {
        bail!("more than {MAX_SNAT_ADDRESSES} SNAT addresses");
    }
    let mut snat = [Ipv4::default(); MAX_SNAT_ADDRESSES];
    for (slot, address) in snat.iter_mut().zip(&spec.snat) {
        *slot = (*address).into();
    }
    Ok(RuleSet {
        snat,
        snat_count: u32::try_from(spec.snat.len())?,
        ports: spec.ports,
        masquerade_count,
        local_allow_count,
        local_allow_ipv6_count,
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

fn name(rule: &Rule) -> Option<String> {
    let end = rule.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LENGTH);
    let name = std::str::from_utf8(&rule.name[..end]).ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn network(network: &Ipv4Net) -> Network {
    Network::new(network.network().into(), network.prefix_len())
}
