//! The hand-over from a running daemon to its successor (`run --take-over`).
//!
//! The successor has loaded its programs beside those in force before it asks. The running daemon
//! then pauses everything that writes to the data plane, and answers with its listening sockets.
//! The successor puts its programs in force and says so, and the running daemon ends. If the
//! successor fails instead, its connection ends, and the running daemon goes on as before. Clients
//! of the sockets wait meanwhile.
//!
//! Both speak over a Unix socket beside that of the API, by lines of JSON; the descriptors come
//! with the first byte of the answer (`SCM_RIGHTS`, unix(7)).

use std::{
    io::ErrorKind,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use sendfd::{RecvWithFd as _, SendWithFd as _};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::warn;

use super::listeners::{Inherited, Listeners, bind_unix, is_managed};
use crate::private;

/// The version of what both say.
const VERSION: u32 = 1;
/// The longest line.
const MAX_LINE: usize = 4096;
/// The most descriptors of an answer.
const MAX_SOCKETS: usize = 16;
/// The time that the other one may take for a line.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time that a successor may take to come into force.
const ACTIVATION: Duration = Duration::from_secs(60);
/// The time that a running daemon may take to pause.
const PAUSE: Duration = Duration::from_secs(30);

/// The successor's first line.
#[derive(Debug, Deserialize, Serialize)]
struct Question {
    version: u32,
    /// The successor's version, for the log.
    program: String,
}

/// The running daemon's line.
#[derive(Debug, Deserialize, Serialize)]
enum Answer {
    /// It has paused. The sockets by name, in the order of the descriptors.
    Granted { sockets: Vec<String> },
    /// It goes on.
    Refused { reason: String },
}

/// The successor's last line.
#[derive(Debug, Deserialize, Serialize)]
struct Done {
    /// The successor's programs are in force.
    done: bool,
}

/// Returns the path of the socket, for a daemon with this API socket.
fn path(api: &Path) -> PathBuf {
    api.with_extension("hand-over")
}

/// The running daemon's end: waits for a successor.
pub(crate) struct Offer {
    /// `None` if there is no socket: no successor can ask then.
    listener: Option<UnixListener>,
    path: PathBuf,
    /// A successor that has not said anything yet.
    silent: Option<UnixStream>,
}

impl Offer {
    /// Listens beside the API's socket. A daemon that cannot forwards all the same.
    pub(crate) fn listen(api: &Path) -> Self {
        let path = path(api);
        let listener = bind_unix(&path).and_then(|listener| Ok(UnixListener::from_std(listener)?));
        let listener = listener.map_err(|error| {
            warn!("no other daemon can take over: cannot listen on {}: {error:#}", path.display());
        });
        Self { listener: listener.ok(), path, silent: None }
    }

    /// Waits for the next successor. Others are not answered. Nothing is lost if the future is
    /// dropped.
    pub(crate) async fn asked(&mut self) -> Request {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        loop {
            if self.silent.is_none() {
                match listener.accept().await {
                    Ok((stream, _)) => self.silent = Some(stream),
                    // A lack of descriptors passes.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
            let Some(stream) = &self.silent else { continue };
            let peer = stream.peer_cred();
            let is_owner = peer.as_ref().is_ok_and(|peer| private::is_owner(peer.uid()));
            let process = peer.ok().and_then(|peer| peer.pid());
            let question = if is_owner { read_line(stream, PATIENCE).await.ok() } else { None };
            if let (Some(stream), Some(Question { version, program })) = (self.silent.take(), question) {
                return Request { stream, version, program, process };
            }
        }
    }

    /// Returns `true` if it is beside this API socket.
    pub(crate) fn is_beside(&self, api: &Path) -> bool {
        self.path == path(api)
    }

    /// Removes the socket's file.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A successor that waits for an answer.
pub(crate) struct Request {
    stream: UnixStream,
    version: u32,
    /// The successor's version.
    pub(crate) program: String,
    /// The successor's process.
    pub(crate) process: Option<i32>,
}

impl Request {
    /// Returns the reason why this daemon cannot be taken over by this successor, if there is one.
    pub(crate) fn obstacle(&self) -> Option<String> {
        if is_managed() {
            let reason = "it runs under a service manager, which would take its end for a failure; \
                          fix: systemctl restart pls-router, which loses no session either";
            return Some(reason.to_owned());
        }
        (self.version != VERSION).then(|| {
            format!("it hands over by version {VERSION} of the protocol and not by {}", self.version)
        })
    }

    /// Tells the successor that this daemon goes on.
    pub(crate) async fn refuse(self, reason: String) {
        // It may have gone.
        let _ = write_line(&self.stream, &Answer::Refused { reason }, &[]).await;
    }

    /// Gives the successor the sockets. This daemon has paused.
    ///
    /// # Errors
    /// Returns an error if the successor has gone.
    pub(crate) async fn grant(&self, listeners: &Listeners) -> Result<()> {
        let named = listeners.named();
        let sockets = named.iter().map(|(name, _)| (*name).to_owned()).collect();
        let descriptors = named.map(|(_, socket)| socket.as_raw_fd());
        write_line(&self.stream, &Answer::Granted { sockets }, &descriptors).await
    }

    /// Waits until the successor's programs are in force. A successor that hangs is killed: nobody
    /// answers the probe meanwhile.
    ///
    /// # Errors
    /// Returns an error if the successor ends before that.
    pub(crate) async fn done(&self) -> Result<()> {
        let answer = timeout(ACTIVATION, read_line(&self.stream, Duration::MAX)).await;
        let Done { done } = answer.unwrap_or_else(|_| {
            self.kill();
            Err(anyhow!("it has not come into force in {} s, and was killed", ACTIVATION.as_secs()))
        })?;
        ensure!(done, "it has failed");
        Ok(())
    }

    /// Kills the successor. Its connection is open, so its number is no other process's.
    fn kill(&self) {
        if let Some(process) = self.process {
            // SAFETY: takes numbers only.
            unsafe { libc::kill(process, libc::SIGKILL) };
        }
    }
}

/// The successor's end: the running daemon whose place it takes.
pub(crate) struct Predecessor {
    path: PathBuf,
}

/// The running daemon, which has paused.
pub(crate) struct Paused {
    stream: UnixStream,
}

impl Predecessor {
    /// Finds the running daemon with this API socket, if there is one.
    ///
    /// # Errors
    /// Returns an error if something else listens there.
    pub(crate) async fn find(api: &Path) -> Result<Option<Self>> {
        let path = path(api);
        match connect(&path).await {
            Ok(_) => Ok(Some(Self { path })),
            Err(error) => match error.downcast_ref().map(std::io::Error::kind) {
                Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
                Some(_) | None => Err(error),
            },
        }
    }

    /// Asks the running daemon to hand over. When it has, nothing but this process writes to the
    /// data plane, until [`Paused::finish`] or the end of that value.
    ///
    /// # Errors
    /// Returns an error if it refuses, or does not answer.
    pub(crate) async fn ask(&self) -> Result<(Paused, Inherited)> {
        const FIX: &str = "fix: stop it first (systemctl stop pls-router); no session is lost";
        let stream = connect(&self.path).await?;
        let program = crate::VERSION.to_owned();
        write_line(&stream, &Question { version: VERSION, program }, &[]).await?;
        let (answer, sockets) = read_line_with(&stream, PAUSE)
            .await
            .with_context(|| format!("the running daemon does not hand over\n  {FIX}"))?;
        match answer {
            Answer::Granted { sockets: names } => {
                ensure!(names.len() == sockets.len(), "the running daemon has not sent its sockets\n  {FIX}");
                Ok((Paused { stream }, Inherited::of(names.into_iter().zip(sockets).collect())))
            }
            Answer::Refused { reason } => bail!("the running daemon does not hand over: {reason}"),
        }
    }
}

impl Paused {
    /// Tells it that this process has its place, and waits until it has ended.
    pub(crate) async fn finish(self) {
        // One that has gone already is as good.
        if write_line(&self.stream, &Done { done: true }, &[]).await.is_ok() {
            // It closes the connection when it ends.
            let end: Result<Done> = read_line(&self.stream, PATIENCE).await;
            drop(end);
        }
    }
}

/// Connects to the socket of a daemon of this user.
async fn connect(path: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(path).await;
    let stream = stream.with_context(|| format!("cannot connect to {}", path.display()))?;
    let user = stream.peer_cred().context("cannot tell whose socket it is")?.uid();
    ensure!(private::is_owner(user), "a process of user {user} listens on {}", path.display());
    Ok(stream)
}

/// Writes a line, and descriptors with it.
async fn write_line<T: Serialize>(stream: &UnixStream, line: &T, descriptors: &[RawFd]) -> Result<()> {
    const BROKEN: &str = "the connection for the hand-over is broken";
    let mut text = serde_json::to_vec(line).context(BROKEN)?;
    text.push(b'\n');
    let (mut rest, mut descriptors) = (text.as_slice(), descriptors);
    while !rest.is_empty() {
        timeout(PATIENCE, stream.writable()).await.context(BROKEN)?.context(BROKEN)?;
        match stream.send_with_fd(rest, descriptors) {
            // They went with the first byte.
            Ok(sent) => (rest, descriptors) = (rest.get(sent..).unwrap_or_default(), &[]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context(BROKEN),
        }
    }
    Ok(())
}

/// Reads a line.
async fn read_line<T: DeserializeOwned>(stream: &UnixStream, patience: Duration) -> Result<T> {
    read_line_with(stream, patience).await.map(|(line, _)| line)
}

/// Reads a line and the descriptors that come with it.
async fn read_line_with<T: DeserializeOwned>(
    stream: &UnixStream,
    patience: Duration,
) -> Result<(T, Vec<OwnedFd>)> {
    let (mut line, mut sockets) = (Vec::new(), Vec::new());
    let reading = async {
        while line.last() != Some(&b'\n') {
            ensure!(line.len() < MAX_LINE, "the other daemon's line is too long");
            stream.ready(Interest::READABLE).await?;
            let (mut bytes, mut descriptors) = ([0; MAX_LINE], [-1; MAX_SOCKETS]);
            match stream.recv_with_fd(&mut bytes, &mut descriptors) {
                Ok((count, received)) => {
                    // SAFETY: the kernel has just made these for this process, and nothing else
                    // owns them.
                    let own = |descriptor: &RawFd| unsafe { OwnedFd::from_raw_fd(*descriptor) };
                    sockets.extend(descriptors.get(..received).unwrap_or_default().iter().map(own));
                    ensure!(count > 0, "the other daemon has ended");
                    line.extend_from_slice(bytes.get(..count).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("the connection for the hand-over is broken"),
            }
        }
        Ok(())
    };
    timeout(patience, reading).await.context("the other daemon does not answer")??;
    Ok((serde_json::from_slice(&line).context("the other daemon's line makes no sense")?, sockets))
}
