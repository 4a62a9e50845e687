//! What must hold between values of the configuration: no single one of them is wrong.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use toml::Spanned;

use super::diagnostic::Severity;
use super::document::Document;
use super::read::{RawForward, RawListeners, RawMasquerade};
use super::types::{Listen, Protocol};
use super::values::{
    self, AZURE_PLATFORM, MAX_MASQUERADE_PAIRS, MAX_PROBERS, MAX_RULES, MAX_SNAT_ADDRESSES, MAX_TARGETS,
};

/// The port this machine is usually administered on.
const SSH: u16 = 22;

/// Checks the rules, alone and against each other.
pub(super) fn rules(
    document: &mut Document,
    forwards: &[RawForward],
    masquerades: &[RawMasquerade],
    listeners: &RawListeners,
) {
    let number = forwards.len() + masquerades.len();
    if number == 0 {
        let none = document
            .diagnostic(Severity::Error, "there is no rule: nothing would be forwarded")
            .help("add a [[forward]] or a [[masquerade]] table");
        document.push(none);
    }
    unique_names(document, forwards, masquerades);
    for forward in forwards {
        targets(document, forward);
        sources(document, forward.sources.as_ref());
        martians(document, forward.sources.as_ref(), "comes from");
        own_listeners(document, forward, listeners);
        unused_timeouts(document, forward);
        unused_mss(document, forward);
    }
    for masquerade in masquerades {
        sources(document, masquerade.sources.as_ref());
        martians(document, masquerade.sources.as_ref(), "comes from");
        martians(document, masquerade.destinations.as_ref(), "is forwarded to");
    }
    listeners_apart(document, listeners);
    masquerade_pairs(document, masquerades);
    if number > MAX_RULES {
        let headers =
            forwards.iter().map(|rule| &rule.header).chain(masquerades.iter().map(|rule| &rule.header));
        if let Some(header) = headers.max_by_key(|header| header.start) {
            document.error(
                format!("{number} rules are too many"),
                header.clone(),
                format!("at most {MAX_RULES} in all: ranges of ports and lists of targets may save some"),
            );
        }
    } else {
        overlaps(document, forwards);
    }
}

fn unique_names(document: &mut Document, forwards: &[RawForward], masquerades: &[RawMasquerade]) {
    let mut names: Vec<&Spanned<String>> = forwards
        .iter()
        .filter_map(|rule| rule.name.as_ref())
        .chain(masquerades.iter().filter_map(|rule| rule.name.as_ref()))
        .collect();
    names.sort_by_key(|name| name.span().start);
    let mut first: HashMap<&str, Range<usize>> = HashMap::new();
    for name in names {
        match first.entry(name.get_ref()) {
            Entry::Vacant(entry) => {
                entry.insert(name.span());
            }
            Entry::Occupied(entry) => {
                let twice = document
                    .diagnostic(Severity::Error, format!("two rules are named `{}`", name.get_ref()))
                    .at(name.span(), "give it another name: counters and metrics go by it")
                    .at(entry.get().clone(), "the first one");
                document.push(twice);
            }
        }
    }
}

fn overlaps(document: &mut Document, forwards: &[RawForward]) {
    let placed: Vec<(&RawForward, Protocol, &Spanned<Listen>)> = forwards
        .iter()
        .filter_map(|rule| Some((rule, *rule.protocol.as_ref()?.get_ref(), rule.listen.as_ref()?)))
        .collect();
    for (later, (rule, protocol, listen)) in placed.iter().enumerate() {
        // One complaint a rule: the first rule it runs into is the one to look at.
        let other = placed.iter().take(later).find(|(_, other_protocol, other_listen)| {
            other_protocol == protocol && other_listen.get_ref().overlaps(listen.get_ref())
        });
        let Some((other_rule, _, other_listen)) = other else {
            continue;
        };
        let (name, other_name) = (named(rule), named(other_rule));
        let shared = Listen {
            address: listen.get_ref().address.or(other_listen.get_ref().address),
            ports: *listen.get_ref().ports.start().max(other_listen.get_ref().ports.start())
                ..=*listen.get_ref().ports.end().min(other_listen.get_ref().ports.end()),
        };
        let diagnostic = document
            .diagnostic(
                Severity::Error,
                format!("forwards {other_name} and {name} overlap: both take {protocol} {shared}"),
            )
            .at(listen.span(), format!("{name} listens here"))
            .at(other_listen.span(), format!("{other_name} listens here"))
            .help("change the ports of one, or give each its own address to listen on");
        document.push(diagnostic);
    }
}

fn named(rule: &RawForward) -> String {
    rule.name.as_ref().map_or_else(|| "without a name".to_owned(), |name| format!("`{}`", name.get_ref()))
}

fn targets(document: &mut Document, rule: &RawForward) {
    let Some(targets) = &rule.targets else {
        return;
    };
    if let Some(excess) = targets.get_ref().get(MAX_TARGETS) {
        document.error(
            format!("{} targets are too many", targets.get_ref().len()),
            excess.span(),
            format!("a forward has at most {MAX_TARGETS}: split it into several"),
        );
    }
    let Some(listen) = rule.listen.as_ref().filter(|listen| listen.get_ref().is_range()) else {
        return;
    };
    for target in targets.get_ref() {
        if let Some(port) = target.get_ref().port {
            let diagnostic = document
                .diagnostic(Severity::Error, format!("the target of a range of ports has a port, {port}"))
                .at(target.span(), "leave the port out: the one that the client used is kept")
                .at(listen.span(), "a range");
            document.push(diagnostic);
        }
    }
}

fn sources(document: &mut Document, sources: Option<&Spanned<Vec<Spanned<Ipv4Net>>>>) {
    let everyone = sources
        .and_then(|sources| sources.get_ref().iter().find(|source| source.get_ref().prefix_len() == 0));
    if let Some(everyone) = everyone {
        document.warning(
            "anyone who reaches this machine may use this rule",
            everyone.span(),
            "every IPv4 address",
            "name the addresses that the Private Link Service translates to, e.g. sources = [\"10.0.2.64/26\"]",
        );
    }
}

/// Warns of networks that the programs drop or leave alone whatever a rule says.
fn martians(document: &mut Document, networks: Option<&Spanned<Vec<Spanned<Ipv4Net>>>>, what: &str) {
    for network in networks.map(|networks| networks.get_ref().as_slice()).unwrap_or_default() {
        let Some(kind) = values::no_unicast(network.get_ref()) else { continue };
        document.warning(
            format!("no packet {what} {}", network.get_ref()),
            network.span(),
            kind,
            "leave it out: such packets are dropped or left alone, whatever a rule says",
        );
    }
}

/// A forward takes its packets before this machine's own sockets see them.
fn own_listeners(document: &mut Document, rule: &RawForward, listeners: &RawListeners) {
    let (Some(protocol), Some(listen)) = (&rule.protocol, &rule.listen) else {
        return;
    };
    if *protocol.get_ref() != Protocol::Tcp {
        return;
    }
    let taken = listen.get_ref();
    if hides(taken, listeners.health) {
        let mut diagnostic = document
            .diagnostic(
                Severity::Error,
                format!(
                    "forward {} takes the load balancer's probe port, {}",
                    named(rule),
                    listeners.health.port()
                ),
            )
            .at(listen.span(), "the probe would be forwarded, not answered");
        if let Some(span) = &listeners.health_at {
            diagnostic = diagnostic.at(span.clone(), "the probe is answered here");
        }
        document.push(
            diagnostic
                .help("change this rule's ports, or `listen` in [health] and the load balancer's probe"),
        );
    }
    if hides(taken, listeners.admin) {
        document.warning(
            format!("forward {} takes the port of [admin], {}", named(rule), listeners.admin.port()),
            listen.span(),
            "metrics cannot be read from outside this machine",
            "change this rule's ports, or `listen` in [admin]",
        );
    }
    if hides(taken, SocketAddr::from((Ipv4Addr::UNSPECIFIED, SSH))) {
        document.warning(
            format!("forward {} takes the port of SSH, {SSH}", named(rule)),
            listen.span(),
            "nobody can log in over this interface: what is not forwarded is dropped",
            "leave out port 22, or give `listen` an address that nobody logs in at",
        );
    }
}

/// Whether a socket at `socket` would miss packets because a TCP forward at `listen` takes them.
fn hides(listen: &Listen, socket: SocketAddr) -> bool {
    let same_address = match (listen.address, socket.ip()) {
        (_, ip) if ip.is_loopback() => false,
        (_, ip) if ip.is_unspecified() => true,
        (Some(address), ip) => IpAddr::V4(address) == ip,
        (None, ip) => ip.is_ipv4(),
    };
    same_address && listen.ports.contains(&socket.port())
}

fn listeners_apart(document: &mut Document, listeners: &RawListeners) {
    let RawListeners { health, health_at, admin, admin_at } = listeners;
    let same_address =
        health.ip() == admin.ip() || health.ip().is_unspecified() || admin.ip().is_unspecified();
    if health.port() == admin.port() && same_address {
        let mut diagnostic = document.diagnostic(
            Severity::Error,
            format!("[health] and [admin] both listen on port {}", health.port()),
        );
        for span in [admin_at, health_at].into_iter().flatten() {
            diagnostic = diagnostic.at(span.clone(), "here");
        }
        document.push(diagnostic.help("give one of them another port"));
    }
    if health.ip().is_loopback()
        && let Some(span) = health_at
    {
        document.warning(
            "the load balancer cannot reach the probe",
            span.clone(),
            "a loopback address",
            "write \"0.0.0.0:8082\"",
        );
    }
}

fn masquerade_pairs(document: &mut Document, rules: &[RawMasquerade]) {
    let mut number = 0;
    let mut seen: HashMap<(Ipv4Net, Ipv4Net), (&RawMasquerade, Range<usize>)> = HashMap::new();
    for rule in rules {
        let (Some(sources), Some(destinations)) = (&rule.sources, &rule.destinations) else {
            continue;
        };
        let before = number;
        number += sources.get_ref().len() * destinations.get_ref().len();
        if number > MAX_MASQUERADE_PAIRS && before <= MAX_MASQUERADE_PAIRS {
            document.error(
                format!("masquerades have more than {MAX_MASQUERADE_PAIRS} pairs of source and destination"),
                rule.header.clone(),
                format!("with this one they have {number}: combine networks"),
            );
        }
        let pairs = sources
            .get_ref()
            .iter()
            .flat_map(|source| destinations.get_ref().iter().map(move |destination| (source, destination)));
        for (source, destination) in pairs {
            match seen.entry((*source.get_ref(), *destination.get_ref())) {
                Entry::Vacant(entry) => {
                    entry.insert((rule, source.span()));
                }
                Entry::Occupied(entry) => {
                    let (_, first) = entry.get();
                    let diagnostic = document
                        .diagnostic(
                            Severity::Error,
                            format!("two masquerades take {} to {}", source.get_ref(), destination.get_ref()),
                        )
                        .at(source.span(), "this one would never be used: leave it out")
                        .at(first.clone(), "the first one");
                    document.push(diagnostic);
                    break;
                }
            }
        }
    }
}

/// Checks who has places for probes.
pub(super) fn probers(document: &mut Document, from: &Spanned<Vec<Spanned<IpNet>>>) {
    let list = from.get_ref();
    if let Some(excess) = list.get(MAX_PROBERS) {
        document.error(
            format!("`from` has {} entries, and each has places of its own", list.len()),
            excess.span(),
            format!("at most {MAX_PROBERS}: name the network of several addresses"),
        );
    }
    for (number, entry) in list.iter().enumerate() {
        if list.iter().take(number).any(|earlier| earlier.get_ref() == entry.get_ref()) {
            document.error(format!("`from` has {} twice", entry.get_ref()), entry.span(), "leave it out");
        }
    }
    let platform = IpAddr::V4(AZURE_PLATFORM);
    if !list.is_empty() && !list.iter().any(|entry| entry.get_ref().contains(&platform)) {
        document.warning(
            "Azure's load balancer is not in `from`: others can use up the places that its probe has",
            from.span(),
            format!("{AZURE_PLATFORM} is missing"),
            format!("add \"{AZURE_PLATFORM}\", where its probes come from"),
        );
    }
}

/// Checks the list of SNAT addresses.
pub(super) fn snat_addresses(document: &mut Document, addresses: &Spanned<Vec<Spanned<Ipv4Addr>>>) {
    let list = addresses.get_ref();
    if let Some(excess) = list.get(MAX_SNAT_ADDRESSES) {
        document.error(
            format!("{} SNAT addresses are too many", list.len()),
            excess.span(),
            format!("at most {MAX_SNAT_ADDRESSES}"),
        );
    }
    for (number, address) in list.iter().enumerate() {
        if list.iter().take(number).any(|earlier| earlier.get_ref() == address.get_ref()) {
            document.error(
                format!("`addresses` has {} twice", address.get_ref()),
                address.span(),
                "leave it out",
            );
        }
    }
}

/// What a timeout is of, and how short it may be before a standard says no.
pub(super) struct TimeoutLimit {
    pub(super) key: &'static str,
    /// The forwards that it matters to; `None` for none.
    protocol: Option<Protocol>,
    seconds: u64,
    why: &'static str,
}

pub(super) static TCP_ESTABLISHED: TimeoutLimit = TimeoutLimit {
    key: "tcp_established",
    protocol: Some(Protocol::Tcp),
    seconds: 7440,
    why: "RFC 5382 REQ-5 says at least 2 hours 4 minutes, so that keepalives of two hours hold a connection",
};
pub(super) static TCP_TRANSITORY: TimeoutLimit = TimeoutLimit {
    key: "tcp_transitory",
    protocol: Some(Protocol::Tcp),
    seconds: 240,
    why: "RFC 5382 REQ-5 says at least 4 minutes",
};
pub(super) static UDP: TimeoutLimit = TimeoutLimit {
    key: "udp",
    protocol: Some(Protocol::Udp),
    seconds: 120,
    why: "RFC 4787 REQ-5 says at least 2 minutes, and recommends 5 or more",
};
pub(super) static UDP_UNREPLIED: TimeoutLimit = TimeoutLimit {
    key: "udp_unreplied",
    protocol: Some(Protocol::Udp),
    seconds: 120,
    why: "RFC 4787 REQ-5 says at least 2 minutes",
};
pub(super) static ICMP: TimeoutLimit =
    TimeoutLimit { key: "icmp", protocol: None, seconds: 60, why: "RFC 5508 REQ-2 says at least 60 seconds" };

/// Warns of a timeout below what the standards ask.
pub(super) fn timeout(document: &mut Document, limit: &TimeoutLimit, found: &Spanned<Duration>) {
    if found.get_ref().as_secs() < limit.seconds {
        document.warning(
            format!("`{}` is short: idle sessions that are still in use may break", limit.key),
            found.span(),
            format!("{} seconds", found.get_ref().as_secs()),
            format!("{}: write \"{}s\" or more", limit.why, limit.seconds),
        );
    }
}

/// Warns of timeouts for what a forward has no sessions of.
fn unused_timeouts(document: &mut Document, rule: &RawForward) {
    let Some(protocol) = rule.protocol.as_ref().map(|protocol| *protocol.get_ref()) else {
        return;
    };
    for given in rule.timeouts.given.iter().filter(|given| given.get_ref().protocol != Some(protocol)) {
        document.warning(
            format!("forward {} has no session that `{}` is for", named(rule), given.get_ref().key),
            given.span(),
            format!("all its sessions are {protocol}"),
            "leave it out, or write it in the rule that it is meant for",
        );
    }
}

fn unused_mss(document: &mut Document, rule: &RawForward) {
    if let (Some(protocol), Some(mss)) = (&rule.protocol, &rule.mss)
        && *protocol.get_ref() != Protocol::Tcp
    {
        document.warning(
            format!("forward {} has an `mss`, and no TCP", named(rule)),
            mss.span(),
            format!("all its sessions are {}", protocol.get_ref()),
            "leave it out: only TCP announces the size of its segments",
        );
    }
}

/// Warns of a limit that is beyond another.
pub(super) fn half_open(document: &mut Document, half_open: &Spanned<u32>, flows: u32) {
    if *half_open.get_ref() > flows {
        document.warning(
            "`half_open_per_source` limits nothing",
            half_open.span(),
            format!("there are never more than {flows} sessions (`flows`)"),
            "one source could fill the table: write less, or leave it out",
        );
    }
}
