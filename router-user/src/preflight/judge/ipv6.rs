//! Services of this machine that listen on IPv6, and the sources that reach them.

use crate::config::{Config, LocalAllow, Others};
use crate::preflight::facts::{Ipv6, Service};
use crate::preflight::finding::{Findings, Id, listed};

/// Reports the services that listen, and the sources that the rules and `[local]` leave them to.
pub(super) fn services(found: &mut Findings, config: &Config, ipv6: &Ipv6) {
    let names = config.interfaces.names().filter(|name| ipv6.interfaces.iter().any(|other| other == name));
    let (closed, open): (Vec<&str>, Vec<&str>) =
        names.partition(|name| config.local.others == Others::Closed || *name == config.interfaces.pls);
    if ipv6.services.is_empty() {
        return;
    }
    if !closed.is_empty() {
        let (mut said, mut hidden) = (Vec::new(), Vec::new());
        for service in &ipv6.services {
            match who(config, service) {
                Some(who) => said.push(format!("{service} is reached from {who}")),
                None => hidden.push(service),
            }
        }
        if !hidden.is_empty() {
            said.insert(0, format!("no other machine reaches {}", listed(&hidden)));
        }
        let text = format!("by IPv6 on {}, {}", listed(&closed), said.join(", and "));
        found.note(
            (Id::LocalServicesOpen, &listed(&closed)),
            text,
            "nothing, if that is intended; `allow` in [local] lets in whom it names by an IPv6 network: \
             \"tcp/22 from fd00:9::/64\"",
        );
    }
    if !open.is_empty() {
        found.note(
            (Id::LocalServicesOpen, &listed(&open)),
            format!("by IPv6 on {}, anyone on that link reaches {}", listed(&open), listed(&ipv6.services)),
            "nothing, if that is intended; others = \"closed\" in [local] closes it, or the host's own firewall",
        );
    }
}

/// Returns the sources that reach a service where IPv6 is closed; `None` if there are none.
fn who(config: &Config, service: &Service) -> Option<String> {
    let health = config.health.listen;
    if health.is_ipv6() && service.is_tcp_at(health.port()) {
        return Some("everywhere".to_owned());
    }
    let covers = |allow: &&LocalAllow| allow.takes(service.protocol, service.port);
    let networks: Vec<String> = config
        .local
        .allow
        .iter()
        .filter(covers)
        .filter_map(|allow| allow.from.filter(|from| from.addr().is_ipv6()))
        .map(|from| from.to_string())
        .collect();
    (!networks.is_empty()).then(|| networks.join(" and "))
}
