//! Targets given by name.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{net::lookup_host, time::timeout};
use tracing::{info, warn};

use super::{Names, shared::Shared};
use crate::{
    config::{Config, Host, Target, no_target},
    dataplane::RuleTable,
};

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
    usable(answer.map(|address| address.ip()))
}

/// The addresses of an answer that packets can be sent to. What the configuration may not name, an answer may not either: above
/// all Azure's platform address, which a rule must never lead to.
fn usable(answer: impl Iterator<Item = IpAddr>) -> Result<Vec<Ipv4Addr>, String> {
    let mut refused = None;
    let mut addresses: Vec<Ipv4Addr> = answer
        .filter_map(|address| match address {
            IpAddr::V4(address) => match no_target(address) {
                None => Some(address),
                Some(why) => {
                    refused = Some(format!("its address {address} is {why}"));
                    None
                }
            },
            IpAddr::V6(_) => None,
        })
        .collect();
    // Resolvers rotate: in order, the same answer is the same.
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(refused.unwrap_or_else(|| "it has no IPv4 address".to_owned()));
    }
    Ok(addresses)
}

/// Has names that cannot be resolved now keep the addresses that an earlier daemon found: for rules that lead to one name, which
/// the rules in the data plane tell.
pub(super) fn keep_targets(names: &mut Names, config: &Config, rules: &RuleTable) {
    for forward in &config.forwards {
        let [Target { host: Host::Name(name), .. }] = forward.targets.as_slice() else { continue };
        let Some(resolved) = names.get_mut(name) else { continue };
        if resolved.addresses.is_empty() {
            resolved.addresses = rules.targets(&forward.name);
        }
    }
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
            shared.apply_rules()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_held_to_what_the_configuration_may_say() {
        let answer = |texts: &[&str]| usable(texts.iter().map(|text| text.parse().unwrap()));
        let good = Ipv4Addr::new(203, 0, 113, 10);
        assert_eq!(answer(&["203.0.113.10", "2001:db8::1", "168.63.129.16", "203.0.113.10"]), Ok(vec![good]));
        for bad in
            ["168.63.129.16", "169.254.169.254", "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"]
        {
            let problem = answer(&[bad]).unwrap_err();
            assert!(problem.contains(bad), "{problem}");
        }
        assert_eq!(answer(&["2001:db8::1"]), Err("it has no IPv4 address".to_owned()));
    }
}
