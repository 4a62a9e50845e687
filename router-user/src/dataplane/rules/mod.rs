//! Puts rule sets in force.
//!
//! There is room for two rule sets, called banks. The programs read the one that belongs to the
//! version in the settings. A rule set is written into the other bank, and then the version is
//! changed, which switches all rules at once. This also holds for a change as small as a target of
//! one rule. An entry of `RULES` in the bank in force must never be written: the kernel copies it
//! in pieces of any size (`array_map_update_elem`), and the programs read a target's address and
//! port one by one, so a packet might be sent to an address that is half of one target and half of
//! another.
//!
//! So that a small change costs little, [`RuleTable`] knows what each bank holds, and writes only
//! what differs. After each switch, [`RuleTable::follow_up`] brings the other bank to the same
//! contents. From then on, another target of a rule costs one update of `RULES`, and one of the
//! settings that switches banks.
//!
//! A program that was running when the version changed may still read the bank of before. It is
//! written again only after all of these have ended.

mod bank;
mod spec;

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, Pod,
    maps::{Array, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use router_common::{
    limits::MAX_RULES,
    local::{Allow, allow_index},
    maps::rules::{
        Ipv6Network, ListenKey, Masquerade, NAME_LENGTH, Network, Rule, RuleSet, SourceKey, bank as place_of,
        masquerade_index, rule_index,
    },
    maps::stats::{Counter, CpuStats, RuleStats},
};

use self::bank::Bank;
use super::{counters::CounterTable, flows::FlowTable, object::take, settings::SettingsTable};
use crate::sys::bpf::wait_for_programs;

pub use self::spec::{ForwardSpec, LocalAllowSpec, LocalSpec, MasqueradeSpec, RuleSetSpec};

/// The rules, and which rule has which number. A clone is the same table.
///
/// A rule keeps its number as long as it keeps its name, across rule sets and daemons: counters and
/// sessions go by it.
#[derive(Clone)]
pub struct RuleTable {
    /// Locked separately, because it takes a while to write a large rule set.
    writer: Arc<Mutex<Writer>>,
    /// The names of the rules in force by number.
    names: Arc<Mutex<Names>>,
    /// What goes by numbers.
    numbered: Arc<OnceLock<Numbered>>,
    /// What rules had counted when their numbers were given to others, by number.
    counted_before: Arc<Mutex<HashMap<u16, RuleStats>>>,
}

/// What goes by the numbers of rules.
struct Numbered {
    flows: FlowTable,
    counters: CounterTable,
}

/// Names of rules by number.
type Names = Arc<Vec<Option<String>>>;

impl RuleTable {
    pub(super) fn new(ebpf: &mut Ebpf, version: u32) -> Result<Self> {
        let writer = Writer::new(ebpf)?;
        let names = Arc::new(Mutex::new(Arc::new(writer.names(version)?)));
        let (numbered, counted_before) = (Arc::default(), Arc::default());
        Ok(Self { writer: Arc::new(Mutex::new(writer)), names, numbered, counted_before })
    }

    /// Makes known what goes by the rules' numbers.
    pub(super) fn set_numbered(&self, flows: FlowTable, counters: CounterTable) {
        // Once, when the data plane is put together.
        let _ = self.numbered.set(Numbered { flows, counters });
    }

    /// Returns what the rule with this number has counted, of the counters of all rules.
    pub fn counted(&self, number: u16, stats: &CpuStats) -> RuleStats {
        let all = stats.rule(number);
        let before = lock(&self.counted_before).get(&number).copied().unwrap_or_default();
        let counter = |all: Counter, before: Counter| Counter {
            packets: all.packets.wrapping_sub(before.packets),
            bytes: all.bytes.wrapping_sub(before.bytes),
        };
        RuleStats {
            forward: counter(all.forward, before.forward),
            reply: counter(all.reply, before.reply),
            opened: all.opened.wrapping_sub(before.opened),
            denied: all.denied.wrapping_sub(before.denied),
        }
    }

    /// Returns what the rules of before have counted under numbers that other rules get.
    fn counted_by_predecessors(
        &self,
        before: &[Option<String>],
        after: &[Option<String>],
    ) -> Result<HashMap<u16, RuleStats>> {
        let given = (0..).zip(before.iter().zip(after));
        let given: Vec<u16> = given
            .filter(|(_, (before, after))| before.is_some() && before != after)
            .map(|(number, _)| number)
            .collect();
        let Some(numbered) = self.numbered.get().filter(|_| !given.is_empty()) else {
            return Ok(HashMap::new());
        };
        let stats = numbered.counters.read()?;
        Ok(given.into_iter().map(|number| (number, stats.rule(number))).collect())
    }

    /// Reads the names of the rules of this version, which is in force, after another process may
    /// have written rules. Both banks are written whole by the next changes.
    ///
    /// # Errors
    /// Returns an error if a map cannot be read.
    pub(super) fn read_again(&self, version: u32) -> Result<()> {
        let mut writer = lock(&self.writer);
        let names = writer.names(version)?;
        writer.banks = [None, None];
        writer.is_settled = false;
        *lock(&self.names) = Arc::new(names);
        Ok(())
    }

    /// Has rules of these names get the numbers that they have here: those of a data plane before
    /// this one, by which its sessions go.
    pub(super) fn inherit(&self, names: &[Option<String>]) {
        let mut inherited = vec![None; MAX_RULES];
        for (place, name) in inherited.iter_mut().zip(names) {
            place.clone_from(name);
        }
        *lock(&self.names) = Arc::new(inherited);
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

    /// Returns how many entries of maps were written or removed, apart from the settings.
    pub fn writes(&self) -> u64 {
        lock(&self.writer).writes
    }

    /// Puts a rule set in force, at once and whole: the programs read the old one until the new one
    /// is complete.
    ///
    /// # Errors
    /// Returns an error if a map cannot be written or the rule set does not fit. The old one stays
    /// in force.
    pub fn apply(&self, spec: &RuleSetSpec, settings: &mut SettingsTable) -> Result<()> {
        let version = settings.version();
        self.apply_by(spec, version, |version| settings.set_version(version))
    }

    /// Does what [`apply`](Self::apply) does while the rule set of `version` is in force. `switch`
    /// puts the next version in force. Only `switch` needs the settings, so that other users of
    /// them do not wait while a large rule set is written.
    ///
    /// # Errors
    /// As there, and if `switch` fails.
    pub fn apply_by(
        &self,
        spec: &RuleSetSpec,
        version: u32,
        switch: impl FnOnce(u32) -> Result<()>,
    ) -> Result<()> {
        let mut writer = lock(&self.writer);
        let version = next(version);
        let before = self.names();
        let in_use = || self.numbered.get().map(|numbered| numbered.flows.rules()).unwrap_or_default();
        let names = number_rules(&before, spec, in_use)?;
        writer.write(version, Bank::new(spec, &names, version)?)?;
        let counted = self.counted_by_predecessors(&before, &names)?;
        switch(version)?;
        lock(&self.counted_before).extend(counted);
        writer.is_settled = false;
        *lock(&self.names) = Arc::new(names);
        Ok(())
    }

    /// Brings the other bank to the contents of the rule set in force, which is that of `version`,
    /// so that the next change is written quickly.
    ///
    /// # Errors
    /// Returns an error if a map cannot be written. The next change then costs more.
    pub fn follow_up(&self, spec: &RuleSetSpec, version: u32) -> Result<()> {
        let mut writer = lock(&self.writer);
        let version = next(version);
        writer.write(version, Bank::new(spec, &self.names(), version)?)
    }
}

/// The version after another one. 0 stands for no rule set.
fn next(version: u32) -> u32 {
    // From the last one to 2, since 0 and the last one are in different banks.
    version.checked_add(1).unwrap_or(2)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the numbers of a rule set's rules, as names by number: the old ones for names that stay;
/// for new names, numbers that no rule has had, and only then those of rules that are gone. Of
/// these, the last ones to be taken are those `in_use` by sessions.
fn number_rules(
    known: &[Option<String>],
    spec: &RuleSetSpec,
    in_use: impl Fn() -> HashSet<u16>,
) -> Result<Vec<Option<String>>> {
    let wanted: Vec<&String> = spec
        .forwards
        .iter()
        .map(|forward| &forward.name)
        .chain(spec.masquerades.iter().map(|masquerade| &masquerade.name))
        .collect();
    let mut names = known.to_vec();
    // Found out only where it matters, because that takes a walk through the flow table.
    let mut used = None;
    for name in &wanted {
        if names.iter().flatten().any(|known| known == *name) {
            continue;
        }
        let is_gone = |known: &Option<String>| known.as_ref().is_some_and(|known| !wanted.contains(&known));
        let free = names
            .iter()
            .position(Option::is_none)
            .or_else(|| {
                let used: &HashSet<u16> = used.get_or_insert_with(&in_use);
                let is_unused =
                    |number: usize| !u16::try_from(number).is_ok_and(|number| used.contains(&number));
                let mut numbered = names.iter().enumerate();
                numbered
                    .find(|(number, known)| is_gone(known) && is_unused(*number))
                    .map(|(number, _)| number)
            })
            .or_else(|| names.iter().position(is_gone));
        match free.and_then(|position| names.get_mut(position)) {
            Some(place) => *place = Some((*name).clone()),
            None => bail!("more than {MAX_RULES} rules"),
        }
    }
    Ok(names)
}

/// The rule maps, and what is in them.
struct Writer {
    rule_sets: Array<MapData, RuleSet>,
    rules: Array<MapData, Rule>,
    masquerades: Array<MapData, Masquerade>,
    local_allow: Array<MapData, Allow<Network>>,
    local_allow_ipv6: Array<MapData, Allow<Ipv6Network>>,
    listeners: LpmTrie<MapData, ListenKey, u32>,
    sources: LpmTrie<MapData, SourceKey, u32>,
    /// The contents of each bank; `None` if they are not known.
    banks: [Option<Bank>; 2],
    /// `true` if no program can be reading the bank that is not in force.
    is_settled: bool,
    writes: u64,
}

impl Writer {
    fn new(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            rule_sets: take(ebpf, "RULE_SETS")?.try_into()?,
            rules: take(ebpf, "RULES")?.try_into()?,
            masquerades: take(ebpf, "MASQUERADES")?.try_into()?,
            local_allow: take(ebpf, "LOCAL_ALLOW")?.try_into()?,
            local_allow_ipv6: take(ebpf, "LOCAL_ALLOW_IPV6")?.try_into()?,
            listeners: take(ebpf, "LISTENERS")?.try_into()?,
            sources: take(ebpf, "SOURCES")?.try_into()?,
            banks: [None, None],
            is_settled: false,
            writes: 0,
        })
    }

    /// Returns the names of the rules of a version by number, as the map has them.
    fn names(&self, version: u32) -> Result<Vec<Option<String>>> {
        if version == 0 {
            return Ok(vec![None; MAX_RULES]);
        }
        let name = |number| -> Result<Option<String>> {
            let rule = self.rules.get(&rule_index(version, number), 0).context("cannot read the rules")?;
            Ok(name(&rule))
        };
        (0..MAX_RULES as u16).map(name).collect()
    }

    /// Writes the bank of a version that is not in force.
    fn write(&mut self, version: u32, wanted: Bank) -> Result<()> {
        if !self.is_settled {
            wait_for_programs();
            self.is_settled = true;
        }
        let place = place_of(version) as usize;
        let Some(held) = self.banks.get_mut(place) else { bail!("there are two banks") };
        // If this fails halfway, the contents are not known.
        let known = held.take();
        if known.is_none() {
            self.clear(place_of(version))?;
        }
        self.write_changes(version, known.as_ref(), &wanted)?;
        self.banks[place] = Some(wanted);
        Ok(())
    }

    /// Writes what differs from what is known of the bank. What is not wanted any more goes first,
    /// since it may take the room of what comes.
    fn write_changes(&mut self, version: u32, known: Option<&Bank>, wanted: &Bank) -> Result<()> {
        let mut writes = 0;
        let written = [
            change_trie(&mut self.listeners, known.map(|known| &known.listeners), &wanted.listeners)
                .context("cannot write where rules listen"),
            change_trie(&mut self.sources, known.map(|known| &known.sources), &wanted.sources)
                .context("cannot write the sources of rules"),
            change_array(&mut self.rules, known.map(|known| &*known.rules), &wanted.rules, |position| {
                rule_index(version, position as u16)
            })
            .context("cannot write a rule"),
            change_array(
                &mut self.masquerades,
                known.map(|known| &*known.masquerades),
                &wanted.masquerades,
                |position| masquerade_index(version, position),
            )
            .context("cannot write a masquerade rule"),
            change_array(
                &mut self.local_allow,
                known.map(|known| &*known.local_allow),
                &wanted.local_allow,
                |position| allow_index(version, position),
            )
            .context("cannot write local.allow"),
            change_array(
                &mut self.local_allow_ipv6,
                known.map(|known| &*known.local_allow_ipv6),
                &wanted.local_allow_ipv6,
                |position| allow_index(version, position),
            )
            .context("cannot write local.allow"),
            change_array(
                &mut self.rule_sets,
                known.map(|known| std::slice::from_ref(&known.rule_set)),
                std::slice::from_ref(&wanted.rule_set),
                |_| place_of(version),
            )
            .context("cannot write the rule set"),
        ];
        for count in written {
            writes += count?;
        }
        self.writes += writes;
        Ok(())
    }

    /// Removes the keys of a bank of which is not known what it holds.
    fn clear(&mut self, bank: u32) -> Result<()> {
        let listeners: Vec<_> =
            self.listeners.keys().collect::<Result<_, MapError>>().context("cannot read the rules")?;
        for key in listeners.iter().filter(|key| key.data().bank() == bank) {
            self.listeners.remove(key).context("cannot remove an old rule")?;
            self.writes += 1;
        }
        let sources: Vec<_> =
            self.sources.keys().collect::<Result<_, MapError>>().context("cannot read the rules")?;
        for key in sources.iter().filter(|key| key.data().bank() == bank) {
            self.sources.remove(key).context("cannot remove an old rule")?;
            self.writes += 1;
        }
        Ok(())
    }
}

/// Writes the elements of an array that differ. Returns how many these are. Elements beyond the
/// wanted ones are not read.
fn change_array<T: Pod + PartialEq>(
    map: &mut Array<MapData, T>,
    known: Option<&[T]>,
    wanted: &[T],
    index: impl Fn(u32) -> u32,
) -> Result<u64> {
    let mut writes = 0;
    for (position, element) in (0_u32..).zip(wanted) {
        if known.and_then(|known| known.get(position as usize)) != Some(element) {
            map.set(index(position), *element, 0)?;
            writes += 1;
        }
    }
    Ok(writes)
}

/// Removes the keys of a trie that are not wanted any more, and writes those that differ. Returns
/// how many these are.
fn change_trie<K: Pod + Eq + Hash>(
    map: &mut LpmTrie<MapData, K, u32>,
    known: Option<&HashMap<(u32, K), u32>>,
    wanted: &HashMap<(u32, K), u32>,
) -> Result<u64> {
    let mut writes = 0;
    for key @ (prefix, data) in known.into_iter().flat_map(HashMap::keys) {
        if !wanted.contains_key(key) {
            map.remove(&Key::new(*prefix, *data))?;
            writes += 1;
        }
    }
    for (key @ (prefix, data), value) in wanted {
        if known.and_then(|known| known.get(key)) != Some(value) {
            map.insert(&Key::new(*prefix, *data), value, 0)?;
            writes += 1;
        }
    }
    Ok(writes)
}

fn name(rule: &Rule) -> Option<String> {
    let end = rule.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LENGTH);
    let name = std::str::from_utf8(rule.name.get(..end)?).ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::LocalSpec;
    use router_common::ports::PortRange;

    fn spec(names: &[String]) -> RuleSetSpec {
        let masquerade = |name: &String| MasqueradeSpec {
            name: name.clone(),
            sources: Vec::new(),
            destinations: Vec::new(),
            mss: 0,
        };
        RuleSetSpec {
            forwards: Vec::new(),
            masquerades: names.iter().map(masquerade).collect(),
            snat: Vec::new(),
            ports: PortRange { first: 1024, last: 65535 },
            reject_exhausted: true,
            reject_unreachable: true,
            local: LocalSpec::default(),
        }
    }

    fn names(prefix: &str, count: usize) -> Vec<String> {
        (0..count).map(|number| format!("{prefix}-{number}")).collect()
    }

    #[test]
    fn a_rule_keeps_its_number_and_a_session_its_rules_name() {
        let none = || -> HashSet<u16> { panic!("there are numbers that no rule has had") };
        let number = |known: &[Option<String>], rules: &[String], in_use: &dyn Fn() -> HashSet<u16>| {
            number_rules(known, &spec(rules), in_use).expect("they fit")
        };
        let first = number(&vec![None; MAX_RULES], &names("a", 300), &none);
        let mut reversed = names("a", 300);
        reversed.reverse();
        assert_eq!(number(&first, &reversed, &none), first, "whatever their order");
        let second = number(&first, &names("b", 212), &none);
        assert_eq!((&second[..300], second[300].as_deref()), (&first[..300], Some("b-0")));
        // Now all numbers have been given. Sessions have two of those that can be given again.
        let in_use = || HashSet::from([0, 299]);
        let third = number(&second, &names("c", 298), &in_use);
        assert_eq!([&third[0], &third[299]], [&first[0], &first[299]]);
        assert_eq!((third[1].as_deref(), third[298].as_deref()), (Some("c-0"), Some("c-297")));
        // Where all are needed, they are taken.
        let all = number(&third, &names("d", MAX_RULES), &in_use);
        assert!(all.iter().flatten().all(|name| name.starts_with("d-")));
        assert!(number_rules(&all, &spec(&names("e", MAX_RULES + 1)), in_use).is_err());
    }
}
