//! The API on the Unix socket: what the command line asks. Bodies are the types of
//! [`crate::model`].

use std::time::Duration;

use anyhow::Result;
use axum::{
    Json, Router,
    extract::{Query, State},
    http::{Method, Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::{body::Incoming, service::Service as _};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::UnixListener;
use tracing::warn;

use crate::{
    daemon::{
        drain,
        reload::Reloader,
        serve::{
            http::{self, Capacity, Limits, Origin, Party},
            reports::{self, Reports},
        },
        sessions::{audit, listing},
        state::Attachments,
        sync::Locked,
    },
    model::{FlowQuery, ReloadQuery},
    private::is_owner,
};

/// Rooms: of root, or the user that the daemon runs as; and of others whom the socket's permissions
/// let in.
const ROOT: usize = 0;
const OTHERS: usize = 1;
/// The time that a request may take to come.
const REQUEST: Duration = Duration::from_secs(5);
/// The time that a connection may take in all: a list of all sessions in a pager takes a while.
const CONNECTION: Duration = Duration::from_secs(60 * 60);

/// The limits of the API's listener.
pub(crate) fn limits() -> Limits {
    Limits {
        groups: vec![Capacity { places: 16, share: 16 }, Capacity { places: 16, share: 4 }],
        request: REQUEST,
        connection: CONNECTION,
    }
}

/// The parts of the daemon that the API has access to.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) reports: Reports,
    pub(crate) audit: audit::Access,
    pub(crate) attachments: Locked<Attachments>,
    pub(crate) drain: drain::Access,
    pub(crate) reloader: Reloader,
}

/// Serves the API.
pub(crate) async fn serve(access: Access, listener: UnixListener) -> Result<()> {
    let router = Router::new()
        .route("/v1/status", get(async |State(access): State<Access>| Json(reports::status(&access.reports))))
        .route(
            "/v1/counters",
            get(async |State(access): State<Access>| answer(reports::counters(&access.reports))),
        )
        .route("/v1/rules", get(async |State(access): State<Access>| answer(reports::rules(&access.reports))))
        .route("/v1/flows", get(flows))
        .route(
            "/v1/audit",
            get(async |State(access): State<Access>| answer(audit::audit(access.audit).await)),
        )
        .route("/v1/stand-down", post(stand_down))
        .route(
            "/v1/drain",
            get(async |State(access): State<Access>| answer(access.drain.report().await))
                .post(async |State(access): State<Access>| answer(access.drain.begin().await))
                .delete(undrain),
        )
        .route("/v1/undrain", post(undrain))
        .route(
            "/v1/reload",
            post(async |State(access): State<Access>, Query(query): Query<ReloadQuery>| {
                answer(access.reloader.reload(query).await)
            }),
        )
        .with_state(access);
    let router = TowerToHyperService::new(router);
    let answer = move |user: u32, request: Request<Incoming>| {
        let may = request.method() == Method::GET || is_owner(user);
        let answer = may.then(|| router.call(request));
        async move {
            match answer {
                Some(answer) => answer.await.unwrap_or_else(|never| match never {}),
                None => {
                    (StatusCode::FORBIDDEN, "only root may change something; fix: sudo\n").into_response()
                }
            }
        }
    };
    http::serve(listener, limits(), origin, answer).await
}

/// Returns the group and party of a user's connection.
pub(super) fn origin(user: &u32) -> Origin {
    Origin { group: if is_owner(*user) { ROOT } else { OTHERS }, party: Party::User(*user) }
}

/// Leaves everything as it is from now on: `pls-router detach --force` takes the router off under
/// this daemon, which must not put it back.
async fn stand_down(State(access): State<Access>) -> Json<()> {
    access.attachments.lock().is_being_detached = true;
    warn!(
        "`pls-router detach --force` takes the router off; this daemon puts nothing back until it is restarted"
    );
    Json(())
}

async fn undrain(State(access): State<Access>) -> Response {
    answer(access.drain.end().await)
}

async fn flows(State(access): State<Access>, Query(query): Query<FlowQuery>) -> Response {
    if let Some(rule) = &query.rule
        && !reports::is_rule(&access.reports, rule)
    {
        let text = format!("there is no rule `{rule}`; `pls-router rules` lists them\n");
        return (StatusCode::NOT_FOUND, text).into_response();
    }
    let limit = query.limit.unwrap_or(usize::MAX);
    let list = listing::body(reports::flows(&access.reports, query), limit);
    ([(header::CONTENT_TYPE, "application/json")], list).into_response()
}

fn answer<T: Serialize>(result: Result<T>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}
