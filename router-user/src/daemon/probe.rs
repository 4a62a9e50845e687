//! The load balancer's health probe.
//!
//! The one port of the daemon that the network reaches, with an HA-ports load balancer even from the private endpoint. So nobody
//! there may keep the probe from its answer: a connection gets one answer and ends, a request that does not come ends it too,
//! and only so many are open at a time. The load balancer's own probes and this machine have places of their own.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use router_common::AZURE_PLATFORM;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tracing::debug;

use super::shared::Shared;

/// Connections at a time, from the load balancer and from this machine.
const OWN_PLACES: usize = 32;
/// Connections at a time, from everyone else.
const OTHER_PLACES: usize = 32;
/// The methods that load balancers and monitors probe by: `GET` most of them, `HEAD` some, and `OPTIONS` HAProxy (`option httpchk`).
const METHODS: [Method; 3] = [Method::GET, Method::HEAD, Method::OPTIONS];
/// How long a request may take to come.
const REQUEST: Duration = Duration::from_secs(2);
/// How long a connection may take in all.
const CONNECTION: Duration = Duration::from_secs(5);

/// Answers a request of any path, by [`METHODS`]: 200 when this router forwards, 503 with the reasons when it does not. Nothing else is
/// served.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) -> Result<()> {
    let own = Arc::new(Semaphore::new(OWN_PLACES));
    let others = Arc::new(Semaphore::new(OTHER_PLACES));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: that passes.
                debug!("cannot accept a probe: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let places = if is_own(peer) { &own } else { &others };
        // Without a free place the connection is closed at once.
        if let Ok(place) = places.clone().try_acquire_owned() {
            tokio::spawn(answer_one(shared.clone(), stream, place));
        }
    }
}

fn is_own(peer: SocketAddr) -> bool {
    match peer.ip().to_canonical() {
        IpAddr::V4(address) => address.octets() == AZURE_PLATFORM.0 || address.is_loopback(),
        IpAddr::V6(address) => address.is_loopback(),
    }
}

async fn answer_one(shared: Arc<Shared>, stream: TcpStream, _place: OwnedSemaphorePermit) {
    let service = service_fn(|request| {
        let response = answer(&shared, &request);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off concerns nobody.
    let _ = timeout(CONNECTION, connection).await;
}

fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<String> {
    let (status, text) = if METHODS.contains(request.method()) {
        match shared.problems() {
            problems if problems.is_empty() => (StatusCode::OK, "forwarding".to_owned()),
            problems => (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n")),
        }
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, "only GET, HEAD and OPTIONS are answered here".to_owned())
    };
    response(status, text)
}

fn response(status: StatusCode, mut text: String) -> Response<String> {
    text.push('\n');
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // RFC 9110 15.5.6 asks for it with 405, and 9.3.7 with OPTIONS; it is as true of every other answer.
    headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    // The answer is of this moment.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allow_names_the_methods_that_are_answered() {
        let response = response(StatusCode::METHOD_NOT_ALLOWED, String::new());
        let allow = response.headers()[header::ALLOW].to_str().unwrap();
        let methods: Vec<&str> = METHODS.iter().map(Method::as_str).collect();
        assert_eq!(allow, methods.join(", "));
    }

    #[test]
    fn the_load_balancer_and_this_machine_have_their_own_places() {
        let own = |peer: &str| is_own(peer.parse().unwrap());
        assert!(
            own("168.63.129.16:50000") && own("127.0.0.1:1") && own("[::1]:1") && own("[::ffff:127.0.0.1]:1")
        );
        assert!(!own("10.0.2.69:40000") && !own("[2001:db8::1]:1"));
    }
}
