//! Access to what the daemon listens on.

use std::net::{IpAddr, SocketAddr};

use crate::config::{Config, Others, Protocol};
use crate::preflight::facts::{Facts, Interface, SocketAccess};
use crate::preflight::finding::listed;

/// One of the daemon's listeners, and the sources that reach it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Access {
    /// `probe`, `metrics` or `api`.
    pub what: &'static str,
    /// Its address or path.
    pub listen: String,
    /// The sources that reach it, in words.
    pub who: String,
}

/// Returns the daemon's listeners and the sources that reach them, when `config` is run on a
/// machine of which `facts` are known.
#[must_use]
pub fn access(config: &Config, facts: &Facts) -> Vec<Access> {
    let (health, admin) = (&config.health, &config.admin);
    vec![
        Access {
            what: "probe",
            listen: health.listen.to_string(),
            who: format!(
                "{}; told the reasons of a failure: {}",
                network(config, facts, health.listen, false),
                probers(config, facts)
            ),
        },
        Access {
            what: "metrics",
            listen: admin.listen.to_string(),
            who: network(config, facts, admin.listen, true),
        },
        Access {
            what: "api",
            listen: admin.socket.display().to_string(),
            who: match facts.api {
                SocketAccess::Root => "root".to_owned(),
                SocketAccess::Group(group) => format!("root; the group {group} to look"),
                SocketAccess::Everyone => {
                    "root; every user of this machine to look (chmod o-rwx takes that away)".to_owned()
                }
            },
        },
    ]
}

/// Describes the sources that reach a TCP socket that listens at `listen`. `is_local` is `true` if
/// `[local]` applies to it.
fn network(config: &Config, facts: &Facts, listen: SocketAddr, is_local: bool) -> String {
    const HERE: &str = "any user of this machine";
    if listen.ip().is_loopback() {
        return HERE.to_owned();
    }
    let Ok(interfaces) = &facts.interfaces else { return format!("{HERE}, and others") };
    let reached = |interface: &&Interface| {
        !interface.loopback
            && match listen.ip() {
                any if any.is_unspecified() => !interface.addresses.is_empty(),
                IpAddr::V4(address) => interface.addresses.contains(&address),
                IpAddr::V6(_) => false,
            }
    };
    let of_router = |interface: &&Interface| {
        config.interfaces.names().any(|name| {
            interface.name == name || interface.alternative_names.iter().any(|other| other == name)
        })
    };
    let (ways, elsewhere): (Vec<&Interface>, Vec<&Interface>) =
        interfaces.iter().filter(reached).partition(|interface| is_local && of_router(interface));
    let shown = |interfaces: &[&Interface]| {
        listed(&interfaces.iter().map(|interface| way(interface, listen.ip())).collect::<Vec<_>>())
    };
    // `[local]` is about the router's interfaces: nothing looks at what comes in by another one.
    let elsewhere = match elsewhere.as_slice() {
        [] => String::new(),
        interfaces => format!(", and anyone who reaches it by {}", shown(interfaces)),
    };
    if ways.is_empty() && elsewhere.is_empty() {
        return format!("{HERE}, and who reaches {}", listen.ip());
    }
    if ways.is_empty() {
        return format!("{HERE}{elsewhere}");
    }
    let ways = shown(&ways);
    // `sources` of rules are closed in any case.
    let allowed: Vec<String> = config
        .local
        .allow
        .iter()
        .filter(|allow| allow.takes(Protocol::Tcp, listen.port()))
        .map(|allow| format!("\"{allow}\""))
        .collect();
    let by_rule = match allowed.as_slice() {
        [] => "no client in a rule's `sources`".to_owned(),
        entries => format!("those in a rule's `sources` that {} in [local] allows", listed(entries)),
    };
    let others = match (config.local.others, allowed.is_empty()) {
        (Others::Open, _) => "everyone else",
        (Others::Closed, true) => "no one else",
        (Others::Closed, false) => "others likewise",
    };
    format!("{HERE}{elsewhere}; by {ways}: {by_rule}, {others}")
}

/// An interface, with the networks that it is in.
fn way(interface: &Interface, address: IpAddr) -> String {
    let networks = interface
        .networks
        .iter()
        .filter(|network| address.is_unspecified() || IpAddr::V4(network.addr()) == address);
    let networks: Vec<String> = networks.map(|network| network.trunc().to_string()).collect();
    if networks.is_empty() {
        interface.name.clone()
    } else {
        format!("{} ({})", interface.name, listed(&networks))
    }
}

/// Lists the sources that are told why the probe fails.
fn probers(config: &Config, facts: &Facts) -> String {
    let mut told = vec!["this machine".to_owned()];
    if config.health.from.is_empty() {
        told.push("168.63.129.16".to_owned());
        let interfaces = facts.interfaces.as_deref().unwrap_or_default();
        for name in config.interfaces.names() {
            let networks = interfaces.iter().filter(|one| one.is_called(name)).flat_map(|one| &one.networks);
            told.extend(networks.map(|network| network.trunc().to_string()));
        }
    } else {
        told.extend(config.health.from.iter().map(ToString::to_string));
    }
    listed(&told)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::preflight::judge::tests::{good, interface};

    fn config(text: &str) -> Config {
        let text = format!(
            "interfaces = {{ pls = \"eth0\" }}\n\
             forward = [{{ name = \"https\", protocol = \"tcp\", listen = \"443\", target = \"203.0.113.10\", \
             sources = [\"10.0.2.64/26\"] }}]\n{text}"
        );
        Config::parse(&text, Path::new("test.toml"))
            .map_err(|error| error.to_string())
            .expect("it is good")
            .config
    }

    fn facts() -> Facts {
        let network = "10.0.2.68/26".parse().expect("a network");
        let lo = Interface { loopback: true, addresses: vec![[127, 0, 0, 1].into()], ..interface("lo") };
        let eth0 = Interface { networks: vec![network], ..interface("eth0") };
        Facts { interfaces: Ok(vec![lo, eth0]), ..good() }
    }

    fn who(text: &str) -> [String; 3] {
        access(&config(text), &facts())
            .try_into()
            .map(|all: [Access; 3]| all.map(|one| one.who))
            .expect("three")
    }

    #[test]
    fn by_default() {
        let told = "this machine, 168.63.129.16, 10.0.2.64/26";
        let [probe, metrics, api] = who("");
        assert_eq!(
            probe,
            format!(
                "any user of this machine, and anyone who reaches it by eth0 (10.0.2.64/26); told the reasons of a failure: {told}"
            )
        );
        assert_eq!((metrics.as_str(), api.as_str()), ("any user of this machine", "root"));
        let [probe, ..] =
            who("[health]\nfrom = [\"168.63.129.16\", \"10.0.9.0/24\"]\nlisten = \"127.0.0.1:8082\"");
        assert_eq!(
            probe,
            "any user of this machine; told the reasons of a failure: this machine, 168.63.129.16/32, 10.0.9.0/24"
        );
    }

    #[test]
    fn metrics_beyond_this_machine() {
        for (local, expected) in [
            ("", "no client in a rule's `sources`, everyone else"),
            ("others = \"closed\"", "no client in a rule's `sources`, no one else"),
            (
                "allow = [\"tcp/9090 from 10.0.9.0/24\", \"tcp/22\", \"udp/9090\"]",
                "those in a rule's `sources` that \"tcp/9090 from 10.0.9.0/24\" in [local] allows, everyone else",
            ),
            (
                "allow = [\"tcp\"]\nothers = \"closed\"",
                "those in a rule's `sources` that \"tcp\" in [local] allows, others likewise",
            ),
        ] {
            for listen in ["0.0.0.0:9090", "10.0.2.68:9090"] {
                let [_, metrics, _] = who(&format!("[admin]\nlisten = \"{listen}\"\n[local]\n{local}"));
                assert_eq!(metrics, format!("any user of this machine; by eth0 (10.0.2.64/26): {expected}"));
            }
        }
    }

    /// Nothing looks at what comes in by an interface that is not the router's.
    #[test]
    fn metrics_by_another_interface() {
        let network = "10.9.0.4/24".parse().expect("a network");
        let mut facts = facts();
        if let Ok(interfaces) = &mut facts.interfaces {
            interfaces.push(Interface { networks: vec![network], ..interface("eth2") });
        }
        let config = config("[admin]\nlisten = \"0.0.0.0:9090\"\n[local]\nothers = \"closed\"");
        let told: Vec<String> = access(&config, &facts).into_iter().map(|one| one.who).collect();
        assert_eq!(
            told[1],
            "any user of this machine, and anyone who reaches it by eth2 (10.9.0.0/24); by eth0 (10.0.2.64/26): no client in a rule's `sources`, no one else"
        );
    }

    #[test]
    fn a_socket_open_to_other_users() {
        let of = |api| access(&config(""), &Facts { api, ..facts() }).pop().map(|api| api.who);
        assert_eq!(of(SocketAccess::Group(1001)).as_deref(), Some("root; the group 1001 to look"));
        assert!(of(SocketAccess::Everyone).is_some_and(|who| who.contains("every user")));
    }
}
