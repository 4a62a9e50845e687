//! The difference between two configurations, rule by rule and key by key.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use crate::{
    config::{
        Check, CheckKind, Config, Forward, Masquerade, Mss, Others, Refusal, Require, RequiredRules, Timeouts,
    },
    model::{ChangeKind, KeyChange, RuleChange, RuleKind},
};

/// A difference. Nothing in it if there is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Difference {
    /// Rules that differ: those of the new configuration in its order, then those that are gone.
    pub(crate) rules: Vec<RuleChange>,
    /// Keys outside of rules.
    pub(crate) keys: Vec<KeyChange>,
}

impl Difference {
    /// Returns `true` if there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.keys.is_empty()
    }
}

/// Compares the configuration in force with another one.
pub(crate) fn difference(now: &Config, wanted: &Config) -> Difference {
    let (before, after) = (rules(now), rules(wanted));
    let find = |rules: &[Rule], rule: &Rule| {
        rules.iter().find(|other| (other.kind, &other.name) == (rule.kind, &rule.name)).cloned()
    };
    let mut changes = Vec::new();
    for rule in &after {
        let (change, from) = match find(&before, rule) {
            Some(from) => (ChangeKind::Changed, from.keys),
            None => (ChangeKind::Added, Vec::new()),
        };
        changes.push(rule.change(change, compare(&from, &rule.keys)));
    }
    for rule in before.iter().filter(|rule| find(&after, rule).is_none()) {
        changes.push(rule.change(ChangeKind::Removed, compare(&rule.keys, &[])));
    }
    changes.retain(|change| change.change != ChangeKind::Changed || !change.keys.is_empty());
    let mut keys = compare(&keys(now), &keys(wanted));
    keys.extend(order(now, wanted));
    Difference { rules: changes, keys }
}

/// Returns the change in the order of masquerades, which are matched one after the other. (Forwards
/// do not overlap.)
fn order(now: &Config, wanted: &Config) -> Option<KeyChange> {
    let names = |config: &Config, other: &Config| -> Vec<String> {
        let others: BTreeSet<&String> = other.masquerades.iter().map(|rule| &rule.name).collect();
        config
            .masquerades
            .iter()
            .map(|rule| &rule.name)
            .filter(|name| others.contains(name))
            .cloned()
            .collect()
    };
    let (from, to) = (names(now, wanted), names(wanted, now));
    (from != to).then(|| KeyChange { key: "masquerade (order)".to_owned(), from: json!(from), to: json!(to) })
}

/// A key and its value, as the file has it; `null` if it is left out and has no default.
type Pair = (&'static str, Value);

#[derive(Clone)]
struct Rule {
    kind: RuleKind,
    name: String,
    keys: Vec<Pair>,
}

impl Rule {
    fn change(&self, change: ChangeKind, keys: Vec<KeyChange>) -> RuleChange {
        RuleChange { rule: self.name.clone(), kind: self.kind, change, keys }
    }
}

/// Returns what differs; all keys that have a value if one side is empty.
fn compare(from: &[Pair], to: &[Pair]) -> Vec<KeyChange> {
    let value = |pairs: &[Pair], key| {
        pairs.iter().find(|(known, _)| *known == key).map_or(Value::Null, |(_, value)| value.clone())
    };
    let of = if to.is_empty() { from } else { to };
    let changes = of.iter().map(|(key, _)| KeyChange {
        key: (*key).to_owned(),
        from: value(from, *key),
        to: value(to, *key),
    });
    changes.filter(|change| change.from != change.to).collect()
}

fn rules(config: &Config) -> Vec<Rule> {
    let defaults = &config.timeouts;
    let forwards = config.forwards.iter().map(|rule| Rule {
        kind: RuleKind::Forward,
        name: rule.name.clone(),
        keys: forward(rule, defaults),
    });
    let masquerades = config.masquerades.iter().map(|rule| Rule {
        kind: RuleKind::Masquerade,
        name: rule.name.clone(),
        keys: masquerade(rule, defaults),
    });
    forwards.chain(masquerades).collect()
}

fn forward(rule: &Forward, defaults: &Timeouts) -> Vec<Pair> {
    // Without a pattern that names all fields, a new one could be forgotten here.
    let Forward { name: _, protocol, listen, targets, sources, mss, timeouts, check } = rule;
    let mut keys = vec![
        ("protocol", json!(protocol.as_str())),
        ("listen", json!(listen.to_string())),
        ("target", one_or_list(targets)),
        ("sources", list(sources)),
        ("mss", segment(*mss)),
    ];
    keys.extend(own_timeouts(timeouts, defaults));
    keys.extend(check_pairs(check.as_ref()));
    keys
}

/// Returns the keys of a check, without values if there is none.
fn check_pairs(check: Option<&Check>) -> [Pair; 8] {
    const KEYS: [&str; 8] = [
        "check.type",
        "check.sni",
        "check.port",
        "check.interval",
        "check.timeout",
        "check.fall",
        "check.rise",
        "check.require",
    ];
    let Some(check) = check else { return KEYS.map(|key| (key, Value::Null)) };
    let Check { kind, port, interval, timeout, fall, rise, require } = check;
    let (kind, sni) = match kind {
        CheckKind::Tcp => ("tcp", &None),
        CheckKind::Tls { sni } => ("tls", sni),
    };
    let values = [
        json!(kind),
        json!(sni),
        json!(port),
        seconds(*interval),
        seconds(*timeout),
        json!(fall),
        json!(rise),
        json!(word(*require)),
    ];
    let mut values = values.into_iter();
    KEYS.map(|key| (key, values.next().unwrap_or_default()))
}

fn masquerade(rule: &Masquerade, defaults: &Timeouts) -> Vec<Pair> {
    let Masquerade { name: _, sources, destinations, mss, timeouts } = rule;
    let mut keys =
        vec![("sources", list(sources)), ("destinations", list(destinations)), ("mss", segment(*mss))];
    keys.extend(own_timeouts(timeouts, defaults));
    keys
}

/// Returns a rule's timeouts as far as they differ from `[timeouts]`.
fn own_timeouts(timeouts: &Timeouts, defaults: &Timeouts) -> Vec<Pair> {
    let pairs = timeout_pairs(timeouts).into_iter().zip(timeout_pairs(defaults));
    pairs.map(|((key, own), (_, default))| (key, if own == default { Value::Null } else { own })).collect()
}

fn timeout_pairs(timeouts: &Timeouts) -> [Pair; 5] {
    let Timeouts { tcp_established, tcp_transitory, udp, udp_unreplied, icmp } = timeouts;
    [
        ("timeouts.tcp_established", seconds(*tcp_established)),
        ("timeouts.tcp_transitory", seconds(*tcp_transitory)),
        ("timeouts.udp", seconds(*udp)),
        ("timeouts.udp_unreplied", seconds(*udp_unreplied)),
        ("timeouts.icmp", seconds(*icmp)),
    ]
}

/// Returns the keys outside of rules.
fn keys(config: &Config) -> Vec<Pair> {
    let Config {
        interfaces,
        forwards: _,
        masquerades: _,
        snat,
        answers,
        local,
        health,
        admin,
        limits,
        timeouts,
    } = config;
    let mut keys = vec![
        ("interfaces.pls", json!(interfaces.pls)),
        ("interfaces.firewall", json!(interfaces.firewall)),
        ("interfaces.mode", json!(interfaces.mode.as_str())),
        ("snat.addresses", list(&snat.addresses)),
        (
            "snat.ports",
            snat.ports
                .as_ref()
                .map_or(Value::Null, |ports| json!(format!("{}-{}", ports.start(), ports.end()))),
        ),
        ("snat.exhausted", refusal(snat.exhausted)),
        ("answers.unreachable", refusal(answers.unreachable)),
        ("local.allow", list(&local.allow)),
        ("local.others", json!(if local.others == Others::Open { "open" } else { "closed" })),
        ("health.listen", json!(health.listen.to_string())),
        ("health.from", list(&health.from)),
        ("health.self_test", health.self_test.map_or(json!("off"), seconds)),
        ("health.down_after", seconds(health.down_after)),
        ("health.up_after", seconds(health.up_after)),
        ("health.require", required(&health.require)),
        ("admin.listen", json!(admin.listen.to_string())),
        ("admin.hosts", list(&admin.hosts)),
        ("admin.socket", json!(admin.socket.display().to_string())),
        ("admin.pins", json!(admin.pins.display().to_string())),
        ("limits.flows", json!(limits.flows)),
        ("limits.half_open_per_source", json!(limits.half_open_per_source)),
    ];
    keys.extend(timeout_pairs(timeouts));
    keys
}

fn list<T: ToString>(items: &[T]) -> Value {
    json!(items.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn one_or_list<T: ToString>(items: &[T]) -> Value {
    match items {
        [one] => json!(one.to_string()),
        several => list(several),
    }
}

fn segment(mss: Option<Mss>) -> Value {
    match mss {
        None => Value::Null,
        Some(Mss::PathMtu) => json!("pmtu"),
        Some(Mss::Bytes(bytes)) => json!(bytes),
    }
}

fn refusal(refusal: Refusal) -> Value {
    json!(match refusal {
        Refusal::Drop => "drop",
        Refusal::Reject => "reject",
    })
}

fn seconds(duration: Duration) -> Value {
    json!(match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    })
}

fn word(require: Require) -> &'static str {
    match require {
        Require::Any => "any",
        Require::All => "all",
    }
}

fn required(rules: &RequiredRules) -> Value {
    match rules {
        RequiredRules::Any => json!(word(Require::Any)),
        RequiredRules::All => json!(word(Require::All)),
        RequiredRules::These(names) => json!(names),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{config::TABLES, toml_reader::Form};

    const WEB: &str = "[[forward]]\nname = \"web\"\nprotocol = \"tcp\"\nlisten = \"443\"\n\
                       target = \"203.0.113.10\"\nsources = [\"10.0.2.64/26\"]\n";
    const VNET: &str = "[[masquerade]]\nname = \"vnet\"\nsources = [\"10.0.2.0/24\"]\n\
                        destinations = [\"0.0.0.0/0\"]\n";

    fn config(more: &str) -> Config {
        let text = format!("[interfaces]\npls = \"eth0\"\n{more}");
        Config::parse(&text, Path::new("test.toml")).expect("a configuration").config
    }

    fn change(key: &str, from: Value, to: Value) -> KeyChange {
        KeyChange { key: key.to_owned(), from, to }
    }

    #[test]
    fn equal_configurations_have_none() {
        let (one, same) =
            (config(WEB), config(&format!("# a remark\n{WEB}\nmss = []\n").replace("mss = []\n", "")));
        assert!(difference(&one, &same).is_empty());
    }

    #[test]
    fn rules_are_added_removed_and_changed_by_name() {
        let now = config(&format!("{WEB}{VNET}"));
        let wanted = config(
            &format!(
                "{WEB}mss = \"pmtu\"\ntimeouts = {{ udp = \"9s\" }}\n{}",
                WEB.replace("web", "more").replace("443", "8443")
            )
            .replacen("\"203.0.113.10\"", "[\"203.0.113.10\", \"db.example.com:444\"]", 1),
        );
        let Difference { rules, keys } = difference(&now, &wanted);
        assert_eq!(keys, []);
        let [web, more, vnet] = rules.as_slice() else { panic!("{rules:#?}") };
        assert_eq!((web.rule.as_str(), web.change), ("web", ChangeKind::Changed));
        let expected = [
            change("target", json!("203.0.113.10"), json!(["203.0.113.10", "db.example.com:444"])),
            change("mss", Value::Null, json!("pmtu")),
            change("timeouts.udp", Value::Null, json!("9s")),
        ];
        assert_eq!(web.keys, expected);
        assert_eq!((more.rule.as_str(), more.change), ("more", ChangeKind::Added));
        assert_eq!(more.keys.len(), 4, "without what it does not have: {more:#?}");
        assert_eq!(more.keys[1], change("listen", Value::Null, json!("8443")));
        assert_eq!((vnet.rule.as_str(), vnet.change), ("vnet", ChangeKind::Removed));
        assert_eq!(vnet.keys[1], change("destinations", json!(["0.0.0.0/0"]), Value::Null));
    }

    #[test]
    fn a_timeout_of_all_rules_is_one_change() {
        let Difference { rules, keys } =
            difference(&config(WEB), &config(&format!("{WEB}[timeouts]\nudp = \"999s\"\n")));
        assert_eq!((rules, keys), (vec![], vec![change("timeouts.udp", json!("300s"), json!("999s"))]));
    }

    #[test]
    fn the_order_of_masquerades_is_a_change_and_that_of_forwards_none() {
        let (a, b) = (VNET.replace("vnet", "a"), VNET.replace("vnet", "b").replace("/24", "/25"));
        let other = WEB.replace("web", "other").replace("443", "8443");
        let now = config(&format!("{WEB}{other}{a}{b}"));
        let wanted = config(&format!("{other}{WEB}{b}{a}"));
        let Difference { rules, keys } = difference(&now, &wanted);
        assert_eq!(rules, []);
        assert_eq!(keys, [change("masquerade (order)", json!(["a", "b"]), json!(["b", "a"]))]);
        let one = config(&format!("{WEB}{other}{b}"));
        assert_eq!(difference(&now, &one).keys, [], "one that is removed changes no order");
    }

    #[test]
    fn every_key_is_compared() {
        let config = config(&format!("{WEB}{VNET}"));
        let known: Vec<_> = keys(&config).into_iter().map(|(key, _)| key).collect();
        for table in TABLES {
            for key in table.keys.iter().filter(|key| **key != "name") {
                let (known, key): (Vec<_>, _) = match (table.name, table.form) {
                    ("forward", _) => (
                        forward(&config.forwards[0], &config.timeouts)
                            .into_iter()
                            .map(|(key, _)| key)
                            .collect(),
                        (*key).to_owned(),
                    ),
                    ("masquerade", _) => (
                        masquerade(&config.masquerades[0], &config.timeouts)
                            .into_iter()
                            .map(|(key, _)| key)
                            .collect(),
                        (*key).to_owned(),
                    ),
                    (name, Form::Single) => (known.clone(), format!("{name}.{key}")),
                    (name, _) => panic!("the table {name} is not compared"),
                };
                let is_it = |known: &&str| *known == key || known.starts_with(&format!("{key}."));
                assert!(known.iter().any(is_it), "{}: {key} is not compared", table.name);
            }
        }
    }
}
