//! Conditions: what is wrong with a running router.
//!
//! Parts of the daemon look at what they know and add [`Condition`]s to a list ([`Conditions`]).
//! The probe, `status`, the metrics and the log read that list, and tell conditions apart by their
//! [`Id`] and subject. No code reads sentences: `detail` is for people, and may change at any time.

use std::{collections::HashMap, time::Instant};

pub(crate) use crate::model::Severity;

/// Defines the identifiers of conditions, their text and what is said of them in the documentation.
macro_rules! ids {
    ($($id:ident $text:literal $description:literal,)+) => {
        /// The identifier of a condition. The text is part of the contract with monitoring: it
        /// never changes, and none is used for anything else.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Id {
            $(#[doc = $description] $id,)+
        }

        impl Id {
            /// All of them, and what each means.
            #[cfg(test)]
            const ALL: &[(Self, &str)] = &[$((Self::$id, $description)),+];

            /// Its text, in `snake_case`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$id => $text,)+ }
            }
        }
    };
}

ids! {
    Draining "draining" "`pls-router drain` has the load balancer send no new connections.",
    Detached "detached" "`pls-router detach --force` has removed the programs.",
    ProgramLost "program_lost" "The program is no longer attached to an interface, or the interface is gone. Subject: the interface.",
    RouteLookupsOff "route_lookups_off" "The kernel answers no route lookups (`net.ipv4.conf.lo.forwarding`).",
    RoutesStale "routes_stale" "The daemon has not read the kernel's routes for a while.",
    NoRules "no_rules" "No rules are loaded.",
    RulesOutdated "rules_outdated" "The rules in force are not the wanted ones, because the kernel refuses those.",
    NoTargets "no_targets" "No forward rule has a target.",
    RuleUnhealthy "rule_unhealthy" "Too many of a rule's targets fail its active check (`require` of `check`). Subject: the rule.",
    TargetFailed "target_failed" "A target fails the active check of a rule. Subject: the rule and the target.",
    RuleWithoutTarget "rule_without_target" "A rule has no target and refuses new sessions. Subject: the rule.",
    TargetsUnresponsive "targets_unresponsive" "None of a rule's targets answers new sessions. Subject: the rule.",
    TargetsLeftOut "targets_left_out" "A rule's targets have more addresses than the router uses. Subject: the rule.",
    NameUnresolved "name_unresolved" "A target's name has no address. Subject: the name.",
    NameStale "name_stale" "A target's name cannot be resolved again. The last good addresses stay in use. Subject: the name.",
    NameLeftOut "name_left_out" "Not all addresses of a name server's answer are used. Subject: the name.",
    NextHopUnresolved "next_hop_unresolved" "There is no next hop to a target. Subject: the target's address.",
    NextHopContested "next_hop_contested" "Two machines answer for one next hop. Subject: the next hop's address.",
    PolicyRuleIgnored "policy_rule_ignored" "The router does not follow one of the kernel's policy rules (`ip rule`).",
    GatewayDead "gateway_dead" "One of a route's several gateways does not answer. Subject: the gateway.",
    SourceUntold "source_untold" "The kernel does not report the source address that a route names. Subject: the route.",
    InterfaceRenamed "interface_renamed" "An interface's name differs from the name in the configuration. Subject: the interface.",
    SelfTestFailed "self_test_failed" "The programs on the interfaces do not forward the packets of a test session.",
    SelfTestImpossible "self_test_impossible" "The self-test cannot be run.",
    PacketsUnseen "packets_unseen" "Packets come in on an interface, and its program sees none or few of them. Subject: the interface.",
    PinsLost "pins_lost" "The pins in the BPF file system were removed. Subject: the directory.",
    Contended "contended" "Something else on this machine repeatedly changes what the daemon sets. Subject: the thing that is changed.",
    PortsShared "ports_shared" "The kernel may give ports of the router to this machine's own sockets.",
    OwnTrafficUnseen "own_traffic_unseen" "The router cannot see this machine's own traffic on an interface. Subject: the interface.",
    FlowTableFilling "flow_table_filling" "80 % of the flow table is in use.",
    FlowTableFull "flow_table_full" "The flow table is full, and new sessions are dropped.",
    SnatPortsFilling "snat_ports_filling" "80 % of the SNAT ports for a target are in use. Subject: SNAT address and target.",
    SnatShareExhausted "snat_share_exhausted" "One source has all SNAT ports for a target that one source may have. Subject: SNAT address and target.",
    SnatPortsExhausted "snat_ports_exhausted" "All SNAT ports for a target are in use. Subject: SNAT address and target.",
    ChecksumsBad "checksums_bad" "Most new connections are dropped because their SYNs have wrong checksums.",
    PuntsLost "punts_lost" "Packets that the daemon should send are lost.",
    PrivilegesMissing "privileges_missing" "This process lacks the privileges to load and attach programs.",
    KernelTooOld "kernel_too_old" "The kernel is too old.",
    InterfacesUnreadable "interfaces_unreadable" "The network interfaces cannot be listed.",
    InterfaceMissing "interface_missing" "A configured interface does not exist. Subject: its name.",
    InterfaceDown "interface_down" "An interface is down. Subject: the interface.",
    InterfaceEnslaved "interface_enslaved" "An interface is a port of another interface. Subject: the interface.",
    InterfaceTwice "interface_twice" "`pls` and `firewall` are two names of one interface. Subject: the interface.",
    InterfaceLoopback "interface_loopback" "An interface is the loopback. Subject: the interface.",
    MacvlanAddress "macvlan_address" "An address is on a macvlan above an interface. Subject: the macvlan.",
    GenericRedirect "generic_redirect" "In generic mode, packets larger than the MTU are lost between two interfaces.",
    DriverUnknown "driver_unknown" "A driver is not known to run XDP programs natively. Subject: the interface.",
    VethOffloads "veth_offloads" "The other end of a veth may leave checksums unfinished. Subject: the interface.",
    LroOn "lro_on" "An interface merges received packets (LRO). Subject: the interface.",
    MtuTooLarge "mtu_too_large" "The MTU is too large for native XDP. Subject: the interface.",
    OtherProgram "other_program" "Another XDP program is attached. Subject: the interface.",
    ListenAddressMissing "listen_address_missing" "A forward listens on an address that this machine does not have. Subject: the rule.",
    TargetIsLocal "target_is_local" "A forward leads to this machine itself. Subject: the rule.",
    SnatAddressMissing "snat_address_missing" "A SNAT address does not belong to this machine. Subject: the address.",
    SnatAddressUnroutable "snat_address_unroutable" "Replies to a SNAT address may not come back. Subject: the address.",
    SourceAddressMissing "source_address_missing" "An interface has no address for new sessions. Subject: the interface.",
    PortTaken "port_taken" "Another process uses a port of the daemon. Subject: the port.",
    LoginClosed "login_closed" "No login by SSH is possible. Subject: the denied address, if there is a single one.",
    LocalServicesOpen "local_services_open" "Services of this machine can be reached by IPv6. Subject: the interfaces.",
    IpsecBypassed "ipsec_bypassed" "Forwarded packets bypass IPsec policies.",
    FirewallBypassed "firewall_bypassed" "Forwarded packets bypass rules of the host's firewall. Subject: `forwards` or `sends`.",
    KernelForwards "kernel_forwards" "The kernel also forwards packets (`net.ipv4.ip_forward`).",
    PathUntrusted "path_untrusted" "Another user can change a directory that the daemon trusts. Subject: the directory's configuration key.",
    BpffsMissing "bpffs_missing" "The directory for pins is not on a BPF file system. Subject: the directory.",
    PredecessorFound "predecessor_found" "Another version's data plane is on this machine. Subject: its directory.",
}

/// The way in which a condition of severity `down` changes the answer of the probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effect {
    /// When it has lasted for a while (`down_after` of `[health]`).
    Lasting,
    /// At once: it does not pass by itself. The router's recovery from it has to last
    /// (`up_after`).
    AtOnce,
    /// At once, and so does its end: the operator has said so.
    Ordered,
}

impl Id {
    /// Returns `true` if it says that a program is not on its interface. Of all faults of a running
    /// daemon, only these make the probe's path `/live` fail: who replaces machines by it must not
    /// do so for a fault that the next machine would have as well.
    pub(crate) const fn is_of_attachment(self) -> bool {
        matches!(self, Self::ProgramLost | Self::Detached)
    }

    /// Returns the way in which it changes the answer of the probe.
    pub(crate) const fn effect(self) -> Effect {
        if matches!(self, Self::Draining | Self::Detached) {
            Effect::Ordered
        } else if matches!(self, Self::ProgramLost) {
            Effect::AtOnce
        } else {
            Effect::Lasting
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Condition {
    pub(crate) id: Id,
    /// The rule, target, interface, and so on: see [`Id`]. Empty where there is only one, and for
    /// the rest of a list that is too long.
    pub(crate) subject: String,
    pub(crate) severity: Severity,
    /// The time when it was first found.
    pub(crate) since: Instant,
    /// The words for people, in one line: the fault, and the remedy where there is one.
    pub(crate) detail: String,
}

/// The identity of a condition.
pub(crate) type Key = (Id, String, Severity);

impl Condition {
    /// Returns its identity, without its detail, which may change while it lasts.
    pub(crate) fn key(&self) -> Key {
        (self.id, self.subject.clone(), self.severity)
    }
}

/// The conditions at a moment, in the order in which they are shown.
#[derive(Debug)]
pub(crate) struct Conditions {
    now: Instant,
    all: Vec<Condition>,
}

impl Conditions {
    /// None yet.
    pub(crate) const fn at(now: Instant) -> Self {
        Self { now, all: Vec::new() }
    }

    /// Returns the moment.
    pub(crate) const fn now(&self) -> Instant {
        self.now
    }

    /// Adds one.
    pub(crate) fn add(
        &mut self,
        severity: Severity,
        id: Id,
        subject: impl Into<String>,
        detail: impl Into<String>,
    ) {
        self.add_since(self.now, severity, id, subject, detail);
    }

    /// Adds one that is known to have begun before.
    pub(crate) fn add_since(
        &mut self,
        since: Instant,
        severity: Severity,
        id: Id,
        subject: impl Into<String>,
        detail: impl Into<String>,
    ) {
        let (subject, detail) = (subject.into(), detail.into());
        self.all.push(Condition { id, subject, severity, since, detail });
    }

    /// Adds one for each subject and detail, up to `most`, and what `rest` says of the number of
    /// the others, if there are any.
    pub(crate) fn add_first(
        &mut self,
        severity: Severity,
        id: Id,
        items: impl ExactSizeIterator<Item = (String, String)>,
        most: usize,
        rest: impl FnOnce(usize) -> String,
    ) {
        let more = items.len().saturating_sub(most);
        for (subject, detail) in items.take(most) {
            self.add(severity, id, subject, detail);
        }
        if more > 0 {
            self.add(severity, id, "", rest(more));
        }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Condition> {
        self.all.iter()
    }

    /// Adds all of `others` at the end.
    pub(crate) fn append(&mut self, others: Self) {
        self.all.extend(others.all);
    }

    /// The details of those of a severity.
    pub(crate) fn details(&self, severity: Severity) -> Vec<String> {
        let of_severity = self.all.iter().filter(|condition| condition.severity == severity);
        of_severity.map(|condition| condition.detail.clone()).collect()
    }
}

/// Remembers since when conditions last.
#[derive(Debug, Default)]
pub(crate) struct History {
    since: HashMap<Key, Instant>,
}

impl History {
    /// Puts into `conditions` since when each has lasted, and forgets the others.
    pub(crate) fn follow(&mut self, conditions: &mut Conditions) {
        let before = std::mem::take(&mut self.since);
        for condition in &mut conditions.all {
            let key = condition.key();
            condition.since = before.get(&key).copied().unwrap_or(condition.since);
            self.since.insert(key, condition.since);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;

    #[test]
    fn ids_are_distinct_and_fit_for_monitoring() {
        let texts: HashSet<_> = Id::ALL.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(texts.len(), Id::ALL.len());
        let is_word = |text: &&str| text.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase());
        assert!(texts.iter().all(is_word), "{texts:?}");
    }

    #[test]
    fn all_are_documented() {
        let page = include_str!("../../docs/conditions.md");
        for (id, description) in Id::ALL {
            let row = format!("| `{}` | {description} |", id.as_str());
            assert!(page.lines().any(|line| line == row), "docs/conditions.md lacks: {row}");
        }
        assert_eq!(page.matches("\n| `").count(), Id::ALL.len());
    }

    #[test]
    fn conditions_last_whatever_is_said_of_them() {
        let start = Instant::now();
        let mut history = History::default();
        let mut look = |seconds, details: &[(&str, &str)]| {
            let mut conditions = Conditions::at(start + Duration::from_secs(seconds));
            for (subject, detail) in details {
                conditions.add(Severity::Degraded, Id::NameStale, *subject, *detail);
            }
            history.follow(&mut conditions);
            conditions.iter().map(|condition| (condition.since - start).as_secs()).collect::<Vec<_>>()
        };
        assert_eq!(look(1, &[("a", "no answer")]), [1]);
        assert_eq!(look(2, &[("b", "no answer"), ("a", "refused")]), [2, 1]);
        assert_eq!(look(3, &[("b", "no answer")]), [2]);
        assert_eq!(look(4, &[("a", "no answer")]), [4]);
    }

    #[test]
    fn long_lists_end_in_a_number() {
        let list = |length: usize| {
            let mut conditions = Conditions::at(Instant::now());
            let items = (0..length).map(|n| (n.to_string(), format!("rule {n}")));
            conditions
                .add_first(Severity::Down, Id::NoTargets, items, 2, |more| format!("{more} more rules"));
            assert!(conditions.details(Severity::Degraded).is_empty());
            conditions.details(Severity::Down)
        };
        assert_eq!((list(0), list(2)), (vec![], vec!["rule 0".to_owned(), "rule 1".to_owned()]));
        assert_eq!(list(7), ["rule 0", "rule 1", "5 more rules"]);
    }
}
