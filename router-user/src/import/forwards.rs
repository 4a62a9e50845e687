//! From DNAT rules to `[[forward]]`.

use std::{net::Ipv4Addr, ops::RangeInclusive};

use ipnet::Ipv4Net;

use super::{
    action::{Action, Destination},
    conditions::{Conditions, Share, written},
    names::{Interfaces, Names},
    networks::{self, EVERYWHERE},
    report::Report,
    ruleset::Rule,
    walk::Found,
    wanted::Wanted,
};
use crate::config::{Listen, MAX_TARGETS, Protocol, no_target};

/// The most forwards that one rule becomes: for each of its ports and addresses.
const MOST: usize = 64;
/// Sessions are spread evenly if each share is as near as this to the even one.
const EVEN: f64 = 0.02;

/// A `[[forward]]`, and the lines that it comes from.
#[derive(Clone, Debug)]
pub(super) struct Forward {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) listen: Listen,
    pub(super) targets: Vec<Target>,
    pub(super) sources: Vec<Ipv4Net>,
    /// `true` if the rules admit everyone, and nothing else is wanted.
    pub(super) is_open: bool,
    pub(super) line: usize,
    pub(super) rule: String,
    pub(super) comment: Option<String>,
}

/// A target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Target {
    pub(super) address: Ipv4Addr,
    pub(super) port: Option<u16>,
}

/// All forwards.
#[derive(Clone, Debug, Default)]
pub(super) struct Forwards {
    pub(super) all: Vec<Forward>,
    pub(super) names: Names,
}

/// Rules that spread sessions over their targets, or a single one.
struct Group<'a> {
    rule: &'a Rule,
    conditions: Conditions,
    destinations: Vec<Destination>,
    shares: Vec<Option<Share>>,
}

impl Forwards {
    /// Translates what the chain PREROUTING says.
    pub(super) fn translate(
        found: &[Found<'_>],
        names: &Interfaces,
        wanted: &Wanted,
        report: &mut Report,
    ) -> Self {
        let mut forwards = Self::default();
        for group in groups(found, report) {
            if let Err(why) = forwards.add(&group, names, wanted, report) {
                report.left_out(group.rule.line, &group.rule.text, why);
            }
        }
        forwards
    }

    fn add(
        &mut self,
        group: &Group<'_>,
        names: &Interfaces,
        wanted: &Wanted,
        report: &mut Report,
    ) -> Result<(), String> {
        let Group { rule, conditions, destinations, shares } = group;
        even(shares)?.into_iter().for_each(|uneven: &str| report.remark(rule.line, &rule.text, uneven));
        if !conditions.arrives_on(&names.pls) {
            return Err(format!("its packets do not arrive on {}, which faces the clients", names.pls));
        }
        if conditions.output.is_some() {
            return Err("a destination is translated before the packet has an outgoing interface".to_owned());
        }
        let protocol = match conditions.protocol {
            Some(protocol @ (Protocol::Tcp | Protocol::Udp)) => protocol,
            Some(Protocol::Icmp) => return Err("a forward is for TCP or UDP".to_owned()),
            None => {
                return Err(
                    "it names no protocol: write a forward for each, with the ports in use".to_owned()
                );
            }
        };
        let Some(ports) = &conditions.ports else {
            return Err(
                "it names no port: it would take this machine's own services, too. Write a forward with the ports in use"
                    .to_owned(),
            );
        };
        let addresses = match &conditions.destinations {
            None => vec![None],
            Some(all) if *all == [EVERYWHERE] => vec![None],
            Some(networks) => networks::addresses(networks, MOST)
                .ok_or("it is for a whole network of destinations: a forward listens on addresses of this machine")?
                .into_iter()
                .map(Some)
                .collect(),
        };
        let targets = targets(destinations)?;
        let pairs = ports.iter().flat_map(|ports| addresses.iter().map(move |address| (ports, *address)));
        let mut listens = Vec::new();
        for (ports, address) in pairs {
            let parts = parts(ports, &targets)?;
            listens.extend(parts.into_iter().map(|ports| Listen { address, ports }));
        }
        if listens.len() > MOST {
            return Err(format!("it would become {} forwards: write those that are in use", listens.len()));
        }
        let sources = conditions.sources.clone().filter(|sources| *sources != [EVERYWHERE]);
        let (sources, is_open) = match sources {
            Some(sources) => (sources, false),
            None if wanted.sources.is_empty() => (vec![EVERYWHERE], true),
            None => (wanted.sources.clone(), false),
        };
        let comment = conditions.comments.last().cloned();
        for listen in listens {
            // A range takes a port only if it keeps it.
            let (is_range, port) = (listen.is_range(), *listen.ports.start());
            let without = |target: &Target| Target {
                port: target.port.filter(|to| !is_range && *to != port),
                ..target.clone()
            };
            let forward = Forward {
                name: String::new(),
                protocol,
                targets: targets.iter().map(Wide::as_target).map(|target| without(&target)).collect(),
                sources: sources.clone(),
                is_open,
                line: rule.line,
                rule: rule.text.clone(),
                comment: comment.clone(),
                listen,
            };
            self.take(forward, report);
        }
        Ok(())
    }

    /// Adds a forward, as far as an earlier one does not have its packets.
    fn take(&mut self, forward: Forward, report: &mut Report) {
        let (line, rule) = (forward.line, forward.rule.clone());
        let shares = |known: &&mut Forward| {
            known.protocol == forward.protocol && known.listen.overlap(&forward.listen).is_some()
        };
        if let Some(known) = self.all.iter_mut().find(shares) {
            let is_same = known.listen == forward.listen && known.targets == forward.targets;
            let is_dead = networks::covers(&known.sources, &forward.sources);
            if is_same && !is_dead {
                known.sources = Ipv4Net::aggregate(&[known.sources.clone(), forward.sources].concat());
                known.is_open |= forward.is_open;
            } else if is_dead && (known.listen == forward.listen || is_same) {
                let text = format!("line {} takes all of its packets: it was never used", known.line);
                report.remark(line, &rule, text);
            } else {
                let (ports, first) = (written(&forward.listen.ports), known.line);
                let text = format!(
                    "line {first} has port {ports} as well, and two forwards share no port: give each an address to listen on"
                );
                report.left_out(line, &rule, text);
            }
            return;
        }
        let port = *forward.listen.ports.start();
        let name = self.names.for_forward(forward.comment.as_deref(), forward.protocol, port);
        self.all.push(Forward { name, ..forward });
    }

    /// Returns `true` if all of these are targets.
    pub(super) fn lead_to(&self, addresses: &[Ipv4Net]) -> bool {
        let is_target = |network: &Ipv4Net| {
            let mut targets = self.all.iter().flat_map(|forward| &forward.targets);
            network.prefix_len() == 32 && targets.any(|target| target.address == network.network())
        };
        !self.all.is_empty() && addresses.iter().all(is_target)
    }

    /// Says which forwards hide their clients from the target, and did not before.
    pub(super) fn compare_sources(&self, found: &[Found<'_>], report: &mut Report) {
        for forward in &self.all {
            let is_hidden = |target: &Target| {
                let host = [Ipv4Net::from(target.address)];
                found.iter().any(|found| {
                    let Conditions { destinations, protocol, .. } = &found.conditions;
                    matches!(found.action, Action::From(_))
                        && protocol.is_none_or(|protocol| protocol == forward.protocol)
                        && destinations.as_ref().is_none_or(|networks| networks::covers(networks, &host))
                })
            };
            if !forward.targets.iter().all(is_hidden) {
                let text = "its targets saw the clients' addresses; pls-router always gives sessions an address of its own";
                report.remark(forward.line, &forward.rule, text);
            }
        }
    }
}

/// A target with the ports that it may have.
struct Wide {
    address: Ipv4Addr,
    ports: Option<RangeInclusive<u16>>,
}

impl Wide {
    fn as_target(&self) -> Target {
        let single = self.ports.as_ref().filter(|ports| ports.start() == ports.end());
        Target { address: self.address, port: single.map(|ports| *ports.start()) }
    }

    /// Returns `true` if the port that the client used is kept, for all of these.
    fn keeps(&self, listen: &RangeInclusive<u16>) -> bool {
        self.ports.as_ref().is_none_or(|ports| {
            // The kernel keeps a port that is in the range.
            ports.contains(listen.start()) && ports.contains(listen.end())
        })
    }
}

fn targets(destinations: &[Destination]) -> Result<Vec<Wide>, String> {
    let mut targets = Vec::new();
    for Destination { addresses, ports } in destinations {
        for address in addresses {
            if let Some(why) = no_target(*address) {
                return Err(format!("{address} is no target: {why}"));
            }
            targets.push(Wide { address: *address, ports: ports.clone() });
        }
    }
    if targets.len() > MAX_TARGETS {
        return Err(format!("{} targets are too many for a rule: {MAX_TARGETS} at most", targets.len()));
    }
    Ok(targets)
}

/// Returns the ranges to listen on: one, or each port by itself if all lead to one port.
fn parts(listen: &RangeInclusive<u16>, targets: &[Wide]) -> Result<Vec<RangeInclusive<u16>>, String> {
    if targets.iter().all(|target| target.keeps(listen)) {
        return Ok(vec![listen.clone()]);
    }
    let is_single = |target: &Wide| target.ports.as_ref().is_none_or(|ports| ports.start() == ports.end());
    if !targets.iter().all(is_single) {
        return Err(
            "the new port is any of a range: name one target port, or none to keep the client's".to_owned()
        );
    }
    if listen.len() > MOST {
        return Err(format!(
            "{} ports lead to a single one: write a forward for those that are in use",
            listen.len()
        ));
    }
    Ok(listen.clone().map(|port| port..=port).collect())
}

/// Puts rules together that spread sessions over their targets: the same conditions, each with a
/// share of what the ones before have left.
fn groups<'a>(found: &[Found<'a>], report: &mut Report) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for Found { rule, conditions, action } in found {
        let destination = match action {
            Action::To(destination) => destination.clone(),
            Action::Redirect => {
                let why = "it hands packets to a server of this machine, and pls-router forwards to others: write a \
                           forward to where that server sends them";
                report.left_out(rule.line, &rule.text, why);
                continue;
            }
            Action::Other(why) => {
                report.left_out(rule.line, &rule.text, why.clone());
                continue;
            }
            Action::From(_)
            | Action::Jump(_)
            | Action::Goto(_)
            | Action::Return
            | Action::Accept
            | Action::Drop
            | Action::Nothing => continue,
        };
        let share = conditions.share;
        let conditions = Conditions { share: None, ..conditions.clone() };
        let comparable = |one: &Conditions| Conditions { comments: Vec::new(), ..one.clone() };
        match groups.last_mut() {
            // The one before leaves something for this one.
            Some(last)
                if last.shares.last().is_some_and(Option::is_some)
                    && comparable(&last.conditions) == comparable(&conditions) =>
            {
                last.destinations.push(destination);
                last.shares.push(share);
            }
            _ => {
                groups.push(Group { rule, conditions, destinations: vec![destination], shares: vec![share] });
            }
        }
    }
    groups
}

/// Checks that shares are even, or returns the remark that they are not.
fn even(shares: &[Option<Share>]) -> Result<Option<&'static str>, String> {
    if let Some(Some(Share(share))) = shares.last()
        && *share < 1.0 - EVEN
    {
        let why = "it takes a part of the sessions, and no rule takes the rest: a forward takes all";
        return Err(why.to_owned());
    }
    let mut left = shares.len();
    let mut is_even = true;
    for share in shares {
        let Share(share) = share.unwrap_or(Share(1.0));
        #[expect(clippy::cast_precision_loss, reason = "there are few of them")]
        let wanted = 1.0 / left as f64;
        is_even &= (share - wanted).abs() <= EVEN;
        left = left.saturating_sub(1).max(1);
    }
    Ok((!is_even).then_some("sessions are spread evenly over the targets: a configuration has no weights"))
}
