//! The load balancer's health probe.
//!
//! The one port of the daemon that the network reaches, with an HA-ports load balancer even from
//! the private endpoint. So no client may keep the probe from its answer. The probers of this
//! machine (`from` of `[health]`) have connections that no other client can use up, apart for each
//! entry and with a share for each address of a network; and only these, and this machine itself,
//! are told why it does not forward.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use ipnet::{IpNet, Ipv4Net};
use router_common::address::AZURE_PLATFORM;
use tokio::net::TcpListener;

use super::http::{self, Capacity, Ends, Fresh, Limits, Origin, Party, Users};
use crate::{
    config::Config,
    daemon::{observe::monitor::Monitor, state::Routing, sync::Locked},
    health::Severity,
};

/// The methods that load balancers and monitors probe by: `GET` most of them, `HEAD` some, and
/// `OPTIONS` HAProxy (`option httpchk`).
pub(super) const METHODS: [Method; 3] = [Method::GET, Method::HEAD, Method::OPTIONS];
/// Connections of an entry that is one address.
const ADDRESS: Capacity = Capacity { places: 32, share: 32 };
/// Connections of an entry that is a network, of this machine, and of everyone else.
const MANY: Capacity = Capacity { places: 32, share: 8 };
/// The time that a request may take to come.
const REQUEST: Duration = Duration::from_secs(2);
/// The time that a connection may take in all.
const CONNECTION: Duration = Duration::from_secs(5);
/// The greatest age of an answer: however many ask, it is found out once in this time.
const AGE: Duration = Duration::from_millis(20);
/// The largest text of reasons, in bytes.
const MAX_TEXT: usize = 4096;

/// Rooms of no entry.
pub(super) const THIS_MACHINE: usize = 0;
pub(super) const EVERYONE_ELSE: usize = 1;
/// The groups of entries, in their order, follow those.
const FIRST_ENTRY: usize = 2;

/// The clients with reserved places.
#[derive(Clone, Debug)]
pub(super) struct Probers {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq)]
enum Entry {
    Network(IpNet),
    /// The networks of the router's interfaces, as they are now.
    OwnNetworks,
}

impl Probers {
    pub(super) fn of(config: &Config) -> Self {
        let given = &config.health.from;
        Self {
            entries: if given.is_empty() {
                let platform = IpAddr::from(Ipv4Addr::from(AZURE_PLATFORM.0));
                vec![Entry::Network(platform.into()), Entry::OwnNetworks]
            } else {
                given.iter().copied().map(Entry::Network).collect()
            },
        }
    }

    fn groups(&self) -> Vec<Capacity> {
        let of_entries = self.entries.iter().map(|entry| match entry {
            Entry::Network(network) if network.prefix_len() == network.max_prefix_len() => ADDRESS,
            Entry::Network(_) | Entry::OwnNetworks => MANY,
        });
        [MANY; FIRST_ENTRY].into_iter().chain(of_entries).collect()
    }

    /// Returns the group of a client with this address that is not on this machine.
    pub(super) fn group(&self, peer: IpAddr, own_networks: &[Ipv4Net]) -> usize {
        // The narrowest entry is the one that is about this address.
        let width = |entry: &Entry| match entry {
            Entry::Network(network) => network.contains(&peer).then(|| network.prefix_len()),
            Entry::OwnNetworks => {
                let of_peer = own_networks.iter().filter(|network| IpNet::V4(**network).contains(&peer));
                of_peer.map(Ipv4Net::prefix_len).max()
            }
        };
        let entries = self.entries.iter().zip(FIRST_ENTRY..);
        let matching = entries.filter_map(|(entry, group)| Some((width(entry)?, group)));
        matching.max_by_key(|(width, _)| *width).map_or(EVERYONE_ELSE, |(_, group)| group)
    }
}

/// The limits of the probe's listener.
pub(crate) fn limits(config: &Config) -> Limits {
    Limits { groups: Probers::of(config).groups(), request: REQUEST, connection: CONNECTION }
}

/// The parts of the daemon that the probe has access to. None is locked while rules are written.
pub(crate) struct Access {
    pub(crate) monitor: Monitor,
    pub(crate) routing: Locked<Routing>,
}

/// Answers a request of any path, by [`METHODS`]: 200 when this router forwards, 503 when it does
/// not. Nothing else is served.
pub(crate) async fn serve(config: &Config, access: Access, listener: TcpListener) -> Result<()> {
    let (probers, users) = (Probers::of(config), Users::open());
    let limits = limits(config);
    let Access { monitor, routing } = access;
    let origin = {
        let (routing, probers) = (routing.clone(), probers.clone());
        move |ends: &Ends| {
            let peer = ends.peer.ip();
            let (is_own, group) = {
                let routing = routing.lock();
                (routing.is_own_address(peer), probers.group(peer, &routing.own_networks))
            };
            if is_own {
                let party = users.of(ends).map_or(Party::of(peer), Party::User);
                return Origin { group: THIS_MACHINE, party };
            }
            Origin { group, party: Party::of(peer) }
        }
    };
    let conditions = Arc::new(Fresh::new(AGE));
    let answer = move |ends: Ends, request: Request<Incoming>| {
        let (monitor, conditions) = (monitor.clone(), conditions.clone());
        let peer = ends.peer.ip();
        let is_told = {
            let routing = routing.lock();
            routing.is_own_address(peer) || probers.group(peer, &routing.own_networks) != EVERYONE_ELSE
        };
        async move {
            if !METHODS.contains(request.method()) {
                return response(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "only GET, HEAD and OPTIONS are answered here",
                );
            }
            let conditions = conditions.get(|| monitor.forwarding()).await;
            let (status, text) = if conditions.are_down() {
                (StatusCode::SERVICE_UNAVAILABLE, reasons_text(&conditions.details(Severity::Down)))
            } else {
                (StatusCode::OK, "forwarding".to_owned())
            };
            response(status, if is_told { &text } else { "" })
        }
    };
    http::serve(listener, limits, origin, answer).await
}

/// The reasons, one a line, as far as they fit.
fn reasons_text(problems: &[String]) -> String {
    let mut text = String::new();
    for problem in problems {
        if text.len() + problem.len() >= MAX_TEXT {
            let left = MAX_TEXT.saturating_sub(text.len());
            text.extend(problem.chars().take(left / 4));
            text.push_str("...");
            break;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(problem);
    }
    text
}

pub(super) fn response(status: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(if text.is_empty() { String::new() } else { format!("{text}\n") });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // RFC 9110 15.5.6 asks for it with 405, and 9.3.7 with OPTIONS; it is as true of every other
    // answer.
    headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    // The answer is of this moment.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probers(from: &[&str]) -> Probers {
        let network = |text: &&str| Entry::Network(text.parse().expect("a network"));
        Probers { entries: from.iter().map(network).collect() }
    }

    #[test]
    fn allow_names_the_methods_that_are_answered() {
        let response = response(StatusCode::METHOD_NOT_ALLOWED, "");
        let allow = response.headers()[header::ALLOW].to_str().expect("text");
        let methods: Vec<&str> = METHODS.iter().map(Method::as_str).collect();
        assert_eq!(allow, methods.join(", "));
    }

    #[test]
    fn each_entry_has_a_room_and_the_narrowest_counts() {
        let probers = probers(&["10.0.2.0/24", "10.0.2.9/32", "2001:db8::/32"]);
        let group = |peer: &str| probers.group(peer.parse().expect("an address"), &[]);
        assert_eq!(group("10.0.2.8"), FIRST_ENTRY);
        assert_eq!(group("10.0.2.9"), FIRST_ENTRY + 1);
        assert_eq!(group("2001:db8::1"), FIRST_ENTRY + 2);
        for other in ["10.0.3.9", "168.63.129.16", "2001:db9::1"] {
            assert_eq!(group(other), EVERYONE_ELSE, "{other}");
        }
        assert_eq!(probers.groups(), [MANY, MANY, MANY, ADDRESS, MANY]);
    }

    #[test]
    fn by_default_azure_and_the_interfaces_networks_have_groups() {
        let text = "interfaces.pls = \"eth0\"\n\
            masquerade = [{ name = \"m\", sources = [\"10.0.0.0/8\"], destinations = [\"0.0.0.0/0\"] }]\n";
        let config = Config::parse(text, std::path::Path::new("test.toml")).expect("a configuration").config;
        let probers = Probers::of(&config);
        let networks = ["10.0.2.64/26", "10.0.3.0/24"].map(|network| network.parse().expect("a network"));
        let group = |peer: &str| probers.group(peer.parse().expect("an address"), &networks);
        let groups = ["168.63.129.16", "10.0.2.69", "10.0.3.1", "10.0.2.4"].map(group);
        assert_eq!(groups, [FIRST_ENTRY, FIRST_ENTRY + 1, FIRST_ENTRY + 1, EVERYONE_ELSE]);
    }

    #[test]
    fn reasons_are_bounded() {
        assert_eq!(reasons_text(&["one".to_owned(), "two".to_owned()]), "one\ntwo");
        let long = vec!["\u{1f6a6}".repeat(1500); 3];
        assert!((1..=MAX_TEXT + 3).contains(&reasons_text(&long).len()));
    }
}
