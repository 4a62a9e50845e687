//! Packets a second of one core.
//!
//! CPU 0 makes packets, more than any router takes: the router's receive ring is always full, and what does not fit is not
//! sent. CPU 1 is the router: the NAPI thread of its receiving device.
//!
//! The sink behind it has to run somewhere, too. It polls in the softirq that the router's thread raises when it has sent a
//! batch, on CPU 1: each packet costs the router's core what the sink costs, in every arm the same (which flatters the slow
//! arms: the sink is a larger share of a fast one's time). A thread of its own was tried, and was worse: on CPU 0 the
//! generator, which never sleeps, keeps it waiting until packets are lost, and each wake-up of it interrupts the other CPU at
//! the router's expense; on CPU 1 the scheduler cuts the router's batches short, and packets are lost as well.

use std::{
    collections::BTreeMap,
    panic,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{Namespace, wait};
use router_user::model::Counters;
use serde::Serialize;

use super::{
    cpu::{self, Thread, Ticks},
    ends::{Generator, Sink},
    path::{Arm, Path},
};

/// Packets of a run that pls-router may have counted beside the bench's: what the network stacks at the ends send by themselves.
const STRAYS: u64 = 16;
/// How long sessions may take to open.
const OPEN_LIMIT: Duration = Duration::from_secs(60);
/// How long the generator may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long the wires may take to be empty once nobody sends.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// A path with its ends in place.
pub(crate) struct Bench {
    path: Path,
    sink: Sink,
    generators: Vec<(u32, Generator)>,
}

/// One timed window, and the books of the whole run around it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// What the sink received in the window, a second.
    pub(crate) packets_per_second: f64,
    /// What was offered in the window, a second.
    pub(crate) offered_per_second: f64,
    /// The share of the window that the router's CPU had nothing to do.
    pub(crate) idle: f64,
    /// The share of the window that something else than the bench had one of the two CPUs.
    pub(crate) disturbed: f64,
    pub(crate) books: Books,
}

/// Where the packets of a run went, warm-up included. Every packet is in one line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Books {
    /// Packets that the generator made.
    pub(crate) made: u64,
    /// Those that did not fit into the router's receive ring: offered, not sent.
    pub(crate) refused: u64,
    /// Those that the router was given.
    pub(crate) given: u64,
    /// Those that the router sent and that did not fit into the sink's receive ring.
    pub(crate) overrun: u64,
    /// Those that the sink received, translated as they should be.
    pub(crate) sunk: u64,
    /// Those that it received otherwise.
    pub(crate) sunk_otherwise: u64,
    /// What pls-router has counted, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) reasons: BTreeMap<String, u64>,
}

impl Books {
    /// Packets that the router was given and that the sink did not receive.
    pub(crate) fn lost(&self) -> u64 {
        self.given.saturating_sub(self.sunk + self.sunk_otherwise)
    }

    /// What does not add up, if something does not.
    pub(crate) fn problem(&self) -> Option<String> {
        let counted: u64 = self.reasons.values().sum();
        if self.made != self.refused + self.given {
            Some(format!("{} made are not {} refused and {} given", self.made, self.refused, self.given))
        } else if self.sunk_otherwise > 0 {
            Some(format!("{} arrived with other addresses than they should have", self.sunk_otherwise))
        } else if self.given != self.sunk {
            let mut text =
                format!("{} given are not {} received: {} lost", self.given, self.sunk, self.lost());
            if self.overrun > 0 {
                text += &format!(", {} behind the router", self.overrun);
            }
            let dropped =
                self.reasons.iter().filter(|(reason, _)| !["forwarded", "opened"].contains(&reason.as_str()));
            for (reason, packets) in dropped {
                text += &format!(", {packets} {reason}");
            }
            Some(text)
        } else if !self.reasons.is_empty() && !(self.given..=self.given + STRAYS).contains(&counted) {
            Some(format!("{} given are not {counted} counted by pls-router", self.given))
        } else {
            None
        }
    }
}

/// Counters before or after a run.
struct Snapshot {
    made: u64,
    given: u64,
    refused: u64,
    overrun: u64,
    sunk: [u64; 2],
    counters: Option<Counters>,
}

/// One moment of the timed window.
struct Moment {
    at: Instant,
    made: u64,
    sunk: u64,
    generator_waited: Duration,
    router: Ticks,
}

impl Bench {
    /// Puts the ends on a path, for these numbers of flows.
    pub(crate) fn new(path: Path, flows: &[u32]) -> Result<Self> {
        let sink = path.sink()?;
        let generators = flows.iter().map(|flows| -> Result<(u32, Generator)> {
            let generator = Generator::load(&path.generator, &path.devices[0], &path.headers(), *flows)?;
            Ok((*flows, generator))
        });
        let generators = generators.collect::<Result<_>>()?;
        cpu::poll_by_thread(&path.router, &path.devices[1], cpu::ROUTER)?;
        Ok(Self { path, sink, generators })
    }

    /// What is measured.
    pub(crate) fn arm(&self) -> Arm {
        self.path.arm
    }

    /// The path, with what it has on it.
    pub(crate) fn path(&mut self) -> &mut Path {
        &mut self.path
    }

    /// Whether this many flows can be measured.
    pub(crate) fn takes(&self, flows: u32) -> Result<bool> {
        self.path.takes(flows)
    }

    /// Sends, waits until all sessions are open and `warm` has passed since, and measures for `window`.
    pub(crate) fn run(&self, flows: u32, warm: Duration, window: Duration) -> Result<Run> {
        let generator = self.generators.iter().find(|(has, _)| *has == flows).map(|(_, generator)| generator);
        let generator = generator.with_context(|| format!("no generator makes {flows} flows"))?;
        let before = self.snapshot(generator)?;
        let stop = AtomicBool::new(false);
        let thread = OnceLock::new();
        let [start, end] = thread::scope(|scope| {
            let sending = scope.spawn(|| {
                self.path.generator.inside(|| {
                    thread.get_or_init(Thread::this);
                    generator.send_until(&stop)
                })
            });
            let window = self.window(generator, flows, [warm, window], || {
                // Its error says what is wrong; it comes out when the thread is joined.
                ensure!(!sending.is_finished(), "the generator has stopped");
                thread.get().copied().context("the generator has not started")
            });
            stop.store(true, Ordering::Relaxed);
            let stopped = wait::until("the generator to stop", STOP_LIMIT, || {
                // Again and again: it may be about to begin another call.
                if let Some(thread) = thread.get() {
                    thread.interrupt();
                }
                ensure!(sending.is_finished(), "it still sends");
                Ok(())
            });
            stopped?;
            let sent = sending.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked));
            sent.and_then(|sent| sent)?;
            window
        })?;
        self.drain()?;
        let after = self.snapshot(generator)?;
        let books = after.since(&before)?;
        let seconds = (end.at - start.at).as_secs_f64();
        let generator_waited = end.generator_waited.saturating_sub(start.generator_waited).as_secs_f64();
        let [idle, others] = end.router.since(start.router);
        Ok(Run {
            packets_per_second: (end.sunk - start.sunk) as f64 / seconds,
            offered_per_second: (end.made - start.made) as f64 / seconds,
            idle,
            disturbed: others.max(generator_waited / seconds),
            books,
        })
    }

    fn window(
        &self,
        generator: &Generator,
        flows: u32,
        [warm, window]: [Duration; 2],
        sending: impl Fn() -> Result<Thread>,
    ) -> Result<[Moment; 2]> {
        let thread = wait::until("the generator to start", OPEN_LIMIT, &sending)?;
        wait::until("sessions to open", OPEN_LIMIT, || self.path.has_sessions(flows))?;
        thread::sleep(warm);
        let start = self.moment(generator, thread)?;
        thread::sleep(window);
        let end = self.moment(generator, thread)?;
        sending()?;
        Ok([start, end])
    }

    fn moment(&self, generator: &Generator, thread: Thread) -> Result<Moment> {
        let [sunk, _] = self.sink.sunk()?;
        Ok(Moment {
            at: Instant::now(),
            made: generator.made()?,
            sunk,
            generator_waited: thread.waited()?,
            router: Ticks::of(cpu::ROUTER)?,
        })
    }

    /// Waits until nothing arrives any more.
    fn drain(&self) -> Result<()> {
        let mut last = None;
        wait::until("the wires to be empty", DRAIN_LIMIT, || {
            let sunk = self.sink.sunk()?;
            ensure!(last.replace(sunk) == Some(sunk), "packets still arrive");
            Ok(())
        })
    }

    fn snapshot(&self, generator: &Generator) -> Result<Snapshot> {
        let sent = Statistics::of(&self.path.generator, &self.path.devices[0])?;
        let routed = Statistics::of(&self.path.router, &self.path.devices[2])?;
        Ok(Snapshot {
            made: generator.made()?,
            given: sent.get("tx_queue_0_xdp_xmit")?,
            refused: sent.get("tx_queue_0_xdp_xmit_errors")?,
            overrun: routed.get("tx_queue_0_xdp_xmit_errors")?,
            sunk: self.sink.sunk()?,
            counters: self.path.counters()?,
        })
    }
}

impl Snapshot {
    fn since(&self, before: &Self) -> Result<Books> {
        let mut reasons = BTreeMap::new();
        if let (Some(now), Some(then)) = (&self.counters, &before.counters) {
            for reason in &now.reasons {
                let old = then.reasons.iter().find(|old| old.number == reason.number);
                let packets = reason.packets - old.map_or(0, |old| old.packets);
                if packets > 0 {
                    reasons.insert(reason.reason.clone(), packets);
                }
            }
        }
        let [sunk, sunk_otherwise] = [0, 1].map(|at| self.sunk[at] - before.sunk[at]);
        Ok(Books {
            made: self.made - before.made,
            refused: self.refused - before.refused,
            overrun: self.overrun - before.overrun,
            given: self.given - before.given,
            sunk,
            sunk_otherwise,
            reasons,
        })
    }
}

/// What `ethtool -S` says of a device.
struct Statistics {
    text: String,
}

impl Statistics {
    fn of(namespace: &Namespace, device: &str) -> Result<Self> {
        Ok(Self { text: namespace.run("ethtool", &["-S", device])? })
    }

    fn get(&self, name: &str) -> Result<u64> {
        let line = self.text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
        let Some(line) = line else { bail!("ethtool -S shows no {name}") };
        line.parse().with_context(|| format!("{name} is {line}"))
    }
}
