//! The interfaces that rules are for, and names for rules.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    ruleset::{Choice, Rule, Ruleset},
    wanted::Wanted,
};
use crate::config::Protocol;

/// The name of the interface of a machine in Azure.
const USUAL: &str = "eth0";
/// The longest name of a rule.
const LONGEST: usize = router_common::maps::rules::NAME_LENGTH;

/// The interfaces of the router.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Interfaces {
    pub(super) pls: String,
    pub(super) firewall: String,
}

impl Interfaces {
    /// Returns those that are wanted, else those that most rules of the table nat name.
    pub(super) fn find(ruleset: &Ruleset, wanted: &Wanted) -> Self {
        let of = |chains: &str, options: [&str; 2]| {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            let rules = ruleset.rules().filter(|rule| rule.table == "nat" && translates(rule, chains));
            for choice in rules.flat_map(|rule| &rule.options) {
                if let Some(name) = interface(choice, options) {
                    *counts.entry(name).or_default() += 1;
                }
            }
            counts
                .into_iter()
                .max_by_key(|(name, count)| (*count, Reverse(*name)))
                .map(|(name, _)| name.to_owned())
        };
        let pls = wanted.pls.clone().or_else(|| of("DNAT", ["-i", "--in-interface"]));
        let firewall = wanted.firewall.clone().or_else(|| {
            ["MASQUERADE", "SNAT"].iter().find_map(|target| of(target, ["-o", "--out-interface"]))
        });
        let pls = pls.or_else(|| firewall.clone()).unwrap_or_else(|| USUAL.to_owned());
        let firewall = firewall.unwrap_or_else(|| pls.clone());
        Self { pls, firewall }
    }
}

fn translates(rule: &Rule, target: &str) -> bool {
    rule.options.iter().any(|choice| choice.name == "-j" && choice.values.iter().any(|value| value == target))
}

/// The interface that an option names: neither a pattern nor one that is excluded.
fn interface<'a>(choice: &'a Choice, options: [&str; 2]) -> Option<&'a str> {
    let is_meant = !choice.is_negated && options.contains(&choice.name.as_str());
    choice
        .values
        .first()
        .map(String::as_str)
        .filter(|name| is_meant && !name.ends_with('+') && !name.is_empty())
}

/// Gives names to rules, each once.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(BTreeSet<String>);

impl Names {
    /// Returns a name by a comment of the rule, or else its port.
    pub(super) fn for_forward(&mut self, comment: Option<&str>, protocol: Protocol, port: u16) -> String {
        let wanted = comment.map(tidy).filter(|name| !name.is_empty());
        self.unique(&wanted.unwrap_or_else(|| service(protocol, port)))
    }

    /// Returns a name by a comment of the rule.
    pub(super) fn for_masquerade(&mut self, comment: Option<&str>) -> String {
        let wanted = comment.map(tidy).filter(|name| !name.is_empty());
        self.unique(wanted.as_deref().unwrap_or("masquerade"))
    }

    fn unique(&mut self, wanted: &str) -> String {
        let numbered = (2_u32..).map(|number| {
            let end = format!("-{number}");
            let start = wanted.get(..wanted.len().min(LONGEST - end.len())).unwrap_or(wanted);
            format!("{}{end}", start.trim_end_matches('-'))
        });
        let mut names = std::iter::once(wanted.to_owned()).chain(numbered);
        let name = names.find(|name| !self.0.contains(name)).unwrap_or_default();
        self.0.insert(name.clone());
        name
    }
}

/// Returns the part of a comment that may stand in a rule's name.
fn tidy(comment: &str) -> String {
    let mut name = String::new();
    for character in comment.to_ascii_lowercase().chars() {
        let fits = character.is_ascii_lowercase() || character.is_ascii_digit() || "._".contains(character);
        match fits {
            true if name.is_empty() && !character.is_ascii_alphanumeric() => {}
            true => name.push(character),
            false if name.is_empty() || name.ends_with('-') => {}
            false => name.push('-'),
        }
        if name.len() == LONGEST {
            break;
        }
    }
    name.trim_end_matches(['-', '.', '_']).to_owned()
}

fn service(protocol: Protocol, port: u16) -> String {
    let name = match (protocol, port) {
        (Protocol::Tcp, 22) => "ssh",
        (Protocol::Tcp, 80) => "http",
        (Protocol::Tcp, 389) => "ldap",
        (Protocol::Tcp, 443) => "https",
        (Protocol::Tcp, 445) => "smb",
        (Protocol::Tcp, 636) => "ldaps",
        (Protocol::Tcp, 1433) => "mssql",
        (Protocol::Tcp, 1521) => "oracle",
        (Protocol::Tcp, 3306) => "mysql",
        (Protocol::Tcp, 5432) => "postgresql",
        (Protocol::Tcp, 6379) => "redis",
        (Protocol::Tcp, 7687) => "bolt",
        (Protocol::Tcp, 9092) => "kafka",
        (Protocol::Tcp, 27017) => "mongodb",
        (_, 53) => "dns",
        _ => return format!("{}-{port}", protocol.as_str()),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tidy_and_unique() {
        let mut names = Names::default();
        let mut name = |comment: Option<&str>| names.for_forward(comment, Protocol::Tcp, 443);
        assert_eq!(name(None), "https");
        assert_eq!(name(None), "https-2");
        assert_eq!(name(Some("  To the DB (old)! ")), "to-the-db-old");
        assert_eq!(name(Some("\u{e9}\u{e9}")), "https-3");
        let long = "x".repeat(40);
        assert_eq!(name(Some(&long)).len(), LONGEST);
        assert_eq!(name(Some(&long)).len(), LONGEST);
    }
}
