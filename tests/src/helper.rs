//! The lab's own small servers: the load balancer's probe, echo servers, a health responder.
//!
//! They are processes, not threads, so that a kept lab has them too: hidden subcommands of the
//! `lab` binary.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    addresses::{ENDPOINT, PLATFORM, ROUTER},
    client::sockets::connect_from,
    command,
    namespace::Namespace,
    process::Process,
    state::State,
};
use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;

/// The load balancer's timeout of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The number of probes in a row that change the load balancer's decision.
pub const PROBE_THRESHOLD: u32 = 2;

/// The nftables table and map of the load balancer's healthy backends.
pub(crate) const TABLE: &str = "pls";
/// See [`TABLE`].
pub(crate) const BACKENDS: &str = "backends";

/// The `lab` binary, which has the servers.
#[derive(Clone, Debug)]
pub struct Helper {
    binary: PathBuf,
}

impl Helper {
    /// The servers in this `lab` binary.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into() }
    }

    fn spawn(&self, state: &State, namespace: &Namespace, name: &str, args: &[String]) -> Result<Process> {
        ensure!(self.binary.exists(), "there is no lab binary {}", self.binary.display());
        let mut command = namespace.command(&self.binary)?;
        command.arg("helper").args(args);
        Process::spawn(state, name, command)
    }

    /// Sends every datagram back.
    pub fn udp_echo(
        &self,
        state: &State,
        namespace: &Namespace,
        name: &str,
        listen: SocketAddr,
    ) -> Result<Process> {
        self.spawn(state, namespace, name, &["udp-echo".to_owned(), listen.to_string()])
    }

    /// Sends every byte back.
    pub fn tcp_echo(
        &self,
        state: &State,
        namespace: &Namespace,
        name: &str,
        listen: SocketAddr,
    ) -> Result<Process> {
        self.spawn(state, namespace, name, &["tcp-echo".to_owned(), listen.to_string()])
    }

    /// Answers every HTTP request with 200, as the published guide's router answers the probe.
    pub fn http_ok(
        &self,
        state: &State,
        namespace: &Namespace,
        name: &str,
        listen: SocketAddr,
    ) -> Result<Process> {
        self.spawn(state, namespace, name, &["http-ok".to_owned(), listen.to_string()])
    }

    /// Probes `target` every `interval`, and takes the router out of the load balancer's map or
    /// back into it.
    pub(crate) fn probe(
        &self,
        state: &State,
        namespace: &Namespace,
        name: &str,
        target: SocketAddr,
        interval: Duration,
    ) -> Result<Process> {
        let args = [
            "probe".to_owned(),
            target.to_string(),
            "--interval-ms".to_owned(),
            interval.as_millis().to_string(),
        ];
        self.spawn(state, namespace, name, &args)
    }
}

/// One of the servers, as the binary's arguments name it.
#[derive(Debug, Subcommand)]
pub enum Server {
    /// Send every UDP datagram back.
    UdpEcho {
        /// The address to listen on.
        listen: SocketAddr,
    },
    /// Send every byte of TCP connections back.
    TcpEcho {
        /// The address to listen on.
        listen: SocketAddr,
    },
    /// Answer every HTTP request with 200.
    HttpOk {
        /// The address to listen on.
        listen: SocketAddr,
    },
    /// Probe the router as the load balancer does.
    Probe {
        /// The router's health endpoint.
        target: SocketAddrV4,
        /// Milliseconds from one probe to the next.
        #[arg(long)]
        interval_ms: u64,
    },
}

impl Server {
    /// Serves until the process is ended.
    pub fn serve(&self) -> Result<()> {
        match self {
            Self::UdpEcho { listen } => udp_echo(*listen),
            Self::TcpEcho { listen } => serve_tcp(*listen, echo),
            Self::HttpOk { listen } => serve_tcp(*listen, say_ok),
            Self::Probe { target, interval_ms } => probe(*target, Duration::from_millis(*interval_ms)),
        }
    }
}

/// Returns the time as the lab's logs write it.
fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

fn udp_echo(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let mut datagram = vec![0; 65536];
    loop {
        // Errors are of single datagrams (an ICMP answer to an earlier one); the next one is not
        // their business.
        match socket.recv_from(&mut datagram) {
            Ok((length, from)) => {
                if let Err(error) = socket.send_to(&datagram[..length], from) {
                    println!("{} cannot answer {from}: {error}", timestamp());
                }
            }
            Err(error) => println!("{} {error}", timestamp()),
        }
    }
}

fn serve_tcp(listen: SocketAddr, serve: fn(&TcpStream) -> io::Result<()>) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    for connection in listener.incoming() {
        let connection = connection.context("cannot take a connection")?;
        thread::spawn(move || {
            if let Err(error) = serve(&connection) {
                println!("{} {error}", timestamp());
            }
        });
    }
    Ok(())
}

fn echo(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    io::copy(&mut &*connection, &mut &*connection).map(drop)
}

fn say_ok(connection: &TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(connection);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 2 {
        line.clear();
    }
    (&*connection).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")
}

/// The load balancer's probe: its log has a line for every change, of the reason for a failure as
/// well.
fn probe(target: SocketAddrV4, interval: Duration) -> Result<()> {
    let mut in_service = false;
    let mut against = 0;
    let mut failure = String::new();
    println!("{} out: not probed yet", timestamp());
    loop {
        let started = Instant::now();
        let answer = probe_once(target);
        if answer.is_ok() == in_service {
            against = 0;
        } else {
            against += 1;
        }
        match &answer {
            Ok(()) => {
                if !in_service {
                    println!("{} probe answered 200", timestamp());
                }
                failure.clear();
            }
            Err(error) => {
                let reason = format!("{error:#}");
                if in_service || reason != failure {
                    println!("{} probe failed: {reason}", timestamp());
                }
                failure = reason;
            }
        }
        if against == PROBE_THRESHOLD {
            in_service = !in_service;
            against = 0;
            set_backend(in_service)?;
            let word = if in_service { "in" } else { "out" };
            println!("{} {word}: {PROBE_THRESHOLD} probes in a row", timestamp());
        }
        thread::sleep(interval.saturating_sub(started.elapsed()));
    }
}

fn set_backend(in_service: bool) -> Result<()> {
    let change = if in_service {
        format!("add element ip {TABLE} {BACKENDS} {{ {ENDPOINT} : {ROUTER} }}")
    } else {
        format!("delete element ip {TABLE} {BACKENDS} {{ {ENDPOINT} }}")
    };
    command::run(Command::new("nft").arg(change)).map(drop)
}

/// A request from the platform's address; anything but a 200 in time is an error.
fn probe_once(target: SocketAddrV4) -> Result<()> {
    let mut stream = connect_from(PLATFORM, target, PROBE_TIMEOUT)?;
    stream.write_all(
        format!(
            "GET / HTTP/1.1\r\nHost: {target}\r\nUser-Agent: Load Balancer Agent\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).context("no answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "{status}");
    Ok(())
}

/// The `lab` binary that is running, for its own use.
pub fn this_binary() -> Result<Helper> {
    let path = std::env::current_exe().context("cannot tell which binary this is")?;
    if path.file_name() != Some("lab".as_ref()) {
        bail!("{} is not the lab binary", path.display());
    }
    Ok(Helper::new(path))
}
