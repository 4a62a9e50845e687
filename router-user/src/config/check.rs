//! Checks that need more than one value of the configuration, or a value and its place.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use toml::Spanned;

use super::types::{Listen, LocalAllow, Mss, Others, Protocol, Target, Timeouts};
use super::values::{
    self, AZURE_PLATFORM, MAX_LOCAL_ALLOW, MAX_MASQUERADE_PAIRS, MAX_PROBERS, MAX_RULES, MAX_SNAT_ADDRESSES,
    MAX_TARGETS,
};
use crate::toml_reader::{Diagnostic, Document, List, Severity, Span};

/// The port this machine is usually administered on.
const SSH: u16 = 22;

/// A rule as far as it could be understood, so that it can be compared with the others anyway.
pub(super) struct Rule {
    pub(super) header: Span,
    pub(super) name: Option<Spanned<String>>,
    pub(super) sources: Option<List<Ipv4Net>>,
    pub(super) mss: Option<Spanned<Mss>>,
    pub(super) timeouts: RuleTimeouts,
    /// Of a forward only, as the next two.
    pub(super) protocol: Option<Spanned<Protocol>>,
    pub(super) listen: Option<Spanned<Listen>>,
    pub(super) targets: Option<List<Target>>,
    /// Of a masquerade only.
    pub(super) destinations: Option<List<Ipv4Net>>,
}

/// `[timeouts]`, or those of a rule.
pub(super) struct RuleTimeouts {
    pub(super) values: Timeouts,
    /// The timeouts that the file gives at this place.
    pub(super) given: Vec<Spanned<&'static TimeoutLimit>>,
}

/// The two addresses that the daemon itself listens on, and their places in the file.
pub(super) struct Listeners {
    pub(super) health: SocketAddr,
    pub(super) health_at: Option<Span>,
    pub(super) admin: SocketAddr,
    pub(super) admin_at: Option<Span>,
}

impl Rule {
    fn title(&self) -> String {
        self.name.as_ref().map_or_else(|| "without a name".to_owned(), |name| format!("`{}`", name.get_ref()))
    }

    /// Returns the ports of a forward, by protocol.
    fn ports(&self) -> Option<(Protocol, &Spanned<Listen>)> {
        Some((*self.protocol.as_ref()?.get_ref(), self.listen.as_ref()?))
    }
}

/// Checks the rules, alone and against each other.
pub(super) fn rules(document: &Document, rules: &[Rule], listeners: &Listeners) {
    if rules.is_empty() {
        let none = document.diagnostic(Severity::Error, "there is no rule: nothing would be forwarded");
        document.report(none.help("add a [[forward]] or a [[masquerade]] table"));
    }
    let mut names: Vec<_> = rules.iter().filter_map(|rule| rule.name.as_ref()).collect();
    names.sort_by_key(|name| name.span().start);
    for (name, span, first) in repeated(names.into_iter().map(|name| (name.get_ref(), name.span()))) {
        let twice = document.diagnostic(Severity::Error, format!("two rules are named `{name}`"));
        let twice = twice.at(span, "give it another name: counters and metrics go by it");
        document.report(twice.at(first, "the first one"));
    }
    for rule in rules {
        targets(document, rule);
        sources(document, rule);
        martians(document, rule.sources.as_ref(), "comes from");
        martians(document, rule.destinations.as_ref(), "is forwarded to");
        own_listeners(document, rule, listeners);
        unused(document, rule);
    }
    listeners_apart(document, listeners);
    masquerade_pairs(document, rules);
    match rules.iter().map(|rule| &rule.header).max_by_key(|header| header.start) {
        Some(last) if rules.len() > MAX_RULES => document.error(
            format!("{} rules are too many", rules.len()),
            last.clone(),
            format!("at most {MAX_RULES} in all: ranges of ports and lists of targets may save some"),
        ),
        _ => overlaps(document, rules),
    }
}

/// Returns the items that equal an earlier one, each with its place and the first one's.
fn repeated<T: Copy + Eq + Hash>(items: impl Iterator<Item = (T, Span)>) -> Vec<(T, Span, Span)> {
    let mut seen = HashMap::new();
    let repeats = items.filter_map(|(item, span)| match seen.entry(item) {
        Entry::Vacant(entry) => {
            entry.insert(span);
            None
        }
        Entry::Occupied(first) => Some((item, span, first.get().clone())),
    });
    repeats.collect()
}

fn places<T>(list: &List<T>) -> impl Iterator<Item = (&T, Span)> {
    list.get_ref().iter().map(|item| (item.get_ref(), item.span()))
}

/// Reports a list that is longer than `most`.
fn at_most<T>(document: &Document, list: &List<T>, most: usize, message: &str, label: &str) {
    if let Some(excess) = list.get_ref().get(most) {
        let message = message.replace("{}", &list.get_ref().len().to_string());
        document.error(message, excess.span(), label.replace("{}", &most.to_string()));
    }
}

fn overlaps(document: &Document, rules: &[Rule]) {
    let placed: Vec<_> = rules.iter().filter_map(|rule| Some((rule, rule.ports()?))).collect();
    for (number, (later, (protocol, listen))) in placed.iter().enumerate() {
        // One error a rule: the first rule that it overlaps with is the one to look at.
        let earlier = placed.iter().take(number).filter(|(_, (other, _))| other == protocol);
        let Some((rule, other, shared)) = earlier
            .filter_map(|(rule, (_, other))| Some((rule, other, other.get_ref().overlap(listen.get_ref())?)))
            .next()
        else {
            continue;
        };
        let (name, other_name) = (later.title(), rule.title());
        let message =
            format!("forwards {other_name} and {name} overlap: both take {} {shared}", protocol.as_str());
        let overlap = document.diagnostic(Severity::Error, message);
        let overlap = overlap.at(listen.span(), format!("{name} listens here"));
        let overlap = overlap.at(other.span(), format!("{other_name} listens here"));
        document.report(overlap.help("change the ports of one, or give each its own address to listen on"));
    }
}

fn targets(document: &Document, rule: &Rule) {
    let Some(targets) = &rule.targets else {
        return;
    };
    let label = "a forward has at most {}: split it into several";
    at_most(document, targets, MAX_TARGETS, "{} targets are too many", label);
    let Some(range) = rule.listen.as_ref().filter(|listen| listen.get_ref().is_range()) else {
        return;
    };
    for (target, span) in places(targets) {
        if let Some(port) = target.port {
            let message = format!("the target of a range of ports has a port, {port}");
            let wrong = document.diagnostic(Severity::Error, message);
            let wrong = wrong.at(span, "leave the port out: the one that the client used is kept");
            document.report(wrong.at(range.span(), "a range"));
        }
    }
}

fn sources(document: &Document, rule: &Rule) {
    let mut sources = rule.sources.iter().flat_map(places);
    if let Some((_, everyone)) = sources.find(|(source, _)| source.prefix_len() == 0) {
        document.warning(
            "anyone who reaches this machine may use this rule",
            everyone,
            "every IPv4 address",
            "name the addresses that the Private Link Service translates to, e.g. sources = [\"10.0.2.64/26\"]",
        );
    }
}

/// Warns of networks that the programs drop or leave alone whatever a rule says.
fn martians(document: &Document, networks: Option<&List<Ipv4Net>>, does: &str) {
    for (network, span) in networks.into_iter().flat_map(places) {
        if let Some(kind) = values::no_unicast(network) {
            let help = "leave it out: such packets are dropped or left alone, whatever a rule says";
            document.warning(format!("no packet {does} {network}"), span, kind, help);
        }
    }
}

/// Checks a forward against this machine's own sockets, which do not see the packets it takes.
fn own_listeners(document: &Document, rule: &Rule, listeners: &Listeners) {
    let Some((Protocol::Tcp, listen)) = rule.ports() else {
        return;
    };
    let (name, span, taken) = (rule.title(), listen.span(), listen.get_ref());
    if hides(taken, listeners.health) {
        let port = listeners.health.port();
        let message = format!("forward {name} takes the load balancer's probe port, {port}");
        let mut wrong = document.diagnostic(Severity::Error, message);
        wrong = wrong.at(span.clone(), "the probe would be forwarded, not answered");
        if let Some(health) = &listeners.health_at {
            wrong = wrong.at(health.clone(), "the probe is answered here");
        }
        let help = "change this rule's ports, or `listen` in [health] and the load balancer's probe";
        document.report(wrong.help(help));
    }
    if hides(taken, listeners.admin) {
        let message = format!("forward {name} takes the port of [admin], {}", listeners.admin.port());
        let help = "change this rule's ports, or `listen` in [admin]";
        document.warning(message, span.clone(), "metrics cannot be read from outside this machine", help);
    }
    if hides(taken, SocketAddr::from((Ipv4Addr::UNSPECIFIED, SSH))) {
        document.warning(
            format!("forward {name} takes the port of SSH, {SSH}"),
            span,
            "no client can log in over this interface: packets that are not forwarded are dropped",
            "leave out port 22, or give `listen` an address that is not used to log in",
        );
    }
}

/// Returns `true` if a socket at `socket` misses packets because a TCP forward at `listen` takes
/// them.
fn hides(listen: &Listen, socket: SocketAddr) -> bool {
    let same_address = match (listen.address, socket.ip()) {
        (_, ip) if ip.is_loopback() => false,
        (_, ip) if ip.is_unspecified() => true,
        (Some(address), ip) => IpAddr::V4(address) == ip,
        (None, ip) => ip.is_ipv4(),
    };
    same_address && listen.ports.contains(&socket.port())
}

fn listeners_apart(document: &Document, listeners: &Listeners) {
    let Listeners { health, health_at, admin, admin_at } = listeners;
    let same = health.ip() == admin.ip() || health.ip().is_unspecified() || admin.ip().is_unspecified();
    if health.port() == admin.port() && same {
        let message = format!("[health] and [admin] both listen on port {}", health.port());
        let places = [admin_at, health_at].into_iter().flatten();
        let both = places.fold(document.diagnostic(Severity::Error, message), |both, place| {
            both.at(place.clone(), "here")
        });
        document.report(both.help("give one of them another port"));
    }
    if let (true, Some(span)) = (health.ip().is_loopback(), health_at) {
        let message = "the load balancer cannot reach the probe";
        document.warning(message, span.clone(), "a loopback address", "write \"0.0.0.0:8082\"");
    }
}

fn masquerade_pairs(document: &Document, rules: &[Rule]) {
    let mut pairs = Vec::new();
    for rule in rules {
        let (Some(sources), Some(destinations)) = (&rule.sources, &rule.destinations) else {
            continue;
        };
        let before = pairs.len();
        pairs.extend(places(sources).flat_map(|(source, span)| {
            destinations.get_ref().iter().map(move |to| ((source, to.get_ref()), span.clone()))
        }));
        if pairs.len() > MAX_MASQUERADE_PAIRS && before <= MAX_MASQUERADE_PAIRS {
            let message =
                format!("masquerades have more than {MAX_MASQUERADE_PAIRS} pairs of source and destination");
            let label = format!("with this one they have {}: combine networks", pairs.len());
            document.error(message, rule.header.clone(), label);
        }
    }
    let mut reported = None;
    for ((source, destination), span, first) in repeated(pairs.into_iter()) {
        // One error a rule.
        let rule = rules.iter().map(|rule| rule.header.start).filter(|start| *start <= span.start).max();
        if std::mem::replace(&mut reported, rule) != rule {
            let message = format!("two masquerades take {source} to {destination}");
            let twice = document.diagnostic(Severity::Error, message);
            let twice = twice.at(span, "this one would never be used: leave it out");
            document.report(twice.at(first, "the first one"));
        }
    }
}

/// Checks `from` of `[health]`.
pub(super) fn probers(document: &Document, from: &List<IpNet>) {
    let message = "`from` has {} entries, and each has reserved places";
    at_most(document, from, MAX_PROBERS, message, "at most {}: name the network of several addresses");
    for (entry, span, _) in repeated(places(from)) {
        document.error(format!("`from` has {entry} twice"), span, "leave it out");
    }
    let platform = IpAddr::V4(AZURE_PLATFORM);
    let list = from.get_ref();
    if !list.is_empty() && !list.iter().any(|entry| entry.get_ref().contains(&platform)) {
        document.warning(
            "Azure's load balancer is not in `from`: others can use up the places of its probe",
            from.span(),
            &format!("{AZURE_PLATFORM} is missing"),
            &format!("add \"{AZURE_PLATFORM}\", where its probes come from"),
        );
    }
}

/// Checks the list of SNAT addresses.
pub(super) fn snat_addresses(document: &Document, addresses: &List<Ipv4Addr>) {
    at_most(document, addresses, MAX_SNAT_ADDRESSES, "{} SNAT addresses are too many", "at most {}");
    for (address, span, _) in repeated(places(addresses)) {
        document.error(format!("`addresses` has {address} twice"), span, "leave it out");
    }
}

/// The least that a standard asks of a timeout.
pub(super) struct TimeoutLimit {
    pub(super) key: &'static str,
    /// The forwards that the timeout matters to; `None` for none.
    protocol: Option<Protocol>,
    seconds: u64,
    why: &'static str,
}

const fn limit(
    key: &'static str,
    protocol: Option<Protocol>,
    seconds: u64,
    why: &'static str,
) -> TimeoutLimit {
    TimeoutLimit { key, protocol, seconds, why }
}

const KEEPALIVES: &str =
    "RFC 5382 REQ-5 says at least 2 hours 4 minutes, so that keepalives of two hours hold a connection";
const UDP: &str = "RFC 4787 REQ-5 says at least 2 minutes, and recommends 5 or more";

/// The timeouts, in the order of the fields of [`Timeouts`].
pub(super) static TIMEOUTS: [TimeoutLimit; 5] = [
    limit("tcp_established", Some(Protocol::Tcp), 7440, KEEPALIVES),
    limit("tcp_transitory", Some(Protocol::Tcp), 240, "RFC 5382 REQ-5 says at least 4 minutes"),
    limit("udp", Some(Protocol::Udp), 120, UDP),
    limit("udp_unreplied", Some(Protocol::Udp), 120, "RFC 4787 REQ-5 says at least 2 minutes"),
    limit("icmp", None, 60, "RFC 5508 REQ-2 says at least 60 seconds"),
];

/// Warns of a timeout below the least that the standards ask.
pub(super) fn timeout(document: &Document, limit: &TimeoutLimit, found: &Spanned<Duration>) {
    let TimeoutLimit { key, seconds, why, .. } = limit;
    let given = found.get_ref().as_secs();
    if given < *seconds {
        document.warning(
            format!("`{key}` is short: idle sessions that are still in use may break"),
            found.span(),
            &format!("{given} seconds"),
            &format!("{why}: write \"{seconds}s\" or more"),
        );
    }
}

/// Warns of keys of a forward that do not apply to its protocol.
fn unused(document: &Document, rule: &Rule) {
    let Some(protocol) = rule.protocol.as_ref().map(|protocol| *protocol.get_ref()) else {
        return;
    };
    let (name, label) = (rule.title(), format!("all its sessions are {}", protocol.as_str()));
    for given in rule.timeouts.given.iter().filter(|given| given.get_ref().protocol != Some(protocol)) {
        let message = format!("forward {name} has no session that `{}` is for", given.get_ref().key);
        let help = "leave it out, or write it in the rule that it is meant for";
        document.warning(message, given.span(), &label, help);
    }
    if let (Some(mss), Protocol::Udp) = (&rule.mss, protocol) {
        let help = "leave it out: only TCP announces the size of its segments";
        document.warning(format!("forward {name} has an `mss`, and no TCP"), mss.span(), &label, help);
    }
}

/// Warns of a limit that is beyond another.
pub(super) fn half_open(document: &Document, half_open: &Spanned<u32>, flows: u32) {
    if *half_open.get_ref() > flows {
        document.warning(
            "`half_open_per_source` limits nothing",
            half_open.span(),
            &format!("there are never more than {flows} sessions (`flows`)"),
            "one source could fill the table: write less, or leave it out",
        );
    }
}

/// Checks the entries of `allow` against each other and the rules.
pub(super) fn local(document: &Document, allow: &List<LocalAllow>, others: Others, rules: &[Rule]) {
    let label = "at most {}: ranges of ports and larger networks may save some";
    at_most(document, allow, MAX_LOCAL_ALLOW, "{} entries of `allow` are too many", label);
    for (entry, span, first) in repeated(places(allow)) {
        let twice = document.diagnostic(Severity::Error, format!("`allow` has \"{entry}\" twice"));
        document.report(twice.at(span, "leave it out").at(first, "the first one"));
    }
    let all_known = rules.iter().all(|rule| rule.sources.is_some());
    for (entry, span) in places(allow) {
        if others == Others::Open && all_known {
            needless(document, entry, span.clone(), rules);
        }
        if let Some(rule) = rules.iter().find(|rule| takes_all(rule, entry)) {
            document.report(hidden(document, entry, span, rule));
        }
    }
}

/// Warns of an entry that looks as if it kept others out, and does not.
fn needless(document: &Document, entry: &LocalAllow, span: Span, rules: &[Rule]) {
    // IPv6 is closed on the interface of clients whatever its source address.
    let Some(IpNet::V4(from)) = entry.from else {
        return;
    };
    let mut sources = rules.iter().flat_map(|rule| &rule.sources).flat_map(places);
    if !sources.any(|(source, _)| source.contains(&from) || from.contains(source)) {
        document.warning(
            format!("\"{entry}\" in `allow` changes nothing"),
            span,
            &format!("no rule has a source in {from}, and an address in no rule's `sources` reaches everything"),
            "leave it out, or write others = \"closed\" in [local] to keep out all that `allow` does not name",
        );
    }
}

/// Returns `true` if every packet that `entry` lets in goes to `rule` first.
fn takes_all(rule: &Rule, entry: &LocalAllow) -> bool {
    // Rules are for IPv4.
    let (Some((protocol, listen)), Some(ports), None | Some(IpNet::V4(_))) =
        (rule.ports(), &entry.ports, &entry.from)
    else {
        return false;
    };
    let taken = &listen.get_ref().ports;
    entry.protocol == protocol.into()
        && listen.get_ref().address.is_none()
        && taken.contains(ports.start())
        && taken.contains(ports.end())
}

fn hidden(document: &Document, entry: &LocalAllow, span: Span, rule: &Rule) -> Diagnostic {
    let message = format!("\"{entry}\" in `allow` changes nothing: a forward takes it");
    let mut hidden = document.diagnostic(Severity::Warning, message);
    hidden = hidden.at(span, "never reaches this machine itself");
    if let Some(listen) = &rule.listen {
        hidden = hidden.at(listen.span(), "forwarded, or dropped if it is not from its `sources`");
    }
    hidden.help("leave it out, or change the ports of the forward")
}
