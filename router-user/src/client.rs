//! The client of a running daemon: HTTP over its Unix socket.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, task::JoinSet};

use crate::private;

use crate::model::{Audit, Counters, Drain, Flow, FlowQuery, Reload, ReloadQuery, Rule, Status};

/// The longest wait for the daemon, which answers from memory.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest wait for a reload, which may resolve names, load programs and end sessions.
const RELOAD: Duration = Duration::from_secs(300);

/// A daemon, by its socket. Each request has its own connection.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// The reason why there is no answer. Its text tells the remedy.
#[derive(Debug)]
pub enum ClientError {
    /// No process listens at the socket.
    NoDaemon {
        /// The socket.
        socket: PathBuf,
    },
    /// This user may not speak to the daemon.
    Forbidden {
        /// The socket.
        socket: PathBuf,
    },
    /// A process of another user listens at the socket.
    Foreign {
        /// The socket.
        socket: PathBuf,
        /// The user's number.
        user: u32,
    },
    /// The daemon has refused the request.
    Refused {
        /// Its HTTP status.
        status: StatusCode,
        /// The daemon's text.
        text: String,
    },
    /// The connection broke, or the answer makes no sense.
    Broken {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        why: String,
    },
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDaemon { socket } => write!(
                f,
                "no pls-router daemon is listening at {}\n  fix: start it with: systemctl start pls-router \
                 (or name its socket with --socket PATH)",
                socket.display()
            ),
            Self::Forbidden { socket } => {
                write!(
                    f,
                    "this user may not use {}\n  fix: run this as root (sudo); members of the group pls-router may look, if it was there \
                     when the daemon started",
                    socket.display()
                )
            }
            Self::Foreign { socket, user } => write!(
                f,
                "a process of user {user}, not pls-router, listens at {}\n  fix: end it, remove the socket, and name one in a \
                 directory that only root can write (`socket` of [admin])",
                socket.display()
            ),
            Self::Refused { status, text } => write!(f, "the daemon refused: {text} ({status})"),
            Self::Broken { socket, why } => write!(
                f,
                "the daemon at {} gave no usable answer: {why}\n  fix: see its log: journalctl -u pls-router",
                socket.display()
            ),
        }
    }
}

impl std::error::Error for ClientError {}

impl Client {
    /// Returns a client of the daemon that listens at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// `GET /v1/status`
    ///
    /// # Errors
    /// Returns an error if there is no usable answer.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// `GET /v1/counters`
    ///
    /// # Errors
    /// Returns an error if there is no usable answer.
    pub async fn counters(&self) -> Result<Counters, ClientError> {
        self.get("/v1/counters").await
    }

    /// `GET /v1/rules`
    ///
    /// # Errors
    /// Returns an error if there is no usable answer.
    pub async fn rules(&self) -> Result<Vec<Rule>, ClientError> {
        self.get("/v1/rules").await
    }

    /// `GET /v1/flows`
    ///
    /// # Errors
    /// Returns an error if there is no usable answer.
    pub async fn flows(&self, query: &FlowQuery) -> Result<Vec<Flow>, ClientError> {
        self.get(&self.path_of_flows(query)?).await
    }

    /// Returns the same as JSON, in parts: all sessions may be hundreds of megabytes.
    ///
    /// # Errors
    /// Returns an error if there is no usable answer.
    pub async fn flows_as_written(&self, query: &FlowQuery) -> Result<Body<'_>, ClientError> {
        self.in_time(self.begin(Method::GET, &self.path_of_flows(query)?)).await
    }

    fn path_of_flows(&self, query: &FlowQuery) -> Result<String, ClientError> {
        let query = serde_urlencoded::to_string(query).map_err(|error| self.broken(error))?;
        Ok(format!("/v1/flows?{query}"))
    }

    /// `GET /v1/audit`
    ///
    /// # Errors
    /// Returns an error if there is no usable answer.
    pub async fn audit(&self) -> Result<Audit, ClientError> {
        self.get("/v1/audit").await
    }

    /// `POST /v1/stand-down`: from now on, the daemon repairs nothing that is removed.
    ///
    /// # Errors
    /// Returns an error if there is no usable answer.
    pub async fn stand_down(&self) -> Result<(), ClientError> {
        self.ask(Method::POST, "/v1/stand-down").await
    }

    /// `GET /v1/drain`
    ///
    /// # Errors
    /// Returns an error if there is no usable answer.
    pub async fn draining(&self) -> Result<Drain, ClientError> {
        self.get("/v1/drain").await
    }

    /// `POST /v1/drain`: from now on, the probe answers 503.
    ///
    /// # Errors
    /// Returns an error if there is no usable answer, or the daemon cannot note it.
    pub async fn drain(&self) -> Result<Drain, ClientError> {
        self.ask(Method::POST, "/v1/drain").await
    }

    /// `POST /v1/undrain`: takes [`drain`](Self::drain) back. Returns the state of before.
    ///
    /// # Errors
    /// Returns an error if there is no usable answer, or the daemon cannot note it.
    pub async fn undrain(&self) -> Result<Drain, ClientError> {
        self.ask(Method::POST, "/v1/undrain").await
    }

    /// `POST /v1/reload`: the daemon reads its configuration file again.
    ///
    /// # Errors
    /// Returns an error if there is no usable answer.
    pub async fn reload(&self, query: ReloadQuery) -> Result<Reload, ClientError> {
        let query = serde_urlencoded::to_string(query).map_err(|error| self.broken(error))?;
        self.ask_for(RELOAD, Method::POST, &format!("/v1/reload?{query}")).await
    }

    /// Returns the answer to `GET path`, a path of the API with its query.
    ///
    /// # Errors
    /// Returns an error if there is no usable answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ClientError> {
        self.ask_for(PATIENCE, method, path).await
    }

    /// Asks, and waits for the answer for `patience` at most.
    async fn ask_for<T: DeserializeOwned>(
        &self,
        patience: Duration,
        method: Method,
        path: &str,
    ) -> Result<T, ClientError> {
        let whole = async { self.begin(method, path).await?.whole().await };
        let answer = self.within(patience, whole).await?;
        serde_json::from_slice(&answer).map_err(|error| self.broken(format!("{path}: {error}")))
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        self.within(PATIENCE, answer).await
    }

    async fn within<T>(
        &self,
        patience: Duration,
        answer: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(patience, answer)
            .await
            .map_err(|_| self.broken(format!("no answer in {} seconds", patience.as_secs())))?
    }

    /// Sends a request and waits for the start of the answer.
    async fn begin(&self, method: Method, path: &str) -> Result<Body<'_>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let user = stream.peer_cred().map_err(|error| self.broken(error))?.uid();
        if !private::is_owner(user) {
            return Err(ClientError::Foreign { socket: self.socket.clone(), user });
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        // Drives the connection. The request below gets its errors too.
        let mut driver = JoinSet::new();
        driver.spawn(async { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.broken(error))?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let status = response.status();
        let body = Body { client: self, body: response.into_body(), _driver: driver };
        if status.is_success() {
            Ok(body)
        } else {
            let text = String::from_utf8_lossy(&body.whole().await?).trim().to_owned();
            Err(ClientError::Refused { status, text })
        }
    }

    fn unreachable(&self, error: &std::io::Error) -> ClientError {
        let socket = self.socket.clone();
        let kind = error.kind();
        if kind == ErrorKind::NotFound || kind == ErrorKind::ConnectionRefused {
            ClientError::NoDaemon { socket }
        } else if kind == ErrorKind::PermissionDenied {
            ClientError::Forbidden { socket }
        } else {
            self.broken(error)
        }
    }

    fn broken(&self, why: impl fmt::Display) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), why: why.to_string() }
    }
}

/// The body of an answer.
#[derive(Debug)]
pub struct Body<'a> {
    client: &'a Client,
    body: Incoming,
    /// The connection, until this is dropped.
    _driver: JoinSet<()>,
}

impl Body<'_> {
    /// Returns the next part; `None` after the last.
    ///
    /// # Errors
    /// Returns an error if the connection breaks, or the daemon is silent for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let Self { client, body, .. } = self;
            let frame = client.in_time(async { Ok(body.frame().await) }).await?;
            let Some(frame) = frame.transpose().map_err(|error| client.broken(error))? else {
                return Ok(None);
            };
            // Any other frame is a trailer.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    async fn whole(self) -> Result<Bytes, ClientError> {
        let Self { client, body, _driver } = self;
        Ok(body.collect().await.map_err(|error| client.broken(error))?.to_bytes())
    }
}
