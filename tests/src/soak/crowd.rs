//! The crowd: very many UDP sessions that all stay. Each of them sends a word now and then until
//! the word comes back, so the session never expires. The server checks that the session's address
//! stays the same and that no other session has it.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use super::{
    place::{ROUTER, SNAT_PORTS, TARGET, UDP_TIMEOUT},
    report::Tally,
};
use crate::{
    packet::{UDP, ipv4, udp},
    view::{Tuple, View},
};

/// A Private Link Service has up to eight addresses.
const SOURCES: u32 = 8;
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
const FIRST_PORT: u16 = 2000;
const PORTS: u32 = 28_000;

/// The ports that the router listens on: each has a separate target, with ports for its sessions.
/// With the default number of sessions, five of six ports are taken.
const FIRST_SERVICE: u16 = 7000;
const SERVICES: u32 = 4;

/// The largest number of sessions.
pub(super) const MOST: u32 = SOURCES * PORTS;
const _: () = assert!(MOST / SERVICES <= (SNAT_PORTS.1 - SNAT_PORTS.0) as u32);

/// The interval at which each session speaks. Two rounds fit into the router's timeout.
const ROUND: Duration = Duration::from_secs(25);
/// When it says it again if nothing has come back, twice that the next time, and so on up to
const PATIENCE: Duration = Duration::from_secs(1);
/// this: if the machine is too busy, more packets do not help. Less than half of the 7 s for which
/// a session may open where ports are scarce, as they are when the last of the crowd come: where
/// every answer was lost so far, one of the next two tries finds the session.
const MOST_PATIENCE: Duration = Duration::from_secs(3);
/// When one in this many sessions waits for an answer, no new words are sent.
const OVERLOAD: u64 = 5;
/// So many words without an answer, each said again all the time, are a mistake.
const DEAF: u32 = 3;

/// A session that was heard within this time still exists: the timeout, less a margin for the
/// router's clock and a busy machine.
const SURELY_ALIVE: Duration = Duration::from_secs(UDP_TIMEOUT.as_secs() - 10);

/// The most words at a time: between them it is listened.
const BURST: u32 = 256;

/// The router's rules for it.
pub(super) fn rules() -> String {
    format!(
        "[[forward]]\nname = \"crowd\"\nprotocol = \"udp\"\nlisten = \"{FIRST_SERVICE}-{}\"\n\
         target = \"{TARGET}\"\nsources = [\"10.64.0.0/16\"]\n",
        FIRST_SERVICE + SERVICES as u16 - 1
    )
}

/// A session of the crowd.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Member(u32);

impl Member {
    /// All sources use the same ports, so that they are in each other's way.
    fn client(self) -> SocketAddrV4 {
        let source = Ipv4Addr::from_bits(FIRST_SOURCE.to_bits() + self.0 % SOURCES);
        SocketAddrV4::new(source, FIRST_PORT + (self.0 / SOURCES) as u16)
    }

    fn service(self) -> u16 {
        FIRST_SERVICE + (self.0 / SOURCES % SERVICES) as u16
    }

    fn says(self, word: u32) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.0.to_be_bytes());
        bytes[4..].copy_from_slice(&word.to_be_bytes());
        bytes
    }

    fn heard(payload: &[u8]) -> Option<(Self, u32)> {
        let (member, word) = payload.split_first_chunk()?;
        Some((Self(u32::from_be_bytes(*member)), u32::from_be_bytes(word.try_into().ok()?)))
    }
}

/// Returns `true` if the target of a tuple belongs to the crowd.
pub(super) fn is_service(port: u16) -> bool {
    (FIRST_SERVICE..FIRST_SERVICE + SERVICES as u16).contains(&port)
}

/// The last word that a member has sent, and the last that came back. Words are numbers from 1 on.
#[derive(Clone, Copy, Debug, Default)]
struct Talk {
    said: u32,
    heard: u32,
}

/// A word that has to come back.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Outstanding {
    due: Instant,
    patience: Duration,
    member: Member,
    word: u32,
}

/// The clients' side.
pub(super) struct Speakers<'a> {
    talks: Vec<Talk>,
    outstanding: BinaryHeap<Reverse<Outstanding>>,
    began: Option<Instant>,
    /// Words so far.
    words: u64,
    tally: &'a Tally,
}

impl<'a> Speakers<'a> {
    pub(super) fn new(sessions: u32, tally: &'a Tally) -> Self {
        Self {
            talks: vec![Talk::default(); sessions as usize],
            outstanding: BinaryHeap::new(),
            began: None,
            words: 0,
            tally,
        }
    }

    /// The packets that are due now. When it is `finishing`, nothing new is said.
    pub(super) fn speak(&mut self, now: Instant, finishing: bool) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        while let Some(Reverse(next)) = self.outstanding.peek().copied()
            && next.due <= now
        {
            self.outstanding.pop();
            let talk = self.talks[next.member.0 as usize];
            // Unless it has been heard, or it has said another word meanwhile.
            if talk.heard < next.word && talk.said == next.word {
                self.tally.repeated.add(1);
                let patience = MOST_PATIENCE.min(next.patience * 2);
                packets.push(self.say(next.member, next.word, now, patience));
            }
        }
        let sessions = self.talks.len() as u64;
        let began = *self.began.get_or_insert(now);
        let due = (now - began).as_micros() as u64 * sessions / ROUND.as_micros() as u64;
        let overload = self.outstanding.len() as u64 * OVERLOAD > sessions.max(100);
        let burst =
            if finishing || overload { 0 } else { due.saturating_sub(self.words).min(u64::from(BURST)) };
        for _ in 0..burst {
            let member = Member((self.words % sessions) as u32);
            self.words += 1;
            let talk = &mut self.talks[member.0 as usize];
            talk.said += 1;
            let (word, heard) = (talk.said, talk.heard);
            if word - heard > DEAF {
                self.tally.mistakes.add(|| {
                    format!("{member:?} ({}) has had no answer to its last {DEAF} words", member.client())
                });
            }
            self.tally.said.add(1);
            packets.push(self.say(member, word, now, PATIENCE));
        }
        self.tally.outstanding.set(self.outstanding.len() as u64);
        packets
    }

    fn say(&mut self, member: Member, word: u32, now: Instant, patience: Duration) -> Vec<u8> {
        self.outstanding.push(Reverse(Outstanding { due: now + patience, patience, member, word }));
        let service = SocketAddrV4::new(ROUTER, member.service());
        ipv4(UDP, member.client(), service, &udp(member.client(), service, &member.says(word), true))
    }

    /// A packet that came for one of them.
    pub(super) fn hear(&mut self, view: View<'_>, tuple: &Tuple) {
        let found = view.payload().get(8..).and_then(Member::heard);
        let Some((member, word)) = found.filter(|(member, _)| (member.0 as usize) < self.talks.len()) else {
            return self.tally.mistakes.add(|| format!("{tuple:?} carried a word that was not sent"));
        };
        let talk = &mut self.talks[member.0 as usize];
        let expected = Tuple {
            protocol: UDP,
            source: SocketAddrV4::new(ROUTER, member.service()),
            destination: member.client(),
        };
        if *tuple != expected || word > talk.said {
            let said = talk.said;
            return self
                .tally
                .mistakes
                .add(|| format!("{tuple:?} has brought word {word} of {member:?}, which is {expected:?} and at word {said}"));
        }
        if talk.heard == 0 {
            self.tally.gathered.add(1);
        }
        if word > talk.heard {
            talk.heard = word;
            self.tally.heard.add(1);
        }
    }

    /// The number of sessions that have not heard their last word.
    pub(super) fn unheard(&self) -> usize {
        self.talks.iter().filter(|talk| talk.heard < talk.said).count()
    }
}

/// The last address of a member, or the last member at an address.
#[derive(Clone, Copy, Debug)]
struct Seen<T> {
    what: T,
    at: Instant,
}

/// The target's side.
pub(super) struct Echo<'a> {
    /// The port that each member came from.
    ports: Vec<Option<Seen<u16>>>,
    /// The member that came from each port, by service.
    members: Vec<Option<Seen<Member>>>,
    tally: &'a Tally,
}

impl<'a> Echo<'a> {
    pub(super) fn new(sessions: u32, tally: &'a Tally) -> Self {
        Self {
            ports: vec![None; sessions as usize],
            members: vec![None; SERVICES as usize * (1 << 16)],
            tally,
        }
    }

    /// The answer to a packet.
    pub(super) fn answer(&mut self, view: View<'_>, tuple: &Tuple, now: Instant) -> Option<Vec<u8>> {
        let payload = view.payload().get(8..)?;
        let found = Member::heard(payload).filter(|(member, _)| (member.0 as usize) < self.ports.len());
        let (first, last) = SNAT_PORTS;
        let port = tuple.source.port();
        let service = tuple.destination.port();
        let Some((member, _)) = found.filter(|(member, _)| {
            *tuple.source.ip() == ROUTER && (first..=last).contains(&port) && member.service() == service
        }) else {
            self.tally.mistakes.add(|| format!("{tuple:?} is nothing that the crowd says"));
            return None;
        };
        let alive = |at: Instant| now.saturating_duration_since(at) < SURELY_ALIVE;
        let before = self.ports[member.0 as usize].replace(Seen { what: port, at: now });
        if let Some(before) = before.filter(|before| before.what != port) {
            if alive(before.at) {
                self.tally.mistakes.add(|| {
                    format!(
                        "{member:?} ({}) has lost its session: it comes from port {port}, {:?} ago it was {}",
                        member.client(),
                        now - before.at,
                        before.what
                    )
                });
            } else {
                self.tally.moved.add(1);
            }
        }
        let place = usize::from(service - FIRST_SERVICE) << 16 | usize::from(port);
        let before = self.members[place].replace(Seen { what: member, at: now });
        if let Some(before) = before.filter(|before| before.what != member && alive(before.at)) {
            self.tally.mistakes.add(|| {
                format!(
                    "port {port} of {} is {member:?}'s, and {:?} ago it was {:?}'s",
                    tuple.destination,
                    now - before.at,
                    before.what
                )
            });
        }
        let datagram = udp(tuple.destination, tuple.source, payload, true);
        Some(ipv4(UDP, tuple.destination, tuple.source, &datagram))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn everybody_has_an_address() {
        let all: HashSet<_> = (0..MOST).map(|number| Member(number).client()).collect();
        assert_eq!(all.len(), MOST as usize);
    }

    /// Passes a member's word from this port to the server. Returns the server's answer.
    fn come(echo: &mut Echo<'_>, member: Member, port: u16, now: Instant) -> (Option<Vec<u8>>, u64) {
        let (source, target) = (SocketAddrV4::new(ROUTER, port), SocketAddrV4::new(TARGET, member.service()));
        let packet = ipv4(UDP, source, target, &udp(source, target, &member.says(1), true));
        let view = View::new(&packet).unwrap();
        (echo.answer(view, &view.tuple(), now), echo.tally.mistakes.count())
    }

    #[test]
    fn another_port_is_a_mistake_unless_the_session_may_have_expired() {
        let tally = Tally::default();
        let mut echo = Echo::new(100, &tally);
        let start = Instant::now();
        assert_eq!(come(&mut echo, Member(3), 5000, start).1, 0);
        assert_eq!(come(&mut echo, Member(3), 5000, start + SURELY_ALIVE / 2).1, 0);
        assert_eq!(come(&mut echo, Member(3), 5001, start + SURELY_ALIVE * 2).1, 0);
        assert_eq!(tally.moved.get(), 1);
        assert_eq!(come(&mut echo, Member(3), 5002, start + SURELY_ALIVE * 2).1, 1);
    }

    #[test]
    fn a_port_of_two_is_a_mistake() {
        let tally = Tally::default();
        let mut echo = Echo::new(100, &tally);
        let start = Instant::now();
        let (one, other) = (Member(0), Member(1));
        assert_eq!(one.service(), other.service());
        assert_eq!(come(&mut echo, one, 5000, start).1, 0);
        assert_eq!(come(&mut echo, other, 5000, start).1, 1);
        // The same port to another target belongs to another session.
        assert_eq!(come(&mut echo, Member(SOURCES), 5000, start).1, 1);
    }

    #[test]
    fn words_are_said_until_they_are_heard() {
        let tally = Tally::default();
        let mut speakers = Speakers::new(100, &tally);
        let mut echo = Echo::new(100, &tally);
        let start = Instant::now();
        assert!(speakers.speak(start, false).is_empty());
        let said = speakers.speak(start + ROUND / 100, false);
        assert_eq!((said.len(), speakers.unheard()), (1, 1));
        // A change by the router to fields that the server does not look at.
        let again = speakers.speak(start + ROUND / 100 + PATIENCE, true);
        assert_eq!(again, said);
        let (answer, _) = come(&mut echo, Member(0), 5000, start);
        let answer = answer.unwrap();
        let view = View::new(&answer).unwrap();
        let back = Tuple {
            source: SocketAddrV4::new(ROUTER, FIRST_SERVICE),
            destination: Member(0).client(),
            protocol: UDP,
        };
        speakers.hear(view, &back);
        assert_eq!((speakers.unheard(), tally.gathered.get(), tally.mistakes.count()), (0, 1, 0));
        assert!(speakers.speak(start + ROUND / 100 + 2 * PATIENCE, true).is_empty());
        // A word for another member.
        speakers.hear(view, &Tuple { destination: Member(1).client(), ..back });
        assert_eq!(tally.mistakes.count(), 1);
    }
}
