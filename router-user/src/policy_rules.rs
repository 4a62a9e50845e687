//! Policy rules (`ip rule`) by which the kernel's forwarding chooses routes, and which of them
//! sessions are not routed by.
//!
//! The data plane asks for routes with a session's addresses, ports, protocol and type of service,
//! but as if its packets came in by the loopback interface and had no mark: see
//! `kernel/next_hop.rs` of the programs. What a rule says of those it cannot follow.
#![expect(clippy::wildcard_enum_match_arm, reason = "of a rule's many attributes, a few matter here")]

use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

/// The loopback interface.
const LOOPBACK: &str = "lo";

/// A policy rule, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// Its place among the rules.
    pub priority: u32,
    /// The interface that packets come in by.
    pub incoming: Option<String>,
    /// The mark that packets have, and the bits of it that count.
    pub mark: Option<(u32, u32)>,
    /// Its action, in the words of `ip rule`.
    pub action: String,
}

impl From<&RuleMessage> for PolicyRule {
    fn from(message: &RuleMessage) -> Self {
        let mut rule = Self::default();
        let mut table = u32::from(message.header.table);
        let (mut mark, mut mask) = (0, u32::MAX);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Iifname(name) => rule.incoming = Some(name.clone()),
                RuleAttribute::FwMark(value) => mark = *value,
                RuleAttribute::FwMask(value) => mask = *value,
                RuleAttribute::Table(number) => table = *number,
                _ => {}
            }
        }
        rule.mark = (mark & mask != 0).then_some((mark, mask));
        rule.action = match message.header.action {
            RuleAction::ToTable => format!("lookup {table}"),
            action => format!("{action:?}").to_lowercase(),
        };
        rule
    }
}

/// Says which rules sessions are not routed by although the kernel would forward their packets by
/// them, or the other way round: one line each. `interfaces` are the router's.
#[must_use]
pub fn not_followed(rules: &[PolicyRule], interfaces: &[&str]) -> Vec<String> {
    rules.iter().filter_map(|rule| rule.not_followed(interfaces)).collect()
}

/// The remedy.
pub const FIX: &str =
    "select by from, to, ipproto, sport or dport instead (ip rule), which sessions are routed by";

impl PolicyRule {
    fn not_followed(&self, interfaces: &[&str]) -> Option<String> {
        let Self { priority, incoming, mark, action } = self;
        let mut selectors = Vec::new();
        let mut is_wrong = mark.is_some();
        if let Some(name) = incoming {
            selectors.push(format!("iif {name}"));
            // Packets that come in elsewhere are none of the router's.
            is_wrong = name == LOOPBACK || interfaces.contains(&name.as_str());
        }
        if let Some((mark, mask)) = mark {
            let mask = if *mask == u32::MAX { String::new() } else { format!("/{mask:#x}") };
            selectors.push(format!("fwmark {mark:#x}{mask}"));
        }
        is_wrong.then(|| {
            format!(
                "policy rule {priority} ({}, {action}) is not followed: sessions may take another way than the kernel's forwarding",
                selectors.join(" ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(incoming: Option<&str>, mark: Option<(u32, u32)>) -> PolicyRule {
        PolicyRule {
            priority: 99,
            incoming: incoming.map(str::to_owned),
            mark,
            action: "lookup 100".to_owned(),
        }
    }

    #[test]
    fn unsupported_policy_rules_are_reported() {
        let rules = [
            rule(None, None),
            rule(Some("eth0"), None),
            rule(Some("lo"), None),
            rule(Some("tun0"), None),
            rule(None, Some((1, u32::MAX))),
            rule(Some("eth1"), Some((0x10, 0xff))),
            rule(Some("tun0"), Some((1, u32::MAX))),
        ];
        let text = |selectors: &str| {
            format!(
                "policy rule 99 ({selectors}, lookup 100) is not followed: sessions may take another way than the kernel's \
                 forwarding"
            )
        };
        assert_eq!(
            not_followed(&rules, &["eth0", "eth1"]),
            ["iif eth0", "iif lo", "fwmark 0x1", "iif eth1 fwmark 0x10/0xff"].map(text)
        );
        assert_eq!(not_followed(&rules[1..2], &["eth9"]), [""; 0]);
    }

    #[test]
    fn rules_are_read_from_messages() {
        let mut message = RuleMessage::default();
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Priority(99),
            RuleAttribute::Iifname("eth0".to_owned()),
            RuleAttribute::FwMark(0),
            RuleAttribute::FwMask(0xff),
            RuleAttribute::Table(100),
        ];
        assert_eq!(PolicyRule::from(&message), rule(Some("eth0"), None));
        message.attributes.push(RuleAttribute::FwMark(0x110));
        assert_eq!(PolicyRule::from(&message).mark, Some((0x110, 0xff)));
    }
}
