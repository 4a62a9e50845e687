//! The values of the configuration: text to value, or what is wrong with it and what to write
//! instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::document::did_you_mean;
use super::types::{Host, Listen, Mode, Mss, Protocol, Refusal, Target};

pub use router_common::limits::{
    MAX_MASQUERADES as MAX_MASQUERADE_PAIRS, MAX_RULES, MAX_SNAT_ADDRESSES, MAX_TARGETS,
};

/// Entries of `from` of `[health]`: each has places of its own.
pub const MAX_PROBERS: usize = 16;

/// The address that Azure's platform speaks from and listens on in every virtual network: probes,
/// DNS, DHCP. The router never translates its traffic.
pub(super) const AZURE_PLATFORM: Ipv4Addr = Ipv4Addr::from_octets(router_common::address::AZURE_PLATFORM.0);

/// The longest path a Unix socket can have: `sun_path` is 108 bytes with its final zero (unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// The longest interface name: IFNAMSIZ is 16 with its final zero (netdevice(7)).
const MAX_INTERFACE_NAME: usize = 15;
const MAX_RULE_NAME: usize = router_common::maps::rules::NAME_LENGTH;
/// Below, the table is no use; above, it does not fit the memory of any machine this is meant for.
const FLOWS: RangeInclusive<u32> = 1024..=1 << 24;
/// From the least that Linux accepts of a peer (TCP_MIN_MSS) to what an IPv4 packet can hold beside
/// its headers.
const MSS: RangeInclusive<i128> = 88..=65_535 - 40;
/// Nobody means more, and seconds of it fit any counter.
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What is wrong with a value, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) what: String,
    pub(super) fix: String,
}

pub(super) fn problem<T>(what: impl Into<String>, fix: impl Into<String>) -> Result<T, Problem> {
    Err(Problem { what: what.into(), fix: fix.into() })
}

pub(super) fn interface(text: &str) -> Result<String, Problem> {
    let good = (1..=MAX_INTERFACE_NAME).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if good {
        Ok(text.to_owned())
    } else {
        problem(
            format!("{text:?} cannot be the name of an interface"),
            "write one that `ip -br link` shows, e.g. \"eth0\"",
        )
    }
}

pub(super) fn mode(text: &str) -> Result<Mode, Problem> {
    one_of(text, &[("native", Mode::Native), ("generic", Mode::Generic)])
}

pub(super) fn protocol(text: &str) -> Result<Protocol, Problem> {
    one_of(text, &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)])
}

pub(super) fn refusal(text: &str) -> Result<Refusal, Problem> {
    one_of(text, &[("drop", Refusal::Drop), ("reject", Refusal::Reject)])
}

pub(super) fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, Problem> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let quoted = names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ");
    let fix = did_you_mean(&text.to_ascii_lowercase(), &names).unwrap_or_else(|| format!("write {quoted}"));
    problem(format!("{text:?} is not {quoted}"), fix)
}

pub(super) fn rule_name(text: &str) -> Result<String, Problem> {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if text.is_empty() || text.len() > MAX_RULE_NAME {
        problem(
            format!("a rule's name has 1 to {MAX_RULE_NAME} characters, this has {}", text.chars().count()),
            "write a shorter one, e.g. \"https\"",
        )
    } else if let Some(bad) = text.chars().find(|c| !letter(*c) && !"._-".contains(*c)) {
        let tidy: String = text
            .to_ascii_lowercase()
            .chars()
            .map(|c| if letter(c) || "._-".contains(c) { c } else { '-' })
            .collect();
        let fix = if tidy.starts_with(letter) {
            format!("write \"{tidy}\"")
        } else {
            "use a-z, 0-9 and . _ -".to_owned()
        };
        problem(format!("{bad:?} may not be in a rule's name"), fix)
    } else if !text.starts_with(letter) {
        problem(format!("{text:?} does not start with a letter or digit"), "start it with a-z or 0-9")
    } else {
        Ok(text.to_owned())
    }
}

pub(super) fn listen(text: &str) -> Result<Listen, Problem> {
    let (address, ports_text) = match text.rsplit_once(':') {
        Some((address, ports)) => (Some(address), ports),
        None => (None, text),
    };
    let address = match address {
        // "any address" has one way to be written inside: `Listen::address == None`.
        None | Some("0.0.0.0" | "*" | "") => None,
        Some(address) => Some(unicast(address)?),
    };
    if address.is_none() && ports_text.parse::<Ipv4Addr>().is_ok() {
        return problem(format!("{text:?} has no port"), format!("write \"{text}:443\""));
    }
    let ports = ports(ports_text).map_err(|Problem { what, fix }| {
        let fix = if fix.is_empty() {
            "write a port, a range, or an address and either: \"443\", \"8000-8010\", \"10.0.2.68:443\""
                .to_owned()
        } else {
            fix
        };
        Problem { what, fix }
    })?;
    Ok(Listen { address, ports })
}

pub(super) fn snat_ports(text: &str) -> Result<RangeInclusive<u16>, Problem> {
    ports(text).map_err(|Problem { what, fix }| {
        let fix = if fix.is_empty() { "write a range: \"1024-65535\"".to_owned() } else { fix };
        Problem { what, fix }
    })
}

/// "443" or "8000-8010". The fix is empty where it depends on who asks.
fn ports(text: &str) -> Result<RangeInclusive<u16>, Problem> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first.trim())?, port(last.trim())?);
    if first > last {
        return problem(format!("the range {text} runs backwards"), format!("write \"{last}-{first}\""));
    }
    Ok(first..=last)
}

/// Returns `true` if one of the numbers in `text` starts with a zero that adds nothing. Some
/// programs take such a number for octal ("010" is 8), others for decimal.
pub(super) fn has_leading_zero(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit()).any(|number| number.len() > 1 && number.starts_with('0'))
}

/// `text` with no such zeros.
fn without_leading_zeros(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number) = rest.split_at(start);
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        let (number, after) = number.split_at(end);
        let digits = number.trim_start_matches('0');
        plain.push_str(before);
        plain.push_str(if digits.is_empty() { "0" } else { digits });
        rest = after;
    }
    plain.push_str(rest);
    plain
}

fn leading_zero<T>(text: &str) -> Result<T, Problem> {
    problem(
        format!("{text:?} has a number with a leading zero, which some programs take for octal"),
        format!("write it in decimal: \"{}\"", without_leading_zeros(text)),
    )
}

pub(super) fn port(text: &str) -> Result<u16, Problem> {
    if has_leading_zero(text) && text.chars().all(|c| c.is_ascii_digit()) {
        return leading_zero(text);
    }
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return problem(format!("{text:?} is not a port"), "");
    }
    match text.parse::<u32>() {
        Ok(0) => problem("port 0 is no port", "ports are 1 to 65535"),
        Ok(number) => match u16::try_from(number) {
            Ok(number) => Ok(number),
            Err(_) => problem(format!("port {number} is too large"), "ports are 1 to 65535"),
        },
        Err(_) => problem(format!("{text:?} is not a port"), ""),
    }
}

pub(super) fn target(text: &str) -> Result<Target, Problem> {
    if text.contains("://") {
        return problem(
            format!("{text:?} is a URL"),
            "write only the host and port, e.g. \"db.example.com:443\"",
        );
    }
    if text.parse::<Ipv6Addr>().is_ok() || text.starts_with('[') {
        return problem(format!("{text:?} is an IPv6 address"), "this version forwards IPv4 only");
    }
    let (host, port_text) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let port = match port_text {
        None => None,
        Some(number) if number.contains('-') => {
            return problem(
                format!("{text:?} has a range of ports"),
                format!("write \"{host}\": the port that the client used is kept"),
            );
        }
        Some(number) => Some(port(number).map_err(|Problem { what, fix }| {
            let fix = if fix.is_empty() {
                "write an address or name and a port: \"203.0.113.10:443\"".to_owned()
            } else {
                fix
            };
            Problem { what, fix }
        })?),
    };
    let looks_numeric = !host.is_empty() && host.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '/');
    let host = if looks_numeric { Host::Address(unicast(host)?) } else { Host::Name(dns_name(host)?) };
    Ok(Target { host, port })
}

/// A host name as RFC 1123 section 2.1 and the resolver see it; `_` because private zones use it.
/// The final dot of an absolute name stays.
pub(super) fn dns_name(text: &str) -> Result<String, Problem> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let good_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    if name.len() <= 253 && name.split('.').all(good_label) {
        Ok(text.to_ascii_lowercase())
    } else {
        problem(
            format!("{text:?} is neither an IPv4 address nor a DNS name"),
            "write an address or name and perhaps a port: \"203.0.113.10:443\", \"db.example.com:443\"",
        )
    }
}

/// An address that a packet on the wire can be from and for.
pub(super) fn unicast(text: &str) -> Result<Ipv4Addr, Problem> {
    let Ok(address) = text.parse::<Ipv4Addr>() else {
        if without_leading_zeros(text).parse::<Ipv4Addr>().is_ok() {
            return leading_zero(text);
        }
        let fix = if text.parse::<Ipv6Addr>().is_ok() {
            "this version knows IPv4 only".to_owned()
        } else if let Some((address, _)) = text.split_once('/').filter(|(a, _)| a.parse::<Ipv4Addr>().is_ok())
        {
            format!("one address is wanted, not a network: \"{address}\"")
        } else {
            "write four numbers from 0 to 255: \"10.0.2.68\"".to_owned()
        };
        return problem(format!("{text:?} is not an IPv4 address"), fix);
    };
    match no_target(address) {
        Some(why) => problem(format!("{address} is {why}"), "name another address"),
        None => Ok(address),
    }
}

/// Why packets cannot be sent to an address by this router; `None` if they can.
pub fn no_target(address: Ipv4Addr) -> Option<&'static str> {
    if address == AZURE_PLATFORM {
        Some("Azure's platform address (probes, DNS, DHCP), whose traffic is never translated")
    } else if address.octets().first() == Some(&0) {
        Some("not an address a packet can be sent to")
    } else if address.is_loopback() {
        Some("a loopback address: a packet from the network never gets there")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address.is_broadcast() {
        Some("the broadcast address")
    } else if address.is_link_local() {
        Some("a link-local address (in Azure: the metadata service), which is not routed")
    } else {
        None
    }
}

/// What a network consists of if none of its addresses is a host that packets go to or come from
/// over a wire; `None` if some are. The same addresses as
/// [`router_common::local::is_martian_source`] knows.
pub(super) fn no_unicast(network: &Ipv4Net) -> Option<&'static str> {
    const NONE: [(Ipv4Net, &str); 4] = [
        (Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8), "addresses of \"this network\""),
        (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback addresses"),
        (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4), "multicast addresses"),
        (Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32), "the broadcast address"),
    ];
    NONE.iter().find(|(none, _)| none.contains(network)).map(|(_, kind)| *kind)
}

pub(super) fn network(text: &str) -> Result<Ipv4Net, Problem> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return problem(
            format!("{text:?} is an address, not a network"),
            format!("write \"{address}/32\" for this address alone"),
        );
    }
    if has_leading_zero(text) && !text.contains(':') {
        return leading_zero(text);
    }
    let Ok(network) = text.parse::<Ipv4Net>() else {
        let fix = if text.contains(':') {
            "this version knows IPv4 only".to_owned()
        } else if text
            .split_once('/')
            .is_some_and(|(a, p)| a.parse::<Ipv4Addr>().is_ok() && p.parse::<u32>().is_ok())
        {
            "the prefix length is 0 to 32".to_owned()
        } else {
            "write an address and a prefix length: \"10.0.2.64/26\"".to_owned()
        };
        return problem(format!("{text:?} is not a network"), fix);
    };
    if network.trunc() != network {
        return problem(
            format!("{network} has bits set after its first {}", network.prefix_len()),
            format!("write \"{}\", the network this address is in", network.trunc()),
        );
    }
    if network.addr() == AZURE_PLATFORM && network.prefix_len() == 32 {
        return problem(
            format!("{AZURE_PLATFORM} is Azure's platform address, whose traffic is never translated"),
            "leave it out",
        );
    }
    Ok(network)
}

/// Reads one who may probe: an address or a network, of either family.
pub(super) fn prober(text: &str) -> Result<IpNet, Problem> {
    const FIX: &str = "write an address or a network: \"168.63.129.16\", \"10.0.9.0/24\"";
    if has_leading_zero(text) && !text.contains(':') {
        return leading_zero(text);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let Ok(network) = text.parse::<IpNet>() else {
        return problem(format!("{text:?} is neither an address nor a network"), FIX);
    };
    if network.trunc() != network {
        return problem(
            format!("{network} has bits set after its first {}", network.prefix_len()),
            format!("write \"{}\", the network this address is in", network.trunc()),
        );
    }
    if let IpNet::V6(network) = network
        && network.addr().to_ipv4_mapped().is_some()
    {
        return problem(format!("{network} is a network of IPv4 written as IPv6"), FIX);
    }
    Ok(network)
}

/// A name that requests give in `Host`, in the form that they are compared in.
pub(super) fn host_name(text: &str) -> Result<String, Problem> {
    let example = "write a name as in a URL, without a port: \"router.example.com\"";
    if let Ok(address) = text.parse::<IpAddr>() {
        // As it stands in a URL (RFC 3986 3.2.2).
        return Ok(match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        });
    }
    if text.contains([':', '/', '*']) {
        return problem(format!("{text:?} is more or less than a name"), example);
    }
    match dns_name(text) {
        Ok(name) => Ok(name.strip_suffix('.').unwrap_or(&name).to_owned()),
        Err(_) => problem(format!("{text:?} is not a name"), example),
    }
}

/// An IPv4 or IPv6 network.
pub(super) fn network_of_either(text: &str) -> Result<IpNet, Problem> {
    if text.contains(':') { ipv6_network(text).map(Into::into) } else { network(text).map(Into::into) }
}

fn ipv6_network(text: &str) -> Result<Ipv6Net, Problem> {
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return problem(
            format!("{text:?} is an address, not a network"),
            format!("write \"{address}/128\" for this address alone"),
        );
    }
    let Ok(network) = text.parse::<Ipv6Net>() else {
        let fix = match text.split_once('/') {
            Some((address, length))
                if address.parse::<Ipv6Addr>().is_ok() && length.parse::<u32>().is_ok() =>
            {
                "the prefix length is 0 to 128"
            }
            _ => "write an address and a prefix length: \"fd00:9::/64\"",
        };
        return problem(format!("{text:?} is not a network"), fix);
    };
    if network.trunc() != network {
        return problem(
            format!("{network} has bits set after its first {}", network.prefix_len()),
            format!("write \"{}\", the network this address is in", network.trunc()),
        );
    }
    if let Some(ipv4) = network.addr().to_ipv4_mapped()
        && let Some(length) = network.prefix_len().checked_sub(96)
    {
        return problem(
            format!("{network} are addresses of IPv4, which no IPv6 packet has"),
            format!("write \"{ipv4}/{length}\""),
        );
    }
    if network.addr().is_multicast() {
        return problem(
            format!("{network} are addresses of many, which no packet comes from"),
            "leave it out",
        );
    }
    Ok(network)
}

pub(super) fn health_address(text: &str) -> Result<SocketAddr, Problem> {
    socket_address(text, "0.0.0.0:8082")
}

pub(super) fn admin_address(text: &str) -> Result<SocketAddr, Problem> {
    socket_address(text, "127.0.0.1:9090")
}

fn socket_address(text: &str, example: &str) -> Result<SocketAddr, Problem> {
    // Of IPv6, only the port: groups of an address are hexadecimal, and may have leading zeros.
    let numbers = match text.rsplit_once("]:") {
        Some((_, port)) => port,
        None if text.matches(':').count() > 1 => "",
        None => text,
    };
    if has_leading_zero(numbers) {
        return leading_zero(text);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => {
            problem("port 0 would be a different port every time", "ports are 1 to 65535")
        }
        Ok(address) => Ok(address),
        Err(_) => {
            let fix = if let Ok(port) = text.parse::<u16>() {
                format!("write the address too: \"{}:{port}\"", example.split(':').next().unwrap_or_default())
            } else if let Ok(address) = text.parse::<IpAddr>() {
                format!("write the port too: \"{}\"", SocketAddr::new(address, 8082))
            } else {
                format!("write an address and a port: \"{example}\"")
            };
            problem(format!("{text:?} is not an address and port"), fix)
        }
    }
}

pub(super) fn absolute_path(text: &str) -> Result<PathBuf, Problem> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        problem(format!("{text:?} is not an absolute path"), "start it with /")
    }
}

pub(super) fn socket_path(text: &str) -> Result<PathBuf, Problem> {
    if text.len() > MAX_SOCKET_PATH {
        return problem(
            format!("the path has {} bytes, and a Unix socket's at most {MAX_SOCKET_PATH}", text.len()),
            "choose a shorter one: \"/run/pls-router/api.sock\"",
        );
    }
    absolute_path(text)
}

pub(super) fn flows(number: i128) -> Result<u32, Problem> {
    match u32::try_from(number) {
        Ok(flows) if FLOWS.contains(&flows) => Ok(flows),
        Ok(_) | Err(_) => problem(
            format!("{number} is out of range"),
            format!("it may be {} to {}", FLOWS.start(), FLOWS.end()),
        ),
    }
}

/// More than any table has sessions is the same as no limit.
pub(super) fn half_open(number: i128) -> Result<u32, Problem> {
    let fix = "write at least 1, or leave it out";
    match number {
        ..0 => problem(format!("{number} is out of range"), fix),
        0 => problem("with 0 nobody could open a session", fix),
        1.. => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
    }
}

/// "pmtu" or "1360".
pub(super) fn mss(text: &str) -> Result<Mss, Problem> {
    if text == "pmtu" {
        return Ok(Mss::PathMtu);
    }
    if let Ok(number) = text.parse::<i128>() {
        if has_leading_zero(text) {
            return leading_zero(text);
        }
        return match u16::try_from(number) {
            Ok(bytes) if MSS.contains(&number) => Ok(Mss::Bytes(bytes)),
            Ok(_) | Err(_) => problem(
                format!("a segment of {number} bytes is out of range"),
                format!(
                    "it may be {} to {}: the MTU of the path less 40, e.g. 1360, or \"pmtu\"",
                    MSS.start(),
                    MSS.end()
                ),
            ),
        };
    }
    let fix = did_you_mean(&text.to_ascii_lowercase(), &["pmtu"])
        .unwrap_or_else(|| "write \"pmtu\", or bytes: the MTU of the path less 40, e.g. 1360".to_owned());
    problem(format!("{text:?} is no size of a segment"), fix)
}

pub(super) fn timeout(text: &str) -> Result<Duration, Problem> {
    let Ok(duration) = humantime::parse_duration(text) else {
        let fix = if text.parse::<u64>().is_ok() {
            format!("say the unit: \"{text}s\"")
        } else {
            "write a number and a unit: \"300s\", \"5m\", \"2h 4m\"".to_owned()
        };
        return problem(format!("{text:?} is not a time"), fix);
    };
    if duration.subsec_nanos() != 0 || duration.is_zero() {
        problem(format!("{text:?} is not a number of whole seconds"), "write at least \"1s\"")
    } else if duration > MAX_TIMEOUT {
        problem(format!("{text:?} is more than 30 days"), "write at most \"30d\"")
    } else {
        Ok(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_forms() {
        let shown = |text| listen(text).map(|listen| listen.to_string());
        assert_eq!(shown("443"), Ok("443".to_owned()));
        assert_eq!(shown("8000-8010"), Ok("8000-8010".to_owned()));
        assert_eq!(shown("10.0.2.68:443"), Ok("10.0.2.68:443".to_owned()));
        assert_eq!(shown("10.0.2.68:1-65535"), Ok("10.0.2.68:1-65535".to_owned()));
        assert_eq!(shown("0.0.0.0:443"), Ok("443".to_owned()));
        assert_eq!(shown("80-80"), Ok("80".to_owned()));
        for bad in ["", "0", "65536", "9-1", "x", "10.0.2.68", "127.0.0.1:1", "1.2.3.4:", "-", "1-", "a:1"] {
            assert!(listen(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn target_forms() {
        let shown = |text| target(text).map(|target| target.to_string());
        for good in [
            "203.0.113.10:443",
            "203.0.113.10",
            "db.example.com:443",
            "db",
            "_x.example.com",
            "db.example.com.:443",
        ] {
            assert_eq!(shown(good), Ok(good.to_owned()));
        }
        assert_eq!(shown("DB.Example.com."), Ok("db.example.com.".to_owned()));
        for bad in [
            "",
            ":443",
            "1.2.3",
            "1.2.3.4.5",
            "10.0.0.0/8",
            "a..b",
            "-a",
            "a b",
            "::1",
            "[::1]:443",
            "a:",
            "a:0",
            "a:1-2",
            "https://a",
            "168.63.129.16",
            "255.255.255.255",
            "224.0.0.1:1",
            "0.0.0.0:443",
            "169.254.169.254:80",
        ] {
            assert!(target(bad).is_err(), "{bad:?}");
        }
    }

    /// One rule for whatever is a number, and the fix is a good value.
    #[test]
    fn numbers_with_leading_zeros_are_refused() {
        fn refused<T: std::fmt::Debug>(read: fn(&str) -> Result<T, Problem>, text: &str, fixed: &str) {
            let Problem { what, fix } = read(text).unwrap_err();
            assert!(what.contains("leading zero"), "{text}: {what}");
            assert!(fix.contains(&format!("\"{fixed}\"")), "{text}: {fix}");
            assert!(read(fixed).is_ok(), "{fixed}");
        }
        refused(network, "010.077.0.0/24", "10.77.0.0/24");
        refused(network, "10.77.0.00/24", "10.77.0.0/24");
        refused(network, "10.77.0.0/024", "10.77.0.0/24");
        refused(network, "0.0.0.0/00", "0.0.0.0/0");
        refused(unicast, "10.0.02.68", "10.0.2.68");
        refused(port, "0443", "443");
        refused(health_address, "0.0.0.0:08082", "0.0.0.0:8082");
        refused(health_address, "0.0.0.00:8082", "0.0.0.0:8082");
        refused(health_address, "[::1]:08082", "[::1]:8082");
        refused(mss, "01360", "1360");
        for text in ["0443", "8000-08010", "08000-8010", "10.0.2.68:0443", "10.0.02.68:443"] {
            let Problem { what, .. } = listen(text).unwrap_err();
            assert!(what.contains("leading zero"), "{text}: {what}");
        }
        for text in ["203.0.113.010:443", "203.0.113.10:0443", "db.example.com:0443"] {
            let Problem { what, .. } = target(text).unwrap_err();
            assert!(what.contains("leading zero"), "{text}: {what}");
        }
        assert!(snat_ports("01024-65535").unwrap_err().what.contains("leading zero"));
        // No number: a label of a name, a group of an IPv6 address.
        assert!(target("0123.example.com").is_ok() && health_address("[2001:0db8::01]:8082").is_ok());
        assert!(port("+443").is_err() && port("").is_err());
    }

    #[test]
    fn mss_forms() {
        for (good, meant) in [
            ("pmtu", Mss::PathMtu),
            ("88", Mss::Bytes(88)),
            ("1360", Mss::Bytes(1360)),
            ("65495", Mss::Bytes(65495)),
        ] {
            assert_eq!(mss(good), Ok(meant));
            assert_eq!(meant.to_string(), good);
        }
        for bad in ["", "87", "65496", "65624", "-1360", "PMTU", "1360B", "1360.0", "auto"] {
            assert!(mss(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn timeouts_are_whole_seconds() {
        assert_eq!(timeout("2h 4m"), Ok(Duration::from_secs(7440)));
        for bad in ["", "0s", "500ms", "1s 1ms", "31d", "-1s", "soon"] {
            assert!(timeout(bad).is_err(), "{bad:?}");
        }
    }
}
