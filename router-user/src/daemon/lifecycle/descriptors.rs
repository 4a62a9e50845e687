//! The limit of open files.

use tracing::warn;

use crate::{
    config::Config,
    daemon::{
        checks,
        serve::{api, http, metrics, probe},
    },
};

/// Raises the limit of open files so far that the listeners together cannot reach it, or warns.
pub(crate) fn reserve_descriptors(config: &Config) {
    /// Descriptors for everything else: maps, links, netlink, name servers, files that are read.
    const OTHERS: usize = 256;
    let limits = [probe::limits(config), metrics::limits(), api::limits()];
    let needed =
        limits.iter().map(http::Limits::descriptors).sum::<usize>() + checks::schedule::AT_ONCE + OTHERS;
    match http::raise_descriptor_limit() {
        Ok(limit) if limit < needed as u64 => warn!(
            "this process may open {limit} files, but needs {needed} to keep the probe available under load; fix: \
             LimitNOFILE= of the service, or ulimit -Hn"
        ),
        Ok(_) => {}
        Err(error) => warn!("cannot raise the limit of open files: {error}"),
    }
}
