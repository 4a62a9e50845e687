//! Reads the tables of the file, one after another, into a [`Config`].

use std::net::SocketAddr;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;

use super::check::{self, Listener, Rule, RuleCheck, RuleTimeouts};
use super::types::{
    Admin, Answers, Check, CheckKind, Config, Forward, Health, Interfaces, Limits, Local, Masquerade, Mode,
    Others, Refusal, Require, RequiredRules, Snat, Timeouts,
};
use super::values::{self, CHECK_KINDS, MODES, OTHERS, PROTOCOLS, REFUSALS, REQUIRE, one_of};
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
    let down_after = or(table.key("down_after").text(values::hold), defaults::DOWN_AFTER);
    let up_after = or(table.key("up_after").text(values::hold), defaults::UP_AFTER);
    let require = required_rules(document, &table, &rules);
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
        health: Health {
            listen: health.address,
            from: plain(from),
            self_test,
            down_after,
            up_after,
            require,
        },
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
        // A masquerade has none.
        check: if table.schema.keys.contains(&schema::CHECK.name) {
            active_check(&table.inner(schema::CHECK))
        } else {
            None
        },
    }
}

/// Reads `check` of a forward, if it has one.
fn active_check(table: &Table<'_>) -> Option<RuleCheck> {
    if !table.is_there() {
        return None;
    }
    let is_tls = table.key("type").required("\"tcp\"").text(one_of(CHECK_KINDS));
    let sni = table.key("sni").text(values::server_name);
    let interval = table.key("interval").text(values::check_interval);
    let timeout = table.key("timeout").text(values::check_timeout);
    let number = |key, default| or(table.key(key).integer(default, values::checks_in_a_row), default);
    let given = |time: &Option<Spanned<Duration>>| time.as_ref().map(|time| *time.get_ref());
    let check = Check {
        kind: match is_tls.as_ref().map(|is_tls| *is_tls.get_ref()) {
            Some(true) => CheckKind::Tls { sni: sni.as_ref().map(|sni| sni.get_ref().clone()) },
            Some(false) | None => CheckKind::Tcp,
        },
        port: table.key("port").integer(443, values::check_port).map(Spanned::into_inner),
        interval: given(&interval).unwrap_or(defaults::CHECK_INTERVAL),
        timeout: given(&timeout)
            .unwrap_or(defaults::CHECK_TIMEOUT.min(given(&interval).unwrap_or(defaults::CHECK_TIMEOUT))),
        fall: number("fall", defaults::CHECK_FALL),
        rise: number("rise", defaults::CHECK_RISE),
        require: or(table.key("require").text(one_of(REQUIRE)), Require::Any),
    };
    Some(RuleCheck {
        header: table.header(),
        check,
        kind: is_tls.map(|is_tls| is_tls.span()),
        sni: sni.map(|sni| sni.span()),
        has_sni: table.key("sni").is_there(),
        timeout: timeout.map(|timeout| timeout.span()),
    })
}

/// Reads `require` of `[health]`: a word, or a list of rules.
fn required_rules(document: &Document, table: &Table<'_>, rules: &[Rule]) -> RequiredRules {
    let key = table.key("require");
    if key.is_list() {
        let names = key.required("\"any\"").list(values::rule_name);
        check::required_rules(document, &names, rules);
        return RequiredRules::These(plain(names));
    }
    match key.text(values::any_or_all).map(Spanned::into_inner) {
        Some(Require::All) => RequiredRules::All,
        Some(Require::Any) | None => RequiredRules::Any,
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
            check: self.check.map(|check| check.check),
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
