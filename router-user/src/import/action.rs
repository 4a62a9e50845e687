//! The action of a rule of iptables.

use std::{net::Ipv4Addr, ops::RangeInclusive};

use super::{
    conditions::{self, Conditions},
    networks,
    ruleset::{Choice, Rule},
};

/// The most addresses of one `--to-destination`: those of a rule.
const MOST: usize = crate::config::MAX_TARGETS;

/// The new destination of a DNAT rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Destination {
    /// Never empty.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// `None` keeps the client's port.
    pub(super) ports: Option<RangeInclusive<u16>>,
}

/// The new source of a SNAT or MASQUERADE rule.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Source {
    /// Empty for the address of the interface.
    pub(super) addresses: Vec<Ipv4Addr>,
    pub(super) ports: Option<RangeInclusive<u16>>,
}

/// The action of a rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Action {
    To(Destination),
    /// To a server of this machine.
    Redirect,
    From(Source),
    /// The rules of a chain, and back.
    Jump(String),
    /// The rules of a chain, and not back.
    Goto(String),
    /// Back to the chain that has jumped here.
    Return,
    /// Out of the table as it is.
    Accept,
    Drop,
    /// Nothing that changes the packet's way: a log entry, a counter.
    Nothing,
    /// Anything else, with the reason why it cannot be said.
    Other(String),
}

/// Reads a rule.
pub(super) fn read(rule: &Rule) -> Result<(Conditions, Action), String> {
    let mut conditions = Conditions::default();
    let mut rest = Vec::new();
    for choice in &rule.options {
        if !conditions::read(choice, &mut conditions)? {
            rest.push(choice);
        }
    }
    let value = |names: &[&str]| {
        let found = rest.iter().find(|choice| names.contains(&choice.name.as_str()))?;
        Some(found.values.first().map_or("", String::as_str))
    };
    if let Some(chain) = value(&["-g", "--goto"]) {
        return Ok((conditions, Action::Goto(chain.to_owned())));
    }
    let Some(target) = value(&["-j", "--jump"]) else { return Ok((conditions, Action::Nothing)) };
    let known: &[&str] = match target {
        "DNAT" => &["--to-destination", "--random", "--persistent"],
        "SNAT" => &["--to-source", "--random", "--random-fully", "--persistent"],
        "MASQUERADE" => &["--to-ports", "--random", "--random-fully"],
        "REDIRECT" | "ACCEPT" | "RETURN" | "DROP" | "REJECT" | "LOG" | "NFLOG" | "TCPMSS" => &[],
        _ => {
            let action = if is_chain(target) {
                Action::Jump(target.to_owned())
            } else {
                Action::Other(format!("a configuration has nothing like {target}"))
            };
            return Ok((conditions, action));
        }
    };
    let is_foreign = |choice: &&&Choice| {
        !known.is_empty()
            && !["-j", "--jump"].contains(&choice.name.as_str())
            && !known.contains(&choice.name.as_str())
    };
    if let Some(foreign) = rest.iter().find(is_foreign) {
        return Err(format!("a configuration cannot say `{} {}`", foreign.name, foreign.values.join(" ")));
    }
    let action = match target {
        "DNAT" => Action::To(destination(value(&["--to-destination"]).unwrap_or_default())?),
        "SNAT" => Action::From(source(value(&["--to-source"]).unwrap_or_default())?),
        "MASQUERADE" => {
            let ports =
                value(&["--to-ports"]).map(|text| networks::ports(text).ok_or_else(|| unreadable(text)));
            Action::From(Source { addresses: Vec::new(), ports: ports.transpose()? })
        }
        "REDIRECT" => Action::Redirect,
        "ACCEPT" => Action::Accept,
        "RETURN" => Action::Return,
        "DROP" | "REJECT" => Action::Drop,
        _ => Action::Nothing,
    };
    Ok((conditions, action))
}

/// Names of targets are in capitals, and so are those of some chains: those that a table may have.
fn is_chain(target: &str) -> bool {
    const EXTENSIONS: &[&str] = &[
        "AUDIT",
        "CHECKSUM",
        "CLASSIFY",
        "CLUSTERIP",
        "CONNMARK",
        "CONNSECMARK",
        "CT",
        "DSCP",
        "ECN",
        "HL",
        "HMARK",
        "IDLETIMER",
        "LED",
        "MARK",
        "NETMAP",
        "NFQUEUE",
        "NOTRACK",
        "QUEUE",
        "RATEEST",
        "SECMARK",
        "SET",
        "SYNPROXY",
        "TCPOPTSTRIP",
        "TEE",
        "TOS",
        "TPROXY",
        "TRACE",
        "TTL",
        "ULOG",
    ];
    !EXTENSIONS.contains(&target)
}

fn unreadable(text: &str) -> String {
    format!("`{text}` cannot be read")
}

/// Reads `10.0.0.1`, `10.0.0.1:443`, `10.0.0.1-10.0.0.4:8000-8010`.
fn address_and_ports(text: &str) -> Result<(Vec<Ipv4Addr>, Option<RangeInclusive<u16>>), String> {
    let (address, ports) = match text.split_once(':') {
        Some((address, ports)) => (address, Some(ports)),
        None => (text, None),
    };
    let range = networks::range(address).ok_or_else(|| unreadable(text))?;
    let addresses = networks::addresses(&networks::of_range(range), MOST)
        .ok_or_else(|| format!("{address} are more than {MOST} addresses, the most that a rule may have"))?;
    let ports = ports.map(|ports| {
        // The base of a shifted range: "8000-8010/9000".
        let (ports, base) = ports.split_once('/').unwrap_or((ports, ""));
        if base.is_empty() {
            networks::ports(ports).ok_or_else(|| unreadable(text))
        } else {
            Err("a configuration cannot say that ports are shifted: write a forward for each".to_owned())
        }
    });
    Ok((addresses, ports.transpose()?))
}

fn destination(text: &str) -> Result<Destination, String> {
    let (addresses, ports) = if let Some(ports) = text.strip_prefix(':') {
        let ports = networks::ports(ports).ok_or_else(|| unreadable(text))?;
        let port = conditions::written(&ports);
        return Err(format!("it names port {port} and no address: the destination would stay this machine"));
    } else {
        address_and_ports(text)?
    };
    Ok(Destination { addresses, ports })
}

fn source(text: &str) -> Result<Source, String> {
    let (addresses, ports) = address_and_ports(text)?;
    Ok(Source { addresses, ports })
}
