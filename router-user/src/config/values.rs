//! Reads the values of the configuration from text, or says what is wrong and what to write
//! instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::defaults;
use super::types::{Host, Listen, Mode, Mss, Others, Protocol, Refusal, Require, Target};
use crate::toml_reader::{Problem, did_you_mean, wrong};

pub use router_common::limits::{
    MAX_LOCAL_ALLOW, MAX_MASQUERADES as MAX_MASQUERADE_PAIRS, MAX_RULES, MAX_SNAT_ADDRESSES, MAX_TARGETS,
};

/// The most entries of `from` of `[health]`: each has reserved places.
pub const MAX_PROBERS: usize = 16;

/// Azure's platform address in every virtual network: probes, DNS, DHCP. The router never
/// translates its traffic.
pub(super) const AZURE_PLATFORM: Ipv4Addr = Ipv4Addr::from_octets(router_common::address::AZURE_PLATFORM.0);

/// The longest path of a Unix socket: `sun_path` is 108 bytes with its final zero (unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// The longest interface name: IFNAMSIZ is 16 with its final zero (netdevice(7)).
const MAX_INTERFACE_NAME: usize = 15;
const MAX_RULE_NAME: usize = router_common::maps::rules::NAME_LENGTH;
/// A smaller table is no use, and a larger one does not fit the memory of a router's machine.
const FLOWS: RangeInclusive<u32> = 1024..=1 << 24;
/// From the least that Linux accepts of a peer (TCP_MIN_MSS) to the most that fits an IPv4 packet
/// beside its headers.
const MSS: RangeInclusive<i128> = 88..=65_535 - 40;
/// More is surely an error, and this many seconds fit any counter.
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// A load balancer waits for minutes at most before it acts.
const MAX_HOLD: Duration = Duration::from_secs(10 * 60);
/// A check more often than that is a load, and one more seldom tells nothing.
const CHECK_INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60 * 60);
/// Less than a packet's way around the earth is no time to answer in.
const CHECK_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
/// The checks in a row that may be asked for.
const CHECKS: RangeInclusive<u32> = 1..=100;

pub(super) fn interface(text: &str) -> Result<String, Problem> {
    let good = (1..=MAX_INTERFACE_NAME).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if good {
        return Ok(text.to_owned());
    }
    wrong!("{text:?} cannot be the name of an interface", "write one that `ip -br link` shows, e.g. \"eth0\"")
}

pub(super) const MODES: &[(&str, Mode)] = &[("native", Mode::Native), ("generic", Mode::Generic)];
pub(super) const PROTOCOLS: &[(&str, Protocol)] = &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
pub(super) const REFUSALS: &[(&str, Refusal)] = &[("drop", Refusal::Drop), ("reject", Refusal::Reject)];
pub(super) const REQUIRE: &[(&str, Require)] = &[("any", Require::Any), ("all", Require::All)];
/// The kinds of checks; `true` for TLS.
pub(super) const CHECK_KINDS: &[(&str, bool)] = &[("tcp", false), ("tls", true)];
pub(super) const OTHERS: &[(&str, Others)] = &[("open", Others::Open), ("closed", Others::Closed)];

/// Returns a reader of one of a few words.
pub(super) fn one_of<T: Copy>(choices: &[(&'static str, T)]) -> impl Fn(&str) -> Result<T, Problem> {
    move |text| {
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let quoted = format!("\"{}\"", words.join("\" or \""));
        let fix = did_you_mean(text, &words, &format!("write {quoted}"));
        wrong!("{text:?} is not {quoted}", "{fix}")
    }
}

pub(super) fn rule_name(text: &str) -> Result<String, Problem> {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let allowed = |c: char| letter(c) || "._-".contains(c);
    if text.is_empty() || text.len() > MAX_RULE_NAME {
        let length = text.chars().count();
        return wrong!(
            "a rule's name has 1 to {MAX_RULE_NAME} characters, this has {length}",
            "write a shorter one, e.g. \"https\""
        );
    }
    if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
        let tidy = text.to_ascii_lowercase().replace(|c| !allowed(c), "-");
        let fix = format!("write \"{tidy}\"");
        let fix = if tidy.starts_with(letter) { fix.as_str() } else { "use a-z, 0-9 and . _ -" };
        return wrong!("{bad:?} may not be in a rule's name", "{fix}");
    }
    if text.starts_with(letter) {
        return Ok(text.to_owned());
    }
    wrong!("{text:?} does not start with a letter or digit", "start it with a-z or 0-9")
}

pub(super) fn listen(text: &str) -> Result<Listen, Problem> {
    let form = "write a port, a range, or an address and either: \"443\", \"8000-8010\", \"10.0.2.68:443\"";
    let (address, port_text) = match text.rsplit_once(':') {
        None | Some(("0.0.0.0" | "*" | "", _)) => (None, text.rsplit(':').next().unwrap_or(text)),
        Some((address, port_text)) => (Some(unicast(address)?), port_text),
    };
    if address.is_none() && port_text.parse::<Ipv4Addr>().is_ok() {
        return wrong!("{text:?} has no port", "write \"{text}:443\"");
    }
    Ok(Listen { address, ports: ports(port_text, &['-'], "", |_| form.to_owned())? })
}

pub(super) fn snat_ports(text: &str) -> Result<RangeInclusive<u16>, Problem> {
    ports(text, &['-'], "", |_| "write a range: \"1024-65535\"".to_owned())
}

/// Reads "443" or "8000-8010", with any of the `separators` between the two. `form` returns the
/// remedy for a port that is not a number, and remedies that name the ports start with `before`.
pub(super) fn ports(
    text: &str,
    separators: &[char],
    before: &str,
    form: impl Fn(&str) -> String,
) -> Result<RangeInclusive<u16>, Problem> {
    let (first, last) = text.split_once(separators).unwrap_or((text, text));
    let read = |text: &str| port(text.trim(), &form(text));
    let (first, last) = (read(first)?, read(last)?);
    if first > last {
        return wrong!("the range {text} runs backwards", "write \"{before}{last}-{first}\"");
    }
    Ok(first..=last)
}

/// Reads a port. `form` is the remedy for text that is not a number.
fn port(text: &str, form: &str) -> Result<u16, Problem> {
    if text.chars().all(|c| c.is_ascii_digit()) {
        no_leading_zeros(text)?;
    }
    let starts_as_number = text.starts_with(|c: char| c.is_ascii_digit());
    match (text.parse(), text.parse::<u32>()) {
        (Ok(0), _) => wrong!("port 0 is not a port", "ports are 1 to 65535"),
        (Ok(port), _) if starts_as_number => Ok(port),
        (Err(_), Ok(number)) if starts_as_number => {
            wrong!("port {number} is too large", "ports are 1 to 65535")
        }
        _ => wrong!("{text:?} is not a port", "{form}"),
    }
}

/// Refuses a number that starts with a zero that adds nothing. Some programs read it as octal
/// ("010" is 8), others as decimal.
pub(super) fn no_leading_zeros(text: &str) -> Result<(), Problem> {
    let plain = without_leading_zeros(text);
    if plain == text {
        return Ok(());
    }
    wrong!(
        "{text:?} has a number with a leading zero, which some programs read as octal",
        "write it in decimal: \"{plain}\""
    )
}

/// Returns `text` without such zeros.
fn without_leading_zeros(text: &str) -> String {
    let numbers = text.split_inclusive(|c: char| !c.is_ascii_digit());
    let plain = numbers.map(|number| match number.trim_start_matches('0') {
        plain if plain.starts_with(|c: char| c.is_ascii_digit()) => plain.to_owned(),
        // Zero itself, or no number at all.
        rest if rest.len() < number.len() => format!("0{rest}"),
        rest => rest.to_owned(),
    });
    plain.collect()
}

pub(super) fn target(text: &str) -> Result<Target, Problem> {
    if text.contains("://") {
        return wrong!("{text:?} is a URL", "write only the host and port, e.g. \"db.example.com:443\"");
    }
    if text.parse::<Ipv6Addr>().is_ok() || text.starts_with('[') {
        return wrong!("{text:?} is an IPv6 address", "this version forwards IPv4 only");
    }
    let (host, port_text) = text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    if port_text.is_some_and(|port| port.contains('-')) {
        return wrong!(
            "{text:?} has a range of ports",
            "write \"{host}\": the port that the client used is kept"
        );
    }
    let form = "write an address or name and a port: \"203.0.113.10:443\"";
    let port = port_text.map(|text| port(text, form)).transpose()?;
    let looks_numeric = !host.is_empty() && host.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '/');
    let host = if looks_numeric { Host::Address(unicast(host)?) } else { Host::Name(dns_name(host)?) };
    Ok(Target { host, port })
}

/// Reads a host name (RFC 1123 section 2.1); `_` is allowed because private zones use it. The final
/// dot of an absolute name stays.
pub(super) fn dns_name(text: &str) -> Result<String, Problem> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let good_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    if name.len() <= 253 && name.split('.').all(good_label) {
        return Ok(text.to_ascii_lowercase());
    }
    wrong!(
        "{text:?} is neither an IPv4 address nor a DNS name",
        "write an address or name and perhaps a port: \"203.0.113.10:443\", \"db.example.com:443\""
    )
}

/// Reads an address that a packet on the wire can be from and for.
pub(super) fn unicast(text: &str) -> Result<Ipv4Addr, Problem> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        let Some(why) = no_target(address) else { return Ok(address) };
        return wrong!("{address} is {why}", "name another address");
    }
    if without_leading_zeros(text).parse::<Ipv4Addr>().is_ok() {
        no_leading_zeros(text)?;
    }
    let before_slash = text.split('/').next().filter(|address| address.parse::<Ipv4Addr>().is_ok());
    let fix = if text.parse::<Ipv6Addr>().is_ok() {
        "this version supports IPv4 only".to_owned()
    } else if let Some(address) = before_slash {
        format!("one address is wanted, not a network: \"{address}\"")
    } else {
        "write four numbers from 0 to 255: \"10.0.2.68\"".to_owned()
    };
    wrong!("{text:?} is not an IPv4 address", "{fix}")
}

/// Returns the reason why this router cannot send packets to an address; `None` if it can.
pub fn no_target(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        _ if address == AZURE_PLATFORM => {
            "Azure's platform address (probes, DNS, DHCP), whose traffic is never translated"
        }
        [0, ..] => "not an address a packet can be sent to",
        [127, ..] => "a loopback address: a packet from the network never gets there",
        [224..=239, ..] => "a multicast address",
        [255, 255, 255, 255] => "the broadcast address",
        [169, 254, ..] => "a link-local address (in Azure: the metadata service), which is not routed",
        _ => return None,
    })
}

/// Returns the kind of addresses in a network of martians, which no packet on a wire is from or
/// for; `None` for other networks. The same addresses as
/// [`router_common::local::is_martian_source`].
pub(super) fn no_unicast(network: &Ipv4Net) -> Option<&'static str> {
    const NONE: [(Ipv4Net, &str); 4] = [
        (Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8), "addresses of \"this network\""),
        (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback addresses"),
        (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4), "multicast addresses"),
        (Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32), "the broadcast address"),
    ];
    NONE.iter().find(|(none, _)| none.contains(network)).map(|(_, kind)| *kind)
}

/// Reads an IPv4 network.
pub(super) fn network(text: &str) -> Result<Ipv4Net, Problem> {
    match Some(text).filter(|text| !text.contains(':')).map(network_of_either).transpose()? {
        Some(IpNet::V4(network)) => Ok(network),
        Some(IpNet::V6(_)) | None => wrong!("{text:?} is not a network", "this version supports IPv4 only"),
    }
}

/// Reads an IPv4 or IPv6 network.
pub(super) fn network_of_either(text: &str) -> Result<IpNet, Problem> {
    let (most, example) = if text.contains(':') { (128, "fd00:9::/64") } else { (32, "10.0.2.64/26") };
    if let Ok(address) = text.parse::<IpAddr>() {
        return wrong!(
            "{text:?} is an address, not a network",
            "write \"{address}/{most}\" for this address alone"
        );
    }
    let parts = text.split_once('/').map(|(one, two)| (one.parse::<IpAddr>(), two.parse::<u32>()));
    let fix = if let Some((Ok(_), Ok(_))) = parts {
        format!("the prefix length is 0 to {most}")
    } else {
        format!("write an address and a prefix length: \"{example}\"")
    };
    let network = whole_network(text, "not a network", &fix)?;
    let (address, length) = (network.addr(), network.prefix_len());
    if let (IpAddr::V4(ipv4), Some(length), true) =
        (address.to_canonical(), length.checked_sub(96), most == 128)
    {
        return wrong!("{network} are IPv4 addresses, which no IPv6 packet has", "write \"{ipv4}/{length}\"");
    }
    if address == IpAddr::V4(AZURE_PLATFORM) && length == 32 {
        return wrong!(
            "{address} is Azure's platform address, whose traffic is never translated",
            "leave it out"
        );
    }
    if address.is_ipv6() && address.is_multicast() {
        return wrong!("{network} are multicast addresses, which no packet comes from", "leave it out");
    }
    Ok(network)
}

/// Reads a network without host bits. Text of another form `is_not` one, and `fix` is the remedy.
fn whole_network(text: &str, is_not: &str, fix: &str) -> Result<IpNet, Problem> {
    if !text.contains(':') {
        no_leading_zeros(text)?;
    }
    let Ok(network) = text.parse::<IpNet>() else {
        return wrong!("{text:?} is {is_not}", "{fix}");
    };
    let (length, plain) = (network.prefix_len(), network.trunc());
    if plain == network {
        return Ok(network);
    }
    wrong!(
        "{network} has bits set after its first {length}",
        "write \"{plain}\", the network this address is in"
    )
}

/// Reads an address or network of the load balancer's probes, of either family.
pub(super) fn prober(text: &str) -> Result<IpNet, Problem> {
    const FIX: &str = "write an address or a network: \"168.63.129.16\", \"10.0.9.0/24\"";
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let network = whole_network(text, "neither an address nor a network", FIX)?;
    if network.addr().is_ipv6() && network.addr().to_canonical().is_ipv4() {
        return wrong!("{network} is an IPv4 network written as IPv6", "{FIX}");
    }
    Ok(network)
}

/// Reads a name of `Host` headers, in the form that they are compared in.
pub(super) fn host_name(text: &str) -> Result<String, Problem> {
    const FIX: &str = "write a name as in a URL, without a port: \"router.example.com\"";
    // As it stands in a URL (RFC 3986 3.2.2).
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => return Ok(address.to_string()),
        Ok(IpAddr::V6(address)) => return Ok(format!("[{address}]")),
        Err(_) => {}
    }
    if text.contains([':', '/', '*']) {
        return wrong!("{text:?} is not just a name", "{FIX}");
    }
    match dns_name(text) {
        Ok(name) => Ok(name.strip_suffix('.').unwrap_or(&name).to_owned()),
        Err(_) => wrong!("{text:?} is not a name", "{FIX}"),
    }
}

/// Reads the address of a listener.
pub(super) fn socket_address(text: &str, example: SocketAddr) -> Result<SocketAddr, Problem> {
    // Of IPv6, only the port: groups of an address are hexadecimal, and may have leading zeros.
    let numbers = match text.rsplit_once("]:") {
        Some((_, port)) => port,
        None if text.matches(':').count() > 1 => "",
        None => text,
    };
    no_leading_zeros(numbers).or_else(|_| no_leading_zeros(text))?;
    let fix = match (text.parse::<SocketAddr>(), text.parse::<u16>(), text.parse::<IpAddr>()) {
        (Ok(address), ..) if address.port() == 0 => {
            return wrong!("port 0 would be a different port every time", "ports are 1 to 65535");
        }
        (Ok(address), ..) => return Ok(address),
        (_, Ok(port), _) => format!("write the address too: \"{}:{port}\"", example.ip()),
        (.., Ok(address)) => format!("write the port too: \"{}\"", SocketAddr::new(address, 8082)),
        _ => format!("write an address and a port: \"{example}\""),
    };
    wrong!("{text:?} is not an address and port", "{fix}")
}

pub(super) fn absolute_path(text: &str) -> Result<PathBuf, Problem> {
    if text.starts_with('/') {
        return Ok(PathBuf::from(text));
    }
    wrong!("{text:?} is not an absolute path", "start it with /")
}

pub(super) fn socket_path(text: &str) -> Result<PathBuf, Problem> {
    let length = text.len();
    if length > MAX_SOCKET_PATH {
        let example = defaults::SOCKET;
        return wrong!(
            "the path has {length} bytes, and a Unix socket's at most {MAX_SOCKET_PATH}",
            "choose a shorter one: \"{example}\""
        );
    }
    absolute_path(text)
}

pub(super) fn flows(number: i128) -> Result<u32, Problem> {
    if let Some(flows) = u32::try_from(number).ok().filter(|flows| FLOWS.contains(flows)) {
        return Ok(flows);
    }
    let (least, most) = (FLOWS.start(), FLOWS.end());
    wrong!("{number} is out of range", "it may be {least} to {most}")
}

pub(super) fn half_open(number: i128) -> Result<u32, Problem> {
    match number {
        ..0 => wrong!("{number} is out of range", "write at least 1, or leave it out"),
        0 => wrong!("with 0 no session could be opened", "write at least 1, or leave it out"),
        // More than any table has sessions is the same as no limit.
        1.. => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
    }
}

/// Reads "pmtu" or "1360".
pub(super) fn mss(text: &str) -> Result<Mss, Problem> {
    let Ok(number) = text.parse::<i128>() else {
        if text == "pmtu" {
            return Ok(Mss::PathMtu);
        }
        let other = "write \"pmtu\", or bytes: the MTU of the path less 40, e.g. 1360";
        let fix = did_you_mean(text, &["pmtu"], other);
        return wrong!("{text:?} is not the size of a segment", "{fix}");
    };
    no_leading_zeros(text)?;
    if let Some(bytes) = u16::try_from(number).ok().filter(|_| MSS.contains(&number)) {
        return Ok(Mss::Bytes(bytes));
    }
    let (least, most) = (MSS.start(), MSS.end());
    wrong!(
        "a segment of {number} bytes is out of range",
        "it may be {least} to {most}: the MTU of the path less 40, e.g. 1360, or \"pmtu\""
    )
}

/// Reads a time: a number and a unit, or several.
fn duration(text: &str) -> Result<Duration, Problem> {
    match humantime::parse_duration(text) {
        // The library reads "0" alone.
        _ if text.parse::<u64>().is_ok() => {
            wrong!("{text:?} is not a time", "say the unit: \"{text}s\"")
        }
        Err(_) => {
            wrong!("{text:?} is not a time", "write a number and a unit: \"300s\", \"5m\", \"2h 4m\"")
        }
        Ok(duration) => Ok(duration),
    }
}

/// Reads the time for which a state has to last.
pub(super) fn hold(text: &str) -> Result<Duration, Problem> {
    let hold = duration(text)?;
    if hold <= MAX_HOLD {
        return Ok(hold);
    }
    wrong!("{text:?} is more than 10 minutes", "write at most \"10m\"")
}

/// Reads `interval` of a `check`.
pub(super) fn check_interval(text: &str) -> Result<Duration, Problem> {
    within(text, &CHECK_INTERVAL)
}

/// Reads `timeout` of a `check`.
pub(super) fn check_timeout(text: &str) -> Result<Duration, Problem> {
    within(text, &CHECK_TIMEOUT)
}

fn within(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, Problem> {
    let found = duration(text)?;
    if range.contains(&found) {
        return Ok(found);
    }
    let (least, most) =
        (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
    wrong!("{text:?} is out of range", "it may be \"{least}\" to \"{most}\"")
}

/// Reads `require` of `[health]`, where it is no list.
pub(super) fn any_or_all(text: &str) -> Result<Require, Problem> {
    one_of(REQUIRE)(text).or_else(|problem: Problem| match rule_name(text) {
        Ok(name) if !problem.fix.starts_with("did you mean") => wrong!(
            "{text:?} is neither \"any\" nor \"all\"",
            "to require a rule of this name, write a list: [\"{name}\"]"
        ),
        _ => Err(problem),
    })
}

/// Reads a number of checks in a row.
pub(super) fn checks_in_a_row(number: i128) -> Result<u32, Problem> {
    if let Some(checks) = u32::try_from(number).ok().filter(|checks| CHECKS.contains(checks)) {
        return Ok(checks);
    }
    let (least, most) = (CHECKS.start(), CHECKS.end());
    wrong!("{number} is out of range", "it may be {least} to {most}")
}

/// Reads `port` of a `check`.
pub(super) fn check_port(number: i128) -> Result<u16, Problem> {
    if let Some(port) = u16::try_from(number).ok().filter(|port| *port != 0) {
        return Ok(port);
    }
    wrong!("{number} is not a port", "ports are 1 to 65535")
}

/// Reads the server name of a TLS ClientHello. It has no final dot there (RFC 6066 section 3).
pub(super) fn server_name(text: &str) -> Result<String, Problem> {
    const FIX: &str = "write the name that clients ask for: \"www.example.com\"";
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.parse::<IpAddr>().is_ok() {
        return wrong!("{text:?} is an address, which TLS has no server name for", "{FIX}");
    }
    match dns_name(name) {
        Ok(name) => Ok(name),
        Err(_) => wrong!("{text:?} is not a DNS name", "{FIX}"),
    }
}

pub(super) fn timeout(text: &str) -> Result<Duration, Problem> {
    match duration(text)? {
        duration if duration.subsec_nanos() != 0 || duration.is_zero() => {
            wrong!("{text:?} is not a number of whole seconds", "write at least \"1s\"")
        }
        duration if duration > MAX_TIMEOUT => {
            wrong!("{text:?} is more than 30 days", "write at most \"30d\"")
        }
        duration => Ok(duration),
    }
}

/// The longest period of self-tests.
const MAX_SELF_TEST: Duration = Duration::from_secs(60);

/// Reads the period of self-tests; `None` for "off".
pub(super) fn self_test(text: &str) -> Result<Option<Duration>, Problem> {
    if matches!(text, "off" | "0" | "0s") {
        return Ok(None);
    }
    match timeout(text)? {
        period if period > MAX_SELF_TEST => wrong!("{text:?} is more than a minute", "write at most \"60s\""),
        period => Ok(Some(period)),
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
        refused(|text| port(text, ""), "0443", "443");
        refused(|text| socket_address(text, defaults::HEALTH), "0.0.0.0:08082", "0.0.0.0:8082");
        refused(|text| socket_address(text, defaults::HEALTH), "0.0.0.00:8082", "0.0.0.0:8082");
        refused(|text| socket_address(text, defaults::HEALTH), "[::1]:08082", "[::1]:8082");
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
        assert!(
            target("0123.example.com").is_ok()
                && socket_address("[2001:0db8::01]:8082", defaults::HEALTH).is_ok()
        );
        assert!(port("+443", "").is_err() && port("", "").is_err());
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
    fn self_tests_can_be_switched_off() {
        for off in ["off", "0", "0s"] {
            assert_eq!(self_test(off), Ok(None), "{off}");
        }
        assert_eq!(self_test("1m"), Ok(Some(Duration::from_secs(60))));
        for bad in ["", "61s", "500ms", "never", "5"] {
            assert!(self_test(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_have_units_and_limits() {
        assert_eq!(hold("0s"), Ok(Duration::ZERO));
        assert_eq!(hold("1s 500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(hold("10m"), Ok(Duration::from_secs(600)));
        for bad in ["", "0", "2", "1.5", "-1s", "11m", "soon"] {
            assert!(hold(bad).is_err(), "{bad:?}");
        }
        assert_eq!(hold("5").unwrap_err().fix, "say the unit: \"5s\"");
        assert_eq!(check_interval("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["999ms", "61m", "0s"] {
            assert!(check_interval(bad).is_err(), "{bad:?}");
        }
        assert_eq!(check_timeout("100ms"), Ok(Duration::from_millis(100)));
        for bad in ["99ms", "61s"] {
            let Problem { fix, .. } = check_timeout(bad).unwrap_err();
            assert_eq!(fix, "it may be \"100ms\" to \"1m\"");
        }
    }

    #[test]
    fn server_names_are_dns_names() {
        assert_eq!(server_name("WWW.Example.com."), Ok("www.example.com".to_owned()));
        for bad in ["", ".", "10.1.0.4", "::1", "a b", "https://www.example.com", "www.example.com:443"] {
            assert!(server_name(bad).is_err(), "{bad:?}");
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
