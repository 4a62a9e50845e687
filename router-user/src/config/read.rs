//! Reads the tables of the file, one after another, into a [`Config`].

use std::path::PathBuf;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::DeTable;

use super::check::{self, Listeners, Rule, RuleTimeouts};
use super::types::{
    Admin, Answers, Config, Forward, Health, Interfaces, Limits, Local, Masquerade, Mode, Others, Refusal,
    Snat, Timeouts,
};
use super::values::{self, MODES, OTHERS, PROTOCOLS, REFUSALS, one_of};
use super::{defaults, local, schema};
use crate::toml_reader::{Document, List, Table};

/// Reads the whole document. Returns `None` if something needed is missing; the errors are in the
/// document.
pub(super) fn config(document: &Document) -> Option<Config> {
    let (root, errors) = DeTable::parse_recoverable(document.text());
    if !errors.is_empty() {
        // The parser's guess of what was meant would only lead to confusing errors.
        document.syntax_errors(&errors);
        return None;
    }
    let root = root.get_ref();
    document.unknown_tables(root);

    let timeouts = timeouts(document, &document.table(root, schema::TIMEOUTS), &defaults::TIMEOUTS).values;
    let forwards = document.tables(root, schema::FORWARD);
    let masquerades = document.tables(root, schema::MASQUERADE);
    let mut rules: Vec<Rule> =
        forwards.iter().chain(&masquerades).map(|table| rule(document, table, &timeouts)).collect();

    let interfaces = interfaces(&document.table(root, schema::INTERFACES));
    let snat = snat(document, &document.table(root, schema::SNAT));
    let unreachable = document.table(root, schema::ANSWERS).key("unreachable").text(one_of(REFUSALS));
    let table = document.table(root, schema::LOCAL);
    let others = table.key("others").text(one_of(OTHERS)).map_or(Others::Open, Spanned::into_inner);
    let allow = table.key("allow").list(local::allow);
    let (admin, from, listeners) = listeners(document, root);
    let limits = limits(document, &document.table(root, schema::LIMITS));
    check::rules(document, &rules, &listeners);
    if let Some(allow) = &allow {
        check::local(document, allow, others, &rules);
    }

    let masquerades = rules.split_off(forwards.len());
    Some(Config {
        interfaces: interfaces?,
        forwards: rules.into_iter().map(Rule::into_forward).collect::<Option<_>>()?,
        masquerades: masquerades.into_iter().map(Rule::into_masquerade).collect::<Option<_>>()?,
        snat,
        answers: Answers { unreachable: unreachable.map_or(Refusal::Reject, Spanned::into_inner) },
        local: Local { allow: plain(allow), others },
        health: Health { listen: listeners.health, from: plain(from) },
        admin,
        limits,
        timeouts,
    })
}

fn interfaces(table: &Table<'_>) -> Option<Interfaces> {
    let pls = table.key("pls").required("\"eth0\"").text(values::interface);
    let firewall = table.key("firewall").text(values::interface);
    let mode = table.key("mode").text(one_of(MODES)).map_or(Mode::Native, Spanned::into_inner);
    let pls = pls?.into_inner();
    Some(Interfaces { firewall: firewall.map_or_else(|| pls.clone(), Spanned::into_inner), pls, mode })
}

/// Reads a rule of either kind. A key that its kind does not have reads as absent.
fn rule(document: &Document, table: &Table<'_>, defaults: &Timeouts) -> Rule {
    let name = if table.schema.name == schema::FORWARD.name { "\"https\"" } else { "\"vnet\"" };
    Rule {
        header: table.header(),
        name: table.key("name").required(name).text(values::rule_name),
        protocol: table.key("protocol").required("\"tcp\"").text(one_of(PROTOCOLS)),
        listen: table.key("listen").required("\"443\"").text(values::listen),
        targets: table.key("target").required("\"203.0.113.10:443\"").text_or_list(values::target),
        sources: table.key("sources").required("[\"10.0.2.64/26\"]").list(values::network),
        destinations: table.key("destinations").required("[\"0.0.0.0/0\"]").list(values::network),
        mss: table.key("mss").number_or_text(values::mss),
        timeouts: timeouts(document, &table.inner(schema::RULE_TIMEOUTS), defaults),
    }
}

fn snat(document: &Document, table: &Table<'_>) -> Snat {
    let addresses = table.key("addresses").list(values::unicast);
    if let Some(addresses) = &addresses {
        check::snat_addresses(document, addresses);
    }
    Snat {
        addresses: plain(addresses),
        ports: table.key("ports").text(values::snat_ports).map(Spanned::into_inner),
        exhausted: table.key("exhausted").text(one_of(REFUSALS)).map_or(Refusal::Reject, Spanned::into_inner),
    }
}

fn listeners(document: &Document, root: &DeTable<'_>) -> (Admin, Option<List<IpNet>>, Listeners) {
    let table = document.table(root, schema::HEALTH);
    let health = table.key("listen").text(|text| values::socket_address(text, defaults::HEALTH));
    let from = table.key("from").list(values::prober);
    if let Some(from) = &from {
        check::probers(document, from);
    }
    let table = document.table(root, schema::ADMIN);
    let listen = table.key("listen").text(|text| values::socket_address(text, defaults::ADMIN));
    let socket = table.key("socket").text(values::socket_path);
    let pins = table.key("pins").text(values::absolute_path);
    let admin = Admin {
        listen: listen.as_ref().map_or(defaults::ADMIN, |listen| *listen.get_ref()),
        hosts: plain(table.key("hosts").list(values::host_name)),
        socket: socket.map_or_else(|| PathBuf::from(defaults::SOCKET), Spanned::into_inner),
        pins: pins.map_or_else(|| PathBuf::from(defaults::PINS), Spanned::into_inner),
    };
    let listeners = Listeners {
        health: health.as_ref().map_or(defaults::HEALTH, |listen| *listen.get_ref()),
        health_at: health.map(|listen| listen.span()),
        admin: admin.listen,
        admin_at: listen.map(|listen| listen.span()),
    };
    (admin, from, listeners)
}

fn limits(document: &Document, table: &Table<'_>) -> Limits {
    let flows = table.key("flows").integer(defaults::FLOWS, values::flows);
    let flows = flows.map_or(defaults::FLOWS, Spanned::into_inner);
    let key = table.key("half_open_per_source");
    let half_open = key.integer(defaults::HALF_OPEN_EXAMPLE, values::half_open);
    if let Some(half_open) = &half_open {
        check::half_open(document, half_open, flows);
    }
    Limits { flows, half_open_per_source: half_open.map(Spanned::into_inner) }
}

fn timeouts(document: &Document, table: &Table<'_>, defaults: &Timeouts) -> RuleTimeouts {
    let mut values = defaults.clone();
    let mut given = Vec::new();
    let Timeouts { tcp_established, tcp_transitory, udp, udp_unreplied, icmp } = &mut values;
    let fields = [tcp_established, tcp_transitory, udp, udp_unreplied, icmp];
    for (limit, field) in check::TIMEOUTS.iter().zip(fields) {
        if let Some(found) = table.key(limit.key).text(values::timeout) {
            check::timeout(document, limit, &found);
            given.push(Spanned::new(found.span(), limit));
            *field = found.into_inner();
        }
    }
    RuleTimeouts { values, given }
}

fn plain<T>(list: Option<List<T>>) -> Vec<T> {
    list.into_iter().flat_map(Spanned::into_inner).map(Spanned::into_inner).collect()
}

impl Rule {
    fn into_forward(self) -> Option<Forward> {
        Some(Forward {
            name: self.name?.into_inner(),
            protocol: self.protocol?.into_inner(),
            listen: self.listen?.into_inner(),
            targets: plain(Some(self.targets?)),
            sources: plain(Some(self.sources?)),
            mss: self.mss.map(Spanned::into_inner),
            timeouts: self.timeouts.values,
        })
    }

    fn into_masquerade(self) -> Option<Masquerade> {
        Some(Masquerade {
            name: self.name?.into_inner(),
            sources: plain(Some(self.sources?)),
            destinations: plain(Some(self.destinations?)),
            mss: self.mss.map(Spanned::into_inner),
            timeouts: self.timeouts.values,
        })
    }
}
