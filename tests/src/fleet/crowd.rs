//! The clients of a fleet: TCP connections and UDP sockets that stay, and new connections all the
//! time. Every connection has a port of its own, by which routers know it, and checks what it gets.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddrV4, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use router_user::model::Flow;

use crate::{
    addresses::{ECHO_PORT, ENDPOINT, SERVERLESS},
    client::{
        Udp,
        sockets::{Tcp, connect_between},
    },
    namespace::Namespace,
    random::{Draw as _, Random},
};

/// The first port of a client: below those that the kernel gives out.
const FIRST_PORT: u16 = 10_000;
/// The limit for a connection to be made, and for an answer on a new one. A router that is dead
/// does not answer within any time, and the client's own limit finds that out.
const NEW_LIMIT: Duration = Duration::from_secs(3);
/// The pause of a connection between an answer and its next message.
const PAUSE: Duration = Duration::from_millis(100);
/// The interval at which a thread that waits for an answer sees whether it is to end.
const LOOK: Duration = Duration::from_millis(100);
/// The limit for an echo of a datagram. Datagrams may be lost.
const DATAGRAM_LIMIT: Duration = Duration::from_millis(500);
/// The interval at which new connections begin.
const NEWCOMERS: Duration = Duration::from_millis(50);
/// The most bytes of a message.
const MOST: usize = 1_000;

/// The echo services, as clients reach them.
const TARGET: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, ECHO_PORT);

/// The kind of a client's flow.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// A TCP connection.
    Tcp,
    /// A UDP socket.
    Udp,
}

impl Kind {
    /// The kind of a router's session.
    pub fn of(flow: &Flow) -> Option<Self> {
        match flow.protocol.as_str() {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            _ => None,
        }
    }
}

/// What a connection shares with its thread.
#[derive(Debug)]
struct Talk {
    port: u16,
    /// The time of the last answer.
    answered: Mutex<Instant>,
    /// The longest time from a message to its answer, in microseconds.
    slowest: AtomicU64,
    answers: AtomicU64,
    /// Messages without an answer: only of datagrams, which have one attempt each.
    unanswered: AtomicU64,
    /// The reason for which it broke.
    broken: Mutex<Option<String>>,
    /// It is to end.
    end: AtomicBool,
}

impl Talk {
    fn new(port: u16) -> Arc<Self> {
        Arc::new(Self {
            port,
            answered: Mutex::new(Instant::now()),
            slowest: AtomicU64::default(),
            answers: AtomicU64::default(),
            unanswered: AtomicU64::default(),
            broken: Mutex::default(),
            end: AtomicBool::default(),
        })
    }

    fn ends(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }

    fn answer(&self, sent: Instant) {
        *lock(&self.answered) = Instant::now();
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.slowest.fetch_max(sent.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// Sends messages and checks their answers until the end; an error says that it broke.
    fn converse(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(LOOK)).context("cannot set a timeout")?;
        let mut random = Random::with_seed(u64::from(self.port));
        while !self.ends() {
            let length = random.usize(1..=MOST);
            let message = random.bytes(length);
            let sent = Instant::now();
            stream.write_all(&message).context("cannot send")?;
            let mut answer = Vec::new();
            while answer.len() < message.len() {
                let mut part = [0; MOST];
                match stream.read(&mut part) {
                    Ok(0) => bail!("ended by the other end"),
                    Ok(length) => answer.extend_from_slice(&part[..length]),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        if self.ends() {
                            return Ok(());
                        }
                    }
                    Err(error) => return Err(error).context("cannot receive"),
                }
            }
            ensure!(answer == message, "another answer than what was sent");
            self.answer(sent);
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Sends datagrams until the end, and counts those that come back.
    fn send_datagrams(&self, socket: &Udp) {
        let mut random = Random::with_seed(u64::from(self.port));
        while !self.ends() {
            let length = random.usize(1..=MOST);
            let sent = Instant::now();
            match socket.echo(&random.bytes(length), DATAGRAM_LIMIT) {
                Ok(_) => self.answer(sent),
                Err(_) => {
                    self.unanswered.fetch_add(1, Ordering::Relaxed);
                }
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Locks, also after a panic: the values are whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new connection of [`Newcomers`], which lasted for one message.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// Its client's port.
    pub port: u16,
    /// The time at which it began.
    pub began: Instant,
    /// What went wrong, if anything did.
    pub failed: Option<String>,
}

/// The thread that makes new connections.
#[derive(Debug)]
pub struct Newcomers {
    end: Arc<AtomicBool>,
    all: Arc<Mutex<Vec<Newcomer>>>,
    /// Begins them, and returns once all have ended.
    thread: Option<JoinHandle<()>>,
}

impl Newcomers {
    /// The number of those that have ended, well or not, by now.
    pub fn count(&self) -> usize {
        lock(&self.all).len()
    }

    /// Ends it, and returns all that it began, in that order.
    pub fn finish(mut self) -> Result<Vec<Newcomer>> {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            ensure!(thread.join().is_ok(), "the thread of new connections has panicked");
        }
        let mut all = std::mem::take(&mut *lock(&self.all));
        all.sort_by_key(|newcomer| newcomer.began);
        Ok(all)
    }
}

impl Drop for Newcomers {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

/// A client that stays.
#[derive(Debug)]
struct Member {
    kind: Kind,
    talk: Arc<Talk>,
    thread: Option<JoinHandle<()>>,
}

/// All clients of a fleet.
#[derive(Debug)]
pub struct Crowd {
    client: Namespace,
    next_port: Arc<AtomicU16>,
    members: BTreeMap<u16, Member>,
}

impl Crowd {
    /// A crowd without members, on this host.
    pub fn new(client: &Namespace) -> Result<Self> {
        Ok(Self {
            client: Namespace::existing(client.name())?,
            next_port: Arc::new(AtomicU16::new(FIRST_PORT)),
            members: BTreeMap::new(),
        })
    }

    /// Opens so many TCP connections. Returns their ports.
    pub fn connect(&mut self, count: usize) -> Result<Vec<u16>> {
        (0..count).map(|_| self.connect_one()).collect()
    }

    fn connect_one(&mut self) -> Result<u16> {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        let source = SocketAddrV4::new(SERVERLESS, port);
        let stream = self.client.inside(|| connect_between(source, TARGET, NEW_LIMIT))??;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        let talk = Talk::new(port);
        let its = talk.clone();
        self.add(Kind::Tcp, talk, move || {
            if let Err(error) = its.converse(stream) {
                *lock(&its.broken) = Some(format!("{error:#}"));
            }
        })
    }

    /// Opens so many UDP sockets. Returns their ports.
    pub fn open_sockets(&mut self, count: usize) -> Result<Vec<u16>> {
        (0..count)
            .map(|_| {
                let port = self.next_port.fetch_add(1, Ordering::Relaxed);
                let source = SocketAddrV4::new(SERVERLESS, port);
                let socket = Udp::open_at(&self.client, source, TARGET.into())?;
                let talk = Talk::new(port);
                let its = talk.clone();
                self.add(Kind::Udp, talk, move || its.send_datagrams(&socket))
            })
            .collect()
    }

    fn add(&mut self, kind: Kind, talk: Arc<Talk>, work: impl FnOnce() + Send + 'static) -> Result<u16> {
        let port = talk.port;
        let thread = thread::Builder::new().spawn(work).context("cannot start a thread")?;
        self.members.insert(port, Member { kind, talk, thread: Some(thread) });
        Ok(port)
    }

    /// Begins a new connection every 50 ms, until the end of what this returns.
    pub fn newcomers(&self) -> Result<Newcomers> {
        let client = Namespace::existing(self.client.name())?;
        let (next_port, end) = (self.next_port.clone(), Arc::new(AtomicBool::default()));
        let all = Arc::new(Mutex::new(Vec::new()));
        let (its_end, its_all) = (end.clone(), all.clone());
        let work = move || {
            // One that gets no answer must not hold up the next.
            thread::scope(|scope| {
                while !its_end.load(Ordering::Relaxed) {
                    scope.spawn(|| {
                        let (began, port) = (Instant::now(), next_port.fetch_add(1, Ordering::Relaxed));
                        let failed = come(&client, port).err().map(|error| format!("{error:#}"));
                        lock(&its_all).push(Newcomer { port, began, failed });
                    });
                    thread::sleep(NEWCOMERS);
                }
            });
        };
        let thread = thread::Builder::new().spawn(work).context("cannot start a thread")?;
        Ok(Newcomers { end, all, thread: Some(thread) })
    }

    /// The ports of members of this kind.
    pub fn ports(&self, kind: Kind) -> BTreeSet<u16> {
        self.members.iter().filter(|(_, member)| member.kind == kind).map(|(port, _)| *port).collect()
    }

    /// The members of this kind that have had an answer since then.
    pub fn answered_since(&self, kind: Kind, then: Instant) -> BTreeSet<u16> {
        let answered = |member: &Member| *lock(&member.talk.answered) > then;
        let members = self.members.iter().filter(|(_, member)| member.kind == kind && answered(member));
        members.map(|(port, _)| *port).collect()
    }

    /// The connections that broke, and why.
    pub fn broken(&self) -> BTreeMap<u16, String> {
        let broken = |(port, member): (&u16, &Member)| Some((*port, lock(&member.talk.broken).clone()?));
        self.members.iter().filter_map(broken).collect()
    }

    /// The slowest answer of these since the last call.
    pub fn take_slowest(&self, ports: &BTreeSet<u16>) -> Duration {
        let members = ports.iter().filter_map(|port| self.members.get(port));
        let slowest = members.map(|member| member.talk.slowest.swap(0, Ordering::Relaxed)).max();
        Duration::from_micros(slowest.unwrap_or_default())
    }

    /// Answers, and messages that had none, of all members of this kind.
    pub fn messages(&self, kind: Kind) -> (u64, u64) {
        let of = |member: &Member| {
            let Talk { answers, unanswered, .. } = &*member.talk;
            (answers.load(Ordering::Relaxed), unanswered.load(Ordering::Relaxed))
        };
        let members = self.members.values().filter(|member| member.kind == kind);
        members.map(of).fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
    }

    /// Has these members end: connections are closed, in the orderly way.
    pub fn leave(&mut self, ports: &BTreeSet<u16>) -> Result<()> {
        let leaving: Vec<_> = ports.iter().filter_map(|port| self.members.remove(port)).collect();
        for member in &leaving {
            member.talk.end.store(true, Ordering::Relaxed);
        }
        for mut member in leaving {
            if let Some(thread) = member.thread.take() {
                ensure!(thread.join().is_ok(), "the thread of a client has panicked");
            }
        }
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for member in self.members.values() {
            member.talk.end.store(true, Ordering::Relaxed);
        }
    }
}

/// A connection of one message, from its first packet to its last.
fn come(client: &Namespace, port: u16) -> Result<()> {
    let source = SocketAddrV4::new(SERVERLESS, port);
    let mut connection = Tcp::connect_between(client, source, TARGET, NEW_LIMIT)?;
    let message = Random::with_seed(u64::from(port)).bytes(MOST);
    connection.echo(&message, NEW_LIMIT)?;
    connection.close()
}
