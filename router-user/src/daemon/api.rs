//! The API on the Unix socket: what the command line asks. Bodies are the types of [`crate::model`].

use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;
use tokio::net::UnixListener;
use tracing::warn;

use super::{audit, listing, reports, shared::Shared};
use crate::model::FlowQuery;

/// Serves the API.
pub(super) async fn serve(shared: Arc<Shared>, listener: UnixListener) -> Result<()> {
    let router = Router::new()
        .route("/v1/status", get(async |State(shared): State<Arc<Shared>>| Json(reports::status(&shared))))
        .route(
            "/v1/counters",
            get(async |State(shared): State<Arc<Shared>>| answer(reports::counters(&shared))),
        )
        .route("/v1/rules", get(async |State(shared): State<Arc<Shared>>| answer(reports::rules(&shared))))
        .route("/v1/flows", get(flows))
        .route("/v1/audit", get(async |State(shared): State<Arc<Shared>>| answer(audit::audit(shared).await)))
        .route("/v1/stand-down", post(stand_down))
        .with_state(shared);
    axum::serve(listener, router).await.context("the API's server has failed")
}

/// Leaves everything as it is from now on: `pls-router detach --force` takes the router off under this daemon, which must not put it back.
async fn stand_down(State(shared): State<Arc<Shared>>) -> Json<()> {
    shared.state().stood_down = true;
    warn!(
        "`pls-router detach --force` takes the router off; this daemon puts nothing back until it is restarted"
    );
    Json(())
}

async fn flows(State(shared): State<Arc<Shared>>, Query(query): Query<FlowQuery>) -> Response {
    if let Some(rule) = &query.rule
        && !reports::is_rule(&shared, rule)
    {
        let text = format!("there is no rule `{rule}`; `pls-router rules` lists them\n");
        return (StatusCode::NOT_FOUND, text).into_response();
    }
    let limit = query.limit.unwrap_or(usize::MAX);
    let list = listing::body(reports::flows(&shared, query), limit);
    ([(header::CONTENT_TYPE, "application/json")], list).into_response()
}

fn answer<T: Serialize>(result: Result<T>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}
