//! The conditions of a rule of iptables: the packets that it matches.

use std::ops::RangeInclusive;

use ipnet::Ipv4Net;

use super::{
    networks::{self, Ports},
    ruleset::Choice,
};
use crate::config::Protocol;

/// The part of new sessions that a rule of a group takes (`-m statistic`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share(pub(super) f64);

/// The packets that a rule is for. `None` is any.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Conditions {
    pub(super) protocol: Option<Protocol>,
    pub(super) sources: Option<Vec<Ipv4Net>>,
    pub(super) destinations: Option<Vec<Ipv4Net>>,
    /// Destination ports.
    pub(super) ports: Option<Ports>,
    pub(super) input: Option<String>,
    pub(super) not_inputs: Vec<String>,
    pub(super) output: Option<String>,
    pub(super) not_outputs: Vec<String>,
    pub(super) share: Option<Share>,
    pub(super) comments: Vec<String>,
}

/// Why two conditions never hold together.
pub(super) const NEVER: &str = "no packet matches all of its conditions";

impl Conditions {
    /// Returns what holds where both do.
    pub(super) fn and(&self, other: &Self) -> Result<Self, &'static str> {
        let protocol = match (self.protocol, other.protocol) {
            (Some(one), Some(other)) if one != other => return Err(NEVER),
            (one, other) => one.or(other),
        };
        let networks = |one: &Option<Vec<Ipv4Net>>, other: &Option<Vec<Ipv4Net>>| match (one, other) {
            (Some(one), Some(other)) => Some(networks::common(one, other)),
            (one, other) => one.as_ref().or(other.as_ref()).cloned(),
        };
        let ports = match (&self.ports, &other.ports) {
            (Some(one), Some(other)) => Some(networks::common_ports(one, other)),
            (one, other) => one.as_ref().or(other.as_ref()).cloned(),
        };
        let share = match (self.share, other.share) {
            (Some(_), Some(_)) => return Err("it takes a share of a share of the sessions"),
            (one, other) => one.or(other),
        };
        let both = Self {
            protocol,
            sources: networks(&self.sources, &other.sources),
            destinations: networks(&self.destinations, &other.destinations),
            ports,
            input: same(&self.input, &other.input)?,
            not_inputs: [self.not_inputs.clone(), other.not_inputs.clone()].concat(),
            output: same(&self.output, &other.output)?,
            not_outputs: [self.not_outputs.clone(), other.not_outputs.clone()].concat(),
            share,
            comments: [self.comments.clone(), other.comments.clone()].concat(),
        };
        if both.is_never() { Err(NEVER) } else { Ok(both) }
    }

    fn is_never(&self) -> bool {
        let none = |networks: &Option<Vec<Ipv4Net>>| networks.as_ref().is_some_and(Vec::is_empty);
        let is_not =
            |name: &Option<String>, not: &[String]| name.as_ref().is_some_and(|name| not.contains(name));
        none(&self.sources)
            || none(&self.destinations)
            || self.ports.as_ref().is_some_and(Vec::is_empty)
            || is_not(&self.input, &self.not_inputs)
            || is_not(&self.output, &self.not_outputs)
    }

    /// Returns what is left of this when packets of `taken` are gone. An error if conditions cannot
    /// say that.
    pub(super) fn without(&self, taken: &Self) -> Result<Self, &'static str> {
        let Ok(_) = self.and(&Self { share: None, ..taken.clone() }) else { return Ok(self.clone()) };
        let everywhere = || vec![networks::EVERYWHERE];
        let list = |networks: &Option<Vec<Ipv4Net>>| networks.clone().unwrap_or_else(everywhere);
        let all_ports = || vec![1..=u16::MAX];
        let same_rest = taken.protocol.is_none_or(|protocol| self.protocol == Some(protocol))
            && taken.input.as_ref().is_none_or(|input| self.input.as_ref() == Some(input))
            && taken.output.as_ref().is_none_or(|output| self.output.as_ref() == Some(output))
            && taken.not_inputs.is_empty()
            && taken.not_outputs.is_empty()
            && taken.share.is_none();
        let sources = networks::without(&list(&self.sources), &list(&taken.sources));
        let destinations = networks::without(&list(&self.destinations), &list(&taken.destinations));
        let [mine, theirs] = [self, taken].map(|one| one.ports.clone().unwrap_or_else(all_ports));
        let ports = networks::ports_without(&mine, &theirs);
        match (same_rest, sources.is_empty(), destinations.is_empty(), ports.is_empty()) {
            (true, true, true, true) => Err("an earlier rule takes all of its packets"),
            (true, false, true, true) => Ok(Self { sources: Some(sources), ..self.clone() }),
            (true, true, false, true) => Ok(Self { destinations: Some(destinations), ..self.clone() }),
            (true, true, true, false) => Ok(Self { ports: Some(ports), ..self.clone() }),
            _ => Err("an earlier rule exempts some of its packets"),
        }
    }

    /// Returns `true` if it holds of packets that arrive on this interface.
    pub(super) fn arrives_on(&self, interface: &str) -> bool {
        self.input.as_ref().is_none_or(|pattern| is_called(interface, pattern))
            && !self.not_inputs.iter().any(|pattern| is_called(interface, pattern))
    }

    /// Returns `true` if it holds of packets that leave by this interface.
    pub(super) fn leaves_by(&self, interface: &str) -> bool {
        self.output.as_ref().is_none_or(|pattern| is_called(interface, pattern))
            && !self.not_outputs.iter().any(|pattern| is_called(interface, pattern))
    }
}

/// Returns `true` if a pattern of iptables (`eth0`, or `eth+` for all that begin so) means it.
fn is_called(interface: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(beginning) => interface.starts_with(beginning),
        None => interface == pattern,
    }
}

fn same(one: &Option<String>, other: &Option<String>) -> Result<Option<String>, &'static str> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => Err(NEVER),
        (one, other) => Ok(one.clone().or_else(|| other.clone())),
    }
}

/// Takes in one option of a rule. Returns `false` if it is no condition, and an error if it is one
/// that a configuration cannot say.
pub(super) fn read(choice: &Choice, into: &mut Conditions) -> Result<bool, String> {
    let Choice { is_negated, name, values } = choice;
    let value = values.first().map_or("", String::as_str);
    let unreadable = || format!("`{name} {}` cannot be read", values.join(" "));
    let cannot = || {
        let not = if *is_negated { "! " } else { "" };
        format!("a configuration cannot say `{not}{name} {}`", values.join(" "))
    };
    let networks_of = |networks: Option<Vec<Ipv4Net>>| {
        let networks = networks.ok_or_else(unreadable)?;
        let all = [networks::EVERYWHERE];
        Ok::<_, String>(if *is_negated { networks::without(&all, &networks) } else { networks })
    };
    let ports_of = |list: &str| {
        let ports: Option<Ports> = list.split(',').map(networks::ports).collect();
        let ports = ports.ok_or_else(unreadable)?;
        let all = [1..=u16::MAX];
        Ok::<_, String>(if *is_negated { networks::ports_without(&all, &ports) } else { ports })
    };
    let mut narrow = |more: Conditions| {
        *into = into.and(&more)?;
        Ok::<_, String>(true)
    };
    let none = Conditions::default;
    match name.as_str() {
        "-s" | "--source" | "--src" => {
            narrow(Conditions { sources: Some(networks_of(networks::parse(value))?), ..none() })
        }
        "-d" | "--destination" | "--dst" => {
            narrow(Conditions { destinations: Some(networks_of(networks::parse(value))?), ..none() })
        }
        "--src-range" => {
            let range = networks::range(value).map(networks::of_range);
            narrow(Conditions { sources: Some(networks_of(range)?), ..none() })
        }
        "--dst-range" => {
            let range = networks::range(value).map(networks::of_range);
            narrow(Conditions { destinations: Some(networks_of(range)?), ..none() })
        }
        "-p" | "--protocol" => match (value, is_negated) {
            ("tcp" | "6", false) => narrow(Conditions { protocol: Some(Protocol::Tcp), ..none() }),
            ("udp" | "17", false) => narrow(Conditions { protocol: Some(Protocol::Udp), ..none() }),
            ("icmp" | "1", false) => narrow(Conditions { protocol: Some(Protocol::Icmp), ..none() }),
            ("all" | "0", false) => Ok(true),
            _ => Err(cannot()),
        },
        "--dport" | "--destination-port" | "--dports" | "--destination-ports" => {
            narrow(Conditions { ports: Some(ports_of(value)?), ..none() })
        }
        "-i" | "--in-interface" if *is_negated => {
            narrow(Conditions { not_inputs: vec![value.to_owned()], ..none() })
        }
        "-i" | "--in-interface" => narrow(Conditions { input: Some(value.to_owned()), ..none() }),
        "-o" | "--out-interface" if *is_negated => {
            narrow(Conditions { not_outputs: vec![value.to_owned()], ..none() })
        }
        "-o" | "--out-interface" => narrow(Conditions { output: Some(value.to_owned()), ..none() }),
        "--comment" => narrow(Conditions { comments: vec![value.to_owned()], ..none() }),
        // Only the first packet of a connection passes the table nat.
        "--ctstate" | "--state" if !is_negated && value.split(',').any(|state| state == "NEW") => Ok(true),
        "--syn" if !is_negated => Ok(true),
        "--tcp-flags" if !is_negated && values.get(1).is_some_and(|flags| flags == "SYN") => Ok(true),
        // A forward without an address listens on all of this machine's.
        "--dst-type" if !is_negated && value == "LOCAL" => Ok(true),
        "--mode" if value == "random" || value == "nth" => Ok(true),
        "--probability" => {
            let share = value
                .parse::<f64>()
                .ok()
                .filter(|share| (0.0..=1.0).contains(share))
                .ok_or_else(unreadable)?;
            narrow(Conditions { share: Some(Share(share)), ..none() })
        }
        "--every" => {
            let every = value.parse::<f64>().ok().filter(|every| *every > 0.0).ok_or_else(unreadable)?;
            narrow(Conditions { share: Some(Share(1.0 / every)), ..none() })
        }
        "--packet" => Ok(true),
        "-m" | "--match" => match value {
            "tcp" | "udp" | "icmp" | "multiport" | "iprange" | "comment" | "conntrack" | "state"
            | "addrtype" | "statistic" => Ok(true),
            _ => Err(format!("a configuration cannot say what the match `{value}` says")),
        },
        "--sport" | "--source-port" | "--sports" | "--source-ports" | "--ports" | "--ctstate" | "--state"
        | "--dst-type" | "--src-type" | "--syn" | "--tcp-flags" | "--tcp-option" | "--mode"
        | "--icmp-type" | "-f" | "--fragment" | "--ctproto" | "--ctorigsrc" | "--ctorigdst"
        | "--ctorigdstport" | "--ctreplsrc" | "--ctrepldst" | "--ctdir" | "--ctstatus" | "--ctexpire" => {
            Err(cannot())
        }
        _ => Ok(false),
    }
}

/// The ports of ranges, as a configuration has them.
pub(super) fn written(ports: &RangeInclusive<u16>) -> String {
    if ports.start() == ports.end() {
        ports.start().to_string()
    } else {
        format!("{}-{}", ports.start(), ports.end())
    }
}
