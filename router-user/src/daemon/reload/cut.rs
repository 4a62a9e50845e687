//! Ends sessions, and tells both ends of a TCP connection.
//!
//! Each end gets a reset in the name of the other one, with exactly the number that it expects (RFC
//! 5961 3.2), as the table's entries have it. The reset goes the way of the session's packets: the
//! programs run on it as if the other end had sent it ([`Replayer`]), so addresses, checksums and
//! next hop are theirs.
//!
//! While data is in flight, an end may expect more than it has acknowledged, and challenges the
//! reset. Its answer passes the programs, which then know better. So whoever has acknowledged more
//! since is told again, a few times, before the session is removed. After that, the kernel refuses
//! what an end still sends, as for any connection that is not there.

use std::time::Duration;

use anyhow::{Context as _, Result};
use router_common::{
    checksum::Sum,
    maps::settings::Settings,
    tcp,
    time::Ticks,
    tuple::{FlowKey, Protocol},
};
use tokio::{task::spawn_blocking, time::sleep};
use tracing::warn;

use crate::{
    daemon::{
        punts::output::Output,
        sync::{Locked, Work},
    },
    dataplane::{Dataplane, FlowTable, Replayer, Session},
};

/// The time for the answers to resets.
const PAUSE: Duration = Duration::from_millis(50);
/// The most times that an end is told.
const ROUNDS: u32 = 6;
/// The number of sessions in one piece of work, which the end of the daemon waits for.
const CHUNK: usize = 2048;

/// Ends sessions. A clone is the same.
#[derive(Clone)]
pub(crate) struct Cutter {
    pub(crate) plane: Locked<Dataplane>,
    pub(crate) flows: FlowTable,
    pub(crate) work: Work,
}

/// A session that is to end.
#[derive(Clone, Copy, Debug)]
struct Doomed {
    forward: FlowKey,
    reply: FlowKey,
    opened: Ticks,
    /// The numbers that its ends were told last: the client's and the target's.
    told: Option<(u32, u32)>,
}

impl Cutter {
    /// Returns the sessions for which a predicate holds.
    pub(crate) async fn find(
        &self,
        is_wanted: impl Fn(&Session) -> bool + Send + 'static,
    ) -> Result<Vec<Session>> {
        let flows = self.flows.clone();
        // A walk through a large table takes a while.
        let walk = move || {
            let mut found = Vec::new();
            flows.for_each(|session| {
                if is_wanted(session) {
                    found.push(*session);
                }
                true
            });
            found
        };
        spawn_blocking(walk).await.context("the search for sessions has crashed")
    }

    /// Ends sessions. Returns the number of those that it has ended; others have ended meanwhile.
    ///
    /// # Errors
    /// Returns an error if resets cannot be sent, or the table cannot be changed.
    pub(crate) async fn cut(&self, sessions: &[Session]) -> Result<u64> {
        let doomed = |session: &Session| Doomed {
            forward: session.forward.key,
            reply: session.reply.key,
            opened: session.forward.entry.opened,
            told: None,
        };
        let mut left: Vec<_> = sessions.iter().map(doomed).collect();
        let mut ended = 0;
        for round in 0..=ROUNDS {
            if left.is_empty() {
                break;
            }
            if round > 0 {
                sleep(PAUSE).await;
            }
            let mut again = Vec::new();
            for chunk in left.chunks(CHUNK) {
                let (cutter, chunk, work) = (self.clone(), chunk.to_vec(), self.work.begin().await?);
                let turn = move || {
                    let _work = work;
                    cutter.turn(chunk, round == ROUNDS)
                };
                let (left, count) =
                    spawn_blocking(turn).await.context("the end of sessions has crashed").flatten()?;
                again.extend(left);
                ended += count;
            }
            left = again;
        }
        Ok(ended)
    }

    /// Tells the ends that have not been told yet, or expect another number by now, and removes the
    /// sessions of all others; all of them at last. Returns those that are left, and the number of
    /// those that were removed.
    fn turn(&self, doomed: Vec<Doomed>, is_last: bool) -> Result<(Vec<Doomed>, u64)> {
        let messenger = Messenger::new(&self.plane)?;
        let mut left = Vec::new();
        let (mut ended, mut failed) = (0, None);
        for mut session in doomed {
            let Some(current) = self.current(&session) else { continue };
            let numbers = (current.forward.entry.expects, current.reply.entry.expects);
            let is_tcp = current.protocol() == Some(Protocol::Tcp);
            if is_tcp && session.told != Some(numbers) {
                failed = messenger.tell(&current).err().or(failed);
                session.told = Some(numbers);
                if !is_last {
                    left.push(session);
                    continue;
                }
            }
            self.flows.remove(&current)?;
            ended += 1;
        }
        if let Some(error) = failed {
            warn!("not all ends of sessions that were cut could be told: {error:#}");
        }
        Ok((left, ended))
    }

    /// Returns a session as it is now; `None` if it has ended, or its client has opened another
    /// one.
    fn current(&self, doomed: &Doomed) -> Option<Session> {
        let forward = self.flows.get(&doomed.forward)?;
        let session = self.flows.session_of(&forward)?;
        let is_it = session.reply.key == doomed.reply && forward.entry.opened == doomed.opened;
        is_it.then_some(session)
    }
}

/// Sends resets.
struct Messenger {
    settings: Settings,
    replayer: Replayer,
    output: Output,
}

impl Messenger {
    fn new(plane: &Locked<Dataplane>) -> Result<Self> {
        let plane = plane.lock();
        Ok(Self { settings: *plane.settings.current(), replayer: plane.replayer()?, output: Output::open()? })
    }

    /// Sends a reset to both ends.
    fn tell(&self, session: &Session) -> Result<()> {
        let (client, target) = (session.forward.entry.expects, session.reply.entry.expects);
        let [first, second] = self.settings.interfaces.map(|interface| interface.primary);
        let firewall = if second == 0 { first } else { second };
        // Both are tried, whatever becomes of the first one.
        let to_target = self.send(first, &reset(&session.forward.key, target, client));
        let to_client = self.send(firewall, &reset(&session.reply.key, client, target));
        to_target.and(to_client)
    }

    fn send(&self, interface: u32, packet: &[u8]) -> Result<()> {
        let departure = self.replayer.replay(&self.settings, interface, packet)?;
        // Without one, it waits for its neighbour and leaves then, or has no way.
        let Some(departure) = departure else { return Ok(()) };
        self.output.send(departure.interface, &departure.frame).context("cannot send a reset")
    }
}

/// Returns an IPv4 packet with a reset of this tuple. It acknowledges as well, because a client
/// that has had no answer yet accepts nothing else (RFC 9293 3.10.7.3).
fn reset(tuple: &FlowKey, sequence: u32, acknowledgement: u32) -> [u8; 40] {
    const IP: [u8; 12] = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, Protocol::Tcp as u8, 0, 0];
    // The length of the header in words, the flags, and a window, a checksum and an urgent pointer
    // of 0.
    const REST: [u8; 8] = [5 << 4, tcp::RST | tcp::ACK, 0, 0, 0, 0, 0, 0];
    let addresses = [tuple.source.0, tuple.destination.0].concat();
    let ports = [tuple.source_port.number().to_be_bytes(), tuple.destination_port.number().to_be_bytes()];
    let numbers = [sequence.to_be_bytes(), acknowledgement.to_be_bytes()];
    let tcp_header = [&ports.concat()[..], &numbers.concat(), &REST].concat();
    let pseudo_header = [&addresses[..], &[0, Protocol::Tcp as u8, 0, 20]].concat();
    let mut packet = [0; 40];
    packet[..12].copy_from_slice(&IP);
    packet[12..20].copy_from_slice(&addresses);
    packet[20..].copy_from_slice(&tcp_header);
    let checksum = Sum::ZERO.add_bytes(&packet[..20]).checksum();
    packet[10..12].copy_from_slice(&checksum);
    let checksum = Sum::ZERO.add_bytes(&pseudo_header).add_bytes(&tcp_header).checksum();
    packet[36..38].copy_from_slice(&checksum);
    packet
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4HeaderSlice, TcpHeaderSlice};
    use router_common::address::{Ipv4, Port};

    use super::*;

    #[test]
    fn a_reset_is_a_whole_packet() {
        let tuple = FlowKey::new(
            Protocol::Tcp,
            Ipv4([10, 0, 2, 69]),
            Port::new(50_000),
            Ipv4([203, 0, 113, 10]),
            Port::new(443),
        );
        let packet = reset(&tuple, 0xfffe_dcba, 7);
        let ip = Ipv4HeaderSlice::from_slice(&packet).expect("an IPv4 header");
        assert_eq!(ip.total_len(), 40);
        assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
        let tcp = TcpHeaderSlice::from_slice(&packet[20..]).expect("a TCP header");
        assert_eq!((tcp.source_port(), tcp.destination_port()), (50_000, 443));
        assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (0xfffe_dcba, 7));
        assert!(tcp.rst() && tcp.ack() && !tcp.syn() && !tcp.fin());
        assert_eq!(
            tcp.checksum(),
            tcp.to_header().calc_checksum_ipv4(&ip.to_header(), &[]).expect("a checksum")
        );
    }
}
