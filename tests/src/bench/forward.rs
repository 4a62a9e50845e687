//! Packets a second of one core.
//!
//! CPU 0 makes packets, and CPU 1 is the router: the NAPI thread of its receiving device. The
//! generator looks how many packets have arrived, and goes on as soon as few enough are under way
//! ([`Pacing::IN_FLIGHT`]): enough for the router never to be idle, and not more than its
//! ring takes. A generator that sends without looking makes several times more than fits; each
//! packet that is refused goes back to the pool of pages that the sink returns the others to, under
//! the same lock, and up to half of the router's time is waiting for that lock.
//!
//! The sink has to run somewhere, too. It polls in the softirq that the router's thread raises when
//! it has sent a batch, on CPU 1. So the sink adds the same cost per packet to the router's core in
//! every arm, which flatters the slow arms: the sink is a larger share of a fast one's time. A
//! separate thread was tried and was worse. On CPU 0 the generator, which never sleeps, keeps the
//! thread waiting until packets are lost, and each wake-up interrupts the other CPU at the router's
//! expense. On CPU 1 the scheduler cuts the router's batches short, and packets are lost as well.
//!
//! With [`Cores::Together`] a CPU does all of it for the packets that it makes: a batch goes all
//! the way in the softirq that its sending raises.

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
    arms::{Arm, Direction},
    cpu::{self, Thread, Ticks},
    ends::{Arrived, Ends, FLOWS_A_PORT, MAX_SESSIONS, Pacing, Sending, Until},
    frames::{Shape, Step, Transport},
    path::Path,
    probe::Prober,
    setup::Setup,
    traffic::{Flow, LEARN, LEARNT, PATIENCE, REPLY, Span, TCP, TIMED, Traffic},
};

/// Packets of a run that pls-router may have counted beside the bench's: what the network stacks at
/// the ends send by themselves.
const STRAYS: u64 = 16;
/// The limit for the generator to start.
const START_LIMIT: Duration = Duration::from_secs(5);
/// The limit for the generator to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// The limit for the wires to become empty when sending has stopped.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// The number of attempts to open sessions, if packets get lost.
const OPENINGS: u32 = 3;

/// The packets of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Load {
    pub(crate) shape: Shape,
    pub(crate) direction: Direction,
    /// Flows of sessions that are open.
    pub(crate) flows: u32,
    /// The packets of a thousand that open a new session.
    pub(crate) fresh_per_mille: u32,
    pub(crate) pacing: Pacing,
    pub(crate) cores: Cores,
}

impl Load {
    /// The smallest UDP packets to the target, as fast as the router takes them.
    pub(crate) const fn plain(flows: u32, pacing: Pacing) -> Self {
        Self {
            shape: Shape::SHORT_UDP,
            direction: Direction::Forward,
            flows,
            fresh_per_mille: 0,
            pacing,
            cores: Cores::Apart,
        }
    }
}

/// The CPUs that work.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cores {
    /// One makes packets, another one is the router.
    Apart,
    /// This many CPUs do everything, each for its share of the flows.
    Together(u32),
}

impl Cores {
    /// The CPUs that make packets, and for each the one that they arrive on.
    fn pairs(self) -> Vec<(usize, usize)> {
        match self {
            Self::Apart => vec![(cpu::GENERATOR, cpu::ROUTER)],
            Self::Together(cores) => (0..cores as usize).map(|cpu| (cpu, cpu)).collect(),
        }
    }
}

/// Flows from one number to another, [`FLOWS_A_PORT`] a port.
pub(crate) const fn flows(from: u32, to: u32) -> Span {
    Span {
        first: Flow { number: from, at: from % FLOWS_A_PORT, port: from / FLOWS_A_PORT },
        end: to,
        at_port: [0, FLOWS_A_PORT],
    }
}

/// Returns the `part`-th of `parts` equal parts of a range of flows.
const fn share([from, to]: [u32; 2], part: u32, parts: u32) -> Span {
    let each = (to - from) / parts;
    flows(from + part * each, if part + 1 == parts { to } else { from + (part + 1) * each })
}

/// The first flow of those that open sessions while others are measured: at a port that those do
/// not use.
const fn fresh_from(flows: u32) -> u32 {
    flows.next_multiple_of(FLOWS_A_PORT)
}

/// A path with its ends in place.
pub(crate) struct Bench {
    path: Path,
    ends: Ends,
    /// The numbers of open flows, of UDP and of TCP.
    open: [u32; 2],
    /// The transport whose ports were learnt last.
    learnt: Option<(Transport, u32)>,
}

/// One timed window, and the books of the whole run around it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// Packets that the sink received in the window, per second.
    pub(crate) packets_per_second: f64,
    /// Packets that were made in the window, per second.
    pub(crate) offered_per_second: f64,
    /// The share of the window that the router's CPU had nothing to do.
    pub(crate) idle: f64,
    /// The share of the window that something else than the bench had one of the CPUs.
    pub(crate) disturbed: f64,
    /// The number of times that the generator waited for packets that did not arrive.
    pub(crate) stalls: u64,
    pub(crate) books: Books,
}

/// Sessions opened one after the other.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Burst {
    /// From the first packet's arrival to the last one's, less the generator's waits for lost
    /// packets.
    pub(crate) seconds: f64,
    /// Packets that arrived in this time, after the first one.
    pub(crate) packets_per_second: f64,
    pub(crate) books: Books,
}

/// The whereabouts of the packets of a run, warm-up included. Every packet is in one line.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Books {
    /// Packets that the generator made.
    pub(crate) made: u64,
    /// Packets that did not fit into the router's receive ring: offered, not sent.
    pub(crate) refused: u64,
    /// Packets that the router was given.
    pub(crate) given: u64,
    /// Packets that the router sent and that did not fit into the sink's receive ring.
    pub(crate) overrun: u64,
    /// Packets that the sink received, translated correctly.
    pub(crate) sunk: u64,
    /// Other packets that the sink received.
    pub(crate) sunk_otherwise: u64,
    /// The counts of pls-router, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) reasons: BTreeMap<String, u64>,
}

impl Books {
    /// Packets that the router was given and that the sink did not receive.
    pub(crate) fn lost(&self) -> u64 {
        self.given.saturating_sub(self.sunk + self.sunk_otherwise)
    }

    /// Returns the first contradiction between the counts, if there is one.
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
    arrived: Arrived,
    counters: Option<Counters>,
}

/// One moment of the timed window.
struct Moment {
    at: Instant,
    made: u64,
    arrived: u64,
    /// The time that the generators have waited for their CPUs.
    waited: Vec<Duration>,
    routers: Vec<Ticks>,
}

impl Bench {
    /// Puts the ends on a path.
    pub(crate) fn new(path: Path) -> Result<Self> {
        let ends = path.ends()?;
        Ok(Self { path, ends, open: [0; 2], learnt: None })
    }

    /// The same, but a thread on another CPU polls the router's devices: for [`Cores::Apart`].
    pub(crate) fn apart(path: Path) -> Result<Self> {
        let bench = Self::new(path)?;
        bench.poll_by_threads()?;
        Ok(bench)
    }

    fn poll_by_threads(&self) -> Result<()> {
        for device in self.path.router_devices() {
            cpu::poll_by_thread(&self.path.router, device, cpu::ROUTER)?;
        }
        Ok(())
    }

    /// The path, with what it has on it.
    pub(crate) fn path(&mut self) -> &mut Path {
        &mut self.path
    }

    /// Returns the prober of the path. Can be taken once.
    pub(crate) fn take_prober(&mut self) -> Result<Prober> {
        let sender = self.path.sender(Direction::Forward);
        Prober::new(sender, &self.path.headers(Direction::Forward), self.ends.take_probes()?)
    }

    /// Returns the arm that is measured.
    pub(crate) fn arm(&self) -> Arm {
        self.path.arm
    }

    /// Returns `true` if this many sessions can be measured.
    pub(crate) fn takes(&self, flows: u32) -> Result<bool> {
        self.path.takes(flows)
    }

    /// Has the router forget all sessions: for [`Cores::Apart`].
    pub(crate) fn forget_sessions(&mut self, setup: &Setup) -> Result<()> {
        self.path.forget_sessions(setup)?;
        (self.open, self.learnt) = ([0; 2], None);
        // A program that is taken off a device takes its thread with it.
        self.poll_by_threads()
    }

    /// Opens the sessions if they are not, sends until `warm` has passed, and measures for
    /// `window`.
    pub(crate) fn run(&mut self, load: &Load, warm: Duration, window: Duration) -> Result<Run> {
        let (run, ()) = self.run_while(load, warm, || {
            thread::sleep(window);
            Ok(())
        })?;
        Ok(run)
    }

    /// Opens the sessions if they are not, sends until `warm` has passed, and measures while some
    /// `work` is done.
    pub(crate) fn run_while<T>(
        &mut self,
        load: &Load,
        warm: Duration,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(Run, T)> {
        self.open(load)?;
        let step = match load.direction {
            Direction::Forward => Step::Data,
            Direction::Reply => Step::ReplyData,
        };
        let sendings = self.sendings(load, step)?;
        self.prepare(&sendings, load, 0)?;
        let before = self.snapshot(load.direction)?;
        let ([start, end], done) = self.send_while(&sendings, load, warm, work)?;
        self.drain()?;
        let books = self.snapshot(load.direction)?.since(&before)?;
        let seconds = (end.at - start.at).as_secs_f64();
        let waited = end.waited.iter().zip(&start.waited).map(|(end, start)| end.saturating_sub(*start));
        let waited = waited.max().unwrap_or_default().as_secs_f64() / seconds;
        let shares = end.routers.iter().zip(&start.routers).map(|(end, start)| end.since(*start));
        let [idle, others] = shares.fold([0.0_f64; 2], |[a, b], [c, d]| [a.max(c), b.max(d)]);
        let run = Run {
            packets_per_second: (end.arrived - start.arrived) as f64 / seconds,
            offered_per_second: (end.made - start.made) as f64 / seconds,
            idle,
            disturbed: others.max(waited),
            stalls: self.ends.stalls()?,
            books,
        };
        Ok((run, done))
    }

    /// Sends one packet of each flow of a span, by which it opens.
    pub(crate) fn burst(&mut self, span: Span) -> Result<Burst> {
        let load = Load::plain(0, Pacing::IN_FLIGHT);
        let mut sendings = self.sendings(&load, Step::Data)?;
        for sending in &mut sendings {
            sending.traffic.spans = [span; 2];
        }
        self.prepare(&sendings, &load, TIMED)?;
        let before = self.snapshot(load.direction)?;
        self.send_packets(&sendings, &load, span.end - span.first.number)?;
        let after = self.snapshot(load.direction)?;
        // Then the router had nothing to do, or was about to have nothing.
        let stalled = Duration::from_nanos(self.ends.stalls()? * PATIENCE);
        let seconds = after.arrived.took.saturating_sub(stalled).as_secs_f64();
        let books = after.since(&before)?;
        ensure!(books.sunk > 1 && seconds > 0.0, "{} packets arrived", books.sunk);
        Ok(Burst { seconds, packets_per_second: (books.sunk - 1) as f64 / seconds, books })
    }

    /// Opens the sessions of a load that are not open yet, and learns their ports if it needs them.
    pub(crate) fn open(&mut self, load: &Load) -> Result<()> {
        let Load { flows, direction, shape, .. } = *load;
        let transport = shape.transport;
        let needs_ports = direction == Direction::Reply || transport == Transport::Tcp;
        ensure!(!needs_ports || flows <= LEARNT, "the ports of {flows} flows cannot be learnt");
        let open = if self.path.arm.translates() { self.open[transport as usize] } else { u32::MAX };
        let learnt = match self.learnt {
            _ if !needs_ports => u32::MAX,
            Some((of, flows)) if of == transport => flows,
            _ => 0,
        };
        let from = open.min(learnt);
        if from >= flows {
            return Ok(());
        }
        // Full frames would only make it longer.
        let shape = Shape { length: Shape::SHORT_UDP.length, ..shape };
        let mut opening = Load { shape, fresh_per_mille: 0, ..*load };
        if opening.cores == Cores::Apart {
            // None is to be refused.
            opening.pacing = Pacing::IN_FLIGHT;
        }
        let steps: &[_] = match transport {
            Transport::Udp => &[(Direction::Forward, Step::Data)],
            Transport::Tcp => &[
                (Direction::Forward, Step::Syn),
                (Direction::Reply, Step::SynAck),
                (Direction::Forward, Step::Data),
            ],
        };
        for attempt in 1..=OPENINGS {
            for (direction, step) in steps {
                let flags = if *direction == Direction::Forward { LEARN } else { 0 };
                let load = Load { direction: *direction, ..opening };
                let mut sendings = self.sendings(&load, *step)?;
                let parts = sendings.len() as u32;
                for (part, sending) in (0..parts).zip(&mut sendings) {
                    sending.traffic.spans[0] = share([from, flows], part, parts);
                }
                self.prepare(&sendings, &load, flags)?;
                for sending in &sendings {
                    let span = sending.traffic.spans[0];
                    self.send_packets(std::slice::from_ref(sending), &load, span.end - span.first.number)?;
                }
            }
            let Some(sessions) = self.path.sessions(transport)? else { break };
            if sessions >= u64::from(flows) {
                break;
            }
            ensure!(attempt < OPENINGS, "{} has {sessions} sessions of {flows}", self.path.arm);
        }
        self.open[transport as usize] = flows.max(self.open[transport as usize]);
        self.learnt = (flows <= LEARNT).then_some((transport, flows));
        Ok(())
    }

    /// Returns the packets that each CPU has to send for a load.
    fn sendings(&self, load: &Load, step: Step) -> Result<Vec<Sending>> {
        let frame = self.path.headers(load.direction).packet(load.shape, step);
        let head = Sending::head(&frame)?;
        let (window, period) = load.pacing.limits();
        let mut flags = 0;
        if load.shape.transport == Transport::Tcp {
            flags |= TCP;
        }
        if load.direction == Direction::Reply {
            flags |= REPLY;
        }
        let pairs = load.cores.pairs();
        let parts = pairs.len() as u32;
        let fresh = fresh_from(load.flows);
        Ok((0..parts)
            .zip(pairs)
            .map(|(part, (cpu, sink_cpu))| Sending {
                cpu,
                traffic: Traffic {
                    window,
                    sink_cpu: sink_cpu as u32,
                    period,
                    batch: load.pacing.batch(),
                    flags,
                    fresh_per_mille: load.fresh_per_mille,
                    head,
                    spans: [share([0, load.flows], part, parts), flows(fresh, MAX_SESSIONS)],
                },
                frame: frame.clone(),
            })
            .collect())
    }

    fn prepare(&mut self, sendings: &[Sending], load: &Load, flags: u32) -> Result<()> {
        let same = sendings.first().map_or(0, |sending| sending.traffic.flags);
        self.ends.prepare(sendings, self.path.arrival(load.direction).expected(same | flags))
    }

    /// Sends this many packets from each of these CPUs in turn, and waits until they have arrived.
    fn send_packets(&self, sendings: &[Sending], load: &Load, packets: u32) -> Result<()> {
        let end = self.path.sender(load.direction);
        for sending in sendings {
            end.namespace.inside(|| self.ends.send(sending, end.device, Until::Packets(packets)))??;
        }
        self.drain()
    }

    /// Sends from all CPUs at once, and looks at the beginning and the end of a window.
    fn send_while<T>(
        &self,
        sendings: &[Sending],
        load: &Load,
        warm: Duration,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<([Moment; 2], T)> {
        let end = self.path.sender(load.direction);
        let stop = AtomicBool::new(false);
        let threads: Vec<OnceLock<Thread>> = sendings.iter().map(|_| OnceLock::new()).collect();
        thread::scope(|scope| {
            let sending: Vec<_> = sendings
                .iter()
                .zip(&threads)
                .map(|(sending, thread)| {
                    let stop = &stop;
                    scope.spawn(move || {
                        end.namespace.inside(|| {
                            thread.get_or_init(Thread::this);
                            self.ends.send(sending, end.device, Until::Stopped(stop))
                        })
                    })
                })
                .collect();
            let sent = || {
                // Its error says what is wrong; it comes out when the thread is joined.
                ensure!(
                    !sending.iter().any(thread::ScopedJoinHandle::is_finished),
                    "the generator has stopped"
                );
                threads
                    .iter()
                    .map(|thread| thread.get().copied())
                    .collect::<Option<Vec<_>>>()
                    .context("it has not started")
            };
            let window = self.window(load.cores, warm, work, sent);
            stop.store(true, Ordering::Relaxed);
            let stopped = wait::until("the generator to stop", STOP_LIMIT, || {
                // Again and again: it may be about to begin another call.
                for thread in threads.iter().filter_map(OnceLock::get) {
                    thread.interrupt();
                }
                ensure!(sending.iter().all(thread::ScopedJoinHandle::is_finished), "it still sends");
                Ok(())
            });
            stopped?;
            for sending in sending {
                let sent = sending.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked));
                sent.and_then(|sent| sent)?;
            }
            window
        })
    }

    fn window<T>(
        &self,
        cores: Cores,
        warm: Duration,
        work: impl FnOnce() -> Result<T>,
        sending: impl Fn() -> Result<Vec<Thread>>,
    ) -> Result<([Moment; 2], T)> {
        let threads = wait::until("the generator to start", START_LIMIT, &sending)?;
        thread::sleep(warm);
        let start = self.moment(cores, &threads)?;
        let done = work()?;
        let end = self.moment(cores, &threads)?;
        sending()?;
        Ok(([start, end], done))
    }

    fn moment(&self, cores: Cores, threads: &[Thread]) -> Result<Moment> {
        Ok(Moment {
            at: Instant::now(),
            made: self.ends.made()?,
            arrived: self.ends.arrived()?.packets,
            waited: threads.iter().map(|thread| thread.waited()).collect::<Result<_>>()?,
            routers: cores.pairs().into_iter().map(|(_, cpu)| Ticks::of(cpu)).collect::<Result<_>>()?,
        })
    }

    /// Waits until nothing arrives any more.
    fn drain(&self) -> Result<()> {
        let mut last = None;
        wait::until("the wires to be empty", DRAIN_LIMIT, || {
            let arrived = self.ends.arrived()?;
            ensure!(last.replace(arrived) == Some(arrived), "packets still arrive");
            Ok(())
        })
    }

    fn snapshot(&self, direction: Direction) -> Result<Snapshot> {
        let sender = self.path.sender(direction);
        let sent = Statistics::of(sender.namespace, sender.device)?;
        let routed = Statistics::of(&self.path.router, self.path.egress(direction))?;
        Ok(Snapshot {
            made: self.ends.made()?,
            given: sent.sum("tx_queue_", "_xdp_xmit")?,
            refused: sent.sum("tx_queue_", "_xdp_xmit_errors")?,
            // Packets that were redirected to the device, and those that it sent back by XDP_TX.
            overrun: routed.sum("tx_queue_", "_xdp_xmit_errors")?
                + routed.sum("rx_queue_", "_xdp_tx_errors")?,
            arrived: self.ends.arrived()?,
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
        Ok(Books {
            made: self.made - before.made,
            refused: self.refused - before.refused,
            overrun: self.overrun - before.overrun,
            given: self.given - before.given,
            sunk: self.arrived.packets - before.arrived.packets,
            sunk_otherwise: self.arrived.otherwise - before.arrived.otherwise,
            reasons,
        })
    }
}

/// Returns a counter that `ethtool -S` prints for a device.
struct Statistics {
    text: String,
}

impl Statistics {
    fn of(namespace: &Namespace, device: &str) -> Result<Self> {
        Ok(Self { text: namespace.run("ethtool", &["-S", device])? })
    }

    /// The sum over all queues; a number stands between the two parts of the name.
    fn sum(&self, before: &str, after: &str) -> Result<u64> {
        let mut sum = None;
        for line in self.text.lines() {
            let Some((name, value)) = line.trim().split_once(": ") else { continue };
            let queue = name.strip_prefix(before).and_then(|name| name.strip_suffix(after));
            if queue.is_some_and(|queue| queue.bytes().all(|byte| byte.is_ascii_digit())) {
                let value: u64 = value.parse().with_context(|| format!("{name} is {value}"))?;
                sum = Some(sum.unwrap_or(0) + value);
            }
        }
        let Some(sum) = sum else { bail!("ethtool -S shows no {before}N{after}") };
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_flows_and_none_twice() {
        let [first, second] = [share([0, 40_001], 0, 2), share([0, 40_001], 1, 2)];
        assert_eq!((first.first.number, first.end), (0, 20_000));
        assert_eq!((second.first, second.end), (Flow { number: 20_000, at: 20_000, port: 0 }, 40_001));
        assert_eq!(
            flows(FLOWS_A_PORT + 1, FLOWS_A_PORT + 2).first,
            Flow { number: FLOWS_A_PORT + 1, at: 1, port: 1 }
        );
    }

    #[test]
    fn fresh_flows_go_to_ports_of_their_own() {
        assert_eq!(fresh_from(FLOWS_A_PORT), FLOWS_A_PORT);
        assert_eq!(fresh_from(40_000), 2 * FLOWS_A_PORT);
    }

    #[test]
    fn statistics_are_summed_over_queues() {
        let text = "NIC statistics:\n     peer_ifindex: 2\n     rx_queue_0_xdp_tx: 9\n     tx_queue_0_xdp_xmit: 3\n     \
                    tx_queue_0_xdp_xmit_errors: 5\n     tx_queue_1_xdp_xmit: 4\n";
        let statistics = Statistics { text: text.to_owned() };
        assert_eq!(statistics.sum("tx_queue_", "_xdp_xmit").expect("there are two"), 7);
        assert_eq!(statistics.sum("tx_queue_", "_xdp_xmit_errors").expect("there is one"), 5);
        assert!(statistics.sum("tx_queue_", "_xdp_drops").is_err());
    }
}
