//! TCP connections through the router: many that stay, each with a message to and fro every second,
//! and new ones all the time. Either end checks what it gets.

use std::{
    collections::VecDeque,
    fmt,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::watch::{End, Share, Watch};
use crate::{
    client::connect_from,
    random::{Draw as _, Random},
    soak::place::{Place, ROUTER, STREAMS_CLIENT, STREAMS_SERVER},
    wait,
};

const PORT: u16 = 7_800;
/// From one message of a connection to its next.
const INTERVAL: Duration = Duration::from_secs(1);
/// A connection whose message is not answered within this is lost. TCP sends a lost segment again
/// after 0.2, 0.6, 1.4, 3, 6.2, 12.6 and 25.4 s.
const LIMIT: Duration = Duration::from_secs(30);
/// The time that all connections may take to be made.
const OPEN_LIMIT: Duration = Duration::from_secs(120);
/// From one new connection to the next.
const NEWCOMERS: Duration = Duration::from_millis(100);
/// The pause between two looks at all connections.
const TURN: Duration = Duration::from_millis(5);
/// The threads that have connections: `keep` and `newcomers`.
const CLIENTS: u64 = 2;
/// Connection, number and length.
const HEADER: usize = 12;
/// The most bytes of a message's content.
const MOST: usize = 1_000;

/// The router's rule for them.
pub(super) fn rules() -> String {
    format!(
        "[[forward]]\nname = \"connections\"\nprotocol = \"tcp\"\nlisten = \"{PORT}\"\ntarget = \"{STREAMS_SERVER}:{PORT}\"\n\
         sources = [\"10.0.2.64/26\"]\n"
    )
}

/// The message of a connection with this number.
fn message(connection: u32, number: u32) -> Vec<u8> {
    let mut random = Random::with_seed(u64::from(connection) << 32 | u64::from(number));
    let length = random.usize(1..=MOST);
    let mut bytes = Vec::with_capacity(HEADER + length);
    for word in [connection, number, length as u32] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(random.bytes(length));
    bytes
}

/// Takes the first whole message off, if it is one; an error says that it is none.
fn take_message(received: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let Some(header) = received.first_chunk::<HEADER>() else { return Ok(None) };
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (connection, number, length) = (word(0), word(4), word(8) as usize);
    ensure!((1..=MOST).contains(&length), "a message of {length} bytes");
    if received.len() < HEADER + length {
        return Ok(None);
    }
    let rest = received.split_off(HEADER + length);
    let bytes = std::mem::replace(received, rest);
    ensure!(
        bytes == message(connection, number),
        "message {number} of connection {connection} has wrong bytes"
    );
    Ok(Some(bytes))
}

/// One end of a connection.
struct Peer {
    stream: TcpStream,
    received: Vec<u8>,
    to_send: VecDeque<u8>,
}

impl Peer {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nonblocking(true).context("cannot work without waiting")?;
        stream.set_nodelay(true).context("cannot send without waiting")?;
        Ok(Self { stream, received: Vec::new(), to_send: VecDeque::new() })
    }

    /// Receives what is there. Returns `false` once the other end has ended.
    fn receive(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error).context("cannot receive"),
            }
        }
    }

    /// Sends what the socket takes.
    fn send(&mut self) -> Result<()> {
        while !self.to_send.is_empty() {
            let (bytes, _) = self.to_send.as_slices();
            match self.stream.write(bytes) {
                Ok(length) => drop(self.to_send.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot send"),
            }
        }
        Ok(())
    }
}

/// Which of these have something to receive, or have failed.
fn readable(peers: &[Option<Peer>]) -> Result<Vec<usize>> {
    let live: Vec<_> = peers.iter().enumerate().filter_map(|(at, peer)| Some((at, peer.as_ref()?))).collect();
    let mut sockets: Vec<_> =
        live.iter().map(|(_, peer)| PollFd::new(peer.stream.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut sockets, PollTimeout::ZERO) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error).context("cannot wait for connections"),
    }
    let ready = sockets.iter().zip(&live).filter(|(socket, _)| socket.any().unwrap_or(false));
    Ok(ready.map(|(_, (at, _))| *at).collect())
}

/// The connections.
pub(super) struct Connections {
    wanted: u32,
    listener: TcpListener,
    /// Of the long-lived ones: their messages, and what broke.
    pub(super) watch: Watch,
    /// Of the new ones.
    pub(super) newcomers: Watch,
    /// What the server's end has to say.
    served: Watch,
    open: AtomicU64,
    /// Of [`CLIENTS`].
    ended: AtomicU64,
}

impl Connections {
    pub(super) fn new(place: &Place, wanted: u32) -> Result<Self> {
        let listener = place
            .servers
            .inside(|| TcpListener::bind((STREAMS_SERVER, PORT)))?
            .context("cannot listen for connections")?;
        listener.set_nonblocking(true).context("cannot accept without waiting")?;
        Ok(Self {
            wanted,
            listener,
            ended: AtomicU64::new(0),
            watch: Watch::default(),
            newcomers: Watch::default(),
            served: Watch::default(),
            open: AtomicU64::new(0),
        })
    }

    /// The server's end, until all clients have ended.
    pub(super) fn serve(&self, end: &End) -> Result<()> {
        let mut peers: Vec<Option<Peer>> = Vec::new();
        let mut ending = None;
        loop {
            if end.has_come() {
                let since = *ending.get_or_insert_with(Instant::now);
                let is_last = self.ended.load(Ordering::Relaxed) == CLIENTS && peers.is_empty();
                if is_last || since.elapsed() > LIMIT * 2 {
                    return Ok(());
                }
            }
            loop {
                match self.listener.accept() {
                    Ok((stream, _)) => peers.push(Some(Peer::new(stream)?)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("cannot accept a connection"),
                }
            }
            for at in readable(&peers)? {
                let Some(peer) = &mut peers[at] else { continue };
                let answered = peer.receive().and_then(|goes_on| {
                    while let Some(message) = take_message(&mut peer.received)? {
                        peer.to_send.extend(message);
                    }
                    peer.send()?;
                    Ok(goes_on)
                });
                match answered {
                    Ok(true) => {}
                    Ok(false) => peers[at] = None,
                    Err(error) => {
                        self.served.bad(|| format!("the server's end of a connection: {error:#}"));
                        peers[at] = None;
                    }
                }
            }
            peers.retain(Option::is_some);
            thread::sleep(TURN);
        }
    }

    /// Makes the long-lived connections, and keeps them until the end.
    pub(super) fn keep(&self, place: &Place, end: &End) -> Result<()> {
        let mut peers = place.clients.inside(|| {
            (0..self.wanted)
                .map(|_| {
                    let stream = connect_from(STREAMS_CLIENT, SocketAddrV4::new(ROUTER, PORT), LIMIT)?;
                    let peer = Peer::new(stream)?;
                    self.open.fetch_add(1, Ordering::Relaxed);
                    Ok(Some(peer))
                })
                .collect::<Result<Vec<_>>>()
        })??;
        /// The message of a connection that is under way, and when the next one is due.
        struct Talk {
            number: u32,
            under_way: Option<(Vec<u8>, Instant)>,
            due: Instant,
        }
        let began = Instant::now();
        let mut talks: Vec<_> = (0..self.wanted)
            .map(|connection| Talk {
                number: 0,
                under_way: None,
                due: began + INTERVAL * connection / self.wanted.max(1),
            })
            .collect();
        loop {
            let mut broken = Vec::new();
            for at in readable(&peers)? {
                let Some(peer) = &mut peers[at] else { continue };
                let talk = &mut talks[at];
                let heard = peer.receive().and_then(|goes_on| {
                    while let Some(message) = take_message(&mut peer.received)? {
                        let Some((said, since)) = talk.under_way.take() else {
                            bail!("an answer to nothing")
                        };
                        ensure!(message == said, "another answer than to message {}", talk.number);
                        self.watch.good(since.elapsed());
                    }
                    ensure!(goes_on, "ended by the other end");
                    Ok(())
                });
                if let Err(error) = heard {
                    broken.push((at, error));
                }
            }
            let now = Instant::now();
            let is_over = end.has_come();
            for (at, (peer, talk)) in peers.iter_mut().zip(&mut talks).enumerate() {
                let Some(peer) = peer else { continue };
                let said = match &talk.under_way {
                    Some((_, since)) if now - *since > LIMIT => {
                        Err(anyhow::anyhow!("message {} was not answered within {LIMIT:?}", talk.number))
                    }
                    Some(_) => peer.send(),
                    None if now >= talk.due && !is_over => {
                        talk.number += 1;
                        talk.due = now + INTERVAL;
                        let message = message(at as u32, talk.number);
                        peer.to_send.extend(&message);
                        talk.under_way = Some((message, now));
                        peer.send()
                    }
                    None => Ok(()),
                };
                if let Err(error) = said {
                    broken.push((at, error));
                }
            }
            for (at, error) in broken {
                if peers[at].take().is_some() {
                    self.watch.bad(|| format!("connection {at}: {error:#}"));
                }
            }
            if is_over
                && !peers.iter().zip(&talks).any(|(peer, talk)| peer.is_some() && talk.under_way.is_some())
            {
                drop(peers);
                self.ended.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            thread::sleep(TURN);
        }
    }

    /// Waits until all long-lived connections are there, or will not be.
    pub(super) fn wait_until_all_are_there(&self, has_failed: impl Fn() -> bool) -> Result<()> {
        let open = || self.open.load(Ordering::Relaxed);
        wait::until("all connections", OPEN_LIMIT, || {
            ensure!(open() == u64::from(self.wanted) || has_failed(), "{} are open", open());
            Ok(())
        })?;
        ensure!(!has_failed(), "a thread has ended early");
        Ok(())
    }

    /// Makes a new connection again and again.
    pub(super) fn newcomers(&self, place: &Place, end: &End) -> Result<()> {
        place.clients.inside(|| {
            for number in 1.. {
                if end.has_come() {
                    break;
                }
                let began = Instant::now();
                match come(number) {
                    Ok(()) => self.newcomers.good(began.elapsed()),
                    Err(error) => self.newcomers.bad(|| format!("new connection {number}: {error:#}")),
                }
                thread::sleep(NEWCOMERS.saturating_sub(began.elapsed()));
            }
            self.ended.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Says what broke, and returns how many connections that were.
    pub(super) fn verdict(&self) -> Share {
        for watch in [&self.watch, &self.newcomers, &self.served] {
            if watch.failed.count() > 0 {
                println!("connections: {}", watch.failed);
            }
        }
        Share {
            // An end that the server misses is its client's as well.
            lost: (self.watch.failed.count() + self.newcomers.failed.count()).max(self.served.failed.count()),
            of: u64::from(self.wanted) + self.newcomers.count.get(),
        }
    }
}

/// A connection of one message.
fn come(number: u32) -> Result<()> {
    let mut stream = connect_from(STREAMS_CLIENT, SocketAddrV4::new(ROUTER, PORT), LIMIT)?;
    let message = message(u32::MAX, number);
    stream.write_all(&message).context("cannot send")?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).context("no answer")?;
    ensure!(answer == message, "wrong bytes");
    Ok(())
}

impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} long-lived connections with {} messages there and back, {} new ones",
            self.wanted, self.watch.count, self.newcomers.count
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_a_wrong_byte_is_noticed() {
        let whole = message(7, 9);
        let mut received = [whole.as_slice(), &whole[..20]].concat();
        assert_eq!(take_message(&mut received).expect("a message"), Some(whole.clone()));
        assert_eq!(take_message(&mut received).expect("half a message"), None);
        let mut wrong = whole;
        wrong[HEADER] ^= 1;
        take_message(&mut wrong).expect_err("a wrong byte");
    }
}
