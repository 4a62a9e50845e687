//! Reads the tables of the file, one after another, into a [`Config`].

use std::net::SocketAddr;

use toml::Spanned;
use toml::de::DeTable;

use super::check::{self, Listener, Rule, RuleTimeouts};
use super::types::{
    Admin, Answers, Config, Forward, Health, Interfaces, Limits, Local, Masquerade, Mode, Others, Refusal,
    Snat, Timeouts,
};
use super::values::{self, MODES, OTHERS, PROTOCOLS, REFUSALS, one_of};
use super::{defaults, local, schema};
use crate::toml_reader::{Document, List, Table};

/// Reads the whole document. The result can be used only if the document then has no errors.
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
    let others = or(table.key("others").text(one_of(OTHERS)), Others::Open);
    let allow = table.key("allow").list(local::allow);
    let table = document.table(root, schema::HEALTH);
    let health = listener(&table, defaults::HEALTH);
    let from = table.key("from").list(values::prober);
    let self_test = or(table.key("self_test").text(values::self_test), Some(defaults::SELF_TEST));
    check::probers(document, &from);
    let (admin_listener, admin) = admin(&document.table(root, schema::ADMIN));
    let limits = limits(document, &document.table(root, schema::LIMITS));
    check::rules(document, &rules, &health, &admin_listener);
    check::local(document, &allow, others, &rules);

    let masquerades = rules.split_off(forwards.len());
    Some(Config {
        interfaces: interfaces?,
        forwards: rules.into_iter().map(Rule::into_forward).collect::<Option<_>>()?,
        masquerades: masquerades.into_iter().map(Rule::into_masquerade).collect::<Option<_>>()?,
        snat,
        answers: Answers { unreachable: or(unreachable, Refusal::Reject) },
        local: Local { allow: plain(allow), others },
        health: Health { listen: health.address, from: plain(from), self_test },
        admin,
        limits,
        timeouts,
    })
}

fn interfaces(table: &Table<'_>) -> Option<Interfaces> {
    let pls = table.key("pls").required("\"eth0\"").text(values::interface);
    let firewall = table.key("firewall").text(values::interface);
    let mode = or(table.key("mode").text(one_of(MODES)), Mode::Native);
    let pls = pls?.into_inner();
    Some(Interfaces { firewall: or(firewall, pls.clone()), pls, mode })
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
    check::snat_addresses(document, &addresses);
    Snat {
        addresses: plain(addresses),
        ports: table.key("ports").text(values::snat_ports).map(Spanned::into_inner),
        exhausted: or(table.key("exhausted").text(one_of(REFUSALS)), Refusal::Reject),
    }
}

fn listener(table: &Table<'_>, default: SocketAddr) -> Listener {
    let listen = table.key("listen").text(|text| values::socket_address(text, default));
    let given = listen.as_ref().map(Spanned::span);
    Listener { address: listen.map_or(default, Spanned::into_inner), given }
}

fn admin(table: &Table<'_>) -> (Listener, Admin) {
    let listener = listener(table, defaults::ADMIN);
    let admin = Admin {
        listen: listener.address,
        hosts: plain(table.key("hosts").list(values::host_name)),
        socket: or(table.key("socket").text(values::socket_path), defaults::SOCKET.into()),
        pins: or(table.key("pins").text(values::absolute_path), defaults::PINS.into()),
    };
    (listener, admin)
}

fn limits(document: &Document, table: &Table<'_>) -> Limits {
    let flows = or(table.key("flows").integer(defaults::FLOWS, values::flows), defaults::FLOWS);
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

/// Returns the value that was read, or the default.
fn or<T>(found: Option<Spanned<T>>, default: T) -> T {
    found.map_or(default, Spanned::into_inner)
}

fn plain<T>(list: List<T>) -> Vec<T> {
    list.into_inner().into_iter().map(Spanned::into_inner).collect()
}

impl Rule {
    fn into_forward(self) -> Option<Forward> {
        Some(Forward {
            name: self.name?.into_inner(),
            protocol: self.protocol?.into_inner(),
            listen: self.listen?.into_inner(),
            targets: plain(self.targets),
            sources: plain(self.sources),
            mss: self.mss.map(Spanned::into_inner),
            timeouts: self.timeouts.values,
        })
    }

    fn into_masquerade(self) -> Option<Masquerade> {
        Some(Masquerade {
            name: self.name?.into_inner(),
            sources: plain(self.sources),
            destinations: plain(self.destinations),
            mss: self.mss.map(Spanned::into_inner),
            timeouts: self.timeouts.values,
        })
    }
}
