//! The soak of the daemon's life: the daemon is upgraded, restarted and killed over and over, and
//! nobody who sends through the router may notice.
//!
//! In the place of the other soak, on the same wires, but in good weather:
//!
//! - `datagrams`: a stream of numbered datagrams; every number has to arrive exactly once.
//! - `connections`: many long-lived TCP connections with checked content, and new ones all the
//!   time.
//! - `bulk`: iperf3, or our own stream where there is no iperf3.
//! - `probes`: the load balancer's probe, and a faster one.
//! - `manager`: the service manager's part, with its descriptor store.
//!
//! All numbers are those of the ends; the router's own counters are shown beside them.

mod bulk;
mod connections;
mod datagrams;
mod manager;
mod probes;
mod watch;

use std::{
    fmt,
    path::PathBuf,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

pub use self::watch::Share;
use self::{
    bulk::Bulk,
    connections::Connections,
    datagrams::{Datagrams, Passed},
    manager::Manager,
    probes::Probes,
    watch::End,
};
use super::{audit::Books, place::Place};
use crate::random::Random;

/// Sessions that the table has room for.
const CAPACITY: u32 = 65_536;
/// The length of a phase in which nothing happens to the daemon.
const BASELINE: Duration = Duration::from_secs(5);
/// The lowest rate at which the baseline is tried.
const LEAST_RATE: u32 = 1_000;
/// From the end of one event to the next, at most.
const PAUSE: Duration = Duration::from_millis(500);
/// For so long at most there is no daemon.
const ABSENCE: Duration = Duration::from_millis(1_000);

/// The options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// pls-router.
    pub binary: PathBuf,
    /// Upgrades in place: a second daemon takes over from the one that runs.
    pub upgrades: u32,
    /// Restarts: SIGTERM, and a new start.
    pub restarts: u32,
    /// Crashes: SIGKILL, and a new start.
    pub crashes: u32,
    /// Long-lived TCP connections.
    pub connections: u32,
    /// Numbered datagrams a second, if the machine can.
    pub rate: u32,
    /// The seed of the times at which things happen.
    pub seed: u64,
}

/// The losses of a run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Lost {
    /// Numbered datagrams that were sent, and those of them that did not arrive exactly once.
    pub packets: Share,
    /// TCP connections, and those that were reset, refused or got wrong bytes.
    pub connections: Share,
    /// Probes during upgrades and restarts, and those that were not answered with 200 in time.
    pub probes: Share,
}

impl Lost {
    /// Returns `true` if nothing was lost.
    pub fn is_nothing(&self) -> bool {
        self.packets.lost + self.connections.lost + self.probes.lost == 0
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, connections, probes } = self;
        write!(f, "lost: {packets} packets, {connections} connections, {probes} probes")
    }
}

/// The kinds of events in a daemon's life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Event {
    Upgrade,
    Restart,
    Crash,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upgrade => "upgrades",
            Self::Restart => "restarts",
            Self::Crash => "crashes",
        })
    }
}

/// Ends the threads when the scope is left in any way.
struct EndAtLast<'a>(&'a End);

impl Drop for EndAtLast<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Runs, and tells on standard output how it goes.
///
/// # Errors
/// Returns an error if the run cannot go on. Losses are no error.
pub fn run(options: &Options) -> Result<Lost> {
    let Options { upgrades, restarts, crashes, connections, rate, seed, .. } = *options;
    println!(
        "soak: {upgrades} upgrades, {restarts} restarts, {crashes} crashes under {connections} connections and {rate} \
         datagrams a second; seed {seed}"
    );
    let rules = [datagrams::rules(), connections::rules(), bulk::rules()].concat();
    let place = Place::make(&options.binary, &rules, CAPACITY)?;
    let mut manager = Manager::new(&place)?;
    manager.start().context("the router does not start")?;
    let books = Books::open(&place)?;
    let end = End::default();
    let (long_lived, probes) = (Connections::new(&place, connections)?, Probes::default());
    let bulk = Bulk::new(&place)?;
    let mut datagrams = Datagrams::open(&place)?;
    let mut random = Random::with_seed(seed);
    let outcome = thread::scope(|scope| {
        let _end = EndAtLast(&end);
        let threads = [
            scope.spawn(|| long_lived.serve(&end)),
            scope.spawn(|| long_lived.keep(&place, &end)),
            scope.spawn(|| long_lived.newcomers(&place, &end)),
            scope.spawn(|| bulk.run(&place, &end)),
            scope.spawn(|| probes.run(&place, &end, probes::AS_THE_BALANCER)),
            scope.spawn(|| probes.run(&place, &end, probes::FASTER)),
        ];
        let has_failed = || threads.iter().any(thread::ScopedJoinHandle::is_finished);
        let mut story = || {
            long_lived.wait_until_all_are_there(has_failed)?;
            let mut run = Run {
                lost: Lost::default(),
                rate: baseline(&mut datagrams, rate)?,
                manager: &mut manager,
                datagrams: &mut datagrams,
                probes: &probes,
                connections: &long_lived,
                random: &mut random,
            };
            let failed = &probes.watch.failed;
            ensure!(failed.count() == 0, "before anything happened: {failed}");
            for (event, times) in
                [(Event::Crash, crashes), (Event::Restart, restarts), (Event::Upgrade, upgrades)]
            {
                if times > 0 {
                    if event == Event::Upgrade {
                        run.manager.leave().context("without a service manager")?;
                    }
                    run.phase(event, times).with_context(|| format!("during {event}"))?;
                    ensure!(!has_failed(), "a thread has ended early");
                }
            }
            Ok(run.lost)
        };
        let lost = story();
        end.0.store(true, Ordering::Relaxed);
        // A thread's own error says more than that it has ended.
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread of the soak has panicked"))??;
        }
        Ok(Lost { connections: long_lived.verdict() + bulk.verdict(), ..lost? })
    });
    println!("router: {}", books.reasons()?);
    println!("TCP: {long_lived}; {bulk}");
    outcome
}

/// Finds a rate at which nothing is lost while nothing happens to the daemon: what the lab's own
/// wires and sockets lose is not the router's.
fn baseline(datagrams: &mut Datagrams<'_>, wanted: u32) -> Result<u32> {
    let mut rate = wanted;
    loop {
        let (passed, _) = datagrams.during(rate, || {
            thread::sleep(BASELINE);
            Ok(())
        })?;
        println!("baseline: {passed}");
        if passed.wrong() == 0 {
            let reached = passed.rate();
            if reached < f64::from(rate) * 0.9 {
                println!("this machine carries {reached:.0} of {wanted} datagrams a second");
            }
            return Ok(rate);
        }
        ensure!(rate / 2 >= LEAST_RATE, "datagrams are lost even at {rate} a second while nothing happens");
        rate /= 2;
        println!("the lab itself loses some: {rate} a second are tried");
    }
}

/// The run, once all traffic is there.
struct Run<'a, 'p> {
    lost: Lost,
    rate: u32,
    manager: &'a mut Manager<'p>,
    datagrams: &'a mut Datagrams<'p>,
    probes: &'a Probes,
    connections: &'a Connections,
    random: &'a mut Random,
}

impl Run<'_, '_> {
    /// Has something happen so many times.
    fn phase(&mut self, event: Event, times: u32) -> Result<()> {
        let Self { rate, manager, datagrams, probes, connections, random, .. } = self;
        let watch = &probes.watch;
        // What has failed until now belongs to no event.
        probes.wait_for_next()?;
        watch.failed.take();
        let before = (watch.count.get(), watch.failed.count());
        let broken = connections.watch.failed.count();
        for watch in [watch, &connections.watch, &connections.newcomers] {
            watch.take_slowest();
        }
        let began = Instant::now();
        let (passed, starts) = datagrams.during(*rate, || {
            let mut starts = Vec::new();
            for number in 1..=times {
                thread::sleep(random_up_to(random, PAUSE));
                let absence = random_up_to(random, ABSENCE);
                let happening = match event {
                    Event::Upgrade => manager.upgrade(),
                    Event::Restart => manager.restart(absence),
                    Event::Crash => manager.crash(absence),
                };
                starts.push(happening.with_context(|| format!("number {number}"))?);
            }
            // The last one's consequences belong to it.
            thread::sleep(PAUSE);
            Ok(starts)
        })?;
        // A probe of this phase may be under way.
        probes.wait_for_next()?;
        let probed = Share { lost: watch.failed.count() - before.1, of: watch.count.get() - before.0 };
        let slowest_start = starts.iter().max().copied().unwrap_or_default();
        println!(
            "{times} {event} in {:.0} s: {passed}; {} connections broken; probes failed {probed}, the slowest after {}; \
             slowest answer {}, slowest new connection {}, slowest start {}",
            began.elapsed().as_secs_f64(),
            connections.watch.failed.count() - broken,
            seconds(watch.take_slowest()),
            seconds(connections.watch.take_slowest()),
            seconds(connections.newcomers.take_slowest()),
            seconds(slowest_start),
        );
        let failures = watch.failed.take();
        self.lost.packets = self.lost.packets + Share { lost: passed.wrong(), of: passed.sent };
        // After a crash, nobody answers until the next daemon does.
        if event != Event::Crash {
            for failure in failures {
                println!("  a probe failed {failure}");
            }
            self.lost.probes = self.lost.probes + probed;
        }
        Ok(())
    }
}

/// A random time, up to this one.
fn random_up_to(random: &mut Random, most: Duration) -> Duration {
    Duration::from_micros(random.u64(..=most.as_micros() as u64))
}

/// A time in seconds, with as many digits as matter.
fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} datagrams at {:.0} a second, {} lost, {} doubled, {} out of order, {} from another port, \
             none for at most {}",
            self.sent,
            self.rate(),
            self.lost,
            self.doubled,
            self.overtaken,
            self.moved,
            seconds(self.longest_gap),
        )?;
        if self.dropped_by_the_lab > 0 {
            write!(f, " ({} were dropped by the lab's own devices and sockets)", self.dropped_by_the_lab)?;
        }
        Ok(())
    }
}
