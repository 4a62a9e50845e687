//! Bulk data: iperf3 through the router, run after run; or our own stream where there is no iperf3.

use std::{
    fmt,
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::packages::find_program;

use super::watch::{End, Share};
use crate::{
    Process,
    client::{Direction, connect_from, iperf3},
    random::{Draw as _, Random},
    soak::{
        place::{Place, ROUTER, STREAMS_CLIENT, STREAMS_SERVER},
        report::{Count, Mistakes},
    },
};

const PORT: u16 = 5201;
/// Bits a second: the CPUs have other things to do.
const RATE: u32 = 50_000_000;
/// The seconds of one run of iperf3.
const SECONDS: u32 = 5;
/// The bytes that our own stream sends at a time.
const CHUNK: usize = 16 << 10;
/// The time that our own stream may be without progress.
const LIMIT: Duration = Duration::from_secs(30);
const START_LIMIT: Duration = Duration::from_secs(5);

/// The router's rule for it.
pub(super) fn rules() -> String {
    format!(
        "[[forward]]\nname = \"bulk\"\nprotocol = \"tcp\"\nlisten = \"{PORT}\"\ntarget = \"{STREAMS_SERVER}:{PORT}\"\n\
         sources = [\"10.0.2.64/26\"]\n"
    )
}

/// The sender of bulk data.
pub(super) struct Bulk {
    /// iperf3's server; `None` where there is no iperf3.
    server: Option<Process>,
    runs: Count,
    bytes: Count,
    failed: Mistakes,
}

impl Bulk {
    pub(super) fn new(place: &Place) -> Result<Self> {
        let server = if find_program("iperf3").is_some() {
            let mut command = place.servers.command("iperf3")?;
            command.args(["--server", "--bind", &STREAMS_SERVER.to_string()]);
            let mut server = place.spawn("iperf3", command)?;
            server.wait_until(START_LIMIT, || place.servers.listens_tcp(PORT))?;
            Some(server)
        } else {
            println!("there is no iperf3: a stream of our own takes its place");
            None
        };
        Ok(Self { server, runs: Count::default(), bytes: Count::default(), failed: Mistakes::default() })
    }

    /// Sends until the end.
    pub(super) fn run(&self, place: &Place, end: &End) -> Result<()> {
        let listener = match self.server {
            Some(_) => None,
            None => Some(
                place
                    .servers
                    .inside(|| TcpListener::bind((STREAMS_SERVER, PORT)))?
                    .context("cannot listen")?,
            ),
        };
        while !end.has_come() {
            let done = match &listener {
                None => self.iperf3(place),
                Some(listener) => self.stream(place, listener, end),
            };
            match done {
                Ok(bytes) => self.bytes.add(bytes),
                Err(error) => self.failed.add(|| format!("{error:#}")),
            }
            self.runs.add(1);
        }
        Ok(())
    }

    /// One run of iperf3, whose two connections have to last. Returns the bytes that arrived.
    fn iperf3(&self, place: &Place) -> Result<u64> {
        let (time, rate, source) = (SECONDS.to_string(), RATE.to_string(), STREAMS_CLIENT.to_string());
        let options = ["--time", &time, "--bitrate", &rate, "--bind", &source];
        let target = SocketAddrV4::new(ROUTER, PORT).into();
        let bits = iperf3(&place.clients, target, Direction::Up, &options)?;
        Ok((bits * f64::from(SECONDS) / 8.0) as u64)
    }

    /// One stream of random bytes, which the other end checks. Returns the bytes that arrived.
    fn stream(&self, place: &Place, listener: &TcpListener, end: &End) -> Result<u64> {
        let target = SocketAddrV4::new(ROUTER, PORT);
        let client = place.clients.inside(|| connect_from(STREAMS_CLIENT, target, LIMIT))??;
        let (server, _) = listener.accept().context("cannot accept")?;
        server.set_read_timeout(Some(LIMIT)).context("cannot set a timeout")?;
        thread::scope(|scope| {
            let sender = scope.spawn(|| send(client, end));
            let received = receive(server)?;
            let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender has panicked"))??;
            ensure!(sent == received, "{received} of {sent} bytes have arrived");
            Ok(received)
        })
    }

    /// Says what went wrong, and returns how many runs that were.
    pub(super) fn verdict(&self) -> Share {
        if self.failed.count() > 0 {
            println!("bulk data: {}", self.failed);
        }
        Share { lost: self.failed.count(), of: self.runs.get() }
    }
}

/// The bytes of the stream.
fn pattern() -> Random {
    Random::with_seed(1)
}

fn send(mut stream: TcpStream, end: &End) -> Result<u64> {
    let (began, mut sent, mut random) = (Instant::now(), 0, pattern());
    while began.elapsed() < Duration::from_secs(SECONDS.into()) && !end.has_come() {
        stream.write_all(&random.bytes(CHUNK)).context("cannot send")?;
        sent += CHUNK as u64;
        let due = Duration::from_secs(8) * sent as u32 / RATE;
        thread::sleep(due.saturating_sub(began.elapsed()));
    }
    Ok(sent)
}

fn receive(mut stream: TcpStream) -> Result<u64> {
    let (mut received, mut random, mut chunk) = (0, pattern(), vec![0; CHUNK]);
    loop {
        let mut filled = 0;
        while filled < CHUNK {
            match stream.read(&mut chunk[filled..]).with_context(|| format!("after {received} bytes"))? {
                0 if filled == 0 => return Ok(received),
                0 => anyhow::bail!("an end in the middle, after {received} bytes"),
                length => filled += length,
            }
        }
        ensure!(chunk == random.bytes(CHUNK), "wrong bytes after {received}");
        received += CHUNK as u64;
    }
}

impl fmt::Display for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.server.is_some() { "iperf3" } else { "a stream" };
        write!(f, "{name} {} times, {:.1} MB", self.runs, self.bytes.get() as f64 / 1e6)
    }
}
