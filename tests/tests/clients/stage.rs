//! The stage of a client: a lab of its own, with the rules for all servers.

use std::time::Duration;

use anyhow::Result;
use lab::{
    Lab, Nics, Options, Router,
    clients::{self, Act},
    helper::Helper,
    rules,
};

/// The time that the load balancer may take to take the router in.
const LIMIT: Duration = Duration::from_secs(10);

/// Plays a test with this router, in a lab that is changed before its router starts.
pub(crate) fn play(nics: Nics, router: fn() -> Result<Router>, changes: &[Act], act: Act) {
    harness::check(router().and_then(|router| act(&lab(nics, router, changes)?)));
}

/// Brings up a lab with the rules for the servers, in which only the router limits ICMP.
fn lab(nics: Nics, router: Router, changes: &[Act]) -> Result<Lab> {
    let mut options = Options::new(nics, router, Helper::new(env!("CARGO_BIN_EXE_lab")));
    options.rules = format!("{}\n{}", clients::rules(), rules());
    options.large_file = 1 << 20;
    options.start_router = false;
    let mut lab = Lab::up(options)?;
    clients::admit(&lab)?;
    changes.iter().try_for_each(|change| change(&lab))?;
    lab.start_router()?;
    if lab.options.router == Router::Nftables {
        lab.hosts.router.nft(&clients::nftables())?;
    }
    lab.wait_in_service(LIMIT)?;
    Ok(lab)
}
