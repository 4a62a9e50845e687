//! Sequences that use the same ports for one connection after the other, while the routers change
//! in between: where a new one goes, the rules say that are in force by then, and not what the
//! ports have been used for before.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{
    category::Category,
    maker::Maker,
    plan::{Body, Sequence, Session, Step},
    talk::Tcp,
    topology::{Network, RANGE_TARGET, ROUTER, Side, Targets},
};
use crate::{
    packet::{ACK, FIN, ICMP, RST, SYN, TCP, UDP},
    random::{Draw as _, Random},
};

/// A change to both routers while their sequences pause.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// Nothing.
    Pause,
    /// Services lead here from now on.
    Lead(Targets),
    /// Time goes by until neither router knows of any session.
    Expire,
}

/// Changes in a sequence's life.
const CHANGES: usize = 4;
/// One round in this many lets all sessions expire, which takes as long as the timeouts.
const EXPIRES_EACH: u64 = 2;

/// A change in a round of sequences.
pub(super) fn changes(round: u64) -> Vec<Change> {
    let mut random = Random::with_seed(round ^ 0x6368_616e_6765);
    let expires = round.is_multiple_of(EXPIRES_EACH).then(|| random.usize(..CHANGES));
    let mut now = Targets::First;
    let mut changes = Vec::new();
    for at in 0..CHANGES {
        if expires == Some(at) {
            changes.push(Change::Expire);
            continue;
        }
        let next = match now {
            Targets::First => {
                random.pick(&[Targets::First, Targets::Second, Targets::Second, Targets::Withdrawn])
            }
            Targets::Second => {
                random.pick(&[Targets::First, Targets::First, Targets::Second, Targets::Withdrawn])
            }
            Targets::Withdrawn => random.pick(&[Targets::First, Targets::Second]),
        };
        changes.push(if next == now { Change::Pause } else { Change::Lead(next) });
        now = next;
    }
    changes
}

/// The sequence of a seed.
pub(super) fn generate(seed: u64, slot: u32, categories: &[Category], changes: &[Change]) -> Sequence {
    let mut maker = Maker::new(seed, slot, categories);
    let protocol = maker.random.pick(&[TCP, TCP, TCP, TCP, TCP, TCP, UDP, ICMP]);
    let is_masqueraded = protocol == ICMP || maker.random.percent(20);
    let mut life = Life {
        protocol,
        is_masqueraded,
        targets: Targets::First,
        before: Before::Nothing,
        steps: Vec::new(),
    };
    for phase in 0..=changes.len() {
        if let Some(change) = phase.checked_sub(1).and_then(|at| changes.get(at)) {
            match change {
                Change::Pause => {}
                Change::Lead(targets) => life.targets = *targets,
                Change::Expire => life.before = Before::Nothing,
            }
        }
        if !maker.has_room_for(LONGEST_PHASE) {
            break;
        }
        let is_before_expiry = changes.get(phase) == Some(&Change::Expire);
        let mut steps = life.phase(&mut maker, is_before_expiry);
        steps.iter_mut().for_each(|step| step.phase = phase);
        life.steps.extend(steps);
    }
    Sequence { seed, slot, sessions: maker.sessions, steps: life.steps }
}

/// More datagrams than a phase has.
const LONGEST_PHASE: u16 = 40;

/// The end of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// A FIN of this side and then of the other one.
    Closed(Side),
    /// FINs of both at once.
    ClosedAtOnce,
    Reset(Side),
    Refused,
    /// No answer.
    Unanswered,
    /// No end yet.
    Open,
}

/// The use of the ports so far.
#[derive(Clone)]
enum Before {
    Nothing,
    /// A connection that is over, and what its server may send late.
    Over {
        late: Vec<Step>,
    },
    /// One that is open, with its two sides' next sequence numbers.
    Open {
        session: usize,
        next: [u32; 2],
    },
}

struct Life {
    protocol: u8,
    is_masqueraded: bool,
    targets: Targets,
    before: Before,
    steps: Vec<Step>,
}

impl Life {
    fn phase(&mut self, maker: &mut Maker<'_>, is_before_expiry: bool) -> Vec<Step> {
        match self.protocol {
            TCP => self.tcp(maker, is_before_expiry),
            _ => self.datagrams(maker),
        }
    }

    /// A session between the ends that all of this sequence's have, by the rules of now.
    fn session(&self, maker: &mut Maker<'_>) -> usize {
        let port = maker.port(0);
        let session = if self.is_masqueraded {
            let client = SocketAddrV4::new(maker.client(Network::Masqueraded, 0), port);
            let server = SocketAddrV4::new(maker.own_server(), if self.protocol == ICMP { 0 } else { 443 });
            Session { protocol: self.protocol, client, listen: server, server, refused: false }
        } else {
            let client = SocketAddrV4::new(maker.client(Network::Clients, 0), port);
            let listen = maker.own_listen();
            let address: Ipv4Addr = self.targets.moved(RANGE_TARGET);
            Session {
                protocol: self.protocol,
                client,
                listen: SocketAddrV4::new(ROUTER, listen),
                server: SocketAddrV4::new(address, listen),
                refused: self.is_withdrawn(),
            }
        };
        maker.sessions.push(session);
        maker.sessions.len() - 1
    }

    fn is_withdrawn(&self) -> bool {
        self.targets == Targets::Withdrawn && !self.is_masqueraded
    }

    fn tcp(&mut self, maker: &mut Maker<'_>, is_before_expiry: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Before::Open { session, next } = self.before {
            let mut old = Tcp::going_on(maker, session, next);
            old.data();
            old.data();
            let next = old.next;
            steps.append(&mut old.steps);
            match maker.random.usize(..3) {
                0 => {
                    self.before = Before::Open { session, next };
                    return steps;
                }
                // The client has forgotten it, and the server has not (RFC 5961 4): what it says of
                // that has the client reset it.
                1 => {
                    steps.extend(challenge(maker, session, next));
                    self.before = Before::Over { late: Vec::new() };
                }
                _ => {
                    let end = any_end(maker, false);
                    steps.extend(self.end(maker, session, next, end));
                    return steps;
                }
            }
        }
        for _ in 0..maker.random.usize(1..=2) {
            let late = match &self.before {
                Before::Over { late } => late.clone(),
                Before::Nothing | Before::Open { .. } => Vec::new(),
            };
            let session = self.session(maker);
            let mut new = Tcp::new(maker, session);
            new.syn();
            if self.is_withdrawn() {
                new.sometimes_again(50);
                steps.append(&mut new.steps);
                break;
            }
            let end = any_end(new.maker(), is_before_expiry);
            match end {
                End::Unanswered => {
                    steps.append(&mut new.steps);
                    self.before = Before::Nothing;
                    break;
                }
                End::Refused => {
                    new.send(Side::Server, RST | ACK, 0);
                    steps.append(&mut new.steps);
                    self.before = Before::Over { late: Vec::new() };
                }
                End::Closed(_) | End::ClosedAtOnce | End::Reset(_) | End::Open => {
                    steps.extend(again(new.maker(), &late));
                    new.send(Side::Server, SYN | ACK, 0);
                    new.sometimes_again(10);
                    new.send(Side::Client, ACK, 0);
                    new.data();
                    let next = new.next;
                    let made = std::mem::take(&mut new.steps);
                    steps.extend(made);
                    steps.extend(again(maker, &late));
                    steps.extend(self.end(maker, session, next, end));
                }
            }
            if matches!(self.before, Before::Open { .. }) {
                break;
            }
        }
        steps
    }

    /// Ends a connection that is open.
    fn end(&mut self, maker: &mut Maker<'_>, session: usize, next: [u32; 2], end: End) -> Vec<Step> {
        let mut tcp = Tcp::going_on(maker, session, next);
        match end {
            End::Closed(first) => {
                tcp.send(first, FIN | ACK, 0);
                tcp.sometimes_again(10);
                tcp.send(first.other(), FIN | ACK, 0);
                tcp.send(first, ACK, 0);
            }
            End::ClosedAtOnce => {
                tcp.send(Side::Client, FIN | ACK, 0);
                tcp.send_behind(Side::Server, FIN | ACK);
                tcp.send(Side::Client, ACK, 0);
                tcp.send(Side::Server, ACK, 0);
            }
            End::Reset(side) => tcp.send(side, RST | ACK, 0),
            End::Open | End::Refused | End::Unanswered => {
                self.before = Before::Open { session, next: tcp.next };
                return tcp.steps;
            }
        }
        let from_server = |step: &&Step| step.from == Side::Server;
        let late: Vec<Step> = tcp.steps.iter().filter(from_server).cloned().collect();
        let steps = tcp.steps;
        self.before = Before::Over { late };
        steps
    }

    /// UDP and echoes: a session lives for as long as there are packets, even if the rules lead
    /// elsewhere.
    fn datagrams(&mut self, maker: &mut Maker<'_>) -> Vec<Step> {
        let session = match self.before {
            Before::Open { session, .. } => session,
            Before::Nothing | Before::Over { .. } => self.session(maker),
        };
        let is_open = matches!(self.before, Before::Open { .. });
        let is_refused = !is_open && self.is_withdrawn();
        let mut steps = Vec::new();
        for sequence in 0..maker.random.u16(1..=3) {
            let body = |reply| match self.protocol {
                ICMP => Body::Echo { reply, sequence, length: 20 },
                _ => Body::Udp { length: 20, checksum: true },
            };
            steps.push(maker.step(session, Side::Client, body(false)));
            if !is_refused && maker.random.percent(70) {
                steps.push(maker.step(session, Side::Server, body(true)));
            }
        }
        if !is_refused {
            self.before = Before::Open { session, next: [0; 2] };
        }
        steps
    }
}

fn any_end(maker: &mut Maker<'_>, is_before_expiry: bool) -> End {
    match maker.random.usize(..20) {
        0..=4 => End::Closed(Side::Client),
        5..=8 => End::Closed(Side::Server),
        9 => End::ClosedAtOnce,
        10..=12 => End::Reset(Side::Client),
        13 | 14 => End::Reset(Side::Server),
        15 | 16 => End::Refused,
        17 if is_before_expiry => End::Unanswered,
        _ => End::Open,
    }
}

/// A SYN into an open connection, the server's word about that, and the reset that the client then
/// sends.
fn challenge(maker: &mut Maker<'_>, session: usize, next: [u32; 2]) -> Vec<Step> {
    let number = maker.random.u32(..);
    let mut tcp = Tcp::going_on(maker, session, [number, next[1]]);
    tcp.send(Side::Client, SYN, 0);
    tcp.next = next;
    tcp.send(Side::Server, ACK, 0);
    tcp.send(Side::Client, RST, 0);
    tcp.steps
}

/// A late packet of the old server.
fn again(maker: &mut Maker<'_>, late: &[Step]) -> Vec<Step> {
    let mut steps = Vec::new();
    for step in late {
        if maker.wants(Category::Late, 30) {
            steps.push(Step { number: maker.number(), spice: Some(Category::Late), ..step.clone() });
        }
    }
    steps
}
