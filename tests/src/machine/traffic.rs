//! Traffic through a machine that must not notice what is done to it: connections with checked
//! content, new connections, datagrams, and the load balancer's probe.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Lab, Namespace,
    addresses::{ECHO_PORT, ENDPOINT},
    client::{Tcp, Udp},
};

/// The connections that stay from the beginning to the end.
const LONG_LIVED: u64 = 20;

/// The time from one message of a connection to its next.
const INTERVAL: Duration = Duration::from_millis(200);

/// A message that is not answered within this is lost, and its connection with it. TCP sends a lost
/// segment again after 0.2, 0.6, 1.4, 3, 6.2, 12.6 and 25.4 s.
const LIMIT: Duration = Duration::from_secs(30);

/// The same for a datagram, which nobody sends again.
const DATAGRAM_LIMIT: Duration = Duration::from_secs(5);

/// What is said and what is lost.
#[derive(Debug, Default)]
struct Count {
    sent: AtomicU64,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    end: AtomicBool,
    connections: Count,
    unopened: AtomicU64,
    messages: AtomicU64,
    datagrams: Count,
    troubles: Mutex<Vec<String>>,
}

/// The outcome of some traffic.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// Connections that opened: those that stayed, and those that came and went.
    pub connections: u64,
    /// Connections that were refused, reset, or got no answer or a wrong one.
    pub connections_lost: u64,
    /// Connections to which nobody answered.
    pub unopened: u64,
    /// Messages of connections that were answered.
    pub messages: u64,
    /// Datagrams that were sent.
    pub datagrams: u64,
    /// Datagrams that did not come back.
    pub datagrams_lost: u64,
    /// What was lost, in words.
    pub troubles: Vec<String>,
}

impl Outcome {
    /// Fails with what was lost, if anything was, or did not open.
    pub fn nothing_lost(&self) -> Result<String> {
        let text = self.no_session_lost()?;
        ensure!(self.unopened == 0, "{text}: {}", self.troubles.join("; "));
        Ok(text)
    }

    /// Fails with what was lost of what was open. Behind a load balancer that has the only router
    /// out of service, new connections do not open, and open ones go on.
    pub fn no_session_lost(&self) -> Result<String> {
        let Self { connections, connections_lost, unopened, messages, datagrams, datagrams_lost, troubles } =
            self;
        let mut text = format!(
            "{connections_lost} of {connections} connections lost ({messages} messages), \
             {datagrams_lost} of {datagrams} datagrams"
        );
        if *unopened > 0 {
            text += &format!("; {unopened} more did not open");
        }
        ensure!(connections_lost + datagrams_lost == 0, "{text}: {}", troubles.join("; "));
        Ok(text)
    }
}

/// Traffic that goes on until it is [finished](Traffic::finish).
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Opens the connections that stay, and starts all of it. An error says that one does not open.
    pub fn start(lab: &Lab) -> Result<Self> {
        let target: SocketAddr = (ENDPOINT, ECHO_PORT).into();
        let from = Namespace::existing(lab.hosts.serverless.name())?;
        let mut stay = Vec::new();
        for number in 0..LONG_LIVED {
            let mut tcp = Tcp::connect(&from, target, LIMIT)?;
            tcp.echo(&message(number, 0), LIMIT).context("the first message of a connection")?;
            stay.push(tcp);
        }
        let udp = Udp::open(&from, target)?;
        let shared = Arc::new(Shared::default());
        shared.connections.sent.store(LONG_LIVED, Ordering::Relaxed);
        let mut threads = Vec::new();
        for (tcp, number) in stay.into_iter().zip(0..) {
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || shared.keep(tcp, number)));
        }
        let newcomers = Arc::clone(&shared);
        threads.push(thread::spawn(move || newcomers.come_and_go(&from, target)));
        let datagrams = Arc::clone(&shared);
        threads.push(thread::spawn(move || datagrams.send_datagrams(&udp)));
        Ok(Self { shared, threads })
    }

    /// Waits until each connection has carried this many messages more, on average.
    pub fn carry(&self, messages: u64) -> Result<()> {
        let before = self.shared.messages.load(Ordering::Relaxed);
        crate::wait::until("messages", LIMIT * 4, || {
            let now = self.shared.messages.load(Ordering::Relaxed) - before;
            ensure!(now >= messages * LONG_LIVED, "{now} messages; {:?}", self.shared.troubles());
            Ok(())
        })
    }

    /// Ends it.
    pub fn finish(mut self) -> Outcome {
        self.stop();
        let Shared { connections, unopened, messages, datagrams, .. } = &*self.shared;
        Outcome {
            connections: connections.sent.load(Ordering::Relaxed),
            connections_lost: connections.lost.load(Ordering::Relaxed),
            unopened: unopened.load(Ordering::Relaxed),
            messages: messages.load(Ordering::Relaxed),
            datagrams: datagrams.sent.load(Ordering::Relaxed),
            datagrams_lost: datagrams.lost.load(Ordering::Relaxed),
            troubles: self.shared.troubles(),
        }
    }

    fn stop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic was printed, and what the thread counted stays counted.
            _ = thread.join();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The bytes of a message, which differ from connection to connection and from message to message.
fn message(connection: u64, number: u64) -> Vec<u8> {
    let length = 1 + (connection * 97 + number * 31) as usize % 1200;
    (0..length as u64).map(|at| (connection * 7 + number * 13 + at * 3) as u8).collect()
}

fn is_timeout(error: &anyhow::Error) -> bool {
    let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock))
}

impl Shared {
    fn troubles(&self) -> Vec<String> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lost(&self, count: &AtomicU64, what: String) {
        count.fetch_add(1, Ordering::Relaxed);
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    fn goes_on(&self) -> bool {
        !self.end.load(Ordering::Relaxed)
    }

    /// Has a connection say one message after the other.
    fn keep(&self, mut tcp: Tcp, connection: u64) {
        let mut number = 1;
        while self.goes_on() {
            if let Err(error) = tcp.echo(&message(connection, number), LIMIT) {
                return self.lost(
                    &self.connections.lost,
                    format!("connection {connection}, message {number}: {error:#}"),
                );
            }
            self.messages.fetch_add(1, Ordering::Relaxed);
            number += 1;
            thread::sleep(INTERVAL);
        }
    }

    fn come_and_go(&self, from: &Namespace, target: SocketAddr) {
        for connection in LONG_LIVED.. {
            if !self.goes_on() {
                return;
            }
            match Tcp::connect(from, target, LIMIT) {
                Ok(mut tcp) => {
                    self.connections.sent.fetch_add(1, Ordering::Relaxed);
                    let said = tcp.echo(&message(connection, 0), LIMIT).and_then(|_| tcp.close());
                    if let Err(error) = said {
                        self.lost(&self.connections.lost, format!("a new connection: {error:#}"));
                    }
                }
                // Nobody answered. A refusal would be a loss: somebody took what is the router's.
                Err(error) if is_timeout(&error) => {
                    self.lost(&self.unopened, format!("a connection that did not open: {error:#}"));
                }
                Err(error) => self.lost(&self.connections.lost, format!("a new connection: {error:#}")),
            }
            thread::sleep(INTERVAL);
        }
    }

    fn send_datagrams(&self, udp: &Udp) {
        let mut number = 0;
        while self.goes_on() {
            let began = Instant::now();
            self.datagrams.sent.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = udp.echo(&message(LONG_LIVED, number), DATAGRAM_LIMIT) {
                self.lost(&self.datagrams.lost, format!("datagram {number}: {error:#}"));
            }
            number += 1;
            thread::sleep((INTERVAL / 4).saturating_sub(began.elapsed()));
        }
    }
}
