//! Troubles of a router, one after the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{
    audit::{self, Usage},
    place::{Place, SERVER_HOPS, SERVERS_MACS, mac},
    report::Tally,
};
use crate::{Process, wait};

/// One in this many sessions of the crowd has to receive a word while no daemon runs, which takes
/// some seconds.
const SHARE_WITHOUT_DAEMON: u64 = 8;
/// For which they have this long.
const WORDS_LIMIT: Duration = Duration::from_secs(120);

/// The daemon, and what has happened so far.
pub(super) struct Trouble {
    daemon: Process,
    /// Of daemons that are gone.
    cpu: Duration,
    happened: usize,
    kills: u32,
}

impl Trouble {
    /// Starts the daemon.
    pub(super) fn new(place: &Place) -> Result<Self> {
        let (daemon, _) = place.start_daemon()?;
        Ok(Self { daemon, cpu: Duration::ZERO, happened: 0, kills: 0 })
    }

    /// The daemons' CPU time so far, and the memory of the one that runs.
    pub(super) fn usage(&self) -> Result<Usage> {
        let usage = Usage::of(self.daemon.pid())?;
        Ok(Usage { cpu: usage.cpu + self.cpu, ..usage })
    }

    /// The number of times that the daemon was killed.
    pub(super) fn kills(&self) -> u32 {
        self.kills
    }

    /// Kills the daemon.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.cpu += Usage::of(self.daemon.pid()).unwrap_or_default().cpu;
        self.kills += 1;
        self.daemon.kill()
    }

    /// The next thing; what it was, in words.
    pub(super) fn next(&mut self, place: &Place, tally: &Tally) -> Result<String> {
        let turn = self.happened;
        self.happened += 1;
        // Every other time it is the daemon.
        let other = turn / 2;
        match (turn % 2, other % 3) {
            (0, _) => self.restart(place, tally),
            (_, 0) => {
                let hop = SERVER_HOPS[(other / 3 + 1) % 2];
                place.router.ip(&format!("route replace default via {hop}"))?;
                Ok(format!("the route leads to {hop}"))
            }
            (_, 1) => {
                let mac = mac(SERVERS_MACS[(other / 3 + 1) % 2]);
                place.servers.ip(&format!("link set eth0 address {mac}"))?;
                Ok(format!("the next hop has the MAC address {mac}"))
            }
            _ => {
                place.router.ip("neigh flush dev eth0")?;
                Ok("all neighbours are forgotten".to_owned())
            }
        }
    }

    fn restart(&mut self, place: &Place, tally: &Tally) -> Result<String> {
        self.kill()?;
        let (heard, killed) = (tally.heard.get(), Instant::now());
        let found = audit::table(place, true).context("while no daemon runs")?;
        wait::until("words without a daemon", WORDS_LIMIT, || {
            let more = tally.heard.get() - heard;
            (more * SHARE_WITHOUT_DAEMON >= tally.gathered.get())
                .then_some(())
                .with_context(|| format!("only {more} have come back"))
        })?;
        let without = killed.elapsed();
        let (daemon, start) = place.start_daemon()?;
        self.daemon = daemon;
        Ok(format!(
            "the daemon was killed, was away for {:.1} s, and healthy again after {:.1} s; the table had {} sessions, {} flows, no fault",
            without.as_secs_f64(),
            start.as_secs_f64(),
            found.sessions,
            found.flows
        ))
    }
}
