//! Handles punted packets.

use std::{
    collections::HashSet,
    os::fd::AsFd as _,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData, RingBuf};
use futures_util::{StreamExt as _, stream::BoxStream};
use router_common::{
    fragment::FragmentKey,
    maps::punt::{Kind, Neighbour, Punted},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::{JoinSet, yield_now},
    time::{interval, sleep, sleep_until},
};

use tracing::{info, warn};

use super::{
    early_fragments::EarlyFragments,
    failed::{self, FailedNeighbours},
    output::Output,
    received::Received,
    router::Router,
    tally::{Loss, Tally},
    waiting::{self, Queued, Waiting},
};
use crate::{
    daemon::{
        kernel::netlink::{self, Kernel, NeighbourChange, NeighbourEntry},
        self_test,
    },
    dataplane::Departure,
};

/// The number of punted packets that are handled before anything else gets its turn.
const RECORDS_IN_A_ROW: u32 = 256;
/// The period in which expired packets are looked for, while any are queued.
const ROUND: Duration = Duration::from_millis(500);

/// The time for packets that are queued when the work is to stop: neighbours that answer do so
/// within it.
const FINISH: Duration = Duration::from_millis(500);

/// Descriptors for serving, opened while the daemon starts: later it may not, or may lack
/// descriptors.
pub(super) struct Channels {
    ring: AsyncFd<RingBuf<MapData>>,
    changes: BoxStream<'static, NeighbourChange>,
    output: Output,
}

impl Channels {
    /// Opens them.
    pub(super) fn open(ring: RingBuf<MapData>) -> Result<Self> {
        Ok(Self { ring: wait_for(ring)?, changes: netlink::watch_neighbours()?, output: Output::open()? })
    }

    /// Forgets the packets in the ring: no daemon has taken them in time.
    pub(super) fn discard(&mut self) {
        let mut packets = 0_u64;
        while self.ring.get_mut().next().is_some() {
            packets += 1;
        }
        if packets > 0 {
            info!(packets, "discarded what was left for a daemon while there was none");
        }
    }

    /// Reads the ring from where it has been read to: another process may have read it meanwhile.
    fn read_on(&mut self) -> Result<()> {
        let ring = self.ring.get_ref();
        let reopened = || -> Result<RingBuf<MapData>> {
            Ok(Map::RingBuf(MapData::from_fd(ring.as_fd().try_clone_to_owned()?)?).try_into()?)
        };
        let reopened = reopened().context("cannot open the ring of packets again")?;
        self.ring = wait_for(reopened)?;
        Ok(())
    }
}

fn wait_for(ring: RingBuf<MapData>) -> Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring owns its descriptor, keeps it open as long as it lives, and always names the
    // same one.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .context("cannot wait for packets from the data plane")
}

/// Handles the packets in the ring until an error occurs, or until `stop`. Packets that are queued
/// then are handled for a moment yet, and the ring is left to whoever comes next.
pub(super) async fn serve(
    router: Arc<dyn Router>,
    tally: Arc<Tally>,
    kernel: Kernel,
    channels: &mut Channels,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    channels.read_on()?;
    let Channels { ring, changes, output } = channels;
    let mut handler = PuntHandler {
        router,
        tally,
        kernel,
        output,
        early_fragments: EarlyFragments::default(),
        waiting: Waiting::default(),
        failed: FailedNeighbours::default(),
        asked: JoinSet::new(),
        to_be_resolved: HashSet::new(),
    };
    let mut round = interval(ROUND);
    let (mut stop, mut end) = (pin!(stop), None);
    loop {
        let last = end;
        if last.is_some_and(|end| end <= tokio::time::Instant::now() || !handler.has_queued()) {
            handler.give_up_all();
            return Ok(());
        }
        tokio::select! {
            () = &mut stop, if last.is_none() => end = Some(tokio::time::Instant::now() + FINISH),
            () = sleep_until(last.unwrap_or_else(tokio::time::Instant::now)), if last.is_some() => {}
            ready = ring.readable_mut(), if last.is_none() => {
                let mut ready = ready.context("cannot wait for packets from the data plane")?;
                // A full ring must not keep answers and the clock from their turn.
                let mut records = 0;
                while records < RECORDS_IN_A_ROW && let Some(record) = ready.get_inner_mut().next() {
                    if let Some(punted) = Punted::parse(&record) {
                        handler.handle(&punted);
                    }
                    records += 1;
                }
                if records < RECORDS_IN_A_ROW {
                    ready.clear_ready();
                } else {
                    yield_now().await;
                }
            }
            change = changes.next() => match change {
                Some(change) => handler.note(change),
                None => bail!("the netlink connection has ended"),
            },
            Some(answer) = handler.asked.join_next() => {
                handler.on_neighbour_answer(answer.context("a part of the daemon has crashed")?);
            }
            _ = round.tick(), if handler.has_something() => handler.look_at_the_clock(),
        }
        handler.report();
    }
}

/// Handles packets from the ring, and answers about their neighbours.
struct PuntHandler<'a> {
    router: Arc<dyn Router>,
    tally: Arc<Tally>,
    kernel: Kernel,
    output: &'a mut Output,
    early_fragments: EarlyFragments,
    waiting: Waiting,
    failed: FailedNeighbours,
    /// Questions to the kernel about neighbours.
    asked: JoinSet<Answer>,
    /// The neighbours that the kernel is about to be asked to resolve.
    to_be_resolved: HashSet<Neighbour>,
}

/// An answer of the kernel about a neighbour.
struct Answer {
    neighbour: Neighbour,
    question: Question,
    /// The kernel's entry; `None` if there is none.
    known: Result<Option<NeighbourEntry>>,
}

/// A question to the kernel about a neighbour.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Question {
    /// Resolve it.
    Resolve,
    /// Tell its entry.
    LookUp,
    /// Tell its entry, while it was about to be resolved: that it has failed, or is not there, says
    /// nothing then. The kernel reports the outcome as another change.
    LookUpBeforeResolving,
}

/// The consequence of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Consequence {
    /// The neighbour has answered: the packets for it go on.
    GoOn,
    /// The neighbour does not answer.
    GiveUp,
    /// Its entry has been removed, so it has to be resolved again.
    ResolveAgain,
    /// The outcome is still open.
    Wait,
}

/// Decides what follows from the kernel's entry of a neighbour that packets wait for.
fn consequence(question: Question, entry: Option<&NeighbourEntry>) -> Consequence {
    match (question, entry) {
        (_, Some(NeighbourEntry { mac: Some(_), .. })) => Consequence::GoOn,
        (Question::LookUpBeforeResolving, _) => Consequence::Wait,
        (_, Some(NeighbourEntry { failed: true, .. })) => Consequence::GiveUp,
        // After it has been asked for, its removal is a change of its own.
        (Question::LookUp, None) => Consequence::ResolveAgain,
        (Question::Resolve, None) | (_, Some(_)) => Consequence::Wait,
    }
}

impl PuntHandler<'_> {
    fn handle(&mut self, punted: &Punted<'_>) {
        // Nothing of a self-test leaves this machine; its next hop went away in the middle of it.
        if self_test::is_test(punted.packet) {
            return;
        }
        let received = Received::of(punted);
        match punted.kind {
            Kind::Wait => {
                let Queued { ask, dropped } = self.waiting.push(punted.neighbour, received, Instant::now());
                self.tally.lost(Loss::NoRoom, dropped);
                if let Some(pause) = ask {
                    self.ask(punted.neighbour, pause);
                }
            }
            Kind::Split => match self.split(punted) {
                Ok(frames) => self.tally.sent(frames),
                Err(error) => self.tally.failed(1, &error),
            },
            Kind::EarlyFragment => {
                let Some(key) = key(&received.packet) else { return };
                let lost = self.early_fragments.hold(key, received, Instant::now());
                self.tally.lost(Loss::NoRoom, lost as u64);
            }
            Kind::FirstFragment => {
                let Some(key) = key(&received.packet) else { return };
                let fragments = self.early_fragments.release(&key, Instant::now());
                self.replay(&fragments);
            }
        }
    }

    /// Asks the kernel to resolve a neighbour, after a pause.
    fn ask(&mut self, neighbour: Neighbour, pause: Duration) {
        let kernel = self.kernel.clone();
        self.to_be_resolved.insert(neighbour);
        self.asked.spawn(async move {
            // Even the shortest sleep takes a millisecond.
            if !pause.is_zero() {
                sleep(pause).await;
            }
            Answer { neighbour, question: Question::Resolve, known: kernel.ask_for(&neighbour).await }
        });
    }

    /// Handles a change of a neighbour. Its entry is looked up: the change may be older than the
    /// packet that waits.
    fn note(&mut self, change: NeighbourChange) {
        let concerned = match change {
            Some(neighbour) if self.waiting.is_for(&neighbour) || self.failed.contains(&neighbour) => {
                vec![neighbour]
            }
            Some(_) => Vec::new(),
            None => self.waiting.neighbours(),
        };
        for neighbour in concerned {
            let kernel = self.kernel.clone();
            let question = match self.to_be_resolved.contains(&neighbour) {
                true => Question::LookUpBeforeResolving,
                false => Question::LookUp,
            };
            self.asked.spawn(async move {
                Answer { neighbour, question, known: kernel.neighbour(&neighbour).await }
            });
        }
    }

    /// Handles the kernel's answer about a neighbour.
    fn on_neighbour_answer(&mut self, Answer { neighbour, question, known }: Answer) {
        if question == Question::Resolve {
            self.to_be_resolved.remove(&neighbour);
        }
        let is_waited_for = self.waiting.is_for(&neighbour);
        match known.map(|entry| consequence(question, entry.as_ref())) {
            Ok(Consequence::GoOn) => {
                if self.failed.remove(&neighbour) {
                    self.may_be_waited_for(&neighbour);
                }
                let packets = self.waiting.take(&neighbour, Instant::now());
                self.replay(&packets);
            }
            Ok(Consequence::GiveUp) if is_waited_for => self.give_up(neighbour),
            Ok(Consequence::ResolveAgain) if is_waited_for => self.ask(neighbour, waiting::PAUSE),
            Err(error) if is_waited_for => {
                let lost = self.waiting.take(&neighbour, Instant::now()).len();
                self.tally.failed(lost as u64, &error);
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Ends the waiting for a neighbour that does not answer: the data plane is told so, and then
    /// tells the senders of the packets.
    fn give_up(&mut self, neighbour: Neighbour) {
        let now = Instant::now();
        let packets = self.waiting.take(&neighbour, now);
        self.tally.lost(Loss::Unanswered, packets.len() as u64);
        let noted = self.router.note_failed(&neighbour, failed::HOLD);
        match noted {
            Ok(()) => {
                self.failed.add(neighbour, now);
                self.replay(&packets);
            }
            // They would only wait again.
            Err(error) => self.tally.failed(0, &error),
        }
    }

    /// Has the data plane let packets wait for a neighbour again.
    fn may_be_waited_for(&self, neighbour: &Neighbour) {
        let noted = self.router.forget_failed(neighbour);
        if let Err(error) = noted {
            self.tally.failed(0, &error);
        }
    }

    /// Gives packets to the data plane once more, and sends what it makes of them. What is not to
    /// be sent has its reason counted, or is in the ring again.
    fn replay(&self, packets: &[Received]) {
        for Received { interface, packet } in packets {
            let replayed = self.router.replay(*interface, packet);
            let sent = replayed.and_then(|departure| match departure {
                Some(Departure { interface, frame }) => self.send(interface, &frame).map(|()| 1),
                None => Ok(0),
            });
            match sent {
                Ok(frames) => self.tally.sent(frames),
                Err(error) => self.tally.failed(1, &error),
            }
        }
    }

    fn send(&self, interface: u32, frame: &[u8]) -> Result<()> {
        self.output.send(interface, frame).with_context(|| self.cannot_send(interface))
    }

    fn split(&mut self, punted: &Punted<'_>) -> Result<u64> {
        let Punted { interface, mtu, mac, packet, .. } = *punted;
        let own = self.router.mac(interface);
        let ethernet = [&mac[..], &own, &[0x08, 0x00]].concat();
        let mtu = u16::try_from(mtu)?;
        self.output.split(interface, &ethernet, packet, mtu).with_context(|| self.cannot_send(interface))
    }

    fn cannot_send(&self, interface: u32) -> String {
        match self.router.interface_name(interface) {
            Some(name) => format!("cannot send by {name}"),
            None => format!("cannot send by the interface with index {interface}"),
        }
    }

    /// Gives up what is still queued when the work ends.
    fn give_up_all(&self) {
        let packets = (self.waiting.packets() + self.early_fragments.fragments()) as u64;
        if packets > 0 {
            self.tally.lost(Loss::Unanswered, packets);
            warn!(packets, "given up: they waited for neighbours or other fragments when the daemon paused");
        }
    }

    /// Returns `true` if packets are queued.
    fn has_queued(&self) -> bool {
        !self.early_fragments.is_empty() || !self.waiting.is_empty()
    }

    fn has_something(&self) -> bool {
        self.has_queued() || !self.failed.is_empty()
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        self.early_fragments.expire(now);
        for neighbour in self.waiting.overdue(now) {
            self.give_up(neighbour);
        }
        for neighbour in self.failed.take_expired(now) {
            self.may_be_waited_for(&neighbour);
        }
        for neighbour in self.failed.due(now) {
            self.ask(neighbour, Duration::ZERO);
        }
    }

    /// Says what there is now.
    fn report(&mut self) {
        self.tally.lost(Loss::Expired, self.early_fragments.expired() as u64);
        self.tally.has(self.waiting.packets(), self.early_fragments.fragments());
    }
}

/// The datagram of a fragment. Every packet in the ring has a header.
fn key(packet: &[u8]) -> Option<FragmentKey> {
    packet.first_chunk().map(FragmentKey::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_from_before_the_question_does_not_end_the_waiting() {
        let failed = NeighbourEntry { mac: None, failed: true, ..NeighbourEntry::default() };
        let resolved = NeighbourEntry { mac: Some([2; 6]), failed: false, ..failed };
        let pending = NeighbourEntry { failed: false, ..failed };
        for (question, entry, wanted) in [
            (Question::LookUpBeforeResolving, Some(&failed), Consequence::Wait),
            (Question::LookUpBeforeResolving, None, Consequence::Wait),
            (Question::LookUpBeforeResolving, Some(&resolved), Consequence::GoOn),
            (Question::LookUp, Some(&failed), Consequence::GiveUp),
            (Question::LookUp, None, Consequence::ResolveAgain),
            (Question::LookUp, Some(&pending), Consequence::Wait),
            (Question::Resolve, Some(&failed), Consequence::GiveUp),
            (Question::Resolve, None, Consequence::Wait),
            (Question::Resolve, Some(&resolved), Consequence::GoOn),
        ] {
            assert_eq!(consequence(question, entry), wanted, "{question:?} {entry:?}");
        }
    }
}
