//! The sockets that the daemon answers on.

use std::{
    io::ErrorKind,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tracing::warn;

use crate::{
    config::Config,
    daemon::serve::{api, http, metrics, probe},
    private,
};

/// The sockets that the daemon answers on.
pub(crate) struct Listeners {
    pub(crate) probe: TcpListener,
    pub(crate) admin: TcpListener,
    pub(crate) api: UnixListener,
}

impl Listeners {
    pub(crate) fn bind(config: &Config) -> Result<Self> {
        let tcp = |address: std::net::SocketAddr, key: &str| {
            http::listen(address).map_err(|error| {
                let fix = if error.kind() == ErrorKind::AddrNotAvailable {
                    "name an address of this machine, or 0.0.0.0 for all of them"
                } else {
                    "name another port; who has this one says `ss -tlnp`"
                };
                anyhow!("cannot listen on {address} ({key}): {error}\n  fix: {fix}")
            })
        };
        let probe = tcp(config.health.listen, "health.listen")?;
        let admin = tcp(config.admin.listen, "admin.listen")?;
        let socket = &config.admin.socket;
        let directory = socket.parent().unwrap_or(Path::new("/"));
        private::make(directory).context("admin.socket")?;
        remove_stale(socket)?;
        let api = UnixListener::bind(socket)
            .with_context(|| format!("cannot listen on {} (admin.socket)", socket.display()))?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))
            .with_context(|| format!("cannot restrict {}", socket.display()))?;
        Ok(Self { probe, admin, api })
    }
}

/// Raises the limit of open files so far that the listeners together cannot reach it, or warns.
pub(crate) fn reserve_descriptors(config: &Config) {
    /// Descriptors for everything else: maps, links, netlink, name servers, files that are read.
    const OTHERS: usize = 256;
    let limits = [probe::limits(config), metrics::limits(), api::limits()];
    let needed = limits.iter().map(http::Limits::descriptors).sum::<usize>() + OTHERS;
    match http::raise_descriptor_limit() {
        Ok(limit) if limit < needed as u64 => warn!(
            "this process may open {limit} files, but needs {needed} to keep the probe available under load; fix: \
             LimitNOFILE= of the service, or ulimit -Hn"
        ),
        Ok(_) => {}
        Err(error) => warn!("cannot raise the limit of open files: {error}"),
    }
}

/// Removes the socket that an earlier daemon has left; `refuse_second` has checked that no daemon
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

/// Refuses to be the second daemon with the same socket.
pub(crate) async fn refuse_second(socket: &Path) -> Result<()> {
    let Ok(stream) = UnixStream::connect(socket).await else { return Ok(()) };
    // In a directory that others may write, others may make this file. Only one of this user's is a
    // daemon's.
    if stream.peer_cred().is_ok_and(|peer| private::is_owner(peer.uid())) {
        bail!("a pls-router daemon is running already: it answers on {}", socket.display());
    }
    Ok(())
}
