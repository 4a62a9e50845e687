//! The load balancer's probe: from the platform's address, each by a connection of its own.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddrV4,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::watch::{End, Watch};
use crate::{
    addresses::{HEALTH_PORT, PLATFORM},
    client::connect_from,
    lab::PROBE_INTERVAL,
    soak::place::{Place, ROUTER},
    wait,
};

/// From one probe to the next.
pub(super) const AS_THE_BALANCER: Duration = PROBE_INTERVAL;
/// The same for the one that tells more.
pub(super) const FASTER: Duration = Duration::from_millis(100);
/// The time within which a probe has to be answered: Azure's load balancer waits for as long as its
/// interval, which is 5 s at least.
const LIMIT: Duration = Duration::from_secs(5);

/// The probes so far.
#[derive(Debug, Default)]
pub(super) struct Probes {
    pub(super) watch: Watch,
}

impl Probes {
    /// Probes until the end.
    pub(super) fn run(&self, place: &Place, end: &End, interval: Duration) -> Result<()> {
        place.clients.inside(|| {
            while !end.has_come() {
                let began = Instant::now();
                match probe() {
                    Ok(()) => self.watch.good(began.elapsed()),
                    Err(error) => {
                        let after = began.elapsed().as_secs_f64();
                        self.watch.bad(|| format!("after {after:.3} s: {error:#}"));
                    }
                }
                thread::sleep(interval.saturating_sub(began.elapsed()));
            }
        })
    }

    /// Waits until one more has been answered, or has failed.
    pub(super) fn wait_for_next(&self) -> Result<()> {
        let before = self.watch.count.get();
        wait::until("another probe", LIMIT * 2, || {
            ensure!(self.watch.count.get() > before + 1, "none has ended");
            Ok(())
        })
    }
}

/// One probe; anything but a 200 in time is an error.
fn probe() -> Result<()> {
    let target = SocketAddrV4::new(ROUTER, HEALTH_PORT);
    let mut stream = connect_from(PLATFORM, target, LIMIT)?;
    stream
        .write_all(
            format!("GET / HTTP/1.1\r\nHost: {target}\r\nUser-Agent: Load Balancer Agent\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .context("cannot ask")?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).context("no answer")?;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(answer.split(' ').nth(1) == Some("200"), "{}", answer.trim());
    Ok(())
}
