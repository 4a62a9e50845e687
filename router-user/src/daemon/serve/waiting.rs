//! The answers of a daemon that waits for its interfaces: the probe's, the metrics' and the API's.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::Result;
use axum::{
    Json,
    body::Body,
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::body::Incoming;
use ipnet::Ipv4Net;
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinSet,
};

use super::{
    api,
    http::{self, Ends, Origin, Party, host},
    metrics,
    probe::{self, Probers},
};
use crate::{
    config::Config,
    daemon::{
        kernel::netlink::{Addresses, OwnAddresses},
        lifecycle::listeners::Served,
        sync::Locked,
    },
    dataplane::interface_index,
    model::{ConditionStatus, Severity, Status},
    preflight::Finding,
};

/// A daemon that waits. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Waiting {
    config: Arc<Config>,
    path: PathBuf,
    started: Instant,
    known: Locked<Known>,
}

/// The state at the moment.
#[derive(Debug, Default)]
struct Known {
    /// The findings that it waits for, and since when.
    missing: Vec<(Finding, Instant)>,
    addresses: OwnAddresses,
    networks: Vec<Ipv4Net>,
}

impl Waiting {
    /// Begins to wait.
    pub(crate) fn new(config: &Config, path: &Path, addresses: &Addresses, missing: Vec<Finding>) -> Self {
        let waiting = Self {
            config: Arc::new(config.clone()),
            path: path.to_owned(),
            started: Instant::now(),
            known: Locked::default(),
        };
        waiting.set(addresses, missing);
        waiting
    }

    /// Takes in what is missing now.
    pub(crate) fn set(&self, addresses: &Addresses, missing: Vec<Finding>) {
        let indexes = self.config.interfaces.names().filter_map(|name| interface_index(name).ok());
        let networks = indexes.flat_map(|index| addresses.networks_of(index)).collect();
        let known = &mut *self.known.lock();
        let since = |finding: &Finding| {
            let same = |(known, _): &&(Finding, Instant)| {
                (known.id, &known.subject) == (finding.id, &finding.subject)
            };
            known.missing.iter().find(same).map_or_else(Instant::now, |(_, since)| *since)
        };
        let missing = missing.into_iter().map(|finding| (since(&finding), finding));
        let missing = missing.map(|(since, finding)| (finding, since)).collect();
        *known = Known { missing, addresses: addresses.local(), networks };
    }

    /// Returns what it waits for.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.known.lock().missing.iter().map(|(finding, _)| finding.clone()).collect()
    }

    /// Starts to answer.
    pub(crate) fn serve(&self, sockets: Served) -> JoinSet<Result<()>> {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().serve_probe(sockets.probe));
        tasks.spawn(self.clone().serve_metrics(sockets.admin));
        tasks.spawn(self.clone().serve_api(sockets.api));
        tasks
    }

    fn status(&self) -> Status {
        let known = self.known.lock();
        let condition = |(finding, since): &(Finding, Instant)| ConditionStatus {
            id: finding.id.as_str().to_owned(),
            subject: finding.subject.clone(),
            severity: Severity::Down,
            since_seconds: since.elapsed().as_secs(),
            detail: format!("waiting: {}; if that stays so: {}", finding.text, finding.fix),
        };
        let conditions: Vec<_> = known.missing.iter().map(condition).collect();
        Status {
            version: crate::VERSION.to_owned(),
            reasons: conditions.iter().map(|condition| condition.detail.clone()).collect(),
            conditions,
            uptime_seconds: self.started.elapsed().as_secs(),
            config: self.path.display().to_string(),
            ..Status::default()
        }
    }

    /// 503 to everybody, and why to those whom the probe tells.
    async fn serve_probe(self, listener: TcpListener) -> Result<()> {
        let limits = probe::limits(&self.config);
        let probers = Arc::new(Probers::of(&self.config));
        let group = {
            let (known, probers) = (self.known.clone(), probers);
            move |ends: &Ends| {
                let (peer, known) = (ends.peer.ip(), known.lock());
                let is_own = peer.is_loopback() || known.addresses.has(peer);
                if is_own { probe::THIS_MACHINE } else { probers.group(peer, &known.networks) }
            }
        };
        let origin = {
            let group = group.clone();
            move |ends: &Ends| Origin { group: group(ends), party: Party::of(ends.peer.ip()) }
        };
        let answer = move |ends: Ends, request: Request<Incoming>| {
            let is_told = group(&ends) != probe::EVERYONE_ELSE;
            let text = if is_told { self.status().reasons.join("\n") } else { String::new() };
            async move {
                if !probe::METHODS.contains(request.method()) {
                    return probe::response(StatusCode::METHOD_NOT_ALLOWED, "");
                }
                probe::response(StatusCode::SERVICE_UNAVAILABLE, &text)
            }
        };
        http::serve(listener, limits, origin, answer).await
    }

    async fn serve_metrics(self, listener: TcpListener) -> Result<()> {
        let origin = |ends: &Ends| Origin { group: metrics::NETWORK, party: Party::of(ends.peer.ip()) };
        let answer = move |ends: Ends, request: Request<Incoming>| {
            let waiting = self.clone();
            async move {
                let own = waiting.known.lock().addresses.own.clone();
                let names = host::Names::of_this_machine(&waiting.config.admin.hosts, &own);
                let is_own = |address: std::net::IpAddr| {
                    address == ends.local.ip()
                        || address.is_loopback()
                        || waiting.known.lock().addresses.has(address)
                };
                if let Some(refusal) = names.refusal(&request, is_own) {
                    return refusal.into_response();
                }
                if request.uri().path() != "/metrics" {
                    return StatusCode::NOT_FOUND.into_response();
                }
                match metrics::of(waiting.status()) {
                    Ok(text) => {
                        ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], Body::from(text)).into_response()
                    }
                    Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
                }
            }
        };
        http::serve(listener, metrics::limits(), origin, answer).await
    }

    async fn serve_api(self, listener: UnixListener) -> Result<()> {
        let answer = move |_user: u32, request: Request<Incoming>| {
            let answer = if request.uri().path() == "/v1/status" {
                Json(self.status()).into_response()
            } else {
                self.not_yet()
            };
            async move { answer }
        };
        http::serve(listener, api::limits(), api::origin, answer).await
    }

    fn not_yet(&self) -> Response {
        let text = format!("the daemon has not started yet: {}\n", self.status().reasons.join("; "));
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}
