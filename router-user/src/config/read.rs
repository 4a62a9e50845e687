//! The tables of the file, one after another, into a [`Config`].

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use toml::Spanned;
use toml::de::DeTable;

use super::check;
use super::document::{Document, Section};
use super::local;
use super::schema;
use super::types::{
    Admin, Answers, Config, Forward, Health, Interfaces, Limits, Listen, Local, Masquerade, Mode, Mss,
    Others, Protocol, Refusal, Snat, Target, Timeouts,
};
use super::values;

const DEFAULT_HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8082);
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
const DEFAULT_SOCKET: &str = "/run/pls-router/api.sock";
const DEFAULT_PINS: &str = "/sys/fs/bpf/pls-router";
const DEFAULT_FLOWS: u32 = 1 << 20;
/// What `half_open_per_source` is on most machines.
const USUAL_HALF_OPEN: u32 = 15_872;
const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    tcp_established: Duration::from_secs(7440),
    tcp_transitory: Duration::from_secs(240),
    udp: Duration::from_secs(300),
    udp_unreplied: Duration::from_secs(120),
    icmp: Duration::from_secs(60),
};
const SOURCES_EXAMPLE: &str = "[\"10.0.2.64/26\"]";

/// A `[[forward]]` as far as it could be understood, so that it can be checked against the others
/// all the same.
pub(super) struct RawForward {
    pub(super) header: Range<usize>,
    pub(super) name: Option<Spanned<String>>,
    pub(super) protocol: Option<Spanned<Protocol>>,
    pub(super) listen: Option<Spanned<Listen>>,
    pub(super) targets: Option<Spanned<Vec<Spanned<Target>>>>,
    pub(super) sources: Option<Spanned<Vec<Spanned<Ipv4Net>>>>,
    pub(super) mss: Option<Spanned<Mss>>,
    pub(super) timeouts: RawTimeouts,
}

/// A `[[masquerade]]`, likewise.
pub(super) struct RawMasquerade {
    pub(super) header: Range<usize>,
    pub(super) name: Option<Spanned<String>>,
    pub(super) sources: Option<Spanned<Vec<Spanned<Ipv4Net>>>>,
    pub(super) destinations: Option<Spanned<Vec<Spanned<Ipv4Net>>>>,
    pub(super) mss: Option<Spanned<Mss>>,
    pub(super) timeouts: RawTimeouts,
}

/// `[timeouts]`, or a rule's own.
pub(super) struct RawTimeouts {
    values: Timeouts,
    /// Those that are in the file at this place, and where.
    pub(super) given: Vec<Spanned<&'static check::TimeoutLimit>>,
}

/// The two addresses that the daemon listens on itself, and where the file says so.
pub(super) struct RawListeners {
    pub(super) health: SocketAddr,
    pub(super) health_at: Option<Range<usize>>,
    pub(super) admin: SocketAddr,
    pub(super) admin_at: Option<Range<usize>>,
}

/// Reads the whole document. `None` if something needed is missing; complaints are in the document.
pub(super) fn config(document: &mut Document) -> Option<Config> {
    let source = Arc::clone(&document.source);
    let (root, errors) = DeTable::parse_recoverable(&source.text);
    if !errors.is_empty() {
        // What could be recovered is not what was meant: more complaints about it would only
        // confuse.
        document.syntax_errors(&errors);
        return None;
    }
    let root = root.get_ref();
    document.unknown_sections(root);

    let interfaces = interfaces(document, root);
    let section = document.section(root, schema::TIMEOUTS);
    let timeouts = timeouts(document, &section, &DEFAULT_TIMEOUTS).values;
    let forwards: Vec<RawForward> = document
        .sections(root, schema::FORWARD)
        .iter()
        .map(|section| forward(document, section, &timeouts))
        .collect();
    let masquerades: Vec<RawMasquerade> = document
        .sections(root, schema::MASQUERADE)
        .iter()
        .map(|section| masquerade(document, section, &timeouts))
        .collect();
    let snat = snat(document, root);
    let section = document.section(root, schema::ANSWERS);
    let unreachable = section.optional(document, "unreachable", values::refusal);
    let answers = Answers { unreachable: unreachable.map_or(Refusal::Reject, Spanned::into_inner) };
    let section = document.section(root, schema::LOCAL);
    let others =
        section.optional(document, "others", local::others).map_or(Others::Open, Spanned::into_inner);
    let allow = section.list(document, "allow", local::allow);
    let (admin, from, listeners) = listeners(document, root);
    let limits = limits(document, root);
    check::rules(document, &forwards, &masquerades, &listeners);
    if let Some(allow) = &allow {
        local::check(document, allow, others, &forwards, &masquerades);
    }

    Some(Config {
        interfaces: interfaces?,
        forwards: forwards.into_iter().map(RawForward::finish).collect::<Option<_>>()?,
        masquerades: masquerades.into_iter().map(RawMasquerade::finish).collect::<Option<_>>()?,
        snat,
        answers,
        local: Local { allow: allow.map_or_else(Vec::new, plain), others },
        health: Health { listen: listeners.health, from: from.map_or_else(Vec::new, plain) },
        admin,
        limits,
        timeouts,
    })
}

fn interfaces(document: &mut Document, root: &DeTable<'_>) -> Option<Interfaces> {
    let section = document.section(root, schema::INTERFACES);
    let pls = section.required(document, "pls", "eth0", values::interface);
    let firewall = section.optional(document, "firewall", values::interface);
    let mode = section.optional(document, "mode", values::mode);
    let pls = pls?.into_inner();
    Some(Interfaces {
        firewall: firewall.map_or_else(|| pls.clone(), Spanned::into_inner),
        pls,
        mode: mode.map_or(Mode::Native, Spanned::into_inner),
    })
}

fn forward(document: &mut Document, section: &Section<'_>, defaults: &Timeouts) -> RawForward {
    RawForward {
        header: section.header.clone().unwrap_or_default(),
        name: section.required(document, "name", "https", values::rule_name),
        protocol: section.required(document, "protocol", "tcp", values::protocol),
        listen: section.required(document, "listen", "443", values::listen),
        targets: section.required_one_or_more(document, "target", "\"203.0.113.10:443\"", values::target),
        sources: section.required_list(document, "sources", SOURCES_EXAMPLE, values::network),
        mss: section.number_or_word(document, "mss", values::mss),
        timeouts: rule_timeouts(document, section, defaults),
    }
}

fn masquerade(document: &mut Document, section: &Section<'_>, defaults: &Timeouts) -> RawMasquerade {
    RawMasquerade {
        header: section.header.clone().unwrap_or_default(),
        name: section.required(document, "name", "vnet", values::rule_name),
        sources: section.required_list(document, "sources", SOURCES_EXAMPLE, values::network),
        destinations: section.required_list(document, "destinations", "[\"0.0.0.0/0\"]", values::network),
        mss: section.number_or_word(document, "mss", values::mss),
        timeouts: rule_timeouts(document, section, defaults),
    }
}

fn snat(document: &mut Document, root: &DeTable<'_>) -> Snat {
    let section = document.section(root, schema::SNAT);
    let addresses = section.list(document, "addresses", values::unicast);
    if let Some(addresses) = &addresses {
        check::snat_addresses(document, addresses);
    }
    Snat {
        addresses: addresses.map_or_else(Vec::new, plain),
        ports: section.optional(document, "ports", values::snat_ports).map(Spanned::into_inner),
        exhausted: section
            .optional(document, "exhausted", values::refusal)
            .map_or(Refusal::Reject, Spanned::into_inner),
    }
}

type Probers = Option<Spanned<Vec<Spanned<IpNet>>>>;

fn listeners(document: &mut Document, root: &DeTable<'_>) -> (Admin, Probers, RawListeners) {
    let section = document.section(root, schema::HEALTH);
    let health = section.optional(document, "listen", values::health_address);
    let from = section.list(document, "from", values::prober);
    if let Some(from) = &from {
        check::probers(document, from);
    }
    let section = document.section(root, schema::ADMIN);
    let listen = section.optional(document, "listen", values::admin_address);
    let hosts = section.list(document, "hosts", values::host_name);
    let path = |document: &mut Document, key, default: &str, parse: fn(&str) -> _| {
        section.optional(document, key, parse).map_or_else(|| PathBuf::from(default), Spanned::into_inner)
    };
    let admin = Admin {
        listen: listen.as_ref().map_or(DEFAULT_ADMIN, |listen| *listen.get_ref()),
        hosts: hosts.map_or_else(Vec::new, plain),
        socket: path(document, "socket", DEFAULT_SOCKET, values::socket_path),
        pins: path(document, "pins", DEFAULT_PINS, values::absolute_path),
    };
    let listeners = RawListeners {
        health: health.as_ref().map_or(DEFAULT_HEALTH, |listen| *listen.get_ref()),
        health_at: health.map(|listen| listen.span()),
        admin: admin.listen,
        admin_at: listen.map(|listen| listen.span()),
    };
    (admin, from, listeners)
}

fn limits(document: &mut Document, root: &DeTable<'_>) -> Limits {
    let section = document.section(root, schema::LIMITS);
    let flows = section
        .integer(document, "flows", DEFAULT_FLOWS, values::flows)
        .map_or(DEFAULT_FLOWS, Spanned::into_inner);
    let half_open = section.integer(document, "half_open_per_source", USUAL_HALF_OPEN, values::half_open);
    if let Some(half_open) = &half_open {
        check::half_open(document, half_open, flows);
    }
    Limits { flows, half_open_per_source: half_open.map(Spanned::into_inner) }
}

fn rule_timeouts(document: &mut Document, rule: &Section<'_>, defaults: &Timeouts) -> RawTimeouts {
    let section = rule.inner(document, schema::RULE_TIMEOUTS);
    timeouts(document, &section, defaults)
}

fn timeouts(document: &mut Document, section: &Section<'_>, defaults: &Timeouts) -> RawTimeouts {
    let mut given = Vec::new();
    let mut timeout = |limit: &'static check::TimeoutLimit, default: Duration| -> Duration {
        match section.optional(document, limit.key, values::timeout) {
            Some(found) => {
                check::timeout(document, limit, &found);
                given.push(Spanned::new(found.span(), limit));
                found.into_inner()
            }
            None => default,
        }
    };
    let values = Timeouts {
        tcp_established: timeout(&check::TCP_ESTABLISHED, defaults.tcp_established),
        tcp_transitory: timeout(&check::TCP_TRANSITORY, defaults.tcp_transitory),
        udp: timeout(&check::UDP, defaults.udp),
        udp_unreplied: timeout(&check::UDP_UNREPLIED, defaults.udp_unreplied),
        icmp: timeout(&check::ICMP, defaults.icmp),
    };
    RawTimeouts { values, given }
}

fn plain<T>(list: Spanned<Vec<Spanned<T>>>) -> Vec<T> {
    list.into_inner().into_iter().map(Spanned::into_inner).collect()
}

impl RawForward {
    fn finish(self) -> Option<Forward> {
        Some(Forward {
            name: self.name?.into_inner(),
            protocol: self.protocol?.into_inner(),
            listen: self.listen?.into_inner(),
            targets: plain(self.targets?),
            sources: plain(self.sources?),
            mss: self.mss.map(Spanned::into_inner),
            timeouts: self.timeouts.values,
        })
    }
}

impl RawMasquerade {
    fn finish(self) -> Option<Masquerade> {
        Some(Masquerade {
            name: self.name?.into_inner(),
            sources: plain(self.sources?),
            destinations: plain(self.destinations?),
            mss: self.mss.map(Spanned::into_inner),
            timeouts: self.timeouts.values,
        })
    }
}
