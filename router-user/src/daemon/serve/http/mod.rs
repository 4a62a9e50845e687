//! HTTP for the daemon's listeners, each bounded: in connections ([`places`]), in the time that
//! they may take, in what a request may be. No client can use up what the load balancer's probe
//! needs, descriptors least of all; and nothing that goes wrong with a connection, or with all of
//! them for a while, ends the daemon.

pub(crate) mod host;
mod places;
mod users;

use std::{
    convert::Infallible,
    error::Error,
    fs::File,
    future::Future,
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use axum::body::HttpBody;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Notify, Semaphore, oneshot},
    time::{sleep, timeout},
};
use tracing::debug;

use self::places::Group;

use crate::daemon::sync::lock;

pub(crate) use self::{
    places::{Capacity, Party},
    users::{Ends, Users},
};

/// The largest head of a request, in bytes: more than browsers and monitors send.
const MAX_HEAD: usize = 16 << 10;
/// The most headers that it may have.
const MAX_HEADERS: usize = 100;
/// Connections that are on their way out, beside those that have places.
const LEAVING: usize = 16;
/// The time that connections have to be answered before the process ends.
const FINISH: Duration = Duration::from_secs(1);
/// The pause before the next connection is let in when the kernel lacks memory or descriptors.
const PAUSE: Duration = Duration::from_millis(20);
/// Connections that wait until they are let in, at a listener. The kernel allows
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Limits of a listener's connections. Each is for one request.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Groups by number.
    pub(crate) groups: Vec<Capacity>,
    /// The time that a request may take to come.
    pub(crate) request: Duration,
    /// The time that a connection may take in all.
    pub(crate) connection: Duration,
}

impl Limits {
    /// Descriptors that these connections have at most.
    pub(crate) fn descriptors(&self) -> usize {
        self.groups.iter().map(|group| group.places).sum::<usize>() + LEAVING
    }
}

/// The group and the party that a connection is counted for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Origin {
    /// The number of the group.
    pub(crate) group: usize,
    /// The party.
    pub(crate) party: Party,
}

/// Something that connections come from.
pub(crate) trait Listener: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// The other end, as far as it is known.
    type Peer: Clone + Send + Sync + 'static;

    /// Waits for the next one.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    type Peer = Ends;

    async fn accept(&self) -> io::Result<(TcpStream, Ends)> {
        let (stream, peer) = Self::accept(self).await?;
        let local = stream.local_addr()?;
        let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        Ok((stream, Ends { peer: canonical(peer), local: canonical(local) }))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    /// The user's number.
    type Peer = u32;

    async fn accept(&self) -> io::Result<(UnixStream, u32)> {
        let (stream, _) = Self::accept(self).await?;
        let user = stream.peer_cred()?.uid();
        Ok((stream, user))
    }
}

/// Listens on a TCP address. The socket does not block.
pub(crate) fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM.nonblocking().cloexec(),
        Some(socket2::Protocol::TCP),
    )?;
    // As a daemon that starts again needs it: connections of the one before may still be ending.
    socket.set_reuse_address(true)?;
    // An earlier daemon of this user, or its service manager, may still listen on an address that
    // covers this one, or that this one covers.
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Raises the limit of open files as far as this process may, so that no listener comes near it.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    /// Enough for all there is.
    const ENOUGH: libc::rlim_t = 65_536;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure, which outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let raised = limit.rlim_cur.max(ENOUGH.min(limit.rlim_max));
    if raised > limit.rlim_cur {
        limit.rlim_cur = raised;
        // SAFETY: the kernel reads the structure, which outlives the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(raised)
}

/// Admits a listener's connections, group by group.
struct Admission {
    groups: Mutex<Vec<Group<Ticket>>>,
    serials: AtomicU64,
}

/// Dropped when the connection has to go.
type Ticket = oneshot::Sender<Infallible>;

/// A connection's place, until this is dropped.
struct Place {
    admission: Arc<Admission>,
    group: usize,
    serial: u64,
    has_to_go: oneshot::Receiver<Infallible>,
}

impl Admission {
    fn new(limits: &Limits) -> Arc<Self> {
        let groups = limits.groups.iter().map(|capacity| Group::new(*capacity)).collect();
        Arc::new(Self { groups: Mutex::new(groups), serials: AtomicU64::new(0) })
    }

    fn enter(self: &Arc<Self>, origin: Origin) -> Option<Place> {
        let serial = self.serials.fetch_add(1, Ordering::Relaxed);
        let (ticket, has_to_go) = oneshot::channel();
        let mut groups = lock(&self.groups);
        let group = groups.get_mut(origin.group)?;
        group.enter(serial, origin.party, Instant::now(), ticket).then(|| Place {
            admission: self.clone(),
            group: origin.group,
            serial,
            has_to_go,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(group) = lock(&self.admission.groups).get_mut(self.group) {
            group.leave(self.serial);
        }
    }
}

/// The connections of all listeners that are being answered.
static ANSWERING: Answering = Answering { count: AtomicUsize::new(0), none: Notify::const_new() };

struct Answering {
    count: AtomicUsize,
    /// Notified when there is none any more.
    none: Notify,
}

/// A connection that is being answered.
struct Answered;

impl Answered {
    fn begin() -> Self {
        ANSWERING.count.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        if ANSWERING.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            ANSWERING.none.notify_waiters();
        }
    }
}

/// Waits until all accepted connections are answered, for a moment: the end of the process cuts
/// them.
pub(crate) async fn finish() {
    let none = async {
        loop {
            let notified = ANSWERING.none.notified();
            if ANSWERING.count.load(Ordering::Relaxed) == 0 {
                return;
            }
            notified.await;
        }
    };
    // A client that reads slowly does not keep the process.
    let _ = timeout(FINISH, none).await;
}

/// A descriptor that is held only to be let go when there is no other.
struct Spare(Option<File>);

impl Spare {
    /// Gets one, if it can be had.
    fn refill(&mut self) {
        if self.0.is_none() {
            self.0 = File::open("/dev/null").ok();
        }
    }

    /// Lets it go; `false` if there is none.
    fn release(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// Answers requests: `admit` says where a connection belongs, `answer` what it gets.
pub(crate) async fn serve<L, A, R, B>(
    listener: L,
    limits: Limits,
    admit: impl Fn(&L::Peer) -> Origin + Send,
    answer: A,
) -> Result<()>
where
    L: Listener,
    A: Fn(L::Peer, Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<B>> + Send + 'static,
    B: HttpBody + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let admission = Admission::new(&limits);
    let descriptors = Arc::new(Semaphore::new(limits.descriptors()));
    let mut spare = Spare(None);
    spare.refill();
    loop {
        // The connection that had to go may not be gone yet.
        let descriptor = descriptors.clone().acquire_owned().await.context("a listener has been closed")?;
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!("cannot accept a connection: {error}");
                let lacks_descriptors = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                let is_of_one_connection =
                    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted);
                if !(is_of_one_connection || lacks_descriptors && spare.release()) {
                    sleep(PAUSE).await;
                }
                continue;
            }
        };
        // Only now: the connection that the spare one was let go for has it.
        spare.refill();
        let Some(mut place) = admission.enter(admit(&peer)) else { continue };
        let (answer, request, whole) = (answer.clone(), limits.request, limits.connection);
        let answered = Answered::begin();
        tokio::spawn(async move {
            let _answered = answered;
            let service = service_fn(move |request| {
                let answer = answer(peer.clone(), request);
                async { Ok::<_, Infallible>(answer.await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(request)
                .max_buf_size(MAX_HEAD)
                .max_headers(MAX_HEADERS)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A client may break off.
            tokio::select! {
                _ = timeout(whole, connection) => {}
                _ = &mut place.has_to_go => {}
            }
            // In this order: the next connection in this place must find a descriptor.
            drop(place);
            drop(descriptor);
        });
    }
}

/// A value that is costly to compute, and is reused for a moment.
pub(crate) struct Fresh<T> {
    age: Duration,
    known: tokio::sync::Mutex<Option<(Instant, Arc<T>)>>,
}

impl<T> Fresh<T> {
    /// Nothing yet; what is found out is given to others for so long.
    pub(crate) fn new(age: Duration) -> Self {
        Self { age, known: tokio::sync::Mutex::new(None) }
    }

    /// Returns what is known, or else what `find` finds. Only one at a time looks; the others wait
    /// and get the same.
    pub(crate) async fn get(&self, find: impl FnOnce() -> T) -> Arc<T> {
        let mut known = self.known.lock().await;
        if let Some((when, value)) = &*known
            && when.elapsed() < self.age
        {
            return value.clone();
        }
        let value = Arc::new(find());
        *known = Some((Instant::now(), value.clone()));
        value
    }
}

#[cfg(test)]
mod tests;
