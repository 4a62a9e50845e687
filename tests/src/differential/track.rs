//! The state of a sequence at one router.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{
    observe::{Mapped, Names},
    plan::{Known, MAX_DATAGRAMS, Sequence, Step},
    topology::{SERVICES, Side},
};
use crate::{
    packet::{ACK, ICMP, SYN, TCP},
    view::View,
};

/// A packet that came out of a router.
#[derive(Clone, Debug)]
pub(super) struct Output {
    /// The datagram that it belongs to: it is that datagram, or an answer to it.
    pub(super) number: u16,
    /// It is the router's own.
    pub(super) own: bool,
    pub(super) side: Side,
    pub(super) packet: Vec<u8>,
}

/// A sequence's way through one router.
#[derive(Clone, Debug)]
pub(super) struct Track {
    address: Ipv4Addr,
    first_id: u16,
    sessions: Vec<Session>,
    sent: Vec<Sent>,
    problem: Option<String>,
    pub(super) outputs: Vec<Output>,
}

#[derive(Clone, Debug)]
struct Session {
    protocol: u8,
    client: Ipv4Addr,
    client_port: u16,
    server: SocketAddrV4,
    /// The ports that it has got, one after the other.
    ports: Vec<u16>,
    /// Another session has got its last port since.
    lost: bool,
}

#[derive(Clone, Debug)]
struct Sent {
    number: u16,
    from: Side,
    /// The session, if it is one of the session's own packets.
    session: Option<usize>,
    packet: Vec<u8>,
}

impl Track {
    pub(super) fn new(sequence: &Sequence, address: Ipv4Addr) -> Self {
        let sessions = sequence.sessions.iter().map(|session| Session {
            protocol: session.protocol,
            client: *session.client.ip(),
            client_port: session.client.port(),
            server: session.server,
            ports: Vec::new(),
            lost: false,
        });
        let (sessions, first_id) = (sessions.collect(), sequence.id(0));
        Self { address, first_id, sessions, sent: Vec::new(), problem: None, outputs: Vec::new() }
    }

    /// Notes what is sent.
    pub(super) fn send(&mut self, step: &Step, packet: &[u8]) {
        let session = (step.source.is_none() && step.destination.is_none()).then_some(step.session);
        let Step { number, from, .. } = *step;
        self.sent.push(Sent { number, from, session, packet: packet.to_vec() });
    }

    /// The packet of a datagram as it was sent.
    pub(super) fn sent(&self, number: u16) -> impl Iterator<Item = &[u8]> {
        self.sent.iter().filter(move |sent| sent.number == number).map(|sent| sent.packet.as_slice())
    }

    fn number(&self, id: u16) -> Option<u16> {
        id.checked_sub(self.first_id).filter(|number| *number < MAX_DATAGRAMS)
    }

    /// Takes a packet that was sent into this sequence and has come out. False if it is none of
    /// those.
    pub(super) fn take_forwarded(&mut self, side: Side, packet: &[u8]) -> bool {
        let Some(view) = View::new(packet) else { return false };
        let Some(number) = self.number(view.id()) else { return false };
        let to = view.destination();
        let is_service = SERVICES.iter().any(|service| service.target == to);
        let is_end = is_service
            || self.sessions.iter().any(|session| session.client == to || *session.server.ip() == to);
        let fits = |sent: &&Sent| {
            let known = is_end || View::new(&sent.packet).is_some_and(|sent| sent.destination() == to);
            sent.number == number && sent.from != side && known && continues(&sent.packet, view)
        };
        let Some(sent) = self.sent.iter().find(fits) else { return false };
        if side == Side::Server
            && let Some(session) = sent.session
            && let port = view.tuple().source.port()
            && port != 0
            && view.protocol() == self.sessions[session].protocol
            && view.quoted().is_none()
        {
            self.learn(session, port, is_syn(view));
        }
        self.outputs.push(Output { number, own: false, side, packet: packet.to_vec() });
        true
    }

    /// Takes a packet that is the router's own and answers a datagram.
    pub(super) fn take_own(&mut self, number: u16, side: Side, packet: Vec<u8>) {
        self.outputs.push(Output { number, own: true, side, packet });
    }

    /// Returns the errors of the ports that the sessions got.
    pub(super) fn port_problem(&self) -> Option<String> {
        self.problem.clone()
    }

    /// Returns `true` if the output for a datagram to the server still has the port of its session.
    pub(super) fn is_current(&self, packet: &[u8]) -> bool {
        let ports = || self.sessions.iter().filter_map(|session| session.ports.last());
        View::new(packet).is_some_and(|view| {
            let port = view.tuple().source.port();
            view.source() != self.address || port == 0 || ports().any(|current| *current == port)
        })
    }

    /// Returns `true` if a session's port was given to another session, which a router may do once
    /// a connection is over.
    pub(super) fn has_lost_its_port(&self, session: usize) -> bool {
        self.sessions[session].lost
    }

    /// Notes that a session has this port.
    fn learn(&mut self, session: usize, port: u16, opens: bool) {
        let Session { protocol, server, .. } = self.sessions[session];
        if self.sessions[session].ports.last() != Some(&port) {
            // A connection after a connection may get another one.
            if !self.sessions[session].ports.is_empty() && !opens {
                self.problem =
                    Some(format!("session {session} had another port than {port}, and was not over"));
            }
            self.sessions[session].ports.push(port);
        } else if self.sessions[session].lost && !opens {
            self.problem = Some(format!("port {port} is session {session}'s and another one's"));
        }
        // The connection that had it before must be over.
        for (at, other) in self.sessions.iter_mut().enumerate() {
            let same = (other.protocol, other.server, other.ports.last()) == (protocol, server, Some(&port));
            if same {
                other.lost = at != session;
            }
        }
    }
}

/// Returns `true` if an output packet may be one that was sent: a router's own packet may have its
/// identification by chance.
fn continues(sent: &[u8], out: View<'_>) -> bool {
    let Some(sent) = View::new(sent) else { return false };
    if sent.protocol() != out.protocol() {
        return false;
    }
    // A router may cut what was whole, but does not put together what was not.
    if sent.is_fragment() || out.is_fragment() {
        return out.is_fragment();
    }
    // From the words after the ports on: TCP's numbers and flags, UDP's length, an ICMP message's
    // kind.
    let same = match sent.protocol() {
        TCP => 4..16,
        ICMP => 0..2,
        _ => 4..6,
    };
    let (sent, out) = (sent.payload(), out.payload());
    sent.len() == out.len() && (sent.len() < same.end || sent[same.clone()] == out[same])
}

fn is_syn(view: View<'_>) -> bool {
    view.protocol() == TCP && view.payload().get(13).is_some_and(|flags| flags & (SYN | ACK) == SYN)
}

impl Known for Track {
    fn port(&self, session: usize) -> Option<u16> {
        self.sessions[session].ports.last().copied()
    }

    fn forwarded(&self, number: u16, side: Side) -> Option<&[u8]> {
        let outputs = self.outputs.iter().filter(|output| !output.own && output.side == side);
        let mut packets =
            outputs.filter(|output| output.number == number).map(|output| output.packet.as_slice());
        packets.find(|packet| View::new(packet).is_some_and(|view| view.offset() == 0))
    }

    fn address(&self) -> Ipv4Addr {
        self.address
    }
}

impl Names for Track {
    fn mapped(&self, port: u16, session: usize) -> Option<Mapped> {
        // Packets may go to another session's port, too.
        let sessions = std::iter::once(session).chain(0..self.sessions.len());
        let mut with_port = sessions.filter(|session| self.sessions[*session].ports.contains(&port));
        with_port.next().map(|session| Mapped { session, client_port: self.sessions[session].client_port })
    }

    fn address(&self) -> Ipv4Addr {
        self.address
    }
}
