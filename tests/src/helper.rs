//! The lab's own small servers: the load balancer's probe, echo servers, a health responder.
//!
//! They are processes, not threads, so that a kept lab has them too: hidden subcommands of the
//! `lab` binary.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    thread,
    time::Duration,
};

use crate::{balancer, clock::timestamp, namespace::Namespace, process::Process, state::State};
use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;

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

    /// Probes each of `targets` every `interval`, and takes the routers out of the load balancer or
    /// back into it.
    pub(crate) fn probe(
        &self,
        state: &State,
        namespace: &Namespace,
        name: &str,
        targets: &[SocketAddrV4],
        interval: Duration,
    ) -> Result<Process> {
        let mut args = vec!["probe".to_owned(), "--interval-ms".to_owned(), interval.as_millis().to_string()];
        args.extend(targets.iter().map(SocketAddrV4::to_string));
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
    /// Probe the routers as the load balancer does.
    Probe {
        /// The routers' health endpoints.
        #[arg(required = true)]
        targets: Vec<SocketAddrV4>,
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
            Self::Probe { targets, interval_ms } => {
                balancer::probe(targets, Duration::from_millis(*interval_ms))
            }
        }
    }
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

/// The `lab` binary that is running, for its own use.
pub fn this_binary() -> Result<Helper> {
    let path = std::env::current_exe().context("cannot tell which binary this is")?;
    if path.file_name() != Some("lab".as_ref()) {
        bail!("{} is not the lab binary", path.display());
    }
    Ok(Helper::new(path))
}
