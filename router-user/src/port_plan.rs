//! The source ports of sessions, kept apart, like the rules' ports, from those of this machine's
//! own sockets.
//!
//! XDP sees an answer before the kernel does. Where a session has the port that the kernel gave to
//! a socket of this machine, to the same target, the two cannot be told apart; where a rule
//! listens on such a port, the answers to that socket look like its clients. So the kernel is to
//! give out other ports: by default sessions get ports that it does not give out, and what overlaps
//! all the same (a `ports` or `listen` of the configuration) is reserved
//! (`net.ipv4.ip_local_reserved_ports`), which keeps the kernel from giving it to sockets that ask
//! for none; a socket that asks for such a port still gets it.
//!
//! Everything here is pure but for [`Kernel::read`].

use std::{fmt, fs};

use router_common::ports::PortRange;

use crate::config::Config;

/// `net.ipv4.ip_local_port_range`: what the kernel gives to sockets that ask for no port.
pub const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// `net.ipv4.ip_local_reserved_ports`: what it does not give out all the same.
pub const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Linux's default range, for a kernel whose range cannot be read.
const USUAL_RANGE: PortRange = PortRange { first: 32_768, last: 60_999 };
/// The ports of sessions where the kernel gives out nearly all: as many as it leaves by default.
const LOWER_HALF: PortRange = PortRange { first: 1024, last: 32_767 };
/// Below are the ports of services.
const FIRST: u16 = 1024;
/// Fewer ports than these are not worth to be kept to.
const ENOUGH: u32 = 16_384;
/// The number of ports that this machine's sockets keep.
const REST: u32 = 1000;

/// A set of ports.
#[derive(Clone, Eq, PartialEq)]
pub struct PortSet(Box<[u64; PortSet::WORDS]>);

impl PortSet {
    /// A bit for each port.
    pub const WORDS: usize = 1024;

    /// No port.
    #[must_use]
    pub fn new() -> Self {
        Self(Box::new([0; Self::WORDS]))
    }

    /// Returns the ports whose bits are set: bit 0 of the first word is port 0.
    #[must_use]
    pub fn from_words(words: &[u64; Self::WORDS]) -> Self {
        Self(Box::new(*words))
    }

    /// See [`from_words`](Self::from_words).
    #[must_use]
    pub fn words(&self) -> &[u64; Self::WORDS] {
        &self.0
    }

    /// Returns the ports of a range.
    #[must_use]
    pub fn of(range: PortRange) -> Self {
        let mut set = Self::new();
        set.insert(range);
        set
    }

    /// Reads a list as the kernel writes it: `8080,9000-9010`. `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut set = Self::new();
        for item in text.trim().split(',').filter(|item| !item.is_empty()) {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let range = PortRange { first: first.parse().ok()?, last: last.parse().ok()? };
            if range.first > range.last {
                return None;
            }
            set.insert(range);
        }
        Some(set)
    }

    /// Adds a range.
    pub fn insert(&mut self, range: PortRange) {
        for port in range.first..=range.last {
            self.0[usize::from(port) / 64] |= 1 << (port % 64);
        }
    }

    /// Returns `true` if it has this port.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port) / 64] & 1 << (port % 64) != 0
    }

    /// Returns the number of ports.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Returns `true` if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn zip(&self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        let mut result = self.clone();
        for (word, other) in result.0.iter_mut().zip(other.0.iter()) {
            *word = combine(*word, *other);
        }
        result
    }

    /// Returns the union with another set.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        self.zip(other, |one, other| one | other)
    }

    /// Returns the intersection with another set.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.zip(other, |one, other| one & other)
    }

    /// Returns the difference from another set.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.zip(other, |one, other| one & !other)
    }

    /// Its contiguous parts, in order.
    pub fn ranges(&self) -> impl Iterator<Item = PortRange> {
        let mut next = 0_u32;
        std::iter::from_fn(move || {
            let first = (next..=u32::from(u16::MAX)).find_map(|port| self.member(port))?;
            let end = (u32::from(first)..=u32::from(u16::MAX)).find(|port| self.member(*port).is_none());
            next = end.unwrap_or(u32::from(u16::MAX) + 1);
            Some(PortRange { first, last: u16::try_from(next - 1).ok()? })
        })
    }

    fn member(&self, port: u32) -> Option<u16> {
        u16::try_from(port).ok().filter(|port| self.contains(*port))
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self::new()
    }
}

/// As the kernel reads it: `8080,9000-9010`.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, PortRange { first, last }) in self.ranges().enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            write!(f, "{first}")?;
            if first != last {
                write!(f, "-{last}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

/// The ports that the kernel gives to sockets that ask for none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kernel {
    /// The range that it takes them from,
    pub range: PortRange,
    /// but for these.
    pub reserved: PortSet,
}

impl Kernel {
    /// Reads what is in force in this network namespace; what cannot be read is as Linux has it by
    /// default.
    #[must_use]
    pub fn read() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            range: parse_range(&read(PORT_RANGE)).unwrap_or(USUAL_RANGE),
            reserved: PortSet::parse(&read(RESERVED_PORTS)).unwrap_or_default(),
        }
    }

    /// Without the reservation of these ports.
    #[must_use]
    pub fn with_free(mut self, ports: &PortSet) -> Self {
        self.reserved = self.reserved.without(ports);
        self
    }

    /// The ports that it gives out.
    #[must_use]
    pub fn given(&self) -> PortSet {
        PortSet::of(self.range).without(&self.reserved)
    }
}

fn parse_range(text: &str) -> Option<PortRange> {
    let mut ports = text.split_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) if first <= last => Some(PortRange { first, last }),
        _ => None,
    }
}

/// The part of the configuration that has ports which the kernel may give out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Claimant {
    /// `ports` of `[snat]`.
    Snat,
    /// The `[[forward]]` of this name.
    Forward(String),
}

/// Ports that both a session or rule may have and a socket of this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Overlap {
    /// The part of the configuration that has them.
    pub claimant: Claimant,
    /// The ports.
    pub ports: PortSet,
}

impl Overlap {
    /// Returns what has the ports: a rule's name, or `snat.ports`.
    pub(crate) fn subject(&self) -> &str {
        match &self.claimant {
            Claimant::Snat => "snat.ports",
            Claimant::Forward(name) => name,
        }
    }

    /// Returns what to do about it.
    #[must_use]
    pub fn fix(&self) -> String {
        match &self.claimant {
            Claimant::Snat => format!(
                "leave at least {REST} ports of net.ipv4.ip_local_port_range out of `ports` of [snat] (without `ports`, they are chosen so)"
            ),
            Claimant::Forward(_) => {
                "give the kernel other ports, e.g. sysctl net.ipv4.ip_local_port_range=\"FIRST LAST\""
                    .to_owned()
            }
        }
    }
}

/// Writes the overlap and its consequence, in one line.
impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { claimant, ports } = self;
        match claimant {
            Claimant::Snat => write!(
                f,
                "the kernel may give this machine's own sockets the ports {ports}, which `ports` of [snat] gives to sessions: \
                 a session or a connection of this machine may have to give way"
            ),
            Claimant::Forward(name) => write!(
                f,
                "the kernel may give this machine's own sockets the ports {ports}, on which forward `{name}` listens"
            ),
        }
    }
}

/// The plan by which ports are kept apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// The ports that the kernel is to be kept from giving out.
    pub reserve: PortSet,
    /// The overlaps that are left.
    pub left: Vec<Overlap>,
}

/// Makes the plan for a configuration whose sessions get the ports `snat`.
///
/// `kernel`: as it is without what a plan of ours has reserved.
#[must_use]
pub fn plan(config: &Config, snat: PortRange, kernel: &Kernel) -> Plan {
    let given = kernel.given();
    let mut reserve = PortSet::new();
    let mut left = Vec::new();
    // Rules first: a session gives way to this machine's own traffic, or the other way round, but a
    // rule stays where it is.
    let (sessions, rules): (Vec<_>, Vec<_>) =
        overlaps(config, snat, &given).into_iter().partition(|overlap| overlap.claimant == Claimant::Snat);
    for overlap in rules.into_iter().chain(sessions) {
        let more = reserve.or(&overlap.ports);
        if given.without(&more).len() >= REST {
            reserve = more;
        } else {
            left.push(overlap);
        }
    }
    Plan { reserve, left }
}

/// Returns the overlaps with the ports that the kernel gives out.
#[must_use]
pub fn overlaps(config: &Config, snat: PortRange, given: &PortSet) -> Vec<Overlap> {
    let snat = (Claimant::Snat, snat);
    let rules = config.forwards.iter().map(|forward| {
        let ports = PortRange { first: *forward.listen.ports.start(), last: *forward.listen.ports.end() };
        (Claimant::Forward(forward.name.clone()), ports)
    });
    std::iter::once(snat)
        .chain(rules)
        .map(|(claimant, ports)| Overlap { claimant, ports: PortSet::of(ports).and(given) })
        .filter(|overlap| !overlap.ports.is_empty())
        .collect()
}

/// Returns the ports that sessions get: those of the configuration, or the most that are next to
/// each other and that the kernel does not give out.
///
/// `kernel`: as it is without what a plan of ours has reserved.
#[must_use]
pub fn snat_ports(config: &Config, kernel: &Kernel) -> PortRange {
    if let Some(ports) = &config.snat.ports {
        return PortRange { first: *ports.start(), last: *ports.end() };
    }
    let all = PortSet::of(PortRange { first: FIRST, last: u16::MAX });
    let free = all.without(&kernel.given());
    let largest = free.ranges().max_by_key(|range| (range.size(), std::cmp::Reverse(range.first)));
    largest.filter(|range| range.size() >= ENOUGH).unwrap_or(LOWER_HALF)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn config(snat: &str, listens: &[&str]) -> Config {
        let mut text = format!("[interfaces]\npls = \"eth0\"\n[snat]\n{snat}\n");
        for (number, listen) in listens.iter().enumerate() {
            text.push_str(&format!(
                "[[forward]]\nname = \"rule{number}\"\nprotocol = \"udp\"\nlisten = \"{listen}\"\n\
                 target = \"203.0.113.10\"\nsources = [\"10.0.2.64/26\"]\n"
            ));
        }
        Config::parse(&text, Path::new("test.toml")).map_err(|error| error.to_string()).unwrap().config
    }

    fn kernel(first: u16, last: u16, reserved: &str) -> Kernel {
        Kernel { range: PortRange { first, last }, reserved: PortSet::parse(reserved).unwrap() }
    }

    /// Returns a plan as text.
    fn planned(config: &Config, kernel: &Kernel) -> (String, String, Vec<String>) {
        let snat = snat_ports(config, kernel);
        let Plan { reserve, left } = plan(config, snat, kernel);
        let left = left.iter().map(|Overlap { claimant, ports }| format!("{claimant:?} {ports}"));
        (format!("{}-{}", snat.first, snat.last), reserve.to_string(), left.collect())
    }

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for text in ["", "8080", "8080,9000-9010", "0-65535", "1,3,5-6,65535"] {
            assert_eq!(PortSet::parse(text).map(|set| set.to_string()), Some(text.to_owned()));
        }
        assert_eq!(PortSet::parse("1-2,3\n").map(|set| set.to_string()), Some("1-3".to_owned()));
        for text in ["x", "5-4", "70000", "1-2-3"] {
            assert_eq!(PortSet::parse(text), None, "{text}");
        }
        assert_eq!(parse_range("32768\t60999\n"), Some(USUAL_RANGE));
        assert_eq!(parse_range(""), None);
    }

    #[test]
    fn sessions_get_the_ports_outside_the_kernels_range_by_default() {
        for (kernel, ports, reserved) in [
            (kernel(32_768, 60_999, ""), "1024-32767", ""),
            (kernel(1024, 20_000, ""), "20001-65535", ""),
            (kernel(32_768, 60_999, "40000-60999"), "1024-32767", ""),
            (kernel(9000, 60_999, "20000-60999"), "20000-65535", ""),
            (kernel(20_000, 65_535, ""), "1024-19999", ""),
            // Nothing sensible is left.
            (kernel(1024, 65_535, ""), "1024-32767", "1024-32767"),
            (kernel(10_000, 65_000, "10005"), "1024-32767", "10000-10004,10006-32767"),
        ] {
            let expected = (ports.to_owned(), reserved.to_owned(), Vec::new());
            assert_eq!(planned(&config("", &["443"]), &kernel), expected, "{kernel:?}");
        }
    }

    #[test]
    fn configured_ports_are_reserved_while_the_kernel_keeps_some() {
        let usual = kernel(32_768, 60_999, "33000");
        let wide = config("ports = \"1024-59999\"", &["40000-40010"]);
        assert_eq!(
            planned(&wide, &usual),
            ("1024-59999".to_owned(), "32768-32999,33001-59999".to_owned(), Vec::new())
        );
        let all = config("ports = \"1024-65535\"", &["40000-40010", "50000"]);
        assert_eq!(
            planned(&all, &usual),
            (
                "1024-65535".to_owned(),
                "40000-40010,50000".to_owned(),
                vec!["Snat 32768-32999,33001-60999".to_owned()]
            )
        );
    }

    #[test]
    fn a_rule_that_takes_all_of_the_kernels_ports_is_named() {
        assert_eq!(
            planned(&config("", &["32768-60999"]), &kernel(32_768, 60_999, "")),
            ("1024-32767".to_owned(), String::new(), vec!["Forward(\"rule0\") 32768-60999".to_owned()])
        );
    }

    proptest! {
        /// For any configuration and any ports given out, ports that are not named as left do not
        /// overlap, and the kernel keeps the ports that it needs.
        #[test]
        fn every_overlap_is_reported(
            (first, last) in (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| (a.min(b), a.max(b))),
            (snat_first, snat_last) in (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| (a.min(b), a.max(b))),
            listen in 10_000..=u16::MAX, more in 0..20_000_u16, reserved in any::<[u16; 4]>(), is_set in any::<bool>(),
        ) {
            let snat = if is_set { format!("ports = \"{snat_first}-{snat_last}\"") } else { String::new() };
            let config = config(&snat, &[&format!("{listen}-{}", listen.saturating_add(more))]);
            let reserved = reserved.map(|port| port.to_string()).join(",");
            let kernel = kernel(first, last, &reserved);
            let snat = snat_ports(&config, &kernel);
            let Plan { reserve, left } = plan(&config, snat, &kernel);
            let given = kernel.given();
            prop_assert!(reserve.without(&given).is_empty());
            let rest = given.without(&reserve);
            prop_assert!(reserve.is_empty() || rest.len() >= REST);
            let now = overlaps(&config, snat, &rest);
            for overlap in now {
                prop_assert!(left.iter().any(|named| named.claimant == overlap.claimant), "{overlap:?}");
            }
        }
    }
}
