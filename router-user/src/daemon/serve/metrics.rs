//! Metrics in Prometheus' text format.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Result;
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{body::Incoming, service::Service as _};
use hyper_util::service::TowerToHyperService;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::net::TcpListener;

use crate::{
    daemon::serve::{
        http::{self, Capacity, Ends, Fresh, Limits, Origin, Party, Users, host},
        reports::{self, Reports},
    },
    model::{
        CheckHealth, CheckStatus, Counters, Health, InterfaceCounters, ReasonCounter, Rule, RuleCheckStatus,
        SnatPortStatus, Status,
    },
};

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Rooms: of root, of other users of this machine, and of everyone else.
const ROOT: usize = 0;
const USERS: usize = 1;
pub(super) const NETWORK: usize = 2;
/// The time that a request may take to come.
const REQUEST: Duration = Duration::from_secs(5);
/// The time that a connection may take in all.
const CONNECTION: Duration = Duration::from_secs(20);
/// The greatest age of an answer: however many ask, it is written once in this time.
const AGE: Duration = Duration::from_millis(100);

/// The limits of the metrics' listener.
pub(crate) fn limits() -> Limits {
    let mut groups = vec![Capacity { places: 16, share: 4 }; 3];
    groups[ROOT] = Capacity { places: 8, share: 8 };
    Limits { groups, request: REQUEST, connection: CONNECTION }
}

/// The metrics as text, or why there are none.
type Text = Fresh<Result<String, String>>;

/// Serves `GET /metrics`.
pub(crate) async fn serve(reports: Reports, listener: TcpListener) -> Result<()> {
    let users = Users::open();
    let origin = {
        let routing = reports.state.routing.clone();
        move |ends: &Ends| {
            let peer = ends.peer.ip();
            if !routing.lock().is_own_address(peer) {
                return Origin { group: NETWORK, party: Party::of(peer) };
            }
            match users.of(ends) {
                Some(0) => Origin { group: ROOT, party: Party::User(0) },
                Some(user) => Origin { group: USERS, party: Party::User(user) },
                None => Origin { group: USERS, party: Party::of(peer) },
            }
        }
    };
    // The machine's name and `/etc/hosts` may change at any time.
    let names = Arc::new(Fresh::new(AGE));
    let text = Arc::new(Text::new(AGE));
    let router = Router::new().route("/metrics", get(metrics)).with_state((reports.clone(), text));
    let router = TowerToHyperService::new(router);
    let answer = move |ends: Ends, request: Request<Incoming>| {
        let (state, names, router) = (reports.state.clone(), names.clone(), router.clone());
        async move {
            let find = || {
                let own = state.routing.lock().own_addresses.own.clone();
                host::Names::of_this_machine(&state.config.get().admin.hosts, &own)
            };
            let is_own = |address| address == ends.local.ip() || state.routing.lock().is_own_address(address);
            match names.get(find).await.refusal(&request, is_own) {
                Some(refusal) => refusal.into_response(),
                None => router.call(request).await.unwrap_or_else(|never| match never {}),
            }
        }
    };
    http::serve(listener, limits(), origin, answer).await
}

async fn metrics(State((reports, text)): State<(Reports, Arc<Text>)>) -> Response {
    match &*text.get(|| render(&reports).map_err(|error| format!("{error:#}\n"))).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], Body::from(text.clone())).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.clone()).into_response(),
    }
}

fn render(reports: &Reports) -> Result<String> {
    let snapshot = Snapshot {
        status: reports::status(reports),
        counters: reports::counters(reports)?,
        rules: reports::rules(reports)?,
    };
    snapshot.text()
}

/// Returns the metrics of a router that does not forward yet.
pub(super) fn of(status: Status) -> Result<String> {
    Snapshot { status, counters: Counters::default(), rules: Vec::new() }.text()
}

impl Snapshot {
    fn text(self) -> Result<String> {
        let mut registry = Registry::with_prefix("pls_router");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Everything at one moment.
#[derive(Debug)]
struct Snapshot {
    status: Status,
    counters: Counters,
    rules: Vec<Rule>,
}

/// One value of a family, with its labels.
type Row<'a> = (Vec<(&'static str, &'a str)>, u64);

/// The most targets with SNAT port metrics: each is two time series.
const MAX_POOLS: usize = 256;

/// The SNAT ports for a target, with the text of its labels.
struct Pool<'a> {
    row: &'a SnatPortStatus,
    snat: String,
    target: String,
}

impl<'a> Pool<'a> {
    fn of(row: &'a SnatPortStatus) -> Self {
        Self { row, snat: row.snat.to_string(), target: row.target.to_string() }
    }

    fn labels(&self) -> Vec<(&'static str, &str)> {
        vec![("snat", &self.snat), ("target", &self.target), ("protocol", &self.row.protocol)]
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let Self { status, counters, rules } = self;
        let encoder = &mut encoder;
        gauge(encoder, "healthy", "1 when the probe answers 200", vec![(vec![], u64::from(status.healthy))])?;
        gauge(
            encoder,
            "probe_since_seconds",
            "Seconds since the answer of the probe last changed, or since the daemon started",
            vec![(vec![], status.probe.since_seconds)],
        )?;
        gauge(
            encoder,
            "probe_pending",
            "1 while a change of the probe's answer has begun",
            vec![(vec![], u64::from(status.probe.pending.is_some()))],
        )?;
        counter(
            encoder,
            "probe_changes",
            "Changes of the probe's answer",
            vec![(vec![], status.probe.changes)],
        )?;
        gauge(
            encoder,
            "degraded",
            "Number of conditions of severity `degraded`",
            vec![(vec![], status.degraded.len() as u64)],
        )?;
        let mut conditions: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for condition in &status.conditions {
            *conditions.entry((&condition.id, condition.severity.as_str())).or_default() += 1;
        }
        gauge(
            encoder,
            "conditions",
            "Conditions that hold now, by identifier and severity",
            conditions
                .into_iter()
                .map(|((id, severity), count)| (vec![("id", id), ("severity", severity)], count))
                .collect(),
        )?;
        gauge(
            encoder,
            "draining",
            "1 while `pls-router drain` is in force, and the probe answers 503",
            vec![(vec![], u64::from(status.draining.is_some()))],
        )?;
        gauge(
            encoder,
            "draining_sessions",
            "Sessions that have not ended while this router is draining; 0 otherwise",
            vec![(vec![], status.draining.as_ref().map_or(0, |drain| drain.sessions))],
        )?;
        let repairs = status.repairs.iter();
        counter(
            encoder,
            "repairs",
            "Repairs of settings, programs and pins that something else on this machine had changed",
            repairs
                .map(|one| (vec![("what", one.what.as_str()), ("name", one.name.as_str())], one.count))
                .collect(),
        )?;
        gauge(
            encoder,
            "next_hops_contested",
            "Next hops for which two machines answer",
            vec![(vec![], status.contested_next_hops.len() as u64)],
        )?;
        counter(
            encoder,
            "next_hop_invalidations",
            "Invalidations of all cached next hops",
            vec![(vec![], status.next_hop_invalidations)],
        )?;
        let avoided = status.targets.iter().filter(|target| target.health == Health::Avoided).count();
        gauge(
            encoder,
            "targets_avoided",
            "Targets that new sessions avoid because they do not answer",
            vec![(vec![], avoided as u64)],
        )?;
        gauge(
            encoder,
            "sessions",
            "Sessions in the flow table, as of the last sweep",
            vec![(vec![], status.flows.sessions)],
        )?;
        gauge(
            encoder,
            "sessions_capacity",
            "Capacity of the flow table, in sessions (limits.flows)",
            vec![(vec![], status.flows.capacity)],
        )?;
        float(
            encoder,
            "sweep_seconds",
            "Duration of the last sweep of the flow table, in seconds",
            status.flows.sweep_seconds,
        )?;
        let pools: Vec<_> = status.snat_ports.iter().take(MAX_POOLS).map(Pool::of).collect();
        let ports = |value: fn(&Pool<'_>) -> u32| {
            pools.iter().map(|pool| (pool.labels(), u64::from(value(pool)))).collect::<Vec<_>>()
        };
        gauge(
            encoder,
            "snat_ports_used",
            "SNAT ports in use for a target, for the 256 targets with the most",
            ports(|pool| pool.row.used),
        )?;
        gauge(
            encoder,
            "snat_ports_free",
            "SNAT ports left for a target, for the 256 targets with the fewest",
            ports(|pool| pool.row.free),
        )?;
        let punts = &status.punts;
        counter(
            encoder,
            "punts_sent",
            "Frames that the daemon has sent for the data plane",
            vec![(vec![], punts.sent)],
        )?;
        let waiting = [("neighbour", punts.waiting), ("fragment", punts.held)];
        gauge(
            encoder,
            "punts_waiting",
            "Packets queued by the daemon, by what they wait for: a neighbour or a first fragment",
            waiting.map(|(what, packets)| (vec![("for", what)], packets)).into(),
        )?;
        let lost = [
            ("unanswered", punts.unanswered),
            ("no_room", punts.no_room),
            ("expired", punts.expired),
            ("failed", punts.failed),
        ];
        counter(
            encoder,
            "punts_lost",
            "Punted packets that were lost, by cause",
            lost.map(|(cause, packets)| (vec![("cause", cause)], packets)).into(),
        )?;
        let test = &status.self_test;
        counter(
            encoder,
            "self_test_sessions",
            "Sessions of the self-test, which are counted as opened as well",
            vec![(vec![], test.sessions)],
        )?;
        counter(
            encoder,
            "self_test_packets",
            "Packets of the self-test, which are counted as received as well",
            vec![(vec![], test.packets)],
        )?;
        counter(
            encoder,
            "self_test_failures",
            "Sessions of the self-test that failed; a single failure is no fault",
            vec![(vec![], test.failures)],
        )?;
        let reasons = |value: fn(&ReasonCounter) -> u64| {
            counters
                .reasons
                .iter()
                .map(|reason| {
                    (
                        vec![("reason", reason.reason.as_str()), ("action", reason.action.as_str())],
                        value(reason),
                    )
                })
                .collect::<Vec<_>>()
        };
        counter(encoder, "packets", "Packets by reason", reasons(|r| r.packets))?;
        counter(encoder, "bytes", "Bytes by reason", reasons(|r| r.bytes))?;
        let interfaces = |value: fn(&InterfaceCounters) -> [u64; 2]| {
            counters
                .interfaces
                .iter()
                .flat_map(|interface| {
                    let [rx, tx] = value(interface);
                    let row = |direction, value| {
                        (vec![("interface", interface.name.as_str()), ("direction", direction)], value)
                    };
                    [row("receive", rx), row("transmit", tx)]
                })
                .collect::<Vec<_>>()
        };
        counter(
            encoder,
            "interface_packets",
            "Packets received and transmitted by the XDP programs, by interface",
            interfaces(|i| [i.rx_packets, i.tx_packets]),
        )?;
        counter(
            encoder,
            "interface_bytes",
            "Bytes received and transmitted by the XDP programs, by interface",
            interfaces(|i| [i.rx_bytes, i.tx_bytes]),
        )?;
        counter(
            encoder,
            "own_traffic_sessions_ended",
            "Sessions removed because this machine's own traffic uses their ports",
            vec![(vec![], counters.own_traffic.sessions_ended)],
        )?;
        counter(
            encoder,
            "own_traffic_connections_refused",
            "This machine's own connections refused because a live session has their port",
            vec![(vec![], counters.own_traffic.connections_refused)],
        )?;
        let per_rule = |value: fn(&Rule) -> u64| {
            rules.iter().map(|rule| (vec![("rule", rule.name.as_str())], value(rule))).collect::<Vec<_>>()
        };
        gauge(encoder, "rule_sessions", "Sessions by rule, as of the last sweep", per_rule(|r| r.sessions))?;
        counter(
            encoder,
            "rule_sessions_opened",
            "Sessions that a rule has opened",
            per_rule(|r| r.counters.sessions_opened),
        )?;
        counter(
            encoder,
            "rule_denied_packets",
            "Packets to a rule from outside its sources",
            per_rule(|r| r.counters.denied_packets),
        )?;
        self.encode_checks(encoder)?;
        let directions = |value: fn(&Rule) -> [u64; 2]| {
            rules
                .iter()
                .flat_map(|rule| {
                    let [forward, reply] = value(rule);
                    let row = |direction, value| {
                        (vec![("rule", rule.name.as_str()), ("direction", direction)], value)
                    };
                    [row("forward", forward), row("reply", reply)]
                })
                .collect::<Vec<_>>()
        };
        counter(
            encoder,
            "rule_packets",
            "Packets by rule",
            directions(|r| [r.counters.forward_packets, r.counters.reply_packets]),
        )?;
        counter(
            encoder,
            "rule_bytes",
            "Bytes by rule",
            directions(|r| [r.counters.forward_bytes, r.counters.reply_bytes]),
        )
    }
}

impl Snapshot {
    /// Active checks, summed up for each rule: a series for each target would be a series for each
    /// address that a name has ever had.
    fn encode_checks(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        const STATES: [CheckHealth; 3] = [CheckHealth::Good, CheckHealth::Failed, CheckHealth::Unknown];
        let rules: Vec<(&str, &RuleCheckStatus)> =
            self.rules.iter().filter_map(|rule| Some((rule.name.as_str(), rule.check.as_ref()?))).collect();
        let label = |rule| ("rule", rule);
        let each = |value: fn(&RuleCheckStatus) -> u64| {
            rules.iter().map(|(rule, check)| (vec![label(*rule)], value(check))).collect()
        };
        gauge(
            encoder,
            "check_healthy",
            "1 when enough of a rule's targets pass its active check",
            each(|check| u64::from(check.healthy)),
        )?;
        let targets = rules.iter().flat_map(|(rule, check)| {
            STATES.map(|state| {
                let number = check.targets.iter().filter(|target| target.health == state).count();
                (vec![label(*rule), ("state", state.as_str())], number as u64)
            })
        });
        gauge(
            encoder,
            "check_targets",
            "Targets with an active check, by rule and state",
            targets.collect(),
        )?;
        let results = rules.iter().flat_map(|(rule, check)| {
            let RuleCheckStatus { good, failed, not_made, .. } = check;
            [("good", good), ("failed", failed), ("not_made", not_made)]
                .map(|(result, number)| (vec![label(*rule), ("result", result)], *number))
        });
        counter(encoder, "check_results", "Active checks, by rule and result", results.collect())?;
        let slowest = rules.iter().filter_map(|(rule, check)| {
            let latencies = check.targets.iter().filter_map(|target: &CheckStatus| target.latency_seconds);
            Some((vec![label(*rule)], ConstGauge::new(latencies.max_by(f64::total_cmp)?)))
        });
        family(
            encoder,
            (
                "check_latency_seconds",
                "Time that the slowest of a rule's targets took to answer its last check, in seconds",
                MetricType::Gauge,
            ),
            slowest,
        )
    }
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: Vec<Row<'_>>,
) -> std::fmt::Result {
    let rows = rows.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
    family(encoder, (name, help, MetricType::Counter), rows)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: Vec<Row<'_>>,
) -> std::fmt::Result {
    #[expect(clippy::cast_possible_wrap, reason = "counts of sessions stay far below 2^63")]
    let rows = rows.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value as i64)));
    family(encoder, (name, help, MetricType::Gauge), rows)
}

fn float(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> std::fmt::Result {
    family(encoder, (name, help, MetricType::Gauge), [(vec![], ConstGauge::new(value))].into_iter())
}

fn family<'a, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, kind): (&str, &str, MetricType),
    rows: impl Iterator<Item = (Vec<(&'static str, &'a str)>, M)>,
) -> std::fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, metric) in rows {
        // `name{} 1` is right as well, but people's greps miss it.
        if labels.is_empty() {
            return metric.encode(family);
        }
        metric.encode(family.encode_family(&labels.as_slice())?)?;
    }
    Ok(())
}
