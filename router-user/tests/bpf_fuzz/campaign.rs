//! Packets by the hundred thousand through one router, and what is checked between them.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    net::{TcpListener, UdpSocket},
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{MapData, RingBuf};
use router_common::{
    address::{Ipv4, Port},
    maps::punt::Punted,
    ports::PortRange,
    reason::{Action, Reason},
    tuple::{Direction, FlowKey, Protocol},
};
use router_user::dataplane::{self, RuleSetSpec};

use crate::{
    check::{Done, Given, check, describe, flags},
    closed::{Closed, OWN_IPV6, close, without_priority_tags},
    frames,
    model::{
        CLIENT, CLIENTS, Model, NARROW, NARROW_MTU, NOWHERE, PENDING, ROUTER_SPARE, SILENT_GATEWAY,
        allow_clients, reject,
    },
    mutate::mutate,
    packets::{FIREWALL, OTHER, ROUTER, ROUTER_SECOND, TARGET, tcp, tcp_packet},
    random::{Draw as _, Random},
    wire::{IP, TCP, Tuple, UDP, frame_header, hex, tuple, unhex},
    world::{Setup, Verdict, World, ip},
};

/// The setup of a router, and the treatment that it gets.
pub(crate) struct Profile {
    pub(crate) name: &'static str,
    nics: usize,
    mtu: usize,
    sessions: u32,
    half_open_per_source: u32,
    ports: PortRange,
    snat: &'static [[u8; 4]],
    /// `true` if a daemon takes packets for unresolved neighbours.
    has_daemon: bool,
    /// The percentage of sessions that are removed from time to time.
    removed: usize,
    rules: fn(&mut RuleSetSpec),
    /// The events that a long run has to see; otherwise it misses part of the router.
    pub(crate) reasons: &'static [Reason],
}

const COMMON: [Reason; 18] = [
    Reason::Forwarded,
    Reason::Opened,
    Reason::NotIpv4,
    Reason::EthernetDenied,
    Reason::Ipv6Denied,
    Reason::Truncated,
    Reason::Platform,
    Reason::NotMatched,
    Reason::NoSession,
    Reason::LocalDenied,
    Reason::Martian,
    Reason::BadChecksum,
    Reason::OtherHost,
    Reason::IcmpError,
    Reason::TtlExceeded,
    Reason::FragmentationNeeded,
    Reason::FragmentEarly,
    Reason::FragmentBad,
];

pub(crate) const PROFILES: [Profile; 5] = [
    Profile {
        name: "one_nic",
        nics: 1,
        mtu: 1500,
        sessions: 4096,
        half_open_per_source: u32::MAX,
        ports: PortRange { first: 1024, last: 65535 },
        snat: &[ROUTER],
        has_daemon: true,
        removed: 20,
        rules: allow_clients,
        reasons: &[Reason::Resolving, Reason::Fragmenting, Reason::RouteUnreachable],
    },
    Profile {
        name: "two_nics",
        nics: 2,
        mtu: 3000,
        sessions: 4096,
        half_open_per_source: u32::MAX,
        ports: PortRange { first: 1024, last: 65535 },
        snat: &[ROUTER_SECOND],
        has_daemon: false,
        removed: 20,
        rules: allow_clients,
        reasons: &[Reason::NeighbourUnresolved, Reason::WrongInterface, Reason::Malformed],
    },
    Profile {
        name: "crowded",
        nics: 1,
        mtu: 1500,
        sessions: 64,
        half_open_per_source: u32::MAX,
        // So few that all of them to one target are taken dozens of times in a run.
        ports: PortRange { first: 30_000, last: 30_002 },
        snat: &[ROUTER, ROUTER_SPARE],
        has_daemon: true,
        removed: 30,
        rules: reject,
        reasons: &[Reason::TableFull, Reason::Rejected, Reason::HostUnreachable, Reason::SessionUnknown],
    },
    Profile {
        name: "pooled",
        nics: 1,
        mtu: 3400,
        sessions: 2048,
        half_open_per_source: 256,
        ports: PortRange { first: 30_000, last: 30_199 },
        snat: &[ROUTER],
        has_daemon: true,
        removed: 10,
        rules: allow_clients,
        reasons: &[Reason::HalfOpenLimit, Reason::OpenedInPlace, Reason::PortsExhausted],
    },
    Profile {
        name: "closed_to_all",
        nics: 2,
        mtu: 1500,
        sessions: 4096,
        half_open_per_source: u32::MAX,
        ports: PortRange { first: 1024, last: 65535 },
        snat: &[ROUTER_SECOND],
        has_daemon: true,
        removed: 20,
        rules: close,
        reasons: &[Reason::WrongInterface],
    },
];

/// A profile by its name.
pub(crate) fn profile(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}

/// Reasons that nothing on the wire may bring about.
const NEVER: [Reason; 8] = [
    Reason::Internal,
    Reason::StageMissing,
    Reason::RedirectFailed,
    Reason::NotConfigured,
    Reason::RouteLookupsOff,
    Reason::EgressNotAttached,
    Reason::Contended,
    Reason::AnswerWithheld,
];

/// Packets between two looks at the counters; fewer than the daemon's ring has room for.
const BATCH: usize = 256;
/// Batches between two looks at the whole flow table, and between two removals of sessions.
const AUDIT: u64 = 16;
const REMOVAL: u64 = 16;

/// The numbers in the environment: `FUZZ_SEED`, `FUZZ_PACKETS`.
fn number_from(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// The seed to start from: `FUZZ_SEED`, or another one each time.
pub(crate) fn seed() -> u64 {
    number_from("FUZZ_SEED").unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
        since.as_nanos() as u64
    })
}

/// The number of packets that each profile gets: its share of `FUZZ_PACKETS`, or of a million.
pub(crate) fn packets() -> u64 {
    number_from("FUZZ_PACKETS").unwrap_or(1_000_000).div_ceil(PROFILES.len() as u64)
}

/// The sum of the verdicts of a batch.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    received: [u64; 2],
    transmitted: [u64; 2],
    passed: u64,
    dropped: u64,
}

/// One router under fire.
pub(crate) struct Campaign {
    profile: &'static Profile,
    seed: u64,
    random: Random,
    world: World,
    model: Model,
    closed: Closed,
    punts: RingBuf<MapData>,
    /// Kept open: their ports are not to be taken.
    _sockets: (UdpSocket, TcpListener),
    tally: Tally,
    batch: Vec<Given>,
    given: u64,
    /// Sweeps of the flow table.
    rounds: u32,
    /// The count of each reason, by the reason's number.
    pub(crate) reasons: BTreeMap<u32, u64>,
}

impl Campaign {
    pub(crate) fn new(profile: &'static Profile, seed: u64) -> Self {
        let Profile { nics, mtu, sessions, half_open_per_source, ports, snat, .. } = *profile;
        let mut world = World::with(Setup {
            nics,
            sessions,
            half_open_per_source,
            ports,
            snat: snat.to_vec(),
            generic: false,
            pins: None,
            rules: profile.rules,
        });
        let mut model = Model::new(nics, mtu, ports, snat.to_vec());
        let gateway = if nics == 2 { "10.0.3.1".to_owned() } else { dotted(FIREWALL) };
        ip(&format!("neigh replace {} lladdr 02:00:00:00:00:69 dev eth0 nud permanent", dotted(CLIENT)));
        for slot in 0..nics {
            ip(&format!("link set wire{slot} mtu {mtu}"));
            ip(&format!("link set eth{slot} mtu {mtu}"));
            world.dataplane.set_egress(slot as u32, &format!("eth{slot}")).expect("an egress interface");
        }
        ip(&format!("route add {}/24 via {}", dotted(network(PENDING)), dotted(SILENT_GATEWAY)));
        ip(&format!("route add {}/24 via {gateway} mtu lock {NARROW_MTU}", dotted(network(NARROW))));
        ip(&format!("route add unreachable {}/24", dotted(network(NOWHERE))));
        let own = model.own_addresses().into_iter().map(Into::into).collect();
        world.dataplane.local_addresses.set(&own, &[].into()).expect("this machine's addresses");
        world.dataplane.local_addresses.set_ipv6(&OWN_IPV6.into()).expect("this machine's addresses");
        let udp = UdpSocket::bind(("0.0.0.0", 30_003)).expect("a socket");
        let tcp = TcpListener::bind(("0.0.0.0", 30_005)).expect("a socket");
        model.sockets = vec![(UDP, 30_003), (TCP, 30_005)];
        let punts = world.dataplane.take_punts().expect("the daemon's ring");
        let mut campaign = Self {
            profile,
            seed,
            random: Random::with_seed(seed),
            world,
            model,
            closed: Closed::new(profile.name == "closed_to_all"),
            punts,
            _sockets: (udp, tcp),
            tally: Tally::default(),
            batch: Vec::new(),
            given: 0,
            rounds: 0,
            reasons: BTreeMap::new(),
        };
        campaign.prepare_batch();
        campaign
    }

    /// Gives the router this many made-up packets.
    pub(crate) fn run(&mut self, packets: u64) {
        let mut batches = 0;
        while self.given < packets {
            for _ in 0..BATCH {
                let given = self.make();
                self.give(given);
            }
            batches += 1;
            self.settle(batches % AUDIT == 0);
            if batches % REMOVAL == 0 {
                let percent = if self.random.percent(5) { 100 } else { self.profile.removed };
                self.remove(percent);
                self.use_again();
            }
        }
        self.settle(true);
    }

    /// Opens a connection and ends it, and opens its tuple again, before and after the rules
    /// change.
    fn use_again(&mut self) {
        let from = Tuple {
            protocol: TCP,
            source: (self.random.pick(&CLIENTS), self.random.u16(20_000..30_000)),
            destination: (ROUTER, 443),
        };
        self.connect_and_end(from);
        self.connect_and_end(from);
        self.change_rules();
        self.connect_and_end(from);
    }

    /// Has a client open a connection, if there is room for it, and one of its ends end it, or
    /// both. Made-up segments hardly ever do: their numbers have to fit.
    fn connect_and_end(&mut self, from: Tuple) {
        const ANSWER: u8 = tcp::SYN | tcp::ACK;
        let random = &mut self.random;
        let (sequence, answer) = (random.u32(..), random.u32(..));
        let (client, target) = (sequence.wrapping_add(1), answer.wrapping_add(1));
        // The sender, the flags and the numbers.
        let ends: [&[(Direction, u8, u32, u32)]; 5] = [
            // The client gives up.
            &[(Direction::Forward, tcp::RST, client, 0)],
            // The target refuses.
            &[(Direction::Reply, tcp::RST | tcp::ACK, 0, client)],
            &[(Direction::Reply, ANSWER, answer, client), (Direction::Forward, tcp::RST, client, target)],
            &[
                (Direction::Reply, ANSWER, answer, client),
                (Direction::Forward, tcp::ACK, client, target),
                (Direction::Reply, tcp::RST | tcp::ACK, target, client),
            ],
            &[
                (Direction::Reply, ANSWER, answer, client),
                (Direction::Forward, tcp::ACK, client, target),
                (Direction::Forward, tcp::FIN | tcp::ACK, client, target),
                (Direction::Reply, tcp::FIN | tcp::ACK, target, client.wrapping_add(1)),
            ],
        ];
        let segments = random.pick(&ends);
        let open = tcp_packet(from.source, from.destination, tcp::SYN).numbers(sequence, 0);
        self.give(Given { slot: 0, frame: open.build() });
        let Some(to) = self.model.translated(&from) else { return };
        for (direction, flags, sequence, acknowledgement) in segments {
            let (slot, tuple) = match direction {
                Direction::Forward => (0, from),
                Direction::Reply => (self.profile.nics - 1, to.reversed()),
            };
            let segment = tcp_packet(tuple.source, tuple.destination, *flags);
            self.give(Given { slot, frame: segment.numbers(*sequence, *acknowledgement).build() });
        }
    }

    /// Has port 443 lead elsewhere: a tuple that is used again follows, and a connection does not.
    fn change_rules(&mut self) {
        let Profile { ports, snat, rules, .. } = *self.profile;
        let https = if self.model.https == TARGET { OTHER } else { TARGET };
        self.model.https = https;
        self.world.set_rules(|spec| {
            spec.ports = ports;
            spec.snat = snat.iter().copied().map(Into::into).collect();
            rules(spec);
            spec.forwards[0].targets = vec![(https.into(), Some(8443))];
        });
    }

    fn make(&mut self) -> Given {
        let Self { random, model, .. } = self;
        if random.percent(2) {
            model.datagram = model.datagram.wrapping_add(1);
        }
        let mut frame = frames::any(random, model);
        if random.percent(50) {
            let other = frames::any(random, model);
            mutate(random, &mut frame, &other);
        }
        if random.percent(10) {
            frame = frames::tagged(random, &frame);
        }
        Given { slot: random.usize(..model.nics), frame }
    }

    /// Every beginning of one frame of each kind.
    pub(crate) fn truncate_every_kind(&mut self) {
        for kind in 0..frames::KINDS {
            let mut whole = frames::of_kind(kind, &mut self.random, &self.model);
            whole.truncate(200);
            for length in frames::SHORTEST..=whole.len() {
                self.give(Given { slot: 0, frame: whole[..length].to_vec() });
                if self.batch.len() == BATCH {
                    self.settle(false);
                }
            }
        }
        self.settle(true);
    }

    /// Gives the router one packet and checks what it did with it.
    pub(crate) fn give(&mut self, given: Given) {
        let done = self.run_one(&given);
        self.given += 1;
        // The router, like the kernel, takes these for the same.
        let plain = Given { slot: given.slot, frame: without_priority_tags(&given.frame) };
        let result = self
            .follow_room(&plain)
            .and_then(|()| check(&mut self.model, &mut self.closed, &plain, &done))
            .and_then(|()| self.adopt_unseen(&plain, done.verdict))
            .and_then(|()| self.follow_reuse(&plain));
        self.batch.push(given);
        if let Err(error) = result {
            let given = &self.batch[self.batch.len() - 1];
            let text = format!(
                "{error:#}\n  in  {} {}\n      {}\n  out {:?} {}\n      {}\n",
                given.slot,
                hex(&given.frame),
                describe(&given.frame),
                done.verdict,
                hex(&done.frame),
                describe(&done.frame),
            );
            self.fail(&text);
        }
    }

    /// Takes note of a session that has made room for the one that a packet has opened: at most
    /// one, of the same client, and only at the limit.
    fn follow_room(&mut self, given: &Given) -> Result<()> {
        let Some(packet) = given.frame.get(IP..) else { return Ok(()) };
        let Some(from) = tuple(packet) else { return Ok(()) };
        let is_new = self.model.translated(&from).is_none() && self.in_table(&from).is_some();
        let flows = &self.world.dataplane.flows;
        if flows.sessions() as usize >= self.model.sessions().len() + usize::from(is_new) {
            return Ok(());
        }
        let is_gone = |other: &&Tuple| {
            **other != from && other.source.0 == from.source.0 && self.in_table(other).is_none()
        };
        let gone: Vec<Tuple> = self.model.sessions().iter().filter(is_gone).copied().collect();
        // If no port was free afterwards, the place is empty.
        let is_at_the_limit = flows.half_open(Ipv4(from.source.0)) + 1 >= self.profile.half_open_per_source;
        ensure!(gone.is_empty() || is_at_the_limit, "below the limit, a session has made room: {gone:?}");
        ensure!(gone.len() <= 1, "more than one session has made room: {gone:?}");
        gone.iter().for_each(|gone| self.model.forget(gone));
        Ok(())
    }

    /// Takes note of a session whose first packet was dropped: a first fragment opens one before it
    /// is found to be bad.
    fn adopt_unseen(&mut self, given: &Given, verdict: Verdict) -> Result<()> {
        let is_fragment = frame_header(&given.frame).is_some_and(|ip| ip.is_fragment());
        if verdict != Verdict::Drop || !is_fragment {
            return Ok(());
        }
        let Some(from) = tuple(&given.frame[IP..]).filter(|from| self.model.translated(from).is_none())
        else {
            return Ok(());
        };
        match self.in_table(&from) {
            Some(to) => self.model.open(from, to),
            None => Ok(()),
        }
    }

    /// Takes note of what a TCP packet has shown, and of a session that has gone, or gone
    /// elsewhere, by a SYN that was then refused.
    fn follow_reuse(&mut self, given: &Given) -> Result<()> {
        let Some(packet) = given.frame.get(IP..) else { return Ok(()) };
        let (Some(from), Some(flags)) = (tuple(packet), flags(packet)) else { return Ok(()) };
        if self.model.may_open_again(&from, flags) {
            let now = self.in_table(&from);
            if now != self.model.translated(&from) {
                self.model.forget_ended(&from);
                if let Some(to) = now {
                    self.model.open(from, to)?;
                }
            }
        }
        self.model.note(&from, flags);
        Ok(())
    }

    /// Returns the translated tuple of packets with this tuple, as the table has it.
    fn in_table(&self, from: &Tuple) -> Option<Tuple> {
        let protocol = Protocol::from_number(from.protocol)?;
        let ((source, source_port), (destination, destination_port)) = (from.source, from.destination);
        let key = FlowKey::new(
            protocol,
            Ipv4(source),
            Port::new(source_port),
            Ipv4(destination),
            Port::new(destination_port),
        );
        let reply = self.world.dataplane.flows.get(&key)?.twin();
        Some(Tuple {
            protocol: from.protocol,
            source: (reply.destination.0, reply.destination_port.number()),
            destination: (reply.source.0, reply.source_port.number()),
        })
    }

    fn run_one(&mut self, given: &Given) -> Done {
        let (verdict, frame) = self.world.run_uncounted(given.slot, &given.frame);
        let mut punts = Vec::new();
        while let Some(record) = self.punts.next() {
            let punted = Punted::parse(&record).expect("a record");
            punts.push((punted.kind, punted.packet.to_vec()));
        }
        let tally = &mut self.tally;
        tally.received[given.slot] += 1;
        match verdict {
            Verdict::Pass => tally.passed += 1,
            Verdict::Tx => tally.transmitted[given.slot] += 1,
            Verdict::Redirect => tally.transmitted[1 - given.slot] += 1,
            Verdict::Drop | Verdict::Aborted => tally.dropped += 1,
        }
        Done { verdict, frame, punts }
    }

    /// Checks what is counted, and if asked to, the flow table; then begins another batch.
    pub(crate) fn settle(&mut self, audit: bool) {
        if let Err(error) = self.check_counters() {
            let culprit = self.find_culprit();
            self.fail(&format!("{error:#}\n{culprit}"));
        }
        if audit && let Err(error) = self.check_table() {
            self.fail(&format!("{error:#}"));
        }
        self.batch.clear();
        self.prepare_batch();
    }

    fn prepare_batch(&mut self) {
        let settings = &mut self.world.dataplane.settings;
        if self.profile.has_daemon {
            settings.show_presence().expect("the settings");
        }
        if self.random.percent(5) {
            settings.invalidate_next_hops().expect("the settings");
        }
    }

    /// Every packet has one reason, and the reason's action is what became of it.
    fn check_counters(&mut self) -> Result<()> {
        let moved = self.world.moved();
        let mut counted =
            Tally { received: moved.received, transmitted: moved.transmitted, ..Tally::default() };
        let mut sent = 0;
        for (reason, packets) in &moved.reasons {
            *self.reasons.entry(*reason as u32).or_default() += packets;
            match reason.action() {
                Action::Pass => counted.passed += packets,
                Action::Drop | Action::Punt => counted.dropped += packets,
                Action::Forward | Action::Answer => sent += packets,
            }
        }
        let tally = std::mem::take(&mut self.tally);
        ensure!(counted == tally, "counted {counted:?}, but seen {tally:?}: {:?}", moved.reasons);
        ensure!(sent == tally.transmitted.iter().sum::<u64>(), "{sent} sent: {:?}", moved.reasons);
        for (reason, packets) in &moved.reasons {
            ensure!(!NEVER.contains(reason), "{packets} times {}", reason.as_str());
        }
        let (sessions, known) = (self.world.dataplane.flows.sessions(), self.model.sessions().len());
        ensure!(sessions as usize == known, "{sessions} sessions, but {known} have been seen to open");
        Ok(())
    }

    fn check_table(&self) -> Result<()> {
        let flows = &self.world.dataplane.flows;
        let audit = flows.audit()?;
        ensure!(audit.half_sessions.is_empty(), "half sessions: {:?}", audit.half_sessions);
        ensure!(audit.twice.is_empty(), "twice in the table: {:?}", audit.twice);
        // The port of a socket of this machine is marked, so that it is not tried again.
        let is_free = |reply: &&FlowKey| {
            !self.model.sockets.contains(&(reply.protocol_number(), reply.destination_port.number()))
        };
        let leaked = audit.leaked_ports.iter().find(is_free);
        ensure!(leaked.is_none(), "a port is marked and not taken: {leaked:?}");
        ensure!(audit.flows == 2 * u64::from(audit.sessions), "{} flows", audit.flows);
        let mut unknown = None;
        flows.for_each(|session| {
            unknown = (!self.model.knows(session)).then_some(*session);
            unknown.is_none()
        });
        ensure!(unknown.is_none(), "a session that was not seen to open: {unknown:?}");
        Ok(())
    }

    /// Gives the batch again, one packet at a time, to find the one that upsets the counters.
    fn find_culprit(&mut self) -> String {
        for given in self.batch.clone() {
            let done = self.run_one(&given);
            // It may open a session again.
            _ = check(&mut self.model, &mut self.closed, &given, &done);
            if let Err(error) = self.check_counters() {
                return format!("given again: {error:#}\n  in  {} {}\n", given.slot, hex(&given.frame));
            }
        }
        "given again, one by one, no packet of the batch does that\n".to_owned()
    }

    /// Removes about `percent` of a hundred sessions, like the daemon's sweep.
    fn remove(&mut self, percent: usize) {
        let Self { random, model, world, .. } = self;
        let generation = world.dataplane.settings.current().next_hop_generation;
        let flows = &world.dataplane.flows;
        let sweep = |flow: &dataplane::Flow| {
            if flow.is_held() {
                let goes = random.percent(percent);
                return if goes { dataplane::Verdict::Remove } else { dataplane::Verdict::Keep };
            }
            if flow.direction() == Direction::Reply || !random.percent(percent) {
                return dataplane::Verdict::Keep;
            }
            model.forget(&Tuple {
                protocol: flow.key.protocol_number(),
                source: (flow.key.source.0, flow.key.source_port.number()),
                destination: (flow.key.destination.0, flow.key.destination_port.number()),
            });
            dataplane::Verdict::Remove
        };
        self.rounds += 1;
        flows.sweep(generation, self.rounds, sweep).expect("the flow table");
        flows.clean_pools(self.profile.ports.size(), |_| 0).expect("the pools of ports");
    }

    /// With all sessions gone, nothing may be left of them that keeps new ones from opening: each
    /// client gets as many as it may have.
    pub(crate) fn leave_nothing_behind(&mut self) {
        self.remove(100);
        self.settle(true);
        let ports = u32::from(self.profile.ports.last - self.profile.ports.first);
        let count = self.profile.half_open_per_source.min(ports).min(self.profile.sessions / 4).min(100);
        for client in CLIENTS {
            for port in 0..count {
                let source = (client, 2000 + port as u16);
                self.open_in_time(&crate::packets::udp_packet(source, (OTHER, 4000), b"x").build());
            }
            self.remove(100);
        }
        self.settle(true);
    }

    /// Has a packet open a session, as soon as slots of sessions that have just been removed may be
    /// used again.
    fn open_in_time(&mut self, frame: &[u8]) {
        let (before, start) = (self.model.opened, Instant::now());
        loop {
            self.give(Given { slot: 0, frame: frame.to_vec() });
            if self.model.opened > before {
                return;
            }
            self.settle(true);
            if start.elapsed() > Duration::from_secs(10) {
                self.fail(&format!("{} opens no session: {}\n", describe(frame), self.summary()));
            }
            self.remove(0);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Says what has failed, and how to see it again.
    fn fail(&self, what: &str) -> ! {
        let mut text = format!("# profile {}\n", self.profile.name);
        for given in &self.batch {
            writeln!(text, "{} {}", given.slot, hex(&given.frame)).expect("a String takes any text");
        }
        let file =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{}.txt", self.profile.name, self.seed));
        let saved = match std::fs::write(&file, text) {
            Ok(()) => format!("its batch is in {}", file.display()),
            Err(error) => format!("its batch cannot be saved: {error}"),
        };
        panic!(
            "packet {} of profile {}: {what}  again: `cargo xtask test --only bpf --seed {} {}` (ports are chosen at random); {saved}",
            self.given, self.profile.name, self.seed, self.profile.name
        );
    }

    /// Returns the counts, for the log.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!(
            "{}: seed {}, {} packets, {} sessions opened, {} of them where another one was over;",
            self.profile.name, self.seed, self.given, self.model.opened, self.model.moved
        );
        for (number, packets) in &self.reasons {
            write!(text, " {} {packets}", Reason::ALL[*number as usize].as_str())
                .expect("a String takes any text");
        }
        text
    }

    /// Returns `true` if a tuple was reused by a connection to another target.
    pub(crate) fn has_moved(&self) -> bool {
        self.model.moved > 0
    }

    /// The first reason that was to come up and has not.
    pub(crate) fn missing(&self) -> Option<Reason> {
        let wanted = COMMON.iter().chain(self.profile.reasons);
        wanted.copied().find(|reason| !self.reasons.contains_key(&(*reason as u32)))
    }
}

/// Reads a regression: a line `# profile NAME`, other comments, and packets as `SLOT HEX`.
pub(crate) fn read(text: &str) -> Result<(&'static Profile, Vec<Given>)> {
    let name = text.lines().find_map(|line| line.strip_prefix("# profile ")).context("no profile")?;
    let profile = profile(name.trim()).with_context(|| format!("no profile {name}"))?;
    let mut packets = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let (slot, bytes) = line.split_once(' ').with_context(|| format!("no slot: {line}"))?;
        let slot = slot.parse().with_context(|| format!("no slot: {line}"))?;
        let Some(frame) = unhex(bytes) else { bail!("not hexadecimal: {line}") };
        packets.push(Given { slot, frame });
    }
    Ok((profile, packets))
}

fn network([a, b, c]: [u8; 3]) -> [u8; 4] {
    [a, b, c, 0]
}

fn dotted(address: [u8; 4]) -> String {
    std::net::Ipv4Addr::from(address).to_string()
}
