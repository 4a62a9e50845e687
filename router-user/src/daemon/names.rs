//! Targets given by name.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{net::lookup_host, time::timeout};
use tracing::{info, warn};

use super::{Names, rule_set, shared::Shared};
use crate::config::{Config, Host};

/// How often names are resolved again.
const REFRESH: Duration = Duration::from_secs(30);
/// How soon after a failure.
const RETRY: Duration = Duration::from_secs(3);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of a name.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    /// The addresses of the last good answer, in order.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// When that came; when it was first asked for, if there is none yet.
    pub(super) since: Instant,
    /// What went wrong at the last attempt; empty when it went well.
    pub(super) problem: String,
}

/// Resolves every name of a configuration, all at the same time.
pub(super) async fn resolve_all(config: &Config) -> Names {
    let mut names: Vec<&String> = config
        .forwards
        .iter()
        .flat_map(|forward| &forward.targets)
        .filter_map(|target| match &target.host {
            Host::Name(name) => Some(name),
            Host::Address(_) => None,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    let answers = names.into_iter().map(async |name| {
        let (addresses, problem) = match resolve(name).await {
            Ok(addresses) => (addresses, String::new()),
            Err(problem) => (Vec::new(), problem),
        };
        (name.clone(), Resolved { addresses, since: Instant::now(), problem })
    });
    futures_util::future::join_all(answers).await.into_iter().collect()
}

async fn resolve(name: &str) -> Result<Vec<Ipv4Addr>, String> {
    let answer = match timeout(PATIENCE, lookup_host((name, 0))).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no answer from the resolver in {} s", PATIENCE.as_secs())),
    };
    let mut addresses: Vec<Ipv4Addr> = answer
        .filter_map(|address| match address.ip() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .collect();
    // Resolvers rotate: in order, the same answer is the same.
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() { Err("it has no IPv4 address".to_owned()) } else { Ok(addresses) }
}

/// Resolves names again and again; a failure keeps the last good answer.
pub(super) async fn follow(shared: Arc<Shared>) -> Result<()> {
    if shared.names().is_empty() {
        return std::future::pending().await;
    }
    loop {
        let failing = shared.names().values().any(|resolved| !resolved.problem.is_empty());
        tokio::time::sleep(if failing { RETRY } else { REFRESH }).await;
        let fresh = resolve_all(&shared.config).await;
        let mut changed = false;
        {
            let mut names = shared.names();
            for (name, new) in fresh {
                let Some(known) = names.get_mut(&name) else { continue };
                if !new.problem.is_empty() {
                    if known.problem != new.problem {
                        warn!(
                            name,
                            problem = new.problem,
                            "cannot resolve; the last good answer stays in use"
                        );
                    }
                    known.problem = new.problem;
                    continue;
                }
                if known.addresses != new.addresses {
                    info!(name, addresses = ?new.addresses, "resolved to other addresses");
                    changed = true;
                }
                *known = new;
            }
        }
        if changed {
            let spec = rule_set::build(&shared.config, &shared.names(), &shared.snat);
            let plane = &mut *shared.plane();
            plane.rules.apply(&spec, &mut plane.settings)?;
        }
    }
}
