//! The resources that pls-router takes beside the packets: memory, the time of a start, and the
//! daemon's work for a million sessions.

mod usage;

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use router_common::{
    entry::FlowEntry,
    table::{SLOTS_PER_SESSION, Slot},
    tuple::FlowKey,
};
use serde::Serialize;

use self::usage::{MapMemory, Memory};
use super::{
    arms::{Arm, Traffic, Wires},
    cpu,
    daemon::{Daemon, Started},
    ends::{MAX_SESSIONS, Pacing},
    forward::{self, Load},
    path::Path,
    setup::{Setup, progress},
    spread::{Spread, line},
};

/// The number of sessions that the daemon has.
const SESSIONS: u32 = 1_000_000;
/// The same with --quick.
const FEWER_SESSIONS: u32 = 200_000;
/// The metrics, by default.
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9090);
/// The interval of scrapes, shorter than that of most monitoring systems.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);
/// The limit for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// The results.
#[derive(Debug, Serialize)]
pub(crate) struct Resources {
    session: SessionMemory,
    /// At the default `limits.flows`.
    default_flows: u32,
    maps: Vec<MapMemory>,
    /// The daemon's memory without a session.
    daemon: Memory,
    cold_start: Starts,
    take_over: Starts,
    full: Full,
}

/// The memory of a session, by the code's own constants.
#[derive(Debug, Serialize)]
struct SessionMemory {
    slot_bytes: usize,
    /// The parts of a slot: the flow's key, and its entry.
    key_bytes: usize,
    entry_bytes: usize,
    slots: u32,
    bytes: usize,
}

/// The times of starts, in milliseconds.
#[derive(Debug, Serialize)]
struct Starts {
    starts: usize,
    /// Until the daemon said that it is ready: attached, and answering.
    ready_ms: Spread,
    /// Until `status` said that it is healthy.
    good_ms: Spread,
}

/// The daemon with many sessions.
#[derive(Debug, Serialize)]
struct Full {
    sessions: u32,
    window_seconds: f64,
    memory: Memory,
    idle_percent: f64,
    scraped_percent: f64,
    scrape_ms: Spread,
    scrape_bytes: usize,
    status_ms: Spread,
    listing: Listing,
    peak_bytes: u64,
}

/// `flows -o json`, of all sessions.
#[derive(Debug, Serialize)]
struct Listing {
    seconds: f64,
    bytes: u64,
    daemon_percent: f64,
    daemon_cpu_seconds: f64,
}

/// Measures.
pub(crate) fn measure(setup: &Setup) -> Result<Resources> {
    // The daemon and what asks it have one CPU each: the router's has nothing to do meanwhile.
    cpu::run_anywhere()?;
    let mut path = Path::up(setup, Arm::PlsRouter, Traffic::Nothing)?;
    progress("resources: memory");
    let (running, _) = path.daemon()?;
    let pid = running.pid()?;
    let (maps, daemon) = (usage::maps(pid, running.pins())?, usage::memory(pid)?);
    let starts = if setup.quick() { 3 } else { 7 };
    progress("resources: starts");
    let cold_start = starts_of(setup, &mut path, starts, Daemon::stop)?;
    let take_over = starts_of(setup, &mut path, starts, Daemon::kill)?;
    path.daemon()?.0.stop()?;
    drop(path);
    let full = full(setup)?;
    progress("");
    setup.cannot(
        "resources, the cost of capture and of a session log".to_owned(),
        "this pls-router has neither".to_owned(),
    );
    let slot_bytes = size_of::<Slot>();
    Ok(Resources {
        session: SessionMemory {
            slot_bytes,
            key_bytes: size_of::<FlowKey>(),
            entry_bytes: size_of::<FlowEntry>(),
            slots: SLOTS_PER_SESSION,
            bytes: slot_bytes * SLOTS_PER_SESSION as usize,
        },
        default_flows: MAX_SESSIONS,
        maps,
        daemon,
        cold_start,
        take_over,
        full,
    })
}

/// Ends the daemon and starts it again, a number of times.
fn starts_of(
    setup: &Setup,
    path: &mut Path,
    starts: usize,
    end: fn(&mut Daemon) -> Result<()>,
) -> Result<Starts> {
    let mut all = Vec::new();
    for _ in 0..starts {
        let (daemon, router) = path.daemon()?;
        end(daemon)?;
        all.push(daemon.start(&setup.state, router)?);
    }
    let spread = |pick: fn(&Started) -> Duration| {
        Spread::of(&all.iter().map(|started| pick(started).as_secs_f64() * 1000.0).collect::<Vec<_>>())
    };
    Ok(Starts {
        starts,
        ready_ms: spread(|started| started.ready)?,
        good_ms: spread(|started| started.good)?,
    })
}

fn full(setup: &Setup) -> Result<Full> {
    let (sessions, seconds, times) = if setup.quick() { (FEWER_SESSIONS, 2, 3) } else { (SESSIONS, 12, 7) };
    let window = Duration::from_secs(seconds);
    progress("resources: opening sessions");
    cpu::stay_on(cpu::GENERATOR)?;
    let path = Path::up(setup, Arm::PlsRouter, Traffic::Packets(Wires::Two))?;
    let mut bench = forward::Bench::apart(path)?;
    bench.open(&Load::plain(sessions, Pacing::IN_FLIGHT))?;
    cpu::run_anywhere()?;
    let (daemon, router) = bench.path().daemon()?;
    let pid = daemon.pid()?;

    progress("resources: idle");
    let memory = usage::memory(pid)?;
    let idle_percent = percent(pid, || {
        thread::sleep(window);
        Ok(())
    })?;

    progress("resources: scrapes");
    let mut scrapes = Vec::new();
    let mut scrape_bytes = 0;
    let scraped_percent = percent(pid, || {
        let start = Instant::now();
        while start.elapsed() < window {
            let begun = Instant::now();
            scrape_bytes = router.inside(scrape)??;
            scrapes.push(begun.elapsed().as_secs_f64() * 1000.0);
            thread::sleep(SCRAPE_INTERVAL.saturating_sub(begun.elapsed()));
        }
        Ok(())
    })?;

    progress("resources: status");
    let mut statuses = Vec::new();
    for _ in 0..times {
        let mut command = daemon.command(router, &["status", "-o", "json"])?;
        let begun = Instant::now();
        lab::command::run(&mut command)?;
        statuses.push(begun.elapsed().as_secs_f64() * 1000.0);
    }

    progress("resources: flows");
    let listing = list(pid, daemon.command(router, &["flows", "-o", "json", "--limit", "0"])?)?;
    let peak_bytes = usage::peak(pid)?;
    daemon.stop()?;
    Ok(Full {
        sessions,
        window_seconds: window.as_secs_f64(),
        memory,
        idle_percent,
        scraped_percent,
        scrape_ms: Spread::of(&scrapes)?,
        scrape_bytes,
        status_ms: Spread::of(&statuses)?,
        listing,
        peak_bytes,
    })
}

/// Returns the share of a core that a process used during some work.
fn percent(pid: u32, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (start, before) = (Instant::now(), usage::cpu_time(pid)?);
    work()?;
    let used = usage::cpu_time(pid)?.saturating_sub(before);
    Ok(used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
}

/// Fetches the metrics once. Returns the length of the answer.
fn scrape() -> Result<usize> {
    let mut stream = TcpStream::connect(METRICS).context("cannot reach the metrics")?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).context("cannot set a timeout")?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .context("cannot ask for the metrics")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("cannot read the metrics")?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "the metrics' answer is not 200");
    Ok(answer.len())
}

/// Has all sessions listed.
fn list(pid: u32, mut command: Command) -> Result<Listing> {
    let before = usage::cpu_time(pid)?;
    let start = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot ask for the flows")?;
    let mut output = child.stdout.take().context("the listing has no output")?;
    let bytes = io::copy(&mut output, &mut io::sink()).context("cannot read the listing")?;
    let status = child.wait().context("lost the listing")?;
    ensure!(status.success(), "`pls-router flows` ended with {status}");
    let seconds = start.elapsed().as_secs_f64();
    let used = usage::cpu_time(pid)?.saturating_sub(before).as_secs_f64();
    Ok(Listing { seconds, bytes, daemon_percent: used / seconds * 100.0, daemon_cpu_seconds: used })
}

impl Resources {
    pub(crate) fn table(&self) -> String {
        let mut text = "\nResources\n\n".to_owned();
        let SessionMemory { slot_bytes, slots, bytes, key_bytes, entry_bytes } = self.session;
        let mut row = |what: &str, value: String, note: String| {
            line(&mut text, format_args!("  {what:<44} {value:>24}  {note}"));
        };
        row(
            "memory of a session",
            format!("{bytes} B"),
            format!("{slots} slots of {slot_bytes} B: key {key_bytes}, entry {entry_bytes}, tag"),
        );
        let total: u64 = self.maps.iter().map(|map| map.bytes).sum();
        let largest: Vec<_> =
            self.maps.iter().take(3).map(|map| format!("{} {}", map.name, mebibytes(map.bytes))).collect();
        row(
            &format!("BPF maps, limits.flows = {}", self.default_flows),
            mebibytes(total),
            format!("{} maps: {}, ...", self.maps.len(), largest.join(", ")),
        );
        let resident = |Memory { rss_bytes, pss_bytes, anonymous_bytes }| {
            let own = mebibytes(anonymous_bytes);
            (
                format!("{} RSS", mebibytes(rss_bytes)),
                format!("{} PSS; {own} private, the rest: maps and program", mebibytes(pss_bytes)),
            )
        };
        let (rss, pss) = resident(self.daemon);
        row("daemon, no session", rss, pss);
        let (rss, pss) = resident(self.full.memory);
        row(&format!("daemon, {} sessions", self.full.sessions), rss, pss);
        row(
            "daemon, peak, after listing all sessions",
            format!("{} RSS", mebibytes(self.full.peak_bytes)),
            "during `flows -o json`, below".to_owned(),
        );
        for (what, starts) in
            [("first start", &self.cold_start), ("start after SIGKILL, with pinned maps", &self.take_over)]
        {
            row(
                what,
                format!("{} ms", starts.ready_ms.show(0, 0)),
                format!(
                    "until attached and ready; until healthy {} ms; {} starts",
                    starts.good_ms.show(0, 0),
                    starts.starts
                ),
            );
        }
        let full = &self.full;
        let percent = |percent: f64| format!("{percent:.1} % of a core");
        row(
            &format!("daemon's CPU, {} sessions: idle", full.sessions),
            percent(full.idle_percent),
            format!("over {} s, sweeps included", full.window_seconds),
        );
        row(
            "  /metrics once a second",
            percent(full.scraped_percent),
            format!("a scrape: {} ms, {} bytes", full.scrape_ms.show(0, 1), full.scrape_bytes),
        );
        let listing = &full.listing;
        row(
            "  flows -o json, all of them",
            percent(listing.daemon_percent),
            format!(
                "for {:.1} s, {:.1} s of CPU; {} of JSON",
                listing.seconds,
                listing.daemon_cpu_seconds,
                mebibytes(listing.bytes)
            ),
        );
        row(
            "pls-router status",
            format!("{} ms", full.status_ms.show(0, 1)),
            "with the start of its process".to_owned(),
        );
        text
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
