//! The packets of clients and servers when nothing goes wrong but the network.

use super::{
    category::Category,
    maker::Maker,
    plan::{Body, Step},
    topology::Side,
};
use crate::{
    packet::{ACK, FIN, ICMP, PSH, RST, SYN, TCP},
    random::Draw as _,
};

/// Returns the packets of both sides of a session.
pub(super) fn steps(maker: &mut Maker<'_>, session: usize) -> Vec<Step> {
    match maker.sessions[session].protocol {
        TCP => Tcp::new(maker, session).talk(),
        ICMP => echo(maker, session),
        _ => udp(maker, session),
    }
}

fn udp(maker: &mut Maker<'_>, session: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for turn in 0..maker.random.usize(2..=7) {
        // The client sends first.
        let from = if turn == 0 || maker.random.percent(50) { Side::Client } else { Side::Server };
        let length = length(maker);
        let checksum = !maker.wants(Category::ZeroChecksum, 25);
        steps.push(maker.step(session, from, Body::Udp { length, checksum }));
    }
    steps
}

fn echo(maker: &mut Maker<'_>, session: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for sequence in 0..maker.random.u16(1..=3) {
        let length = length(maker);
        steps.push(maker.step(session, Side::Client, Body::Echo { reply: false, sequence, length }));
        for _ in 0..maker.random.pick(&[0, 1, 1, 1, 2]) {
            steps.push(maker.step(session, Side::Server, Body::Echo { reply: true, sequence, length }));
        }
    }
    steps
}

/// Returns the length of a payload: often 0, odd ones, and up to the smallest MTU.
fn length(maker: &mut Maker<'_>) -> usize {
    match maker.random.usize(..10) {
        0..=1 => 0,
        2..=7 => maker.random.usize(1..=64),
        8 => maker.random.usize(65..=700),
        _ => maker.random.usize(701..=1200),
    }
}

/// The two ends of a TCP connection.
pub(super) struct Tcp<'m, 'c> {
    maker: &'m mut Maker<'c>,
    session: usize,
    /// The next sequence number of the client and of the server.
    pub(super) next: [u32; 2],
    finished: [bool; 2],
    /// This session's first connection.
    is_first: bool,
    pub(super) steps: Vec<Step>,
}

impl<'m, 'c> Tcp<'m, 'c> {
    pub(super) fn new(maker: &'m mut Maker<'c>, session: usize) -> Self {
        let next = [maker.random.u32(..), maker.random.u32(..)];
        Self { maker, session, next, finished: [false; 2], is_first: true, steps: Vec::new() }
    }

    /// A connection of this session that is open, whose two sides are as far as this.
    pub(super) const fn going_on(maker: &'m mut Maker<'c>, session: usize, next: [u32; 2]) -> Self {
        Self { maker, session, next, finished: [false; 2], is_first: false, steps: Vec::new() }
    }

    pub(super) const fn maker(&mut self) -> &mut Maker<'c> {
        self.maker
    }

    fn talk(mut self) -> Vec<Step> {
        self.connect();
        while self.maker.random.percent(30) && self.steps.len() < 12 {
            self.reopen();
        }
        self.steps
    }

    /// Sends a connection from the SYN to its end, or until both fall silent.
    fn connect(&mut self) {
        self.syn();
        if self.maker.random.percent(12) {
            return self.refused();
        }
        // Not after another connection: there the kernel waits for the server's SYN-ACK before it
        // believes in a new one, and takes a bare SYN of the server for one without a connection.
        if self.maker.random.percent(8) && self.is_first {
            return self.both_open();
        }
        self.send(Side::Server, SYN | ACK, 0);
        self.sometimes_again(10);
        self.send(Side::Client, ACK, 0);
        for _ in 0..self.maker.random.usize(0..=4) {
            self.data();
        }
        if self.maker.random.percent(75) {
            self.close();
        }
    }

    pub(super) fn syn(&mut self) {
        self.send(Side::Client, SYN, 0);
        self.sometimes_again(12);
        if self.maker.random.percent(8) {
            // A client that has started over: another initial sequence number.
            self.next[0] = self.maker.random.u32(..);
            self.send(Side::Client, SYN, 0);
        }
    }

    fn refused(&mut self) {
        self.send(Side::Server, RST | ACK, 0);
        if self.maker.random.percent(50) {
            self.next[0] = self.next[0].wrapping_sub(1);
            self.send(Side::Client, SYN, 0);
            self.send(Side::Server, RST | ACK, 0);
        }
    }

    /// RFC 9293 3.5: both send a SYN.
    fn both_open(&mut self) {
        self.send(Side::Server, SYN, 0);
        self.next = self.next.map(|next| next.wrapping_sub(1));
        self.send(Side::Client, SYN | ACK, 0);
        self.send(Side::Server, SYN | ACK, 0);
        self.data();
    }

    pub(super) fn data(&mut self) {
        let from = self.maker.random.pick(&Side::BOTH);
        let length = length(self.maker);
        self.send(from, if length > 0 { ACK | PSH } else { ACK }, length);
        self.sometimes_again(15);
        if self.maker.random.percent(40) {
            self.send(from.other(), ACK, 0);
        }
    }

    fn close(&mut self) {
        let first = self.maker.random.pick(&Side::BOTH);
        if self.maker.random.percent(25) {
            let flags = self.maker.random.pick(&[RST, RST | ACK]);
            self.send(first, flags, 0);
            self.sometimes_again(20);
            return;
        }
        self.send(first, FIN | ACK, 0);
        self.sometimes_again(10);
        match self.maker.random.usize(..5) {
            // Half closed: the other one still has to say something.
            0 => {
                self.send(first.other(), ACK, 0);
                self.send(first.other(), ACK | PSH, 33);
                self.send(first, ACK, 0);
                if self.maker.random.percent(60) {
                    self.send(first.other(), FIN | ACK, 0);
                    self.send(first, ACK, 0);
                }
            }
            // Both at once.
            1 => {
                self.send_behind(first.other(), FIN | ACK);
                self.send(first, ACK, 0);
                self.send(first.other(), ACK, 0);
            }
            // The other end has gone.
            2 => self.send(first.other(), RST | ACK, 0),
            _ => {
                self.send(first.other(), FIN | ACK, 0);
                self.sometimes_again(10);
                self.send(first, ACK, 0);
            }
        }
    }

    /// Opens another connection of the same client and port (RFC 9293 3.6.1), only after a whole
    /// end: a client does not open an open connection.
    fn reopen(&mut self) {
        if self.finished != [true; 2] {
            return;
        }
        self.finished = [false; 2];
        self.is_first = false;
        // Above what the last one has used.
        self.next = self.next.map(|next| next.wrapping_add(70_000));
        self.connect();
    }

    /// Sends a segment; both sides know all that has been sent.
    pub(super) fn send(&mut self, from: Side, flags: u8, length: usize) {
        let acknowledgement = self.next[index(from.other())];
        self.emit(from, flags, length, acknowledgement);
    }

    /// Sends a segment that has crossed the last one: it does not acknowledge what that took of the
    /// sequence space.
    pub(super) fn send_behind(&mut self, from: Side, flags: u8) {
        let acknowledgement = self.next[index(from.other())].wrapping_sub(1);
        self.emit(from, flags, 0, acknowledgement);
    }

    fn emit(&mut self, from: Side, flags: u8, length: usize, acknowledgement: u32) {
        let options = if flags & SYN != 0 {
            // MSS, SACK permitted, timestamps, a no-operation, window scale.
            vec![2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7]
        } else if self.maker.random.percent(30) {
            vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 7]
        } else {
            Vec::new()
        };
        let body = Body::Tcp {
            sequence: self.next[index(from)],
            acknowledgement: if flags & ACK != 0 { acknowledgement } else { 0 },
            flags,
            window: 64_240,
            options,
            length,
        };
        let step = self.maker.step(self.session, from, body);
        self.steps.push(step);
        let phantom = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let next = &mut self.next[index(from)];
        *next = next.wrapping_add(length as u32 + phantom);
        if flags & FIN != 0 {
            self.finished[index(from)] = true;
        }
        if flags & RST != 0 {
            self.finished = [true; 2];
        }
    }

    /// The last segment again, as another packet.
    pub(super) fn sometimes_again(&mut self, percent: usize) {
        if self.maker.random.percent(percent)
            && let Some(last) = self.steps.last().cloned()
        {
            self.steps.push(Step { number: self.maker.number(), ..last });
        }
    }
}

const fn index(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Server => 1,
    }
}
