//! Makes one check: a TCP connection to a target, and perhaps a TLS ClientHello.
//!
//! The connection ends with a reset, not with a FIN: what stands in between (a firewall, a NAT)
//! forgets it at once, and no port of this machine stays in TIME_WAIT.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};

use super::hello::{self, ENOUGH, Random, Reply, alert_name, client_hello};
use crate::daemon::observe::check_health::Outcome;

/// An attempt to reach a target.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Attempt {
    pub(super) target: SocketAddrV4,
    /// The address that sessions to the target come from; `None` leaves it to the kernel.
    pub(super) source: Option<Ipv4Addr>,
    /// For a TLS hello.
    pub(super) hello: Option<Hello>,
    /// The time that it may take in all.
    pub(super) timeout: Duration,
}

/// The ClientHello to send.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hello {
    pub(super) server_name: Option<String>,
    pub(super) random: Random,
}

/// Makes the check.
pub(super) async fn make(attempt: &Attempt) -> Outcome {
    let start = Instant::now();
    match talk(attempt, start + attempt.timeout).await {
        Ok(()) => Outcome::Good(start.elapsed()),
        Err(outcome) => outcome,
    }
}

async fn talk(attempt: &Attempt, deadline: Instant) -> Result<(), Outcome> {
    let seconds = humantime::format_duration(attempt.timeout);
    let socket = socket(attempt.source).map_err(|error| not_made(&error))?;
    let connecting = socket.connect(SocketAddr::V4(attempt.target));
    let mut stream = match timeout_at(deadline, connecting).await {
        Ok(connected) => connected.map_err(|error| refused(&error))?,
        Err(_) => return Err(bad(format!("no answer in {seconds}"))),
    };
    let Some(hello) = &attempt.hello else { return Ok(()) };
    match timeout_at(deadline, ask(&mut stream, hello)).await {
        Ok(answer) => answer,
        Err(_) => Err(bad(format!("it accepts connections and does not answer a TLS hello in {seconds}"))),
    }
}

fn socket(source: Option<Ipv4Addr>) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_zero_linger()?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
    }
    Ok(socket)
}

/// Sends the ClientHello and waits for a ServerHello.
async fn ask(stream: &mut TcpStream, hello: &Hello) -> Result<(), Outcome> {
    let broken = |error: io::Error| match error.raw_os_error() {
        Some(libc::ECONNRESET | libc::EPIPE) => {
            bad(format!("it resets the connection after a TLS hello{}", for_name(hello)))
        }
        _ => refused(&error),
    };
    let sent = client_hello(hello.server_name.as_deref(), &hello.random);
    stream.write_all(&sent).await.map_err(broken)?;
    let (mut received, mut length) = ([0; ENOUGH], 0);
    loop {
        let room = received.get_mut(length..).unwrap_or_default();
        let read = stream.read(room).await.map_err(broken)?;
        length += read;
        match hello::reply(received.get(..length).unwrap_or_default()) {
            Reply::ServerHello => return Ok(()),
            Reply::Alert(number) => {
                let name = alert_name(number).map(|name| format!(" ({name})")).unwrap_or_default();
                return Err(bad(format!("it refuses a TLS hello{}: alert {number}{name}", for_name(hello))));
            }
            Reply::Other => return Err(bad("it does not speak TLS".to_owned())),
            Reply::More if read == 0 && length == ENOUGH => {
                return Err(bad("it does not speak TLS".to_owned()));
            }
            Reply::More if read == 0 => {
                return Err(bad(format!("it closes the connection after a TLS hello{}", for_name(hello))));
            }
            Reply::More => {}
        }
    }
}

fn for_name(hello: &Hello) -> String {
    hello.server_name.as_ref().map(|name| format!(" for {name}")).unwrap_or_default()
}

fn bad(reason: String) -> Outcome {
    Outcome::Bad(reason)
}

fn not_made(error: &io::Error) -> Outcome {
    Outcome::NotMade(error.to_string())
}

/// Returns the outcome of a connection that has failed.
fn refused(error: &io::Error) -> Outcome {
    const OWN: [i32; 8] = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EADDRNOTAVAIL,
        libc::EADDRINUSE,
        // The host's firewall drops what this machine sends. Sessions do not pass it.
        libc::EPERM,
        libc::EACCES,
    ];
    match error.raw_os_error() {
        Some(number) if OWN.contains(&number) => Outcome::NotMade(error.to_string()),
        Some(libc::ECONNREFUSED) => bad("it refuses connections".to_owned()),
        Some(libc::ENETUNREACH) => bad("no route".to_owned()),
        Some(libc::EHOSTUNREACH) => bad("it cannot be reached".to_owned()),
        Some(libc::ECONNRESET) => bad("it resets connections".to_owned()),
        _ => bad(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Checks a server that does this to its first connection.
    async fn check(tls: bool, serve: impl AsyncFnOnce(TcpStream)) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let SocketAddr::V4(target) = listener.local_addr().expect("an address") else { panic!("IPv4") };
        let hello = Hello { server_name: Some("www.example.com".to_owned()), random: [[7; 32]; 3] };
        let attempt = Attempt {
            target,
            source: Some(Ipv4Addr::LOCALHOST),
            hello: tls.then_some(hello),
            timeout: Duration::from_millis(300),
        };
        let serve = async {
            let (stream, _) = listener.accept().await.expect("a connection");
            serve(stream).await;
        };
        tokio::join!(make(&attempt), serve).0
    }

    async fn read_hello(stream: &mut TcpStream) {
        let mut hello = [0; 512];
        let length = stream.read(&mut hello).await.expect("a ClientHello");
        assert!(length > 100 && hello[0] == 22);
    }

    fn is_bad(outcome: Outcome, words: &str) {
        match outcome {
            Outcome::Bad(reason) => assert!(reason.contains(words), "{reason}"),
            other @ (Outcome::Good(_) | Outcome::NotMade(_)) => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_connection_is_enough_for_tcp_and_ends_with_a_reset() {
        let outcome = check(false, async |mut stream| {
            let end = stream.read(&mut [0; 8]).await;
            assert_eq!(end.expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
        })
        .await;
        assert!(matches!(outcome, Outcome::Good(took) if took < Duration::from_millis(300)), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_server_hello_is_good_in_one_piece_or_many() {
        for pieces in [1, 3, 6] {
            let outcome = check(true, async |mut stream| {
                read_hello(&mut stream).await;
                for piece in [22, 3, 3, 0, 80, 2_u8].chunks(pieces) {
                    stream.set_nodelay(true).expect("nodelay");
                    stream.write_all(piece).await.expect("it is read");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                // Until the other end is gone.
                let _reset = stream.read(&mut [0; 8]).await;
            })
            .await;
            assert!(matches!(outcome, Outcome::Good(_)), "{pieces}: {outcome:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_never_answers_the_hello_fails() {
        let outcome = check(true, async |mut stream| {
            read_hello(&mut stream).await;
            let _reset = stream.read(&mut [0; 8]).await;
        })
        .await;
        is_bad(outcome, "accepts connections and does not answer a TLS hello in 300ms");
    }

    #[tokio::test]
    async fn other_answers_fail_with_their_reasons() {
        let answers: [(&[u8], &str); 4] = [
            (&[21, 3, 3, 0, 2, 2, 112], "for www.example.com: alert 112 (unrecognized_name)"),
            (b"220 mail ESMTP\r\n", "does not speak TLS"),
            (&[22, 3], "closes the connection after a TLS hello for www.example.com"),
            (&[], "closes the connection after a TLS hello for www.example.com"),
        ];
        for (bytes, words) in answers {
            let outcome = check(true, async |mut stream| {
                read_hello(&mut stream).await;
                stream.write_all(bytes).await.expect("it is read");
            })
            .await;
            is_bad(outcome, words);
        }
        let outcome = check(true, async |mut stream| {
            read_hello(&mut stream).await;
            stream.set_zero_linger().expect("a reset");
        })
        .await;
        is_bad(outcome, "resets the connection after a TLS hello");
    }

    #[tokio::test]
    async fn warnings_without_end_are_not_read_without_end() {
        let outcome = check(true, async |mut stream| {
            read_hello(&mut stream).await;
            let warnings = [21, 3, 3, 0, 2, 1, 112].repeat(100);
            let _refused = stream.write_all(&warnings).await;
            let _reset = stream.read(&mut [0; 8]).await;
        })
        .await;
        is_bad(outcome, "does not speak TLS");
    }

    #[tokio::test]
    async fn nobody_listens() {
        let unused = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let SocketAddr::V4(target) = unused.local_addr().expect("an address") else { panic!("IPv4") };
        drop(unused);
        let mut attempt = Attempt { target, source: None, hello: None, timeout: Duration::from_secs(1) };
        is_bad(make(&attempt).await, "refuses connections");
        // Not an address of this machine (RFC 5737).
        attempt.source = Some(Ipv4Addr::new(192, 0, 2, 7));
        assert!(matches!(make(&attempt).await, Outcome::NotMade(_)));
    }
}
