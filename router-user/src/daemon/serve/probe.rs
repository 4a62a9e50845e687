//! The load balancer's health probe.
//!
//! The one port of the daemon that the network reaches, with an HA-ports load balancer even from
//! the private endpoint. So no client may keep the probe from its answer. The probers of this
//! machine (`from` of `[health]`) have connections that no other client can use up, apart for each
//! entry and with a share for each address of a network; and only these, and this machine itself,
//! are told why it does not forward.
//!
//! Every path but one asks whether this router forwards. [`LIVE`] asks whether it is worth keeping:
//! for what replaces machines, and must not do so because of a fault that the next machine would
//! have as well.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use ipnet::{IpNet, Ipv4Net};
use router_common::address::AZURE_PLATFORM;
use tokio::{
    net::TcpListener,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{info, warn};

use super::http::{self, Capacity, Ends, Fresh, Limits, Origin, Party, Users};
use crate::{
    config::Config,
    daemon::{
        observe::monitor::{Monitor, ProbeView},
        state::Routing,
        sync::Locked,
    },
};

/// The methods that load balancers and monitors probe by: `GET` most of them, `HEAD` some, and
/// `OPTIONS` HAProxy (`option httpchk`).
pub(super) const METHODS: [Method; 3] = [Method::GET, Method::HEAD, Method::OPTIONS];
/// The path that asks for liveness: 200 while the daemon runs and its programs are attached.
const LIVE: &str = "/live";
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
/// The period in which the answer is found out also when nobody asks: a change has to last for a
/// while before it counts.
const PERIOD: Duration = Duration::from_millis(250);
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

/// The question that a path asks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Question {
    /// Does this router forward?
    Forwards,
    /// Does the daemon run, and are its programs attached?
    Live,
}

impl Question {
    fn of(path: &str) -> Self {
        // A slash too many must not turn a question about this machine into one about its targets:
        // who asks for liveness deletes machines by the answer.
        if path.trim_end_matches('/') == LIVE { Self::Live } else { Self::Forwards }
    }
}

/// Answers a request by [`METHODS`]. Of any path: 200 when this router forwards, 503 when it does
/// not, as [`answer`](crate::daemon::observe::answer) decides. Of [`LIVE`]: 200 when the programs
/// are attached, whatever else is wrong. Nothing else is served.
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
    let known = Arc::new(Answers { monitor, fresh: Fresh::new(AGE), logged: Locked::default() });
    let following = follow(known.clone());
    let answer = move |ends: Ends, request: Request<Incoming>| {
        let known = known.clone();
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
            if Question::of(request.uri().path()) == Question::Live {
                let known = known.get().await;
                let is_live = known.unattached.is_empty();
                let text = if is_told { live_text(&known) } else { String::new() };
                return response(status_code(is_live), &text);
            }
            let known = loop {
                let known = known.get().await;
                if known.is_known {
                    break known;
                }
                sleep(AGE).await;
            };
            let status = status_code(known.forwards);
            let text = if is_told { text(&known, Instant::now(), SystemTime::now()) } else { String::new() };
            response(status, &text)
        }
    };
    tokio::select! {
        ended = http::serve(listener, limits, origin, answer) => ended,
        never = following => match never {},
    }
}

/// The answers, each of which is logged if it differs from the one before.
struct Answers {
    monitor: Monitor,
    fresh: Fresh<ProbeView>,
    /// `true` if the last answer in the log is that the router forwards.
    logged: Locked<Option<bool>>,
}

impl Answers {
    /// Returns the answer as it is now, or was a moment ago.
    async fn get(&self) -> Arc<ProbeView> {
        self.fresh.get(|| self.look()).await
    }

    fn look(&self) -> ProbeView {
        let view = self.monitor.look();
        if view.is_known && self.logged.lock().replace(view.forwards) != Some(view.forwards) {
            if view.forwards {
                info!("the probe answers 200");
            } else {
                let reasons = view.all_reasons().join("; ");
                warn!(reasons, "the probe answers 503");
            }
        }
        view
    }
}

/// Has the answer follow what happens while nobody asks.
async fn follow(answers: Arc<Answers>) -> Infallible {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        answers.get().await;
    }
}

const fn status_code(is_good: bool) -> StatusCode {
    if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Returns what the answer about liveness says to those who may know. The reasons are one a line.
fn live_text(view: &ProbeView) -> String {
    match &*view.unattached {
        [] => "live: the daemon runs and its programs are attached".to_owned(),
        reasons => format!("not live: {}", reasons_text(reasons)),
    }
}

/// Returns what the answer says to those who may know: since when, why, and the change that has
/// begun. The reasons are one a line.
fn text(view: &ProbeView, now: Instant, clock: SystemTime) -> String {
    let ProbeView { forwards, pending, reasons, drains, .. } = view;
    if drains.is_some() {
        return reasons_text(&view.all_reasons());
    }
    let since = time(view.since, now, clock);
    let (pending, reasons) = (
        pending.map(|pending| {
            let lasts = now.saturating_duration_since(pending.since).as_secs_f64();
            (lasts, humantime::format_duration(pending.after))
        }),
        reasons_text(reasons),
    );
    match (forwards, pending) {
        (true, None) => format!("forwarding since {since}"),
        (true, Some((lasts, after))) => format!(
            "forwarding since {since}; down for {lasts:.1} s, and the answer changes after {after}: {reasons}"
        ),
        (false, None) => format!("not forwarding since {since}: {reasons}"),
        (false, Some((lasts, after))) => format!(
            "not forwarding since {since}; forwarding again for {lasts:.1} s, and the answer changes after {after}; \
             before: {reasons}"
        ),
    }
}

/// Returns a moment as the clock has it now (RFC 3339): it may have been set since.
pub(crate) fn time(moment: Instant, now: Instant, clock: SystemTime) -> String {
    let age = now.saturating_duration_since(moment);
    // Rounded, so that it is the same each time although the two clocks are read one after the
    // other.
    let moment = clock.checked_sub(age).unwrap_or(clock) + Duration::from_millis(500);
    humantime::format_rfc3339_seconds(moment).to_string()
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
    use crate::daemon::observe::answer::Pending;

    fn probers(from: &[&str]) -> Probers {
        let network = |text: &&str| Entry::Network(text.parse().expect("a network"));
        Probers { entries: from.iter().map(network).collect() }
    }

    #[test]
    fn the_text_says_since_when_and_why() {
        let (start, clock) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_047_205));
        let now = start + Duration::from_secs(100);
        let view = |forwards, pending: Option<u64>| ProbeView {
            forwards,
            is_known: true,
            since: start,
            pending: pending.map(|after| Pending {
                since: now - Duration::from_millis(1200),
                after: Duration::from_secs(after),
            }),
            reasons: vec!["no route to 203.0.113.10".to_owned(), "no rules are loaded".to_owned()],
            drains: None,
            changes: 1,
            unattached: Vec::new(),
        };
        let text = |view: &ProbeView| text(view, now, clock + Duration::from_secs(100));
        assert_eq!(text(&view(true, None)), "forwarding since 2026-11-30T14:00:05Z");
        assert_eq!(
            text(&view(true, Some(2))),
            "forwarding since 2026-11-30T14:00:05Z; down for 1.2 s, and the answer changes after 2s: \
             no route to 203.0.113.10\nno rules are loaded"
        );
        assert_eq!(
            text(&view(false, None)),
            "not forwarding since 2026-11-30T14:00:05Z: no route to 203.0.113.10\nno rules are loaded"
        );
        assert_eq!(
            text(&view(false, Some(5))),
            "not forwarding since 2026-11-30T14:00:05Z; forwarding again for 1.2 s, and the answer changes after 5s; \
             before: no route to 203.0.113.10\nno rules are loaded"
        );
        let drains = Some("draining since 2026-11-30T14:00:05Z".to_owned());
        assert_eq!(
            text(&ProbeView { drains, ..view(false, None) }),
            "draining since 2026-11-30T14:00:05Z\nno route to 203.0.113.10\nno rules are loaded"
        );
    }

    #[test]
    fn only_one_path_asks_for_liveness() {
        for path in ["/live", "/live/", "/live//"] {
            assert_eq!(Question::of(path), Question::Live, "{path}");
        }
        for path in ["/", "", "/status", "/lively", "/live/x", "/x/live", "/LIVE", "live", "//live"] {
            assert_eq!(Question::of(path), Question::Forwards, "{path}");
        }
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
