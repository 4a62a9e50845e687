//! The sockets that the daemon answers on.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::{
        fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, PermissionsExt as _},
            net::UnixListener as StdUnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::{Context as _, Result, anyhow, bail};
use sd_notify::NotifyState;
use socket2::Socket;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tracing::warn;

use super::onlookers;
use crate::{config::Config, daemon::serve::http, private};

/// The sockets that the daemon answers on. They are kept open while nobody serves them, so that a
/// client that connects meanwhile waits, and is not refused.
pub(crate) struct Listeners {
    probe: StdTcpListener,
    admin: StdTcpListener,
    api: StdUnixListener,
    /// The file of the API's socket.
    path: PathBuf,
    /// `true` if that was made for this daemon, and not inherited.
    is_new: bool,
}

/// The same sockets, for the tasks that serve them.
pub(crate) struct Served {
    pub(crate) probe: TcpListener,
    pub(crate) admin: TcpListener,
    pub(crate) api: UnixListener,
}

/// The names of the sockets when they are handed on.
const PROBE: &str = "probe";
const ADMIN: &str = "admin";
const API: &str = "api";

/// The end of the names of sockets that a socket unit has opened, which are those of the unit
/// unless it has a `FileDescriptorName=` (systemd.socket(5)).
const OF_UNIT: &str = ".socket";

impl Listeners {
    /// Listens where the configuration says, on inherited sockets where those fit.
    pub(crate) fn bind(config: &Config, mut inherited: Inherited) -> Result<Self> {
        let mut tcp =
            |name, address, key| inherited.take_tcp(name, address).map_or_else(|| listen(address, key), Ok);
        let probe = tcp(PROBE, config.health.listen, "health.listen")?;
        let admin = tcp(ADMIN, config.admin.listen, "admin.listen")?;
        for (unit, address) in inherited.left_over(&[&probe, &admin]) {
            warn!(
                "{unit} listens on {address}, which is neither health.listen nor admin.listen: whoever connects \
                 there waits in vain; fix: systemctl edit {unit} (ListenStream=), systemctl stop pls-router, \
                 systemctl start pls-router"
            );
        }
        let socket = &config.admin.socket;
        let inherited = inherited.take_unix(API, socket);
        let is_new = inherited.is_none();
        let api = match inherited {
            Some(listener) => listener,
            None => bind_unix(socket)
                .with_context(|| format!("cannot listen on {} (admin.socket)", socket.display()))?,
        };
        onlookers::admit(socket);
        Ok(Self { probe, admin, api, path: socket.clone(), is_new })
    }

    /// Returns other handles to the sockets, for listeners that take the place of these.
    ///
    /// # Errors
    /// Returns an error if the process lacks descriptors.
    pub(crate) fn inherit(&self) -> Result<Inherited> {
        let share = |(name, socket): (&str, BorrowedFd<'_>)| {
            socket.try_clone_to_owned().map(|socket| (name.to_owned(), socket))
        };
        let sockets = self.named().into_iter().map(share).collect::<io::Result<_>>();
        Ok(Inherited::of(sockets.context("cannot share the listening sockets")?))
    }

    /// Returns the path of the API's socket.
    pub(crate) fn api(&self) -> &Path {
        &self.path
    }

    /// Removes the file of the API's socket, if that was made for this daemon.
    pub(crate) fn remove_new(&self) {
        if self.is_new {
            self.remove();
        }
    }

    /// Removes the file of the API's socket.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Returns handles for the tasks that serve them.
    pub(crate) fn serve(&self) -> Result<Served> {
        let shared = || -> io::Result<Served> {
            Ok(Served {
                probe: TcpListener::from_std(self.probe.try_clone()?)?,
                admin: TcpListener::from_std(self.admin.try_clone()?)?,
                api: UnixListener::from_std(self.api.try_clone()?)?,
            })
        };
        shared().context("cannot serve the listening sockets")
    }

    /// Returns the sockets by name, to be handed on.
    pub(crate) fn named(&self) -> [(&'static str, BorrowedFd<'_>); 3] {
        [(PROBE, self.probe.as_fd()), (ADMIN, self.admin.as_fd()), (API, self.api.as_fd())]
    }

    /// Has the service manager keep the sockets for the next daemon, if there is one that does.
    pub(crate) fn store(&self) {
        for (name, socket) in self.named() {
            let stored =
                sd_notify::notify_with_fds(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)], &[])
                    .and_then(|()| {
                        sd_notify::notify_with_fds(
                            &[NotifyState::FdStore, NotifyState::FdName(name)],
                            &[socket],
                        )
                    });
            if let Err(error) = stored {
                warn!("the service manager does not keep a socket ({name}) over a restart: {error}");
            }
        }
    }
}

/// Has the service manager let go of a socket.
fn forget(name: &str) {
    // Without a service manager there is none to notify.
    let _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// Returns `true` if this process was started by a service manager that can keep sockets.
pub(crate) fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Listens on a Unix socket that root may use, in a directory that only root can write.
pub(super) fn bind_unix(socket: &Path) -> Result<StdUnixListener> {
    private::make(socket.parent().unwrap_or(Path::new("/")))?;
    remove_stale(socket)?;
    let listener = StdUnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Sockets of an earlier daemon, by name.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<(String, OwnedFd)>);

impl Inherited {
    /// Returns those that the service manager has kept (sd_listen_fds(3)); none from the second
    /// call on.
    pub(crate) fn from_service_manager() -> Self {
        static ARE_TAKEN: AtomicBool = AtomicBool::new(false);
        if ARE_TAKEN.swap(true, Relaxed) {
            return Self::default();
        }
        let Ok(sockets) = sd_notify::listen_fds_with_names() else { return Self::default() };
        // SAFETY: the service manager has opened them for this process, and nothing else owns them:
        // this is done once.
        let own = |(descriptor, name)| (name, unsafe { OwnedFd::from_raw_fd(descriptor) });
        Self(sockets.map(own).collect())
    }

    /// Returns these sockets.
    pub(crate) fn of(sockets: Vec<(String, OwnedFd)>) -> Self {
        Self(sockets)
    }

    /// Returns `true` if the socket of the API is among them.
    pub(crate) fn has_api(&self) -> bool {
        self.0.iter().any(|(name, _)| name == API)
    }

    /// Takes a socket that fits, and that has this name or is a socket unit's.
    fn take<T>(&mut self, name: &str, fits: impl Fn(&Socket) -> io::Result<bool>) -> Option<T>
    where
        T: From<Socket>,
    {
        let is_it = |(known, socket): &(String, OwnedFd)| {
            (known == name || known.ends_with(OF_UNIT))
                && socket.try_clone().map(Socket::from).is_ok_and(|socket| {
                    socket.is_listener().unwrap_or(false) && fits(&socket).unwrap_or(false)
                })
        };
        let position = self.0.iter().position(is_it)?;
        let socket = Socket::from(self.0.remove(position).1);
        socket.set_nonblocking(true).and_then(|()| socket.set_cloexec(true)).ok()?;
        Some(T::from(socket))
    }

    /// Takes a TCP socket that listens on this address. Lets go of one that does not, also in the
    /// service manager's store: while it is open, it may take connections that nobody accepts.
    fn take_tcp(&mut self, name: &str, address: SocketAddr) -> Option<StdTcpListener> {
        let taken = self.take(name, |socket| Ok(socket.local_addr()?.as_socket() == Some(address)));
        let count = self.0.len();
        self.0.retain(|(known, _)| known != name);
        if taken.is_none() && self.0.len() < count {
            forget(name);
        }
        taken
    }

    /// Returns the sockets of socket units that are not among those in use, each with its unit and
    /// its address.
    fn left_over(&self, used: &[&StdTcpListener]) -> Vec<(&str, SocketAddr)> {
        let used: Vec<_> = used.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let of_units = self.0.iter().filter(|(name, _)| name.ends_with(OF_UNIT));
        let addressed = of_units.filter_map(|(name, socket)| {
            let address = Socket::from(socket.try_clone().ok()?).local_addr().ok()?.as_socket()?;
            Some((name.as_str(), address))
        });
        // One that was stored as well is there twice.
        addressed.filter(|(_, address)| !used.contains(address)).collect()
    }

    /// Takes a Unix socket. One whose file was removed cannot be reached any more.
    fn take_unix(&mut self, name: &str, path: &Path) -> Option<StdUnixListener> {
        let is_there = std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket());
        self.take(name, |socket| Ok(is_there && socket.local_addr()?.as_pathname() == Some(path)))
    }
}

/// Removes the socket that an earlier daemon has left; the caller has checked that no daemon
/// answers. Anything else is not ours to remove.
fn remove_stale(socket: &Path) -> Result<()> {
    match std::fs::symlink_metadata(socket) {
        Ok(there) if there.file_type().is_socket() => {
            std::fs::remove_file(socket).with_context(|| format!("cannot remove {}", socket.display()))
        }
        Ok(_) => bail!(
            "{} (admin.socket) exists and is not a socket\n  fix: name a path in a directory of its own, such as \
             /run/pls-router/api.sock",
            socket.display()
        ),
        Err(_) => Ok(()),
    }
}

/// Returns `true` if a daemon of this user answers on the socket.
pub(crate) async fn is_answered(socket: &Path) -> bool {
    // In a directory that others may write, others may make this file. Only one of this user's is a
    // daemon's.
    match UnixStream::connect(socket).await {
        Ok(stream) => stream.peer_cred().is_ok_and(|peer| private::is_owner(peer.uid())),
        Err(_) => false,
    }
}

/// Listens on an address that this key of the configuration names.
fn listen(address: SocketAddr, key: &str) -> Result<StdTcpListener> {
    http::listen(address).map_err(|error| {
        let fix = if error.kind() == ErrorKind::AddrNotAvailable {
            "name an address of this machine, or 0.0.0.0 for all of them"
        } else {
            "name another port; who has this one says `ss -tlnp` (systemd, if a socket unit of the \
             router's names an address that overlaps with it)"
        };
        anyhow!("cannot listen on {address} ({key}): {error}\n  fix: {fix}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> (StdTcpListener, SocketAddr) {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Another handle, as the service manager hands it on.
    fn named(name: &str, listener: &StdTcpListener) -> (String, OwnedFd) {
        (name.to_owned(), listener.try_clone().unwrap().into())
    }

    #[test]
    fn a_socket_of_a_unit_is_taken_by_its_address() {
        let ((probe, address), (other, _)) = (listener(), listener());
        let sockets = vec![named("pls-router.socket", &other), named("pls-router.socket", &probe)];
        let mut inherited = Inherited::of(sockets);
        let taken = inherited.take_tcp(PROBE, address).unwrap();
        assert_eq!(taken.local_addr().unwrap(), address);
        assert!(inherited.take_tcp(ADMIN, address).is_none());
    }

    #[test]
    fn what_has_another_name_is_not_taken() {
        let (probe, address) = listener();
        let mut inherited = Inherited::of(vec![named("unknown", &probe)]);
        assert!(inherited.take_tcp(PROBE, address).is_none());
    }

    #[test]
    fn a_socket_of_a_unit_that_nobody_uses_is_said() {
        let ((probe, address), (other, elsewhere)) = (listener(), listener());
        // The first one twice: by its unit, and from the store.
        let sockets = vec![
            named(PROBE, &probe),
            named("pls-router.socket", &probe),
            named("pls-router.socket", &other),
        ];
        let mut inherited = Inherited::of(sockets);
        let taken = inherited.take_tcp(PROBE, address).unwrap();
        assert_eq!(inherited.left_over(&[&taken]), [("pls-router.socket", elsewhere)]);
    }
}
