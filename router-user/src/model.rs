//! The data that the daemon reports: the bodies of its API and of every `-o json`.
//!
//! Field names are a contract (snake_case, documented here); fields may be added, never renamed or
//! removed. Times are seconds unless the name says otherwise, addresses and ports are plain text
//! and numbers.

mod capacity;
mod support;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use capacity::{Capacity, CapacityLimit};
pub use support::{SupportBundle, SupportFile, SupportMissing};

/// `pls-router status` where no daemon runs, but has left a data plane that forwards.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NoDaemon {
    /// `false`: the probe is not answered.
    pub healthy: bool,
    /// What goes on, and what to do, in words for the operator.
    pub reasons: Vec<String>,
    /// What the last daemon has left.
    pub unattended: Unattended,
}

/// A data plane without a daemon.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Unattended {
    /// The interfaces that it forwards on, by name.
    pub interfaces: Vec<String>,
    /// The time from which on there has been no daemon (RFC 3339, to within two seconds).
    pub since: String,
    /// The seconds since then.
    pub seconds: u64,
}

/// `GET /v1/status`: is this router forwarding, and if not, why.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// `true` if the probe answers 200.
    pub healthy: bool,
    /// What keeps it from forwarding now, in words for the operator; empty if nothing does. The
    /// answer of the probe follows after a while: see `probe`.
    pub reasons: Vec<String>,
    /// The answer of the probe, and since when it is given.
    #[serde(default)]
    pub probe: ProbeStatus,
    /// Further faults, with which the probe can still answer 200: a rule without a target, or a
    /// target that cannot be reached or resolved while others of its rule can. In words for the
    /// operator.
    #[serde(default)]
    pub degraded: Vec<String>,
    /// All that is wrong, for programs: each of `reasons` and `degraded`.
    #[serde(default)]
    pub conditions: Vec<ConditionStatus>,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// The configuration file in force.
    pub config: String,
    /// The interfaces the router works on: one, or the PLS-facing and the firewall-facing one.
    pub interfaces: Vec<InterfaceStatus>,
    /// The addresses new sessions get as their source: those of `snat.addresses`, or else those
    /// that the routes to the targets say.
    pub snat_addresses: Vec<IpAddr>,
    /// The next hop of each target.
    pub next_hops: Vec<NextHopStatus>,
    /// Next hops for which two machines answer.
    #[serde(default)]
    pub contested_next_hops: Vec<ContestedNextHop>,
    /// The number of invalidations of all cached next hops, since the daemon
    /// started: when a route or address changed, or a next hop that sessions have went or changed
    /// its MAC address.
    #[serde(default)]
    pub next_hop_invalidations: u64,
    /// Targets given by name, as last resolved.
    pub names: Vec<NameStatus>,
    /// The health of targets, as sessions have shown it: those of TCP rules that have several.
    #[serde(default)]
    pub targets: Vec<TargetStatus>,
    /// The active checks of targets, by rule (4096 at most).
    #[serde(default)]
    pub checks: Vec<CheckStatus>,
    /// The flow table.
    pub flows: FlowTableStatus,
    /// The packets that the data plane gives to the daemon.
    #[serde(default)]
    pub punts: PuntStatus,
    /// SNAT ports in use, as of the last sweep: one row for each target that there are sessions to,
    /// the fullest first (4096 at most).
    #[serde(default)]
    pub snat_ports: Vec<SnatPortStatus>,
    /// Settings, programs and pins that something else can change, and the number of repairs.
    #[serde(default)]
    pub repairs: Vec<Repairs>,
    /// The state of `pls-router drain` while this router is draining, or else `null`. Its sessions
    /// are as of the last second.
    #[serde(default)]
    pub draining: Option<Drain>,
    /// The self-test of the programs.
    #[serde(default)]
    pub self_test: SelfTestStatus,
}

/// `GET /v1/drain`, and the output of `pls-router drain -o json` and `undrain -o json`: is the
/// router kept out of the load balancer's choice, and which sessions have not ended yet.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Drain {
    /// `true` if the probe answers 503 because of `pls-router drain`.
    pub draining: bool,
    /// The time at which that began, in RFC 3339 format (UTC); `null` if it is not draining.
    pub since: Option<String>,
    /// Seconds since then.
    pub since_seconds: Option<u64>,
    /// Sessions that have not ended: without TCP connections that are closed from both sides or
    /// reset. UDP and ICMP sessions end by silence.
    pub sessions: u64,
    /// These by rule, the rule with the most first; rules without any are left out.
    pub rules: Vec<RuleSessions>,
}

/// The sessions of a rule.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RuleSessions {
    /// The rule's name; `#` and a number if it has lost its name.
    pub rule: String,
    /// Its sessions.
    pub sessions: u64,
}

/// The self-test of the programs. Its packets are counted like all others, in the counters of
/// reasons, interfaces and rules: `packets` is its part of the received packets, and `sessions` its
/// part of the opened sessions.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct SelfTestStatus {
    /// `true` if the configuration switches it on.
    pub enabled: bool,
    /// Sessions that were tested since the daemon started.
    pub sessions: u64,
    /// Packets of these that were given to the programs.
    pub packets: u64,
    /// Sessions that failed. Those that fail only once are no fault: something changed meanwhile.
    pub failures: u64,
    /// Seconds since the last session that was tested; `null` if there was none.
    pub last_seconds: Option<u64>,
    /// Why the last rule in turn could not be tested; empty if it was.
    pub untested: String,
    /// What is wrong, in words; empty if nothing is.
    pub problem: String,
}

/// The answer of the load balancer's probe. It changes when the router has been down, or has
/// forwarded again, for as long as `down_after` and `up_after` of `[health]` say.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ProbeStatus {
    /// 200 or 503.
    pub answer: u16,
    /// The time since when it is given (RFC 3339, UTC).
    pub since: String,
    /// The same in seconds.
    pub since_seconds: u64,
    /// The number of changes since the daemon started.
    pub changes: u64,
    /// `true` if the path `/live` is answered by 200: the programs are attached, whatever else is
    /// wrong.
    #[serde(default)]
    pub live: bool,
    /// Why it is 503, in words for the operator: what keeps the router from forwarding, or what
    /// did so last. Empty for 200.
    pub reasons: Vec<String>,
    /// The change that has begun; `null` if there is none.
    pub pending: Option<PendingAnswer>,
}

/// A change of the probe's answer that has begun.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PendingAnswer {
    /// The answer that it leads to: 200 or 503.
    pub answer: u16,
    /// The seconds that the router has been so.
    pub for_seconds: f64,
    /// The seconds after which the answer changes.
    pub after_seconds: f64,
}

/// The severity of a condition.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// This router does not forward, or should get no new connections: the probe answers 503 when
    /// that has lasted for a while.
    Down,
    /// Something does not work, while the rest does: the probe answers 200.
    Degraded,
}

impl Severity {
    /// `down` or `degraded`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Degraded => "degraded",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ConditionStatus {
    /// The condition's identifier, which never changes.
    pub id: String,
    /// The rule, target, interface and the like that the condition is about; empty where there is
    /// only one, and for the rest of a long list.
    pub subject: String,
    /// `down` if the probe answers 503 because of it, or else `degraded`.
    pub severity: Severity,
    /// Seconds since it was first found.
    pub since_seconds: u64,
    /// The words for the operator: the fault, and the remedy where there is one. They may change.
    pub detail: String,
}

/// Something that the router depends on: a system setting, its program on an interface, its pins.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Repairs {
    /// Its kind: `sysctl`, `attachment` or `pins`.
    pub what: String,
    /// Its name: the setting's name, the interface's, the directory's.
    pub name: String,
    /// Times that the daemon has set it again since it started.
    pub count: u64,
    /// Seconds since it last did; `null` if it never had to.
    pub last_seconds: Option<u64>,
    /// The present fault, in words; empty if there is none.
    pub problem: String,
}

/// One interface and the program on it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct InterfaceStatus {
    /// Its name, e.g. `eth0`.
    pub name: String,
    /// Its kernel index.
    pub index: u32,
    /// Its roles: `pls`, `firewall`.
    pub roles: Vec<String>,
    /// `true` if our program is attached to it now.
    pub attached: bool,
    /// `native` or `generic`.
    pub mode: String,
    /// The kernel's id of the attached program, if ours is attached.
    pub program_id: Option<u32>,
}

/// The next hop of one target, as the kernel's routes and neighbours give it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NextHopStatus {
    /// The rules that need it.
    pub rules: Vec<String>,
    /// The address packets go to.
    pub target: IpAddr,
    /// The router they are handed to; the target itself when it is on the link.
    pub via: Option<IpAddr>,
    /// The interface they leave by.
    pub interface: Option<String>,
    /// The next hop's MAC address, once the neighbour has answered.
    pub mac: Option<String>,
    /// The address that new sessions to the target come from, as its route says; `null` where
    /// `snat.addresses` are given, or while there is no route.
    #[serde(default)]
    pub source: Option<IpAddr>,
    /// `true` if a packet to the target can leave now.
    pub resolved: bool,
    /// Why it cannot; empty when it can.
    pub problem: String,
}

/// A next hop for which two machines answer: it has changed its MAC address back and forth in the
/// last minute.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ContestedNextHop {
    /// Its address.
    pub address: IpAddr,
    /// The interface whose link it is on.
    pub interface: String,
    /// The first two MAC addresses that it has had since.
    pub macs: Vec<String>,
    /// `true` if it has had others as well.
    pub others: bool,
    /// Changes since.
    pub changes: u64,
    /// Seconds since the first change.
    pub since_seconds: u64,
}

/// A target given by name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NameStatus {
    /// The DNS name.
    pub name: String,
    /// The addresses in use, from the last good answer.
    pub addresses: Vec<IpAddr>,
    /// Seconds since that answer; since the daemon's start while it has had none.
    pub age_seconds: u64,
    /// The time to live of that answer; `null` while there has been none.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    /// Seconds until it is asked for again.
    #[serde(default)]
    pub next_seconds: u64,
    /// The error of the last attempt; empty if it succeeded.
    pub problem: String,
    /// The part of the last good answer that is not used (this machine's own addresses, say, or
    /// those beyond the 32 lowest), and why; empty when all of it is.
    #[serde(default)]
    pub left_out: String,
}

/// The health of a target, as sessions have shown it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing is known against it.
    Good,
    /// New sessions go to the rule's other targets, if one of them is not avoided.
    Avoided,
    /// It was avoided. New sessions may try it, and the first to show something decides.
    Trial,
}

impl Health {
    /// `good`, `avoided` or `trial`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Avoided => "avoided",
            Self::Trial => "trial",
        }
    }
}

/// The health of one of several targets of a rule, by passive signs: sessions that get an answer,
/// and sessions that do not.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TargetStatus {
    /// The rules that lead there.
    pub rules: Vec<String>,
    /// `tcp`.
    pub protocol: String,
    /// The target's address and port. Port 0 stands for the port that the client used, of a rule
    /// that listens on a range.
    pub target: SocketAddr,
    /// `good`, `avoided` (new sessions go to the rule's other targets, if one of them is not
    /// avoided) or `trial` (it was avoided; new sessions may try it, and the first to show
    /// something decides).
    pub health: Health,
    /// Seconds that it has been avoided or on trial; `null` when it is good.
    pub since_seconds: Option<u64>,
    /// Why it is not good; empty when it is.
    pub reason: String,
}

/// The state of a target, as active checks have shown it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckHealth {
    /// Not known yet. New sessions go there.
    Unknown,
    /// It passes its checks.
    Good,
    /// As many checks in a row have failed as `fall` says. New sessions go to the rule's other
    /// targets, if one of them has not failed.
    Failed,
}

impl CheckHealth {
    /// `unknown`, `good` or `failed`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Good => "good",
            Self::Failed => "failed",
        }
    }
}

/// The result of one check.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckResult {
    /// The target answered as it should.
    Good,
    /// It did not.
    Failed,
    /// This machine could not make the check, which says nothing about the target.
    NotMade,
}

/// The active check of one target of one rule.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CheckStatus {
    /// The rule.
    pub rule: String,
    /// The target's address and port. Port 0 stands for the port that the client used, of a rule
    /// that listens on a range.
    pub target: SocketAddr,
    /// The port that is checked.
    pub port: u16,
    /// `tcp` or `tls`.
    pub kind: String,
    /// The server name that is asked for; `null` if none is.
    pub sni: Option<String>,
    /// `unknown`, `good` or `failed`.
    pub health: CheckHealth,
    /// Seconds since when it is so.
    pub since_seconds: u64,
    /// The result of the last check (`good`, `failed`, or `not_made`); `null` before the first.
    pub last: Option<CheckResult>,
    /// Seconds since the last check.
    pub last_seconds: Option<u64>,
    /// Seconds that the target took to answer the last check, if it did.
    pub latency_seconds: Option<f64>,
    /// Why the last check failed or was not made; of a failed target, why a check failed last.
    /// Otherwise empty.
    pub reason: String,
}

/// Counters of punted packets: those that wait for a neighbour,
/// fragments that came too early, and what has to be split. Counted since the daemon's start.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct PuntStatus {
    /// Frames that the daemon has sent.
    pub sent: u64,
    /// Packets that wait now for a neighbour's answer.
    pub waiting: u64,
    /// Fragments that are held now until their datagram's first comes.
    pub held: u64,
    /// Packets whose neighbour did not answer.
    pub unanswered: u64,
    /// Packets that were dropped for want of room; the oldest go first.
    pub no_room: u64,
    /// Fragments whose datagram's first did not come in time.
    pub expired: u64,
    /// Packets that were lost since something failed that should not: the kernel did not send them,
    /// for example.
    pub failed: u64,
    /// The failure of the last ten seconds; empty if there was none.
    pub problem: String,
}

/// The use of the flow table.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct FlowTableStatus {
    /// Sessions in the table, as of the last sweep.
    pub sessions: u64,
    /// Sessions it has room for.
    pub capacity: u64,
    /// The duration of the last sweep that looked for sessions to remove.
    #[serde(default)]
    pub sweep_seconds: f64,
}

/// The SNAT ports for one target: each can be used once there, and again for any other.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SnatPortStatus {
    /// The SNAT address that has the ports.
    pub snat: IpAddr,
    /// The target's address and port; port 0 for ICMP echo.
    pub target: SocketAddr,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// Ports that sessions have.
    pub used: u32,
    /// Ports that are left for new ones.
    pub free: u32,
    /// The source with more than half of them, if four fifths are in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<PortHolder>,
}

/// A source that has many SNAT ports for a target.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PortHolder {
    /// Its address.
    pub source: IpAddr,
    /// The ports that its sessions have.
    pub used: u32,
}

/// `GET /v1/counters`: everything the data plane counts, summed over CPUs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Counters {
    /// One row a reason a packet left by, in the order of their numbers. All reasons, zero or not.
    pub reasons: Vec<ReasonCounter>,
    /// One row an interface.
    pub interfaces: Vec<InterfaceCounters>,
    /// One row a rule.
    pub rules: Vec<RuleCounters>,
    /// Counters of this machine's own traffic.
    #[serde(default)]
    pub own_traffic: OwnTrafficCounters,
}

/// Counters of this machine's own traffic that leaves with the port of a session.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct OwnTrafficCounters {
    /// Sessions that were removed because this machine uses their port: UDP and echo, whose clients
    /// continue with another port, and connections that were closed or never answered.
    pub sessions_ended: u64,
    /// This machine's own connections that were refused because a live session has their port.
    pub connections_refused: u64,
}

/// Packets that left the program for one reason.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ReasonCounter {
    /// The reason's number; never reused.
    pub number: u32,
    /// Its name, e.g. `source_not_allowed`.
    pub reason: String,
    /// The outcome: `forward`, `pass` (to this machine's own stack), `drop`,
    /// `answer`, or `punt` (to the daemon, which sends it when it can be sent).
    pub action: String,
    /// Packets.
    pub packets: u64,
    /// Bytes, Ethernet header included.
    pub bytes: u64,
    /// One line for the operator.
    pub description: String,
}

/// Packets in and out of one interface, as the program saw them.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct InterfaceCounters {
    /// The interface.
    pub name: String,
    /// Packets that the program was given.
    pub rx_packets: u64,
    /// Their bytes, Ethernet header included.
    pub rx_bytes: u64,
    /// Packets that the program sent out of it.
    pub tx_packets: u64,
    /// Their bytes, Ethernet header included.
    pub tx_bytes: u64,
}

/// Packets of one rule, by direction.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RuleCounters {
    /// The rule's name.
    pub name: String,
    /// Sessions that it has opened.
    pub sessions_opened: u64,
    /// Packets from the client to the target.
    pub forward_packets: u64,
    /// Their bytes, Ethernet header included.
    pub forward_bytes: u64,
    /// Packets from the target to the client.
    pub reply_packets: u64,
    /// Their bytes, Ethernet header included.
    pub reply_bytes: u64,
    /// Packets to the rule's port from outside its `sources`, dropped.
    pub denied_packets: u64,
}

/// The kind of a rule.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// `[[forward]]`: destination and source are translated.
    Forward,
    /// `[[masquerade]]`: only the source is translated.
    Masquerade,
}

/// `GET /v1/rules`: one row a rule, in the order of the configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// `forward` or `masquerade`.
    pub kind: RuleKind,
    /// `tcp` or `udp`; absent for a masquerade, which takes TCP, UDP and ICMP echo.
    pub protocol: Option<String>,
    /// The address and ports that a forward listens on, as configured: `443`, `8000-8010`,
    /// `10.0.2.68:443`.
    pub listen: Option<String>,
    /// A forward's targets, as configured.
    pub targets: Vec<String>,
    /// The addresses that new sessions go to now: those of the targets, without any that is
    /// avoided.
    pub addresses: Vec<SocketAddr>,
    /// The networks that may use it.
    pub sources: Vec<String>,
    /// The destinations that a masquerade covers.
    pub destinations: Vec<String>,
    /// Sessions in the table now, as of the last sweep.
    pub sessions: u64,
    /// Its counters.
    pub counters: RuleCounters,
    /// The state of a forward with active checks; absent for other rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<RuleCheckStatus>,
}

/// The active checks of a rule.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RuleCheckStatus {
    /// `false` if too many targets have failed (`require` of `check`).
    pub healthy: bool,
    /// Its targets.
    pub targets: Vec<CheckStatus>,
    /// Checks that the target passed, since the daemon started.
    pub good: u64,
    /// Checks that the target failed.
    pub failed: u64,
    /// Checks that this machine could not make.
    pub not_made: u64,
}

/// `GET /v1/flows`: an array of these, a session a line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Flow {
    /// The rule that opened it.
    pub rule: String,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The client, as it arrives here: address and port (echo identifier for ICMP).
    pub client: SocketAddr,
    /// The address and port that the client sent to.
    pub listen: SocketAddr,
    /// The source that this router gave the session.
    pub snat: SocketAddr,
    /// Its target.
    pub target: SocketAddr,
    /// `opening`, `established`, `closing` or `closed`; see `router_common::session::State`.
    pub state: String,
    /// Seconds since it was opened.
    pub age_seconds: u64,
    /// Seconds since a packet was last seen in either direction (to about a second).
    pub idle_seconds: u64,
    /// Seconds until it is removed if it stays idle.
    pub expires_seconds: u64,
    /// Packets from the client to the target.
    pub forward_packets: u64,
    /// Their bytes, Ethernet header included.
    pub forward_bytes: u64,
    /// Packets from the target to the client.
    pub reply_packets: u64,
    /// Their bytes, Ethernet header included.
    pub reply_bytes: u64,
}

/// The query of `GET /v1/flows`: which sessions are wanted. A field that is absent asks for any.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct FlowQuery {
    /// Sessions that this rule opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Sessions of this protocol: `tcp`, `udp` or `icmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Sessions of this client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// The most sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl FlowQuery {
    /// Returns `true` if `flow` is wanted, by all but the limit.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        self.rule.as_ref().is_none_or(|rule| *rule == flow.rule)
            && self.protocol.as_ref().is_none_or(|protocol| *protocol == flow.protocol)
            && self.client.is_none_or(|client| client == flow.client.ip())
    }
}

/// `GET /v1/audit`, and what `pls-router check --live -o json` says: whether every session in the
/// flow table is whole. What looks wrong only because sessions come and go meanwhile is looked at
/// again, and not reported.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Audit {
    /// `true` if nothing is wrong.
    pub ok: bool,
    /// Sessions, as the data plane counts them.
    pub sessions: u64,
    /// Flows found in the table: two a session.
    pub flows: u64,
    /// Flows whose other direction is not there.
    pub half_sessions: u64,
    /// Flows that are there more than once.
    pub duplicates: u64,
    /// SNAT ports that are marked as taken, and that no session has.
    pub leaked_ports: u64,
    /// SNAT ports that no session has, and that none gets yet: their sessions were over and their
    /// clients' tuples have moved to other targets.
    #[serde(default)]
    pub held_ports: u64,
    /// The surplus of the session counter over the sessions in the table; negative if the counter
    /// is too low.
    pub miscounted_sessions: i64,
    /// The flows and ports meant, a thousand at most.
    pub findings: Vec<AuditFinding>,
}

/// A kind of fault of a flow or port.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditKind {
    /// A flow without the other direction of its session.
    HalfSession,
    /// A second flow with the same tuple.
    Duplicate,
    /// A port that is marked as taken, and that no session has.
    LeakedPort,
}

/// A flow or port that is not as it should be.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AuditFinding {
    /// `half_session`, `duplicate` or `leaked_port`.
    pub kind: AuditKind,
    /// The rule that opened the session, if that is known.
    pub rule: Option<String>,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The source of the flow's packets; of a port, the target that it is marked for.
    pub source: SocketAddr,
    /// Their destination; of a port, the SNAT address and the port.
    pub destination: SocketAddr,
}

/// The output of `pls-router check -o json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Check {
    /// The configuration file that was checked.
    pub config: String,
    /// `true` if there is no error: the router would start.
    pub ok: bool,
    /// The findings, errors before warnings; first in the file, then on the machine.
    pub findings: Vec<CheckFinding>,
    /// Access to the daemon's listeners; empty if only the file was looked at.
    #[serde(default)]
    pub access: Vec<ListenerAccess>,
}

/// Access to one of the daemon's listeners.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ListenerAccess {
    /// `probe`, `metrics` or `api`.
    pub what: String,
    /// Its address and port, or path.
    pub listen: String,
    /// The sources that reach it, in words.
    pub who: String,
}

/// One thing that is wrong, doubtful or worth knowing.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CheckFinding {
    /// `error`, `warning` or `note`.
    pub severity: String,
    /// The identifier of the condition, if it is one of this machine (docs/conditions.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The fault, in one line.
    pub text: String,
    /// The place in the configuration file, if it has one: `FILE:LINE:COLUMN`.
    pub place: Option<String>,
    /// The remedy.
    pub fix: String,
}

/// `POST /v1/reload`, and the output of `pls-router reload -o json`: the difference between the
/// configuration that was in force and the file, and the outcome.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Reload {
    /// `true` if the configuration of the file is in force now, or if it could be (`dry_run`).
    pub ok: bool,
    /// `true` if nothing was to be changed.
    pub dry_run: bool,
    /// The configuration file.
    pub config: String,
    /// `true` if there is a difference.
    pub changed: bool,
    /// The rules that differ, in the order of the file; removed ones last.
    pub rules: Vec<RuleChange>,
    /// Keys outside of rules that differ.
    pub keys: Vec<KeyChange>,
    /// Findings in the file and on this machine, as `check` has them.
    pub findings: Vec<CheckFinding>,
    /// The reason why the configuration of before stays in force, with the remedy; empty if `ok`.
    pub problem: String,
    /// Sessions that the rules in force would not open: of rules that are gone, or that have
    /// changed under them. Without a cut, they go on until they end.
    pub old_sessions: u64,
    /// Those that `--cut` has ended.
    pub cut_sessions: u64,
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Only the file has it.
    Added,
    /// Only the configuration that was in force has it.
    Removed,
    /// They differ.
    Changed,
}

/// A rule that differs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RuleChange {
    /// Its name.
    pub rule: String,
    /// `forward` or `masquerade`.
    pub kind: RuleKind,
    /// `added`, `removed` or `changed`.
    pub change: ChangeKind,
    /// Its keys that differ; all that it has if it is added or removed.
    pub keys: Vec<KeyChange>,
}

/// A key whose value differs. Values are as the file has them: text, numbers or lists of text.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct KeyChange {
    /// The key: `timeouts.udp`; within a rule, without the name of its table.
    pub key: String,
    /// The value that was in force; `null` if there was none.
    pub from: serde_json::Value,
    /// The value in the file; `null` if there is none.
    pub to: serde_json::Value,
}

/// The query of `POST /v1/reload`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct ReloadQuery {
    /// Only the difference is wanted; nothing changes.
    #[serde(default)]
    pub dry_run: bool,
    /// Sessions that the new rules would not open are ended.
    #[serde(default)]
    pub cut: bool,
}

/// The output of `pls-router detach -o json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Detached {
    /// The interfaces that the program was detached from; empty if it was on none.
    pub interfaces: Vec<String>,
    /// The directory where pins were looked for.
    pub pins: String,
    /// The directories of pins that were removed: of this version's data plane, and of others'.
    #[serde(default)]
    pub directories: Vec<String>,
}
