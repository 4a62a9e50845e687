//! From the configuration to the checks that are to be made. No I/O and no clock.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use super::schedule::Key;
use crate::{
    config::{Check, CheckKind, Config, Host},
    daemon::{control::desired, names::resolved::Names, observe::check_health::Place},
};

/// The most targets of a rule that are checked. The others count as not known.
const MAX_CHECKED: usize = 256;

/// The exchange of a check.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Task {
    pub(super) target: SocketAddrV4,
    pub(super) hello: Option<ServerName>,
    pub(super) timeout: Duration,
    interval: Duration,
}

/// The server name of a TLS hello, if it has one.
pub(super) type ServerName = Option<Arc<str>>;

/// All checks.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) tasks: HashMap<Key, Task>,
}

impl Plan {
    /// The checks of a configuration, with names as they are resolved now.
    pub(super) fn of(config: &Config, names: &Names) -> Self {
        let mut tasks = HashMap::new();
        for forward in &config.forwards {
            let Some(check) = &forward.check else { continue };
            let rule: Arc<str> = forward.name.as_str().into();
            for (host, target) in desired::with_hosts(forward, names).take(MAX_CHECKED) {
                let (address, port, _) = desired::endpoint(forward, &target);
                // The first of several names for an address is asked for.
                tasks
                    .entry((rule.clone(), address, port))
                    .or_insert_with(|| task(check, host, SocketAddrV4::new(address, port)));
            }
        }
        Self { tasks }
    }

    /// The targets and their intervals.
    pub(super) fn intervals(&self) -> HashMap<Key, Duration> {
        self.tasks.iter().map(|(key, task)| (key.clone(), task.interval)).collect()
    }

    /// The rules that have a check, with their targets.
    pub(super) fn by_rule<'a>(
        &self,
        config: &'a Config,
    ) -> impl Iterator<Item = (&'a str, &'a Check, HashSet<Place>)> {
        let mut places: HashMap<Arc<str>, HashSet<Place>> = HashMap::new();
        for (rule, address, port) in self.tasks.keys() {
            places.entry(rule.clone()).or_default().insert((*address, *port));
        }
        config.forwards.iter().filter_map(move |forward| {
            let places = places.remove(forward.name.as_str()).unwrap_or_default();
            Some((forward.name.as_str(), forward.check.as_ref()?, places))
        })
    }
}

fn task(check: &Check, host: &Host, target: SocketAddrV4) -> Task {
    Task {
        target: SocketAddrV4::new(*target.ip(), checked_port(check, target.port())),
        hello: match &check.kind {
            CheckKind::Tcp => None,
            CheckKind::Tls { .. } => Some(server_name(check, host).map(Into::into)),
        },
        timeout: check.timeout,
        interval: check.interval,
    }
}

/// Returns the port that is checked, of a target whose sessions have this one.
pub(crate) fn checked_port(check: &Check, port: u16) -> u16 {
    check.port.unwrap_or(port)
}

/// Returns the server name that a TLS check of this target asks for: the one that is given, or that
/// of the target.
pub(crate) fn server_name<'a>(check: &'a Check, host: &'a Host) -> Option<&'a str> {
    match (&check.kind, host) {
        (CheckKind::Tcp, _) => None,
        (CheckKind::Tls { sni: Some(name) }, _) => Some(name),
        // It has no final dot in TLS (RFC 6066 section 3).
        (CheckKind::Tls { sni: None }, Host::Name(name)) => Some(name.strip_suffix('.').unwrap_or(name)),
        (CheckKind::Tls { sni: None }, Host::Address(_)) => None,
    }
}

/// Returns the address that the next check of a target comes from: that of sessions to it.
///
/// `given`: the addresses of the configuration, which sessions are spread over, and so are checks.
/// `by_route`: otherwise, what the route says.
pub(super) fn source(given: &[Ipv4Addr], by_route: Option<Ipv4Addr>, turn: usize) -> Option<Ipv4Addr> {
    match given.len() {
        0 => by_route,
        number => given.get(turn % number).copied(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::daemon::names::resolved::Resolved;

    fn plan(forward: &str) -> (Config, Plan) {
        let text = format!(
            "[interfaces]\npls = \"eth0\"\n[[forward]]\nname = \"web\"\nsources = [\"10.0.2.64/26\"]\n{forward}\n"
        );
        let config = Config::parse(&text, Path::new("test.toml")).map_err(|error| error.to_string());
        let config = config.unwrap().config;
        let address = |last| Ipv4Addr::new(10, 1, 0, last);
        let names: Names =
            [("db.example.com.".to_owned(), Resolved::of(vec![address(3), address(4)]))].into();
        let plan = Plan::of(&config, &names);
        (config, plan)
    }

    fn hello(plan: &Plan, last: u8, port: u16) -> Option<Option<String>> {
        let task = &plan.tasks[&("web".into(), Ipv4Addr::new(10, 1, 0, last), port)];
        task.hello.as_ref().map(|name| name.as_ref().map(ToString::to_string))
    }

    #[test]
    fn every_address_is_checked_on_the_port_of_sessions() {
        let (config, plan) = plan(
            "protocol = \"tcp\"\nlisten = \"443\"\ntarget = [\"10.1.0.1\", \"10.1.0.2:8443\", \"db.example.com.\"]\n\
             check = { type = \"tcp\", interval = \"1s\" }",
        );
        let mut targets: Vec<String> = plan.tasks.values().map(|task| task.target.to_string()).collect();
        targets.sort();
        assert_eq!(targets, ["10.1.0.1:443", "10.1.0.2:8443", "10.1.0.3:443", "10.1.0.4:443"]);
        assert_eq!(hello(&plan, 1, 443), None);
        let timeouts: HashSet<Duration> = plan.tasks.values().map(|task| task.timeout).collect();
        assert_eq!(timeouts, HashSet::from([Duration::from_secs(1)]), "no longer than the interval");
        let by_rule: Vec<_> = plan.by_rule(&config).map(|(rule, _, places)| (rule, places.len())).collect();
        assert_eq!(by_rule, [("web", 4)]);
    }

    #[test]
    fn a_tls_check_asks_for_the_given_name_or_the_target_s() {
        let targets = "protocol = \"tcp\"\nlisten = \"443\"\ntarget = [\"10.1.0.1\", \"db.example.com.\"]";
        let (_, with_name) =
            plan(&format!("{targets}\ncheck = {{ type = \"tls\", sni = \"www.example.com\" }}"));
        assert_eq!(hello(&with_name, 1, 443), Some(Some("www.example.com".to_owned())));
        assert_eq!(hello(&with_name, 3, 443), Some(Some("www.example.com".to_owned())));
        let (_, without) = plan(&format!("{targets}\ncheck = {{ type = \"tls\" }}"));
        assert_eq!(hello(&without, 1, 443), Some(None));
        assert_eq!(hello(&without, 3, 443), Some(Some("db.example.com".to_owned())));
    }

    #[test]
    fn udp_and_ranges_are_checked_on_the_given_port() {
        for (rule, place) in
            [("protocol = \"udp\"\nlisten = \"53\"", 53), ("protocol = \"tcp\"\nlisten = \"8000-8010\"", 0)]
        {
            let (_, plan) =
                plan(&format!("{rule}\ntarget = \"10.1.0.1\"\ncheck = {{ type = \"tcp\", port = 853 }}"));
            let task = &plan.tasks[&("web".into(), Ipv4Addr::new(10, 1, 0, 1), place)];
            assert_eq!(task.target.to_string(), "10.1.0.1:853");
        }
    }

    #[test]
    fn checks_come_from_the_addresses_of_sessions() {
        let address = |last| Ipv4Addr::new(10, 0, 2, last);
        assert_eq!(source(&[], Some(address(68)), 7), Some(address(68)));
        assert_eq!(source(&[], None, 7), None);
        let given = [address(70), address(71)];
        let turns: Vec<_> = (0..4).filter_map(|turn| source(&given, Some(address(68)), turn)).collect();
        assert_eq!(turns, [given, given].concat());
    }
}
