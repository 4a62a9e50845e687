//! TCP connections of the kernel's: real ones, with retransmissions, windows and selective
//! acknowledgements. Both sides send random bytes at the same time; not one may be missing, wrong
//! or too many.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd as _},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};

use super::{
    place::{Place, ROUTER, STREAMS_CLIENT, STREAMS_SERVER},
    plan::Phases,
    report::Tally,
};
use crate::random::{Draw as _, Random};

const PORT: u16 = 443;

/// Bytes a second that each direction of a connection sends at most, so that there is time for all
/// the rest.
const RATE: u32 = 10_000;
/// The most bytes that wait in a socket: they all have to get through at the end.
const SEND_BUFFER: usize = 16 << 10;
/// The most bytes that a short connection carries in a direction.
const SHORT: u64 = 50_000;
/// In this number a connection is marked as one that stays to the end.
const LONG: u64 = 1 << 63;
/// So long without a byte in either direction is a mistake: more than a daemon's start and a
/// neighbour's absence take.
const STALL_LIMIT: Duration = Duration::from_secs(90);
/// The interval between checks for the end of the run.
const TURN: Duration = Duration::from_millis(100);

/// The router's rule for them.
pub(super) fn rules() -> String {
    format!(
        "[[forward]]\nname = \"streams\"\nprotocol = \"tcp\"\nlisten = \"{PORT}\"\ntarget = \"{STREAMS_SERVER}:{PORT}\"\n\
         sources = [\"10.0.2.64/26\"]\n"
    )
}

/// The bytes that one end of a connection has sent and received.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Bytes {
    sent: u64,
    received: u64,
}

/// The bytes of one direction.
struct Pattern {
    random: Random,
    chunk: Vec<u8>,
    used: usize,
}

impl Pattern {
    fn new(seed: u64) -> Self {
        Self { random: Random::with_seed(seed), chunk: Vec::new(), used: 0 }
    }

    /// The next bytes; there is always one at least.
    fn next(&mut self) -> &[u8] {
        const CHUNK: usize = 4096;
        if self.used == self.chunk.len() {
            self.chunk = self.random.bytes(CHUNK);
            self.used = 0;
        }
        &self.chunk[self.used..]
    }

    fn skip(&mut self, bytes: usize) {
        self.used += bytes;
    }

    /// Returns `true` if the bytes are the expected ones.
    fn has(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let next = self.next();
            let length = next.len().min(bytes.len());
            if next[..length] != bytes[..length] {
                return false;
            }
            self.skip(length);
            bytes = &bytes[length..];
        }
        true
    }
}

/// The connections.
pub(super) struct Streams<'a> {
    phases: &'a Phases,
    tally: &'a Tally,
    /// The servers' reports of connections, by number.
    served: Mutex<HashMap<u64, Bytes>>,
    seed: u64,
}

impl<'a> Streams<'a> {
    pub(super) fn new(seed: u64, phases: &'a Phases, tally: &'a Tally) -> Self {
        Self { phases, tally, served: Mutex::default(), seed }
    }

    /// Serves until all is over.
    pub(super) fn serve(&self, place: &Place) -> Result<()> {
        place.servers.inside(|| {
            let listener = TcpListener::bind((STREAMS_SERVER, PORT)).context("cannot listen for streams")?;
            listener.set_nonblocking(true).context("cannot accept without waiting")?;
            thread::scope(|scope| {
                while !self.phases.stopped() {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            scope.spawn(move || self.serve_one(&stream));
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            ready(&listener, PollFlags::POLLIN)?;
                        }
                        Err(error) => return Err(error).context("cannot accept a stream"),
                    }
                }
                Ok(())
            })
        })?
    }

    fn serve_one(&self, stream: &TcpStream) {
        let mut number = 0;
        let served = greeted(stream).and_then(|greeting| {
            number = greeting;
            let [up, down] = directions(number);
            self.exchange(stream, number, [down, up])
        });
        match served {
            Ok(bytes) => {
                let mut all = self.served.lock().unwrap_or_else(PoisonError::into_inner);
                if all.insert(number, bytes).is_some() {
                    self.tally.mistakes.add(|| format!("two connections say that they are {number:#x}"));
                }
            }
            Err(error) => {
                self.tally.mistakes.add(|| format!("the server's end of connection {number:#x}: {error:#}"));
            }
        }
    }

    /// Keeps `count` connections going, half of them to the end, the others one after the other.
    /// Compares what both ends say.
    pub(super) fn run(&self, place: &Place, count: u32) -> Result<()> {
        let all = place.clients.inside(|| {
            thread::scope(|scope| {
                let clients: Vec<_> =
                    (0..count).map(|client| scope.spawn(move || self.client(client))).collect();
                clients.into_iter().flat_map(|client| client.join().unwrap_or_default()).collect::<Vec<_>>()
            })
        })?;
        if self.phases.stopped() {
            // Something else went wrong; what the connections were cut off from is no news.
            return Ok(());
        }
        let served = || self.served.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, client) in all {
            // The client may have seen the end before the server's thread has said so.
            let server = crate::wait::until("a server's end", STALL_LIMIT, || {
                served().remove(&number).context("it has not ended")
            });
            match server {
                Ok(server) if (server.received, client.received) == (client.sent, server.sent) => {}
                Ok(server) => self
                    .tally
                    .mistakes
                    .add(|| format!("connection {number:#x}: {client:?} here, {server:?} there")),
                Err(error) => self.tally.mistakes.add(|| format!("connection {number:#x}: {error:#}")),
            }
        }
        let left = served().len();
        if left > 0 {
            self.tally
                .mistakes
                .add(|| format!("{left} connections that only the server has seen to their end"));
        }
        Ok(())
    }

    fn client(&self, client: u32) -> Vec<(u64, Bytes)> {
        let mut done = Vec::new();
        let long = if client.is_multiple_of(2) { LONG } else { 0 };
        for turn in 0_u64.. {
            let number = long | u64::from(client) << 32 | turn;
            match self.connect(number) {
                Ok(bytes) => done.push((number, bytes)),
                Err(error) => self
                    .tally
                    .mistakes
                    .add(|| format!("the client's end of connection {number:#x}: {error:#}")),
            }
            self.tally.connections.add(1);
            if self.phases.finishing() {
                break;
            }
        }
        done
    }

    fn connect(&self, number: u64) -> Result<Bytes> {
        let mut stream = connect().with_context(|| format!("cannot connect to {ROUTER}:{PORT}"))?;
        stream.write_all(&number.to_be_bytes()).context("cannot send")?;
        self.exchange(&stream, number, directions(number))
    }

    /// The number of bytes that a direction of a connection carries; `None`: until the end.
    fn goal(&self, number: u64, direction: u64) -> Option<u64> {
        (number & LONG == 0).then(|| Random::with_seed(!(self.seed ^ direction)).u64(1..=SHORT))
    }

    /// Sends one direction's bytes and checks the other's, until both have ended.
    fn exchange(&self, mut stream: &TcpStream, number: u64, [out, back]: [u64; 2]) -> Result<Bytes> {
        let goal = self.goal(number, out);
        setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER).context("cannot set the send buffer")?;
        pace(stream)?;
        stream.set_nonblocking(true).context("cannot work without waiting")?;
        let mut out = Pattern::new(self.seed ^ out);
        let mut back = Pattern::new(self.seed ^ back);
        let mut bytes = Bytes::default();
        let (mut sending, mut receiving) = (true, true);
        let mut buffer = vec![0; 16 << 10];
        let mut progress = Instant::now();
        while sending || receiving {
            ensure!(!self.phases.stopped(), "the soak is over");
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, receiving);
            events.set(PollFlags::POLLOUT, sending);
            ready(stream, events)?;
            if receiving {
                match stream.read(&mut buffer) {
                    Ok(0) => receiving = false,
                    Ok(length) => {
                        ensure!(back.has(&buffer[..length]), "wrong bytes after {}", bytes.received);
                        bytes.received += length as u64;
                        self.tally.bytes.add(length as u64);
                        progress = Instant::now();
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).with_context(|| format!("after {bytes:?}")),
                }
            }
            if sending {
                let left = match goal {
                    Some(goal) => goal - bytes.sent,
                    None if self.phases.finishing() => 0,
                    None => u64::MAX,
                };
                if left == 0 {
                    stream.shutdown(Shutdown::Write).context("cannot end")?;
                    sending = false;
                    continue;
                }
                let next = out.next();
                let length = usize::try_from(left).map_or(next.len(), |left| left.min(next.len()));
                match stream.write(&next[..length]) {
                    Ok(length) => {
                        out.skip(length);
                        bytes.sent += length as u64;
                        progress = Instant::now();
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).with_context(|| format!("after {bytes:?}")),
                }
            }
            if progress.elapsed() > STALL_LIMIT {
                bail!("nothing has moved for {STALL_LIMIT:?}, after {bytes:?}");
            }
        }
        Ok(bytes)
    }
}

/// The numbers of a connection's directions, there and back.
const fn directions(number: u64) -> [u64; 2] {
    [number << 1, number << 1 | 1]
}

/// The number that a client begins with.
fn greeted(mut stream: &TcpStream) -> Result<u64> {
    let mut number = [0; 8];
    stream.set_nonblocking(false).context("cannot wait")?;
    stream.set_read_timeout(Some(STALL_LIMIT)).context("cannot set a timeout")?;
    stream.read_exact(&mut number).context("no greeting")?;
    Ok(u64::from_be_bytes(number))
}

/// Connects from the streams' own address, for as long as the kernel tries.
fn connect() -> Result<TcpStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(STREAMS_CLIENT, 0)))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(ROUTER, PORT)))?;
    Ok(TcpStream::from(socket))
}

/// Has the kernel send no more than [`RATE`].
fn pace(stream: &TcpStream) -> Result<()> {
    let rate = RATE;
    // SAFETY: the option's value is an integer, of the length that is given (socket(7)).
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            size_of_val(&rate) as libc::socklen_t,
        )
    };
    ensure!(set == 0, "cannot limit a stream's rate: {}", io::Error::last_os_error());
    Ok(())
}

/// Waits until a socket is ready, but not longer than a turn.
fn ready(socket: &impl AsFd, events: PollFlags) -> Result<()> {
    let mut sockets = [PollFd::new(socket.as_fd(), events)];
    match poll(&mut sockets, PollTimeout::try_from(TURN).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("cannot wait for a stream"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_is_wrong_or_missing_is_noticed() {
        let mut pattern = Pattern::new(1);
        let mut bytes = Vec::new();
        while bytes.len() < 10_000 {
            let length = pattern.next().len().min(777);
            bytes.extend_from_slice(&pattern.next()[..length]);
            pattern.skip(length);
        }
        assert!(Pattern::new(1).has(&bytes));
        assert!(!Pattern::new(2).has(&bytes));
        assert!(!Pattern::new(1).has(&bytes[1..]));
        bytes.remove(9_000);
        assert!(!Pattern::new(1).has(&bytes));
    }
}
