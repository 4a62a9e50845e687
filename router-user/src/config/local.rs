//! The entries of `allow` of `[local]`.
//!
//! An entry is `PROTOCOL[/PORT[-PORT]] [from NETWORK]`, where `PROTOCOL` is a name, the number of a
//! protocol that has a name, or `ip/NUMBER`. Firewalls write the same thing in many ways, so most
//! of this answers other spellings with the correct line.

use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::types::{IpProtocol, LocalAllow};
use super::values;
use crate::toml_reader::{Problem, did_you_mean, wrong};

/// Names of services, and the entry for each.
const SERVICES: &str = "carp vrrp, corosync udp/5405, dns udp/53, domain udp/53, http tcp/80, https tcp/443, \
    ipencap ipip, ipsec esp, keepalived vrrp, node-exporter tcp/9100, ntp udp/123, ospfigp ospf, ping icmp, \
    rdp tcp/3389, snmp udp/161, ssh tcp/22, statsd udp/8125, syslog udp/514";

/// Words that people write for "every".
const EVERY: [&str; 3] = ["any", "all", "*"];

const FORM: &str = "write PROTOCOL/PORT, PROTOCOL/FIRST-LAST or PROTOCOL, and optionally from where: \"tcp/22 from 10.0.2.64/26\"";

/// Reads one entry of `allow`.
pub(super) fn allow(text: &str) -> Result<LocalAllow, Problem> {
    if text.contains(',') {
        return wrong!("{text:?} has a comma", "write each as a separate entry: [\"tcp/22\", \"tcp/80\"]");
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let [what, who @ ..] = words.as_slice() else {
        return wrong!("an entry is empty", "{FORM}");
    };
    if let [port, ..] = who
        && has_ports(what)
        && is_port(port)
    {
        let fixed = format!("{what}/{}", who.join(" "));
        return wrong!("{text:?} has a space before the port", "write \"{fixed}\"");
    }
    let (protocol, ports) = service(what)?;
    let from = match who {
        [] => Ok(None),
        ["from", from] => network(what, from).map(Some),
        ["from"] => wrong!("{text:?} does not say from where", "write \"{what} from 10.0.2.64/26\""),
        ["from", ..] => wrong!("{text:?} names more than one network", "write an entry for each network"),
        [from] if from.parse::<IpNet>().is_ok() => {
            wrong!("{text:?} lacks a word", "write \"{what} from {from}\"")
        }
        [word, ..] => {
            let fix = did_you_mean(word, &["from"], FORM);
            wrong!("{word:?} is not understood after {what:?}", "{fix}")
        }
    };
    Ok(LocalAllow { protocol, ports, from: from? })
}

/// Reads "tcp/22".
fn service(text: &str) -> Result<(IpProtocol, Option<RangeInclusive<u16>>), Problem> {
    let (name, ports) = text.split_once('/').map_or((text, None), |(name, ports)| (name, Some(ports)));
    if name == "ip" {
        return match ports.and_then(plain_number) {
            Some(number) => Ok((IpProtocol(number), None)),
            None => wrong!(
                "{text:?} names no IP protocol",
                "write its number, 0 to 255: \"ip/253\"; or protocols one by one: \"tcp\", \"udp\", \"icmp\""
            ),
        };
    }
    let numbered = || named_number(name).filter(|_| ports.is_none());
    match (IpProtocol::by_name(name).or_else(numbered), ports) {
        (None, _) => {
            let fix = meant(name, ports);
            wrong!("{text:?} does not start with a protocol that is known", "{fix}")
        }
        (Some(protocol), None) => Ok((protocol, None)),
        (Some(IpProtocol::ICMP), Some(_)) => {
            wrong!("{text:?}: ICMP has no ports", "write \"icmp\": it means echo requests (ping)")
        }
        (Some(protocol), Some(ports)) if protocol.has_ports() => Ok((protocol, Some(range(name, ports)?))),
        (Some(_), Some(_)) => wrong!(
            "{text:?}: ports of {name} are not checked",
            "write \"{name}\": all of the protocol is allowed"
        ),
    }
}

/// Reads the number of a protocol that stands alone. Only one that has a name: others are more
/// likely to be ports ("22").
fn named_number(text: &str) -> Option<IpProtocol> {
    plain_number(text).map(IpProtocol).filter(|protocol| protocol.name().is_some())
}

/// Reads decimal digits without leading zeros.
fn plain_number(text: &str) -> Option<u8> {
    let plain = text.chars().all(|c| c.is_ascii_digit()) && values::no_leading_zeros(text).is_ok();
    plain.then(|| text.parse().ok()).flatten()
}

fn has_ports(name: &str) -> bool {
    IpProtocol::by_name(name).is_some_and(IpProtocol::has_ports)
}

/// Returns `true` for a port or a range, even a bad one.
fn is_port(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || c == '-')
}

/// Returns the entry to write instead of the name of a service.
fn by_service(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let mut known = SERVICES.split(", ").filter_map(|service| service.split_once(' '));
    known.find(|(service, _)| *service == name).map(|(_, entry)| format!("write \"{entry}\""))
}

/// Returns the remedy for an entry that starts with `name`, which is not a protocol.
fn meant(name: &str, ports: Option<&str>) -> String {
    if let Some(fix) = by_service(name) {
        return fix;
    }
    // "22/tcp", "22"
    match ports {
        Some(protocol) if is_port(name) && has_ports(protocol) => {
            return format!("the protocol comes first: \"{protocol}/{name}\"");
        }
        _ if is_port(name) => {
            return format!(
                "write the protocol too: \"tcp/{name}\" or \"udp/{name}\"; an IP protocol by its number is \"ip/{name}\""
            );
        }
        _ => {}
    }
    // "tcp:22", "tcp22", "TCP/22"
    let lower = name.to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(lower.len());
    let (letters, rest) = lower.split_at(end);
    if IpProtocol::by_name(letters).is_some() {
        let rest = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
        return match ports.or(Some(rest).filter(|rest| is_port(rest))) {
            Some(ports) if has_ports(letters) => format!("write \"{letters}/{ports}\""),
            Some(_) | None => format!("write \"{letters}\""),
        };
    }
    if EVERY.contains(&lower.as_str()) {
        return "name the protocols, each in an entry: \"tcp\", \"udp\", \"icmp\"".to_owned();
    }
    let known = IpProtocol::NAMES.map(|(known, _)| known);
    did_you_mean(name, &known, FORM)
}

/// Reads the ports of `protocol`: "22" or "9000-9010".
fn range(protocol: &str, text: &str) -> Result<RangeInclusive<u16>, Problem> {
    if text.is_empty() || EVERY.contains(&text) {
        return wrong!("\"{protocol}/{text}\" has no port", "write \"{protocol}\" for all its ports");
    }
    let form = |port: &str| by_service(port).unwrap_or_else(|| FORM.to_owned());
    let range = values::ports(text, &['-', ':'], &format!("{protocol}/"), form)?;
    if text.contains(':') {
        let (first, last) = (range.start(), range.end());
        return wrong!("{text:?} is not a port", "write \"{protocol}/{first}-{last}\"");
    }
    Ok(range)
}

/// Reads the network after `from` in an entry that starts with `what`.
fn network(what: &str, text: &str) -> Result<IpNet, Problem> {
    if EVERY.contains(&text) || matches!(text, "anyone" | "anywhere" | "everyone") {
        return wrong!(
            "{text:?} is not a network",
            "write \"{what}\": that is from anywhere by IPv4; \"{what} from ::/0\" by IPv6"
        );
    }
    let has_letter = text.contains(|c: char| c.is_ascii_alphabetic());
    if has_letter && !text.contains(':') && values::dns_name(text).is_ok() {
        return wrong!(
            "{text:?} is a name, and names are not resolved here",
            "write the network of its addresses: \"{what} from 10.0.2.64/26\""
        );
    }
    values::network_of_either(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_entries_are_parsed_and_shown() {
        for text in [
            "tcp",
            "udp",
            "icmp",
            "tcp/22",
            "udp/8125",
            "tcp/9000-9010",
            "tcp/1-65535",
            "icmp from 10.0.2.64/26",
            "tcp/22 from 0.0.0.0/0",
            "vrrp",
            "ospf from 10.0.2.0/24",
            "esp",
            "sctp",
            "ip/253",
            "ip/0 from 10.0.2.0/24",
            "tcp/22 from fd00:9::/64",
            "icmp from ::/0",
            "tcp/22 from fe80::/10",
        ] {
            assert_eq!(allow(text).map(|entry| entry.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(
            allow(" tcp/22-22   from\t10.0.2.0/24 ").map(|entry| entry.to_string()),
            Ok("tcp/22 from 10.0.2.0/24".to_owned())
        );
        for (number, name) in
            [("112", "vrrp"), ("ip/112", "vrrp"), ("2", "igmp"), ("6", "tcp"), ("ip/17", "udp")]
        {
            assert_eq!(allow(number).map(|entry| entry.to_string()), Ok(name.to_owned()));
        }
    }

    /// The fixes are lines to copy, so they must be good ones.
    #[test]
    fn suggested_entries_are_accepted() {
        for (slip, meant) in [
            ("ssh", "tcp/22"),
            ("SSH", "tcp/22"),
            ("ping", "icmp"),
            ("22/tcp", "tcp/22"),
            ("9000-9010/udp", "udp/9000-9010"),
            ("22", "tcp/22"),
            ("tcp:22", "tcp/22"),
            ("tcp22", "tcp/22"),
            ("TCP/22", "tcp/22"),
            ("ICMP", "icmp"),
            ("ICMP/8", "icmp"),
            ("icmp:8", "icmp"),
            ("tcp 22", "tcp/22"),
            ("tcp 22 from 10.0.2.0/24", "tcp/22 from 10.0.2.0/24"),
            ("tcp/", "tcp"),
            ("tcp/*", "tcp"),
            ("tcp/ssh", "tcp/22"),
            ("tcp/9010-9000", "tcp/9000-9010"),
            ("tcp/9000:9010", "tcp/9000-9010"),
            ("icmp/8", "icmp"),
            ("tcp/22 from", "tcp/22 from 10.0.2.64/26"),
            ("tcp/22 10.0.2.0/24", "tcp/22 from 10.0.2.0/24"),
            ("tcp/22 from any", "tcp/22"),
            ("tcp/22 from jump.example.com", "tcp/22 from 10.0.2.64/26"),
            ("tcp/22 from jump", "tcp/22 from 10.0.2.64/26"),
            ("tcp/22 fd00::/8", "tcp/22 from fd00::/8"),
            ("VRRP", "vrrp"),
            ("keepalived", "vrrp"),
            ("corosync", "udp/5405"),
            ("sctp/2905", "sctp"),
            ("253", "ip/253"),
            ("ip", "ip/253"),
            ("ip/any", "ip/253"),
        ] {
            let fix = allow(slip).unwrap_err().fix;
            assert!(fix.contains(&format!("\"{meant}\"")), "{slip:?}: {fix}");
            assert_eq!(allow(meant).map(|entry| entry.to_string()), Ok(meant.to_owned()));
        }
    }

    #[test]
    fn other_slips_are_refused() {
        for slip in [
            "",
            " ",
            "/22",
            "from 10.0.2.0/24",
            "sctp/22",
            "vrrp/18",
            "ip/256",
            "ip/-1",
            "ip/0112",
            "ip/",
            "0112",
            "ip/112/1",
            "tcp/022",
            "tcp/22-099",
            "tcp/22 from 010.0.2.0/24",
            "tpc/22",
            "any",
            "!tcp/22",
            "tcp/0",
            "tcp/70000",
            "tcp/-1",
            "tcp/22-",
            "tcp/1-2-3",
            "tcp//22",
            "tcp/22,80",
            "tcp/22 form 10.0.2.0/24",
            "tcp/22 From 10.0.2.0/24",
            "tcp/22 from 10.0.2.64",
            "tcp/22 from 10.0.2.65/26",
            "tcp/22 from 10.0.2.0/33",
            "tcp/22 from fd00::1",
            "tcp/22 from fd00::1/64",
            "tcp/22 from fd00::/129",
            "tcp/22 from fd00:/8",
            "tcp/22 from ::ffff:10.0.2.0/120",
            "tcp/22 from ff02::/16",
            "tcp/22 from 10.0.2.0/24 10.0.3.0/24",
            "tcp/22 to 10.0.2.0/24",
            "tcp / 22",
            "icmp 8",
            "é",
        ] {
            let refused = allow(slip).unwrap_err();
            assert!(!refused.what.is_empty() && !refused.fix.is_empty(), "{slip:?}");
        }
    }

    proptest::proptest! {
        /// For any text, the entry is understood and can be written again, or is refused with a
        /// remedy.
        #[test]
        fn every_text_is_parsed_or_refused_with_a_remedy(
            text in "(tcp|udp|icmp|TCP|vrrp|ip|é|[0-9]{1,5}|[a-z]{0,4})[/: -]?(\\PC{0,5}|[0-9-]{0,9})( ?from ?)?[0-9./a-f:]{0,12}",
        ) {
            match allow(&text) {
                Ok(entry) => proptest::prop_assert_eq!(allow(&entry.to_string()), Ok(entry)),
                Err(Problem { what, fix }) => proptest::prop_assert!(!what.is_empty() && !fix.is_empty()),
            }
        }
    }
}
