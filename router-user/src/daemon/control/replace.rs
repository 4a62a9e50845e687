//! Tells what another configuration takes: rules, or a new instance of the router.

use std::fmt;

use crate::config::Config;

/// Something of a configuration that only another instance of the router can have: it needs other
/// programs, maps, attachments or listeners.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum OfInstance {
    /// `interfaces.pls` or `interfaces.firewall`.
    Interfaces,
    /// `interfaces.mode`.
    Mode,
    /// `admin.pins`.
    Pins,
    /// `limits.flows`: the size of maps.
    Flows,
    /// `health.listen`.
    ProbeListener,
    /// `health.from`, for which connections are set apart.
    Probers,
    /// `admin.listen`.
    AdminListener,
    /// `admin.socket`.
    ApiSocket,
}

impl OfInstance {
    /// Returns the key in the configuration.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Interfaces => "interfaces.pls, interfaces.firewall",
            Self::Mode => "interfaces.mode",
            Self::Pins => "admin.pins",
            Self::Flows => "limits.flows",
            Self::ProbeListener => "health.listen",
            Self::Probers => "health.from",
            Self::AdminListener => "admin.listen",
            Self::ApiSocket => "admin.socket",
        }
    }
}

/// Why a configuration was not put in force.
#[derive(Debug)]
pub(crate) enum ReplaceError {
    /// These differ.
    NeedsInstance(Vec<OfInstance>),
    /// The rules could not be written.
    NotWritten(anyhow::Error),
}

impl fmt::Display for ReplaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedsInstance(keys) => {
                let keys: Vec<_> = keys.iter().map(|key| key.key()).collect();
                let keys = keys.join(", ");
                write!(
                    f,
                    "{keys} cannot change while this daemon runs\n  fix: systemctl restart pls-router applies them, \
                     and loses no session"
                )
            }
            Self::NotWritten(error) => write!(f, "the rules cannot be written: {error:#}"),
        }
    }
}

impl std::error::Error for ReplaceError {}

/// Returns what differs between two configurations and takes another instance of the data plane.
pub(crate) fn of_instance(now: &Config, wanted: &Config) -> Vec<OfInstance> {
    let (one, other) = (&now.interfaces, &wanted.interfaces);
    [
        (OfInstance::Interfaces, (&one.pls, &one.firewall) != (&other.pls, &other.firewall)),
        (OfInstance::Mode, one.mode != other.mode),
        (OfInstance::Pins, now.admin.pins != wanted.admin.pins),
        (OfInstance::Flows, now.limits.flows != wanted.limits.flows),
        (OfInstance::ProbeListener, now.health.listen != wanted.health.listen),
        (OfInstance::Probers, now.health.from != wanted.health.from),
        (OfInstance::AdminListener, now.admin.listen != wanted.admin.listen),
        (OfInstance::ApiSocket, now.admin.socket != wanted.admin.socket),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(key, _)| key)
    .collect()
}
