//! Checks that the operator can still log in once the rules and `[local]` are in force.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use crate::config::{Config, LocalAllow, Others, Protocol};
use crate::preflight::facts::Ssh;
use crate::preflight::finding::{Findings, Id, listed};

/// The port of an SSH server that was not found.
const SSH: &[u16] = &[22];

pub(super) fn logins(found: &mut Findings, config: &Config, ssh: &Ssh) {
    let ports = if ssh.ports.is_empty() { SSH } else { &ssh.ports };
    if !all_are_closed_out(found, config, ssh, ports) {
        this_session(found, config, ssh);
    }
}

/// Warns if no client can log in. Returns `true` if so.
fn all_are_closed_out(found: &mut Findings, config: &Config, ssh: &Ssh, ports: &[u16]) -> bool {
    let sources: Vec<Ipv4Net> = sources(config).map(|(_, source)| source).collect();
    let why = if config.local.others == Others::Closed {
        "others = \"closed\""
    } else if Ipv4Net::aggregate(&sources).iter().any(|network| network.prefix_len() == 0) {
        "the `sources` of rules are every address there is"
    } else {
        return false;
    };
    if ports.iter().any(|port| config.local.allow.iter().any(|allow| allow.takes(Protocol::Tcp, *port))) {
        return false;
    }
    let word = if ports.len() == 1 { "port" } else { "ports" };
    let port = ports.first().copied().unwrap_or_default();
    let fix = match &ssh.session {
        Some(session) => {
            format!("{} (where this session comes from)", line(config, session.port, &host(session.peer)))
        }
        None => format!("{}, NETWORK being the one to log in from", line(config, port, "NETWORK")),
    };
    found.warning(
        (Id::LoginClosed, ""),
        format!(
            "no client can log in by SSH ({word} {}): {why}, and no entry of `allow` in [local] allows it; existing connections stay",
            listed(ports)
        ),
        fix,
    );
    true
}

/// Warns if the user of this session could not log in again.
fn this_session(found: &mut Findings, config: &Config, ssh: &Ssh) {
    let Some(session) = &ssh.session else {
        return;
    };
    let allowed = |allow: &LocalAllow| allow.takes(Protocol::Tcp, session.port) && allow.is_for(session.peer);
    if config.local.allow.iter().any(allowed) {
        return;
    }
    let rule = match session.peer {
        IpAddr::V4(peer) => sources(config).find(|(_, source)| source.contains(&peer)).map(|(name, _)| name),
        IpAddr::V6(_) => None,
    };
    let why = match (rule, config.local.others, session.peer) {
        (Some(rule), ..) => format!("it is in `sources` of the rule `{rule}`"),
        (None, Others::Closed, _) => "others = \"closed\"".to_owned(),
        (None, Others::Open, IpAddr::V6(_)) => {
            format!("IPv6 is closed on `{}`, where clients come in", config.interfaces.pls)
        }
        (None, Others::Open, IpAddr::V4(_)) => return,
    };
    found.warning((Id::LoginClosed, &session.peer.to_string()),
        format!(
            "no client can log in by SSH (port {}) from {}, where this session comes from: {why}, and no entry of `allow` in [local] allows it; this session and other existing ones stay",
            session.port, session.peer
        ),
        line(config, session.port, &host(session.peer)),
    );
}

/// All sources, with the names of their rules.
fn sources(config: &Config) -> impl Iterator<Item = (&str, Ipv4Net)> {
    let forwards = config.forwards.iter().map(|rule| (rule.name.as_str(), &rule.sources));
    let masquerades = config.masquerades.iter().map(|rule| (rule.name.as_str(), &rule.sources));
    forwards.chain(masquerades).flat_map(|(name, sources)| sources.iter().map(move |source| (name, *source)))
}

/// Returns the entry that lets `from` in, and where to write it.
fn line(config: &Config, port: u16, from: &str) -> String {
    let entry = format!("\"tcp/{port} from {from}\"");
    if config.local.allow.is_empty() {
        format!("write allow = [{entry}] in [local]")
    } else {
        format!("add {entry} to `allow` in [local]")
    }
}

/// The network of one address.
fn host(address: IpAddr) -> String {
    IpNet::from(address).to_string()
}
