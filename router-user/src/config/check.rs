//! Checks that need more than one value of the configuration, or a value and its place.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use toml::Spanned;

use super::types::{Check, CheckKind, Host, Listen, LocalAllow, Mss, Others, Protocol, Target, Timeouts};
use super::values::{
    self, AZURE_PLATFORM, MAX_LOCAL_ALLOW, MAX_MASQUERADE_PAIRS, MAX_PROBERS, MAX_RULES, MAX_SNAT_ADDRESSES,
    MAX_TARGETS,
};
use crate::toml_reader::{Document, List, Severity, Span, did_you_mean};

/// The port this machine is usually administered on.
const SSH: u16 = 22;

/// A rule as far as it could be understood, so that it can be compared with the others anyway. A
/// list is empty if it is not understood, or if rules of this kind do not have it.
pub(super) struct Rule {
    pub(super) header: Span,
    pub(super) name: Option<Spanned<String>>,
    pub(super) sources: List<Ipv4Net>,
    pub(super) mss: Option<Spanned<Mss>>,
    pub(super) timeouts: RuleTimeouts,
    /// Of a forward only, as the next three.
    pub(super) protocol: Option<Spanned<Protocol>>,
    pub(super) listen: Option<Spanned<Listen>>,
    pub(super) targets: List<Target>,
    pub(super) check: Option<RuleCheck>,
    /// Of a masquerade only.
    pub(super) destinations: List<Ipv4Net>,
}

/// `check` of a forward, and the places of what the file gives of it.
pub(super) struct RuleCheck {
    pub(super) header: Span,
    pub(super) check: Check,
    pub(super) kind: Option<Span>,
    pub(super) sni: Option<Span>,
    /// `true` if there is a name, good or bad.
    pub(super) has_sni: bool,
    pub(super) timeout: Option<Span>,
}

/// `[timeouts]`, or those of a rule.
pub(super) struct RuleTimeouts {
    pub(super) values: Timeouts,
    /// The timeouts that the file gives at this place.
    pub(super) given: Vec<Spanned<&'static TimeoutLimit>>,
}

/// An address that the daemon itself listens on, and its place if the file gives it.
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) given: Option<Span>,
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

/// Checks the rules, alone, against each other, and against the daemon's listeners.
pub(super) fn rules(document: &Document, rules: &[Rule], health: &Listener, admin: &Listener) {
    if rules.is_empty() {
        let help = "add a [[forward]] or a [[masquerade]] table";
        document.report(Severity::Error, "there is no rule: nothing would be forwarded", &[], Some(help));
    }
    let mut names: Vec<_> = rules.iter().filter_map(|rule| rule.name.as_ref()).map(place).collect();
    names.sort_by_key(|(_, span)| span.start);
    for (name, span, first) in repeated(names.into_iter()) {
        let label = "give it another name: counters and metrics go by it";
        let labels = [(span, label), (first, "the first one")];
        document.report(Severity::Error, format!("two rules are named `{name}`"), &labels, None);
    }
    for rule in rules {
        targets(document, rule);
        sources(document, rule);
        martians(document, &rule.sources, "comes from");
        martians(document, &rule.destinations, "is forwarded to");
        own_listeners(document, rule, health, admin);
        unused(document, rule);
        active_check(document, rule);
    }
    listeners_apart(document, health, admin);
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
    let repeats = items.filter_map(|(item, span)| {
        let first = seen.get(&item).cloned();
        seen.entry(item).or_insert_with(|| span.clone());
        Some((item, span, first?))
    });
    repeats.collect()
}

fn place<T>(item: &Spanned<T>) -> (&T, Span) {
    (item.get_ref(), item.span())
}

fn places<T>(list: &List<T>) -> impl Iterator<Item = (&T, Span)> {
    list.get_ref().iter().map(place)
}

/// Reports a list that is longer than `most`.
fn at_most<T>(document: &Document, list: &List<T>, most: usize, message: &str, label: &str) {
    if let Some(excess) = list.get_ref().get(most) {
        let message = message.replace("{}", &list.get_ref().len().to_string());
        document.error(message, excess.span(), label.replace("{}", &most.to_string()));
    }
}

fn overlaps(document: &Document, rules: &[Rule]) {
    let placed: Vec<_> = rules.iter().filter_map(|rule| Some((rule.title(), rule.ports()?))).collect();
    for (number, (name, (protocol, listen))) in placed.iter().enumerate() {
        let shared = |(_, (other, ports)): &&(_, (Protocol, &Spanned<Listen>))| {
            ports.get_ref().overlap(listen.get_ref()).filter(|_| other == protocol)
        };
        // One error a rule: the first rule that it overlaps with is the one to look at.
        let mut earlier = placed.iter().take(number);
        if let Some((first, shared)) = earlier.find_map(|first| Some((first, shared(&first)?))) {
            let (other, (_, place)) = first;
            let message =
                format!("forwards {other} and {name} overlap: both take {} {shared}", protocol.as_str());
            let (label, other_label) = (format!("{name} listens here"), format!("{other} listens here"));
            let labels = [(listen.span(), label.as_str()), (place.span(), &other_label)];
            let help = "change the ports of one, or give each its own address to listen on";
            document.report(Severity::Error, message, &labels, Some(help));
        }
    }
}

fn targets(document: &Document, rule: &Rule) {
    let label = "a forward has at most {}: split it into several";
    at_most(document, &rule.targets, MAX_TARGETS, "{} targets are too many", label);
    let Some(range) = rule.listen.as_ref().filter(|listen| listen.get_ref().is_range()) else {
        return;
    };
    for (target, span) in places(&rule.targets) {
        if let Some(port) = target.port {
            let message = format!("the target of a range of ports has a port, {port}");
            let label = "leave the port out: the one that the client used is kept";
            document.report(Severity::Error, message, &[(span, label), (range.span(), "a range")], None);
        }
    }
}

fn sources(document: &Document, rule: &Rule) {
    if let Some((_, everyone)) = places(&rule.sources).find(|(source, _)| source.prefix_len() == 0) {
        document.warning(
            "anyone who reaches this machine may use this rule",
            everyone,
            "every IPv4 address",
            "name the addresses that the Private Link Service translates to, e.g. sources = [\"10.0.2.64/26\"]",
        );
    }
}

/// Warns of networks that the programs drop or leave alone whatever a rule says.
fn martians(document: &Document, networks: &List<Ipv4Net>, does: &str) {
    for (network, span) in places(networks) {
        if let Some(kind) = values::no_unicast(network) {
            let help = "leave it out: such packets are dropped or left alone, whatever a rule says";
            document.warning(format!("no packet {does} {network}"), span, kind, help);
        }
    }
}

/// Checks a forward against this machine's own sockets, which do not see the packets it takes.
fn own_listeners(document: &Document, rule: &Rule, health: &Listener, admin: &Listener) {
    let Some((Protocol::Tcp, listen)) = rule.ports() else {
        return;
    };
    let takes = |socket: SocketAddr, what: &str| {
        let message = format!("forward {} takes {what}, {}", rule.title(), socket.port());
        hides(listen.get_ref(), socket).then_some(message)
    };
    if let Some(message) = takes(health.address, "the load balancer's probe port") {
        let mut labels = vec![(listen.span(), "the probe would be forwarded, not answered")];
        labels.extend(health.given.clone().map(|given| (given, "the probe is answered here")));
        let help = "change this rule's ports, or `listen` in [health] and the load balancer's probe";
        document.report(Severity::Error, message, &labels, Some(help));
    }
    if let Some(message) = takes(admin.address, "the port of [admin]") {
        let help = "change this rule's ports, or `listen` in [admin]";
        document.warning(message, listen.span(), "metrics cannot be read from outside this machine", help);
    }
    if let Some(message) = takes(SocketAddr::from((Ipv4Addr::UNSPECIFIED, SSH)), "the port of SSH") {
        let label = "no client can log in over this interface: packets that are not forwarded are dropped";
        let help = "leave out port 22, or give `listen` an address that is not used to log in";
        document.warning(message, listen.span(), label, help);
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

fn listeners_apart(document: &Document, health: &Listener, admin: &Listener) {
    let (one, two) = (health.address, admin.address);
    let same = one.ip() == two.ip() || one.ip().is_unspecified() || two.ip().is_unspecified();
    if one.port() == two.port() && same {
        let message = format!("[health] and [admin] both listen on port {}", one.port());
        let given = [&admin.given, &health.given].into_iter().flatten();
        let labels: Vec<_> = given.map(|given| (given.clone(), "here")).collect();
        document.report(Severity::Error, message, &labels, Some("give one of them another port"));
    }
    if let (true, Some(given)) = (one.ip().is_loopback(), &health.given) {
        let message = "the load balancer cannot reach the probe";
        document.warning(message, given.clone(), "a loopback address", "write \"0.0.0.0:8082\"");
    }
}

fn masquerade_pairs(document: &Document, rules: &[Rule]) {
    let mut pairs = Vec::new();
    for rule in rules {
        let before = pairs.len();
        pairs.extend(places(&rule.sources).flat_map(|(source, span)| {
            places(&rule.destinations).map(move |(destination, _)| ((source, destination), span.clone()))
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
            let labels = [(span, "this one would never be used: leave it out"), (first, "the first one")];
            document.report(Severity::Error, message, &labels, None);
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

/// Checks `require` of `[health]`, where it is a list.
pub(super) fn required_rules(document: &Document, names: &List<String>, rules: &[Rule]) {
    let known: Vec<&str> =
        rules.iter().filter_map(|rule| rule.name.as_ref()).map(|name| name.get_ref().as_str()).collect();
    for (name, span) in places(names) {
        if !known.contains(&name.as_str()) {
            let label = did_you_mean(name, &known, "name a [[forward]] or [[masquerade]], or leave it out");
            document.error(format!("`require` has \"{name}\", and no rule is named so"), span, label);
        }
    }
    for (name, span, _) in repeated(places(names)) {
        document.error(format!("`require` has \"{name}\" twice"), span, "leave it out");
    }
}

/// Checks `check` of a forward against the rest of the rule.
fn active_check(document: &Document, rule: &Rule) {
    let Some(RuleCheck { header, check, kind, sni, has_sni, timeout }) = &rule.check else { return };
    if let (Some(sni), Some(kind), CheckKind::Tcp) = (sni, kind, &check.kind) {
        let labels = [(sni.clone(), "leave it out, or write type = \"tls\""), (kind.clone(), "no TLS")];
        document.report(Severity::Error, "`sni` is the name that a TLS check asks for", &labels, None);
    }
    if check.timeout > check.interval
        && let Some(timeout) = timeout
    {
        let interval = humantime::format_duration(check.interval);
        let label = format!("write at most \"{interval}\", or a longer `interval`");
        document.error("`timeout` is longer than `interval`", timeout.clone(), label);
    }
    if check.port.is_none() {
        let is_udp = rule.protocol.as_ref().is_some_and(|protocol| *protocol.get_ref() == Protocol::Udp);
        let is_range = rule.listen.as_ref().filter(|listen| listen.get_ref().is_range());
        let why = if is_udp {
            Some("checks are made by TCP, and the rule is for UDP".to_owned())
        } else {
            is_range.map(|listen| format!("the rule is for {} ports", listen.get_ref().ports.len()))
        };
        if let Some(why) = why {
            let message = format!("the check of forward {} needs a `port`: {why}", rule.title());
            document.error(message, header.clone(), "name a TCP port of the targets: port = 443");
        }
    }
    let has_address = places(&rule.targets).any(|(target, _)| matches!(target.host, Host::Address(_)));
    if has_address && !has_sni && check.kind == (CheckKind::Tls { sni: None }) {
        document.warning(
            format!("the TLS check of forward {} asks for no name", rule.title()),
            header.clone(),
            "no `sni`",
            "a firewall that goes by names refuses it: add sni = \"www.example.com\", a name that clients use",
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

const KEEPALIVES: &str =
    "RFC 5382 REQ-5 says at least 2 hours 4 minutes, so that keepalives of two hours hold a connection";
const TRANSITORY: &str = "RFC 5382 REQ-5 says at least 4 minutes";
const UNREPLIED: &str = "RFC 4787 REQ-5 says at least 2 minutes";
const UDP: &str = "RFC 4787 REQ-5 says at least 2 minutes, and recommends 5 or more";

/// The timeouts, in the order of the fields of [`Timeouts`].
pub(super) static TIMEOUTS: [TimeoutLimit; 5] = [
    TimeoutLimit { key: "tcp_established", protocol: Some(Protocol::Tcp), seconds: 7440, why: KEEPALIVES },
    TimeoutLimit { key: "tcp_transitory", protocol: Some(Protocol::Tcp), seconds: 240, why: TRANSITORY },
    TimeoutLimit { key: "udp", protocol: Some(Protocol::Udp), seconds: 120, why: UDP },
    TimeoutLimit { key: "udp_unreplied", protocol: Some(Protocol::Udp), seconds: 120, why: UNREPLIED },
    TimeoutLimit { key: "icmp", protocol: None, seconds: 60, why: "RFC 5508 REQ-2 says at least 60 seconds" },
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
        let labels = [(span, "leave it out"), (first, "the first one")];
        document.report(Severity::Error, format!("`allow` has \"{entry}\" twice"), &labels, None);
    }
    let all_known = rules.iter().all(|rule| !rule.sources.get_ref().is_empty());
    for (entry, span) in places(allow) {
        if others == Others::Open && all_known {
            needless(document, entry, span.clone(), rules);
        }
        if let Some(listen) = rules.iter().find_map(|rule| taker(rule, entry)) {
            let message = format!("\"{entry}\" in `allow` changes nothing: a forward takes it");
            let listens = (listen.span(), "forwarded, or dropped if it is not from its `sources`");
            let labels = [(span, "never reaches this machine itself"), listens];
            let help = "leave it out, or change the ports of the forward";
            document.report(Severity::Warning, message, &labels, Some(help));
        }
    }
}

/// Warns of an entry that looks as if it kept others out, and does not.
fn needless(document: &Document, entry: &LocalAllow, span: Span, rules: &[Rule]) {
    // IPv6 is closed on the interface of clients whatever its source address.
    let Some(IpNet::V4(from)) = entry.from else {
        return;
    };
    let mut sources = rules.iter().flat_map(|rule| places(&rule.sources));
    if !sources.any(|(source, _)| source.contains(&from) || from.contains(source)) {
        document.warning(
            format!("\"{entry}\" in `allow` changes nothing"),
            span,
            &format!("no rule has a source in {from}, and an address in no rule's `sources` reaches everything"),
            "leave it out, or write others = \"closed\" in [local] to keep out all that `allow` does not name",
        );
    }
}

/// Returns the address and ports of `rule` if every packet that `entry` lets in goes there first.
fn taker<'r>(rule: &'r Rule, entry: &LocalAllow) -> Option<&'r Spanned<Listen>> {
    let (protocol, listen) = rule.ports()?;
    let (ports, Listen { address, ports: taken }) = (entry.ports.as_ref()?, listen.get_ref());
    // Rules are for IPv4.
    let same = entry.protocol == protocol.into() && !matches!(entry.from, Some(IpNet::V6(_)));
    let all = address.is_none() && taken.contains(ports.start()) && taken.contains(ports.end());
    (same && all).then_some(listen)
}
