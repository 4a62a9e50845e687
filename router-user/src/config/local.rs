//! `[local]`: what of this machine itself can be reached.
//!
//! An entry of `allow` is `PROTOCOL[/PORT[-PORT]] [from NETWORK]`, where `PROTOCOL` is a name, the
//! number of a protocol that has one, or `ip/NUMBER`. Firewalls write the same thing in a dozen
//! ways, so most of this is about what else people may write: the answer is the line that they
//! meant.

use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net};
use toml::Spanned;

use super::diagnostic::Severity;
use super::document::{Document, closest, did_you_mean};
use super::read::{RawForward, RawMasquerade};
use super::types::{LocalAllow, LocalProtocol, Others};
use super::values::{self, Problem, problem};

/// Entries of `allow`.
pub const MAX_LOCAL_ALLOW: usize = 64;

/// What people call a service, and what it is here.
const SERVICES: &[(&str, &str)] = &[
    ("carp", "vrrp"),
    ("corosync", "udp/5405"),
    ("dns", "udp/53"),
    ("domain", "udp/53"),
    ("http", "tcp/80"),
    ("https", "tcp/443"),
    ("ipencap", "ipip"),
    ("ipsec", "esp"),
    ("keepalived", "vrrp"),
    ("node-exporter", "tcp/9100"),
    ("ntp", "udp/123"),
    ("ospfigp", "ospf"),
    ("ping", "icmp"),
    ("rdp", "tcp/3389"),
    ("snmp", "udp/161"),
    ("ssh", "tcp/22"),
    ("statsd", "udp/8125"),
    ("syslog", "udp/514"),
];

/// What stands before an IP protocol's number.
const IP: &str = "ip";

const FORM: &str =
    "write PROTOCOL/PORT, PROTOCOL/FIRST-LAST or PROTOCOL, and perhaps who: \"tcp/22 from 10.0.2.64/26\"";

pub(super) fn others(text: &str) -> Result<Others, Problem> {
    values::one_of(text, &[("open", Others::Open), ("closed", Others::Closed)])
}

/// One entry of `allow`.
pub(super) fn allow(text: &str) -> Result<LocalAllow, Problem> {
    if text.contains(',') {
        return problem(
            format!("{text:?} has a comma"),
            "write each as an entry of its own: [\"tcp/22\", \"tcp/80\"]",
        );
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let Some((what, who)) = words.split_first() else {
        return problem("an entry is empty", FORM);
    };
    let from = |network: &str| format!("{what} from {network}");
    let (protocol, ports) = match who.split_first() {
        // "tcp 22"
        Some((first, rest)) if has_ports(what) && is_port(first) => {
            let tail = if rest.is_empty() { String::new() } else { format!(" {}", rest.join(" ")) };
            return problem(
                format!("{text:?} has a space before the port"),
                format!("write \"{what}/{first}{tail}\""),
            );
        }
        Some(_) | None => service(what)?,
    };
    let network = match who {
        [] => None,
        ["from"] => {
            return problem(
                format!("{text:?} does not say from where"),
                format!("write \"{}\"", from("10.0.2.64/26")),
            );
        }
        ["from", name] => Some(network(what, name)?),
        ["from", ..] => {
            return problem(
                format!("{text:?} names more than one network"),
                "write an entry for each network",
            );
        }
        [network] if network.parse::<IpNet>().is_ok() => {
            return problem(format!("{text:?} lacks a word"), format!("write \"{}\"", from(network)));
        }
        [word, ..] => {
            let fix = did_you_mean(&word.to_ascii_lowercase(), &["from"]).unwrap_or_else(|| FORM.to_owned());
            return problem(format!("{word:?} is not understood after {what:?}"), fix);
        }
    };
    Ok(LocalAllow { protocol, ports, from: network })
}

/// "tcp/22"
fn service(text: &str) -> Result<(LocalProtocol, Option<RangeInclusive<u16>>), Problem> {
    let (name, ports) = match text.split_once('/') {
        Some((name, ports)) => (name, Some(ports)),
        None => (text, None),
    };
    if name == IP {
        return by_number(text, ports).map(|protocol| (protocol, None));
    }
    let Some(protocol) =
        LocalProtocol::by_name(name).or_else(|| named_number(name).filter(|_| ports.is_none()))
    else {
        return problem(format!("{text:?} does not start with a protocol that is known"), meant(name, ports));
    };
    let Some(ports) = ports else {
        return Ok((protocol, None));
    };
    if protocol == LocalProtocol::ICMP {
        return problem(
            format!("{text:?}: ICMP has no ports"),
            "write \"icmp\": it is about echo requests (ping)",
        );
    }
    if !protocol.has_ports() {
        return problem(
            format!("{text:?}: ports of {name} are not looked at"),
            format!("write \"{name}\": all of the protocol is allowed"),
        );
    }
    Ok((protocol, Some(range(name, ports)?)))
}

/// "ip/112"
fn by_number(text: &str, number: Option<&str>) -> Result<LocalProtocol, Problem> {
    let number = number.filter(|number| is_plain_number(number)).and_then(|number| number.parse().ok());
    match number {
        Some(number) => Ok(LocalProtocol(number)),
        None => problem(
            format!("{text:?} names no IP protocol"),
            "write its number, 0 to 255: \"ip/253\"; or protocols one by one: \"tcp\", \"udp\", \"icmp\"",
        ),
    }
}

/// The protocol of a number that stands alone: only one that has a name, since others are more
/// likely to be ports ("22").
fn named_number(text: &str) -> Option<LocalProtocol> {
    let number = is_plain_number(text).then(|| text.parse().ok()).flatten().map(LocalProtocol)?;
    LocalProtocol::NAMES.into_iter().any(|(_, protocol)| protocol == number).then_some(number)
}

/// Returns `true` for decimal digits without leading zeros.
fn is_plain_number(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_digit()) && !values::has_leading_zero(text)
}

fn has_ports(name: &str) -> bool {
    LocalProtocol::by_name(name).is_some_and(LocalProtocol::has_ports)
}

/// What was probably meant by an entry that starts with `name`, which is no protocol.
fn meant(name: &str, ports: Option<&str>) -> String {
    let lower = name.to_ascii_lowercase();
    let protocols = LocalProtocol::NAMES.map(|(known, _)| known);
    if let Some((_, meant)) = SERVICES.iter().find(|(known, _)| *known == lower) {
        return format!("write \"{meant}\"");
    }
    // "22/tcp", "22"
    if is_port(name) {
        return match ports {
            Some(protocol) if has_ports(protocol) => {
                format!("the protocol comes first: \"{protocol}/{name}\"")
            }
            Some(_) | None => format!(
                "write the protocol too: \"tcp/{name}\" or \"udp/{name}\"; an IP protocol by its number is \"ip/{name}\""
            ),
        };
    }
    // "tcp:22", "tcp22", "TCP/22"
    let (letters, rest) =
        lower.split_at(lower.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(lower.len()));
    let rest = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    if LocalProtocol::by_name(letters).is_some() {
        return match ports.or(Some(rest).filter(|rest| is_port(rest))) {
            Some(ports) if has_ports(letters) => format!("write \"{letters}/{ports}\""),
            Some(_) | None => format!("write \"{letters}\""),
        };
    }
    match lower.as_str() {
        "any" | "all" | "*" => "name the protocols, each in an entry: \"tcp\", \"udp\", \"icmp\"".to_owned(),
        _ => match closest(&lower, &protocols) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => FORM.to_owned(),
        },
    }
}

/// The ports of `protocol`: "22" or "9000-9010".
fn range(protocol: &str, text: &str) -> Result<RangeInclusive<u16>, Problem> {
    if matches!(text, "" | "*" | "any" | "all") {
        return problem(
            format!("\"{protocol}/{text}\" names no port"),
            format!("write \"{protocol}\" for all its ports"),
        );
    }
    let (first, last) = text.split_once(['-', ':']).unwrap_or((text, text));
    let port = |one: &str| {
        values::port(one).map_err(|Problem { what, fix }| {
            let fix = match SERVICES.iter().find(|(known, _)| *known == one.to_ascii_lowercase()) {
                Some((_, meant)) => format!("write \"{meant}\""),
                None if fix.is_empty() => FORM.to_owned(),
                None => fix,
            };
            Problem { what, fix }
        })
    };
    let (first, last) = (port(first)?, port(last)?);
    if text.contains(':') {
        problem(format!("{text:?} is not a port"), format!("write \"{protocol}/{first}-{last}\""))
    } else if first > last {
        problem(format!("the range {text} runs backwards"), format!("write \"{protocol}/{last}-{first}\""))
    } else {
        Ok(first..=last)
    }
}

/// What is after `from` in an entry that starts with `what`.
fn network(what: &str, text: &str) -> Result<IpNet, Problem> {
    if matches!(text, "any" | "all" | "anyone" | "anywhere" | "everyone" | "*") {
        return problem(
            format!("{text:?} is not a network"),
            format!("write \"{what}\": that is from anywhere by IPv4; \"{what} from ::/0\" by IPv6"),
        );
    }
    let has_letter = text.contains(|c: char| c.is_ascii_alphabetic());
    if has_letter && !text.contains(':') && values::dns_name(text).is_ok() {
        return problem(
            format!("{text:?} is a name, and names are not looked up here"),
            format!("write the network of its addresses: \"{what} from 10.0.2.64/26\""),
        );
    }
    values::network_of_either(text)
}

/// Whether this is a port or a range, be it a bad one.
fn is_port(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || c == '-')
}

/// Checks the entries against each other and the rules.
pub(super) fn check(
    document: &mut Document,
    allow: &Spanned<Vec<Spanned<LocalAllow>>>,
    others: Others,
    forwards: &[RawForward],
    masquerades: &[RawMasquerade],
) {
    let entries = allow.get_ref();
    if let Some(excess) = entries.get(MAX_LOCAL_ALLOW) {
        document.error(
            format!("{} entries of `allow` are too many", entries.len()),
            excess.span(),
            format!("at most {MAX_LOCAL_ALLOW}: ranges of ports and larger networks may save some"),
        );
    }
    let sources: Option<Vec<Ipv4Net>> = forwards
        .iter()
        .map(|rule| rule.sources.as_ref())
        .chain(masquerades.iter().map(|rule| rule.sources.as_ref()))
        .try_fold(Vec::new(), |mut all, sources| {
            all.extend(sources?.get_ref().iter().map(|source| *source.get_ref()));
            Some(all)
        });
    for (number, entry) in entries.iter().enumerate() {
        if let Some(first) = entries.iter().take(number).find(|first| first.get_ref() == entry.get_ref()) {
            let twice = document
                .diagnostic(Severity::Error, format!("`allow` has \"{}\" twice", entry.get_ref()))
                .at(entry.span(), "leave it out")
                .at(first.span(), "the first one");
            document.push(twice);
        }
        if others == Others::Open
            && let Some(sources) = &sources
        {
            needless(document, entry, sources);
        }
        if let Some(rule) = forwards.iter().find(|rule| takes_all(rule, entry.get_ref())) {
            hidden(document, entry, rule);
        }
    }
}

/// Warns of an entry that looks as if it kept others out, and does not.
fn needless(document: &mut Document, entry: &Spanned<LocalAllow>, sources: &[Ipv4Net]) {
    // What comes by IPv6 is closed out on the interface of clients whatever its address.
    let Some(IpNet::V4(from)) = entry.get_ref().from else {
        return;
    };
    if sources.iter().any(|source| source.contains(&from) || from.contains(source)) {
        return;
    }
    document.warning(
        format!("\"{}\" in `allow` changes nothing", entry.get_ref()),
        entry.span(),
        format!("no rule has a source in {from}, and who is in no rule's `sources` reaches everything"),
        "leave it out, or write others = \"closed\" in [local] to keep out whoever `allow` does not name",
    );
}

/// Whether every packet that `entry` is about goes to `rule` first.
fn takes_all(rule: &RawForward, entry: &LocalAllow) -> bool {
    // Rules are for IPv4.
    let (Some(protocol), Some(listen), Some(ports), None | Some(IpNet::V4(_))) =
        (&rule.protocol, &rule.listen, &entry.ports, &entry.from)
    else {
        return false;
    };
    let same_protocol = entry.protocol == LocalProtocol::from(*protocol.get_ref());
    let listen = listen.get_ref();
    same_protocol
        && listen.address.is_none()
        && listen.ports.contains(ports.start())
        && listen.ports.contains(ports.end())
}

fn hidden(document: &mut Document, entry: &Spanned<LocalAllow>, rule: &RawForward) {
    let mut diagnostic = document
        .diagnostic(
            Severity::Warning,
            format!("\"{}\" in `allow` changes nothing: a forward takes it", entry.get_ref()),
        )
        .at(entry.span(), "never gets to this machine itself");
    if let Some(listen) = &rule.listen {
        diagnostic =
            diagnostic.at(listen.span(), "forwarded, or dropped if it is from none of its `sources`");
    }
    document.push(diagnostic.help("leave it out, or change the ports of the forward"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_entries_are_shown_as_they_are_written() {
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
    fn what_a_slip_is_answered_with_is_accepted() {
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
        /// Whatever is written, it is understood and can be written again, or refused with a remedy.
        #[test]
        fn every_text_is_answered(
            text in "(tcp|udp|icmp|TCP|vrrp|ip|é|[0-9]{1,5}|[a-z]{0,4})[/: -]?(\\PC{0,5}|[0-9-]{0,9})( ?from ?)?[0-9./a-f:]{0,12}",
        ) {
            match allow(&text) {
                Ok(entry) => proptest::prop_assert_eq!(allow(&entry.to_string()), Ok(entry)),
                Err(Problem { what, fix }) => proptest::prop_assert!(!what.is_empty() && !fix.is_empty()),
            }
        }
    }
}
