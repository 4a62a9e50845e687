//! The load balancer's health probe.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;

use super::shared::Shared;

/// Answers `GET` of any path: 200 when this router forwards, 503 with the reasons when it does not. Nothing else is served.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) -> Result<()> {
    let router = Router::new().fallback_service(get(answer).with_state(shared));
    axum::serve(listener, router).await.context("the probe's server has failed")
}

async fn answer(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    let problems = shared.problems();
    if problems.is_empty() {
        return (StatusCode::OK, "forwarding\n".to_owned());
    }
    let mut text = problems.join("\n");
    text.push('\n');
    (StatusCode::SERVICE_UNAVAILABLE, text)
}
