//! Tests that the programs on the interfaces forward, by a session of their own every few seconds.
//!
//! All other signs are indirect: a program that is attached, maps that are there, routes that are
//! known. The self-test gives real packets to the programs that the links on the interfaces hold
//! (`BPF_PROG_TEST_RUN`, without live frames: nothing leaves this machine, and nobody answers), and
//! compares what comes out, byte by byte, with packets that are built from scratch ([`trial`]). An
//! answer of ARP has to pass as well: without it, there soon is no neighbour. [`plan`] chooses
//! sessions that must come out: what routes, neighbours, targets and limits lack is what other
//! conditions are about, and is never a failure here.
//!
//! A test's client has an address of a rule's sources and the port 0, which no client has. Its
//! session is removed as soon as it is over. It is no sign of its target's health, and counts in
//! the counters like any other; [`results`] say how much that is.
//!
//! Three failures in a row are a fault, which stays one until a test succeeds ([`suspicion`]).
//!
//! Beside that, [`arrivals`] watches that programs see what comes in.

mod arrivals;
mod packet;
mod plan;
pub(crate) mod results;
mod suspicion;
mod trial;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use router_common::{
    address::{Ipv4, Port},
    limits::MAX_INTERFACES,
    maps::stats::CpuStats,
    reason::{Action, Reason},
    tuple::{FlowKey, Protocol},
};
use tokio::time::sleep;

use self::{
    arrivals::{Arrivals, Count},
    packet::CLIENT_PORT,
    plan::{Rule, Trial, View},
    results::UnseenOn,
    suspicion::{Subject, Suspicion, Untested},
    trial::{Failure, Programs},
};
use crate::{
    daemon::{
        kernel::{interfaces::Attached, netlink::Kernel},
        state::State,
        sync::Locked,
    },
    dataplane::{CounterTable, Dataplane, Flow, FlowTable, Ran, RuleSetSpec, interface_name, run_program},
    sys::xdp::Mode,
};

pub(crate) use self::packet::is_test;

/// The period in which interfaces are looked at, and within which changes of the configuration are
/// followed.
const TICK: Duration = Duration::from_secs(1);
/// The pause before a test that has failed is repeated.
const AGAIN: Duration = Duration::from_millis(400);
/// The most rules of one test. The others have their turn at the next ones.
const RULES_AT_ONCE: usize = 4;

/// Returns `true` if a session with this client's tuple is one of a self-test.
pub(crate) fn is_test_session(client: &FlowKey) -> bool {
    client.source_port == Port::new(CLIENT_PORT)
        && matches!(client.protocol(), Some(Protocol::Tcp | Protocol::Udp))
}

/// The parts of the daemon that this has access to.
pub(crate) struct Access {
    pub(crate) state: State,
    pub(crate) plane: Locked<Dataplane>,
    pub(crate) counters: CounterTable,
}

/// Tests periodically.
pub(crate) async fn run(access: Access, kernel: Kernel) -> Result<()> {
    let mut tester = Tester {
        access,
        turn: 0,
        suspicion: Suspicion::default(),
        injected: [0; MAX_INTERFACES],
        arrivals: Default::default(),
    };
    let mut next = Instant::now();
    loop {
        sleep(if tester.suspicion.is_there() { AGAIN } else { TICK }).await;
        if tester.access.state.attachments.lock().is_being_detached {
            continue;
        }
        tester.look_at_arrivals();
        let config = tester.access.state.config.get();
        let Some(period) = config.health.self_test else {
            tester.switch_off();
            continue;
        };
        let now = Instant::now();
        if now < next && !tester.suspicion.is_there() {
            continue;
        }
        next = now + period - TICK / 2;
        tester.test(&kernel).await;
    }
}

struct Tester {
    access: Access,
    /// The place of the rule whose turn is next.
    turn: usize,
    suspicion: Suspicion,
    /// Packets that self-tests have put in, by interface slot.
    injected: [u64; MAX_INTERFACES],
    arrivals: [Arrivals; MAX_INTERFACES],
}

impl Tester {
    fn switch_off(&mut self) {
        self.suspicion.clear();
        let mut results = self.access.state.self_test.lock();
        (results.is_on, results.failure, results.impossible) = (false, None, None);
        results.untested.clear();
    }

    /// Tests ARP, and the rules whose turn it is; after a failure, what has failed.
    async fn test(&mut self, kernel: &Kernel) {
        self.access.state.self_test.lock().is_on = true;
        if self.suspicion.forget_old(Instant::now()) {
            self.clear_results();
        }
        let neighbours = match self.neighbours(kernel).await {
            Ok(neighbours) => neighbours,
            // The probe says so if that goes on.
            Err(error) => {
                tracing::debug!("no self-test: {error:#}");
                return;
            }
        };
        // Those that the programs have, even if others are wanted.
        let rules = self.access.state.rules_in_force.get();
        let mut turn = self.turn;
        let subjects = self.suspicion.subjects(|| {
            let names = rules.as_deref().map(plan::rules).unwrap_or_default();
            let rules = in_turn(&mut turn, &names).into_iter().map(Subject::Rule);
            std::iter::once(Subject::Arp).chain(rules).collect()
        });
        self.turn = turn;
        for subject in subjects {
            let before = self.suspicion.is_there().then(|| self.access.counters.read().ok()).flatten();
            let result = match (&subject, &rules) {
                (Subject::Arp, _) => self.test_arp(),
                (Subject::Rule(rule), Some(rules)) => self.test_rule(rules, &neighbours, rule),
                (Subject::Rule(_), None) => Err(Untested::Now("the rules in force are not known yet")),
            };
            match result {
                Ok(Ok(())) => {
                    if self.suspicion.passed(&subject) {
                        self.clear_results();
                    }
                }
                Ok(Err(failure)) => {
                    self.note(subject, failure, before.as_deref());
                    return;
                }
                Err(why) => {
                    if self.suspicion.untested(&subject, why) {
                        self.clear_results();
                    }
                    self.access.state.self_test.lock().untested = match subject {
                        Subject::Arp => why.text().to_owned(),
                        Subject::Rule(rule) => format!("rule {rule}: {}", why.text()),
                    };
                }
            }
        }
    }

    /// Returns the addresses on the link that clients come in by whose MAC addresses are known.
    async fn neighbours(&self, kernel: &Kernel) -> Result<Vec<Ipv4Addr>> {
        let interface = self.access.plane.lock().settings.current().interface(0).primary;
        let known = kernel.neighbours().await?.into_iter();
        let on_link =
            known.filter(|(neighbour, entry)| neighbour.interface == interface && entry.mac.is_some());
        let mut addresses: Vec<Ipv4Addr> = on_link
            .filter_map(|(neighbour, _)| match neighbour.ip() {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            })
            .collect();
        addresses.sort_unstable();
        Ok(addresses)
    }

    /// Tests that answers of ARP reach this machine.
    ///
    /// # Errors
    /// Returns why that cannot be tested now.
    fn test_arp(&mut self) -> Result<Result<(), Failure>, Untested> {
        let attached = self.attached().map_err(Untested::Now)?;
        let settings = *self.access.plane.lock().settings.current();
        let interfaces = settings.interfaces.iter().filter(|interface| interface.mac.is_set());
        let interfaces = interfaces.map(|interface| (interface.primary, interface.mac));
        Ok(self.run(&attached, |programs| trial::run_arp(programs, interfaces)))
    }

    /// Tests a rule.
    ///
    /// # Errors
    /// Returns why it cannot be tested now.
    fn test_rule(
        &mut self,
        rules: &RuleSetSpec,
        neighbours: &[Ipv4Addr],
        name: &str,
    ) -> Result<Result<(), Failure>, Untested> {
        let attached = self.attached().map_err(Untested::Now)?;
        let rule = self.rule(rules, name).ok_or(Untested::Gone)?;
        let (trial, flows) = self.plan(rules, neighbours, &rule).map_err(Untested::Now)?;
        let client = client_key(&trial);
        // One of an earlier daemon, which was killed in a test.
        remove(&flows, &client);
        let result = self.run(&attached, |programs| trial.run(programs));
        remove(&flows, &client);
        let results = &mut *self.access.state.self_test.lock();
        results.sessions += 1;
        results.last = Some(Instant::now());
        results.untested.clear();
        Ok(result)
    }

    /// Returns the attachments, if there is nothing wrong with them.
    fn attached(&self) -> Result<Vec<Attached>, &'static str> {
        let attached = self.access.state.attachments.lock().attached.clone();
        if attached.iter().any(|Attached { attachment, .. }| attachment.loss().is_some()) {
            return Err("a program is not attached");
        }
        Ok(attached)
    }

    /// Runs a test on the programs that the links on the interfaces hold.
    fn run(
        &mut self,
        attached: &[Attached],
        test: impl FnOnce(&mut dyn Programs) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut programs = self.programs(attached).map_err(Failure::Impossible)?;
        let result = test(&mut programs);
        for (sum, more) in self.injected.iter_mut().zip(programs.injected) {
            *sum += more;
        }
        self.access.state.self_test.lock().packets += programs.injected.iter().sum::<u64>();
        result
    }

    fn rule(&self, rules: &RuleSetSpec, name: &str) -> Option<Rule> {
        let next_hops = self.access.state.routing.lock().next_hops.clone();
        let known = next_hops.iter().filter_map(|next_hop| match next_hop.target {
            IpAddr::V4(target) => Some((target, &*next_hop.rules)),
            IpAddr::V6(_) => None,
        });
        Rule::of(rules, known, name)
    }

    fn plan(
        &self,
        rules: &RuleSetSpec,
        neighbours: &[Ipv4Addr],
        rule: &Rule,
    ) -> Result<(Trial, FlowTable), &'static str> {
        let Access { state, plane, .. } = &self.access;
        let own = state.routing.lock().own_addresses.clone();
        let taken = state.sessions.lock().ports.by_pool.clone();
        let plane = &mut *plane.lock();
        let flows = plane.flows.clone();
        let (sessions, capacity) = (flows.sessions(), flows.capacity());
        // A capacity of none is no table that is full.
        if sessions >= capacity && sessions > 0 {
            return Err("the flow table is full");
        }
        let settings = *plane.settings.current();
        let view = View {
            own: &own,
            settings: &settings,
            neighbours,
            snat: &rules.snat,
            ports: rules.ports,
            taken: &taken,
            half_open: &|source| flows.half_open(source),
        };
        let trial = view.trial(rule, &mut |query| plane.route(query).ok())?;
        Ok((trial, flows))
    }

    /// Returns the programs that the links on the interfaces hold.
    fn programs(&self, attached: &[Attached]) -> Result<Attachments> {
        let plane = &mut *self.access.plane.lock();
        let programs = attached.iter().zip(0_usize..).map(|(Attached { attachment, .. }, slot)| {
            Ok((attachment.index, (slot, plane.root_of(attachment)?)))
        });
        Ok(Attachments { programs: programs.collect::<Result<_>>()?, injected: [0; MAX_INTERFACES] })
    }

    /// Takes in that a test has failed.
    fn note(&mut self, subject: Subject, failure: Failure, before: Option<&CpuStats>) {
        let (text, is_wrong) = match failure {
            Failure::Wrong(text) => (text, true),
            Failure::Impossible(error) => (format!("{error:#}"), false),
        };
        let is_fault = self.suspicion.failed(subject, Instant::now());
        let mut results = self.access.state.self_test.lock();
        results.failures += 1;
        if !is_fault {
            return;
        }
        if is_wrong {
            let reasons =
                before.and_then(|before| Some(counted(before, &*self.access.counters.read().ok()?)));
            let reasons = reasons.unwrap_or_default();
            // The same words as long as the same is wrong.
            if results.failure.is_none() {
                results.failure = Some(text + &reasons);
            }
            results.impossible = None;
        } else {
            (results.failure, results.impossible) = (None, Some(text));
        }
    }

    fn clear_results(&self) {
        let mut results = self.access.state.self_test.lock();
        (results.failure, results.impossible) = (None, None);
    }

    /// Looks whether the programs see what comes in.
    fn look_at_arrivals(&mut self) {
        let attached = self.access.state.attachments.lock().attached.clone();
        // In this order: what has come in by then, the program has seen when it is asked.
        let Ok(text) = std::fs::read_to_string("/proc/self/net/dev") else { return };
        let Ok(stats) = self.access.counters.read() else { return };
        let now = Instant::now();
        let mut unseen = Vec::new();
        let slots = self.arrivals.iter_mut().zip(&stats.interfaces).zip(self.injected);
        for (Attached { attachment, .. }, ((arrivals, stats), injected)) in attached.iter().zip(slots) {
            let index = attachment.index;
            let Some(name) = interface_name(index).filter(|_| attachment.loss().is_none()) else { continue };
            let Some(arrived) = arrivals::received(&text, &name) else { continue };
            let count = Count { arrived, seen: stats.received.packets.wrapping_sub(injected) };
            // A generic program sees several packets as one that the kernel has joined (GRO).
            let is_comparable = attachment.mode == Mode::Native;
            if let Some(packets) = arrivals.look(index, count, is_comparable, now) {
                unseen.push(UnseenOn::new(&attachment.interface, &name, packets));
            }
        }
        let results = &mut *self.access.state.self_test.lock();
        // The number grows; the words that were said first stay.
        let said =
            |new: UnseenOn| results.unseen.iter().find(|old| old.is_like(&new)).cloned().unwrap_or(new);
        results.unseen = unseen.into_iter().map(said).collect();
    }
}

/// Returns the rules whose turn it is, and moves on.
fn in_turn(turn: &mut usize, rules: &[String]) -> Vec<String> {
    let start = turn.checked_rem(rules.len()).unwrap_or(0);
    let count = RULES_AT_ONCE.min(rules.len());
    *turn = start + count;
    rules.iter().cycle().skip(start).take(count).cloned().collect()
}

/// The programs on the interfaces.
struct Attachments {
    /// By the interface's index: its slot, and the program.
    programs: HashMap<u32, (usize, Arc<OwnedFd>)>,
    injected: [u64; MAX_INTERFACES],
}

impl Programs for Attachments {
    fn run(&mut self, interface: u32, frame: &[u8]) -> Result<Ran> {
        let (slot, program) = self.programs.get(&interface).context("no program is on the interface")?;
        let ran = run_program(program.as_fd(), interface, frame)?;
        if let Some(injected) = self.injected.get_mut(*slot) {
            *injected += 1;
        }
        Ok(ran)
    }
}

/// Returns the tuple of the client's packets.
fn client_key(trial: &Trial) -> FlowKey {
    let (address, port) = trial.listen;
    let (client, listen) = (Ipv4::from(trial.client), Ipv4::from(address));
    FlowKey::new(trial.protocol, client, Port::new(CLIENT_PORT), listen, Port::new(port))
}

/// Removes a test session, if there is one.
fn remove(flows: &FlowTable, client: &FlowKey) {
    let session = flows.get(client).and_then(|forward: Flow| flows.session_of(&forward));
    if let Some(Err(error)) = session.map(|session| flows.remove(&session)) {
        tracing::debug!("a test session is left to the sweep: {error:#}");
    }
}

/// Returns the reasons for which packets have not been forwarded meanwhile, in words.
fn counted(before: &CpuStats, after: &CpuStats) -> String {
    let moved = Reason::ALL.iter().filter(|reason| {
        let packets =
            |stats: &CpuStats| stats.reasons.get(**reason as usize).map_or(0, |counter| counter.packets);
        !matches!(reason.action(), Action::Forward) && packets(after) > packets(before)
    });
    let moved: Vec<&str> = moved.map(|reason| reason.as_str()).collect();
    if moved.is_empty() {
        " (and no program has counted it)".to_owned()
    } else {
        format!(" (counted meanwhile: {})", moved.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_forwarded_is_named() {
        let before = CpuStats::ZERO;
        let mut after = CpuStats::ZERO;
        assert_eq!(counted(&before, &after), " (and no program has counted it)");
        after.reasons[Reason::Forwarded as usize].count(60);
        after.reasons[Reason::TableFull as usize].count(60);
        after.reasons[Reason::NotConfigured as usize].count(60);
        let text = counted(&before, &after);
        assert!(text.contains("table_full") && text.contains("not_configured"), "{text}");
        assert!(!text.contains("forwarded"), "{text}");
    }

    #[test]
    fn only_port_0_is_a_test() {
        let key = |protocol, port| {
            FlowKey::new(
                protocol,
                Ipv4([10, 0, 2, 69]),
                Port::new(port),
                Ipv4([10, 0, 2, 68]),
                Port::new(443),
            )
        };
        assert!(is_test_session(&key(Protocol::Tcp, 0)) && is_test_session(&key(Protocol::Udp, 0)));
        assert!(!is_test_session(&key(Protocol::Tcp, 1024)));
        assert!(!is_test_session(&key(Protocol::Icmp, 0)));
    }
}
