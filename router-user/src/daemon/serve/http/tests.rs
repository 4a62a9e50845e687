use std::{
    io::{Read as _, Write as _},
    net::TcpStream as Client,
};

use super::*;

const PLACES: usize = 4;
const REQUEST: Duration = Duration::from_millis(500);

/// A server of "good" for one party, and a closure that runs with its address where it may block.
async fn with_server<T: Send + 'static>(work: impl FnOnce(SocketAddr) -> T + Send + 'static) -> T {
    let listener = listen("127.0.0.1:0".parse().expect("an address")).expect("a listener");
    let address = listener.local_addr().expect("its address");
    let limits = Limits {
        groups: vec![Capacity { places: PLACES, share: PLACES }],
        request: REQUEST,
        connection: REQUEST * 2,
    };
    let admit = |ends: &Ends| Origin { group: 0, party: Party::of(ends.peer.ip()) };
    let answer = |_, _| async { Response::new("good".to_owned()) };
    let listener = TcpListener::from_std(listener).expect("a listener");
    let server = tokio::spawn(serve(listener, limits, admit, answer));
    let result = tokio::task::spawn_blocking(move || work(address)).await.expect("it ends");
    server.abort();
    result
}

/// Returns what comes back for these bytes, until the server closes.
fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut client = Client::connect(address).expect("a connection");
    client.set_read_timeout(Some(REQUEST * 10)).expect("a timeout");
    client.write_all(request).expect("room for a request");
    read(&mut client)
}

fn read(client: &mut Client) -> String {
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = client.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_is_answered_and_the_connection_ends() {
    let answer = with_server(|address| ask(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n"));
    let answer = answer.await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\ngood"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_come_or_does_not_end_is_not_waited_for() {
    with_server(|address| {
        for request in ["", "G", "GET / HTTP/1.1\r\nHost: x\r\n"] {
            let started = Instant::now();
            assert_eq!(ask(address, request.as_bytes()).matches(" 200 ").count(), 0, "{request:?}");
            assert!(started.elapsed() < REQUEST * 3, "{request:?}: {:?}", started.elapsed());
        }
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(MAX_HEADERS + 1));
        for request in [long, many] {
            assert!(!ask(address, request.as_bytes()).contains(" 200 "));
        }
        assert!(ask(address, b"GET / HTTP/1.0\r\n\r\n").contains(" 200 "));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_keep_anybody_out() {
    with_server(|address| {
        let mut idle: Vec<Client> =
            (0..PLACES * 4).map(|_| Client::connect(address).expect("a connection")).collect();
        // Their places are had for longer than it takes until they may be taken.
        let started = Instant::now();
        while !ask(address, b"GET / HTTP/1.0\r\n\r\n").contains(" 200 ") {
            assert!(started.elapsed() < REQUEST, "nobody has made room");
        }
        // None of them is left open.
        for client in &mut idle {
            client.set_read_timeout(Some(REQUEST * 10)).expect("a timeout");
            assert_eq!(read(client), "");
        }
        assert!(started.elapsed() < REQUEST * 5, "{:?}", started.elapsed());
    })
    .await;
}

#[tokio::test]
async fn what_is_fresh_is_found_out_once() {
    let fresh = Fresh::new(Duration::from_secs(3600));
    assert_eq!(*fresh.get(|| 1).await, 1);
    assert_eq!(*fresh.get(|| 2).await, 1);
    let never = Fresh::new(Duration::ZERO);
    assert_eq!(*never.get(|| 1).await, 1);
    assert_eq!(*never.get(|| 2).await, 2);
}
