//! Checks which parts of a configuration can change while the router runs.

use std::fmt;

use crate::config::Config;

/// Something of a configuration that cannot change while the router runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fixed {
    /// `interfaces.pls` or `interfaces.firewall`.
    Interfaces,
    /// `interfaces.mode`.
    Mode,
    /// `snat.ports`: sessions have them, and the kernel's are kept apart from them.
    SnatPorts,
    /// `health.listen`.
    ProbeListener,
    /// `health.from`, for which connections are set apart.
    Probers,
    /// `admin.listen`.
    AdminListener,
    /// `admin.socket`.
    ApiSocket,
    /// `admin.pins`.
    Pins,
    /// `limits.flows`: the size of maps.
    Flows,
}

impl Fixed {
    /// Returns the key in the configuration.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Interfaces => "interfaces.pls, interfaces.firewall",
            Self::Mode => "interfaces.mode",
            Self::SnatPorts => "snat.ports",
            Self::ProbeListener => "health.listen",
            Self::Probers => "health.from",
            Self::AdminListener => "admin.listen",
            Self::ApiSocket => "admin.socket",
            Self::Pins => "admin.pins",
            Self::Flows => "limits.flows",
        }
    }
}

/// Why a configuration was not put in force.
#[derive(Debug)]
pub(crate) enum ReplaceError {
    /// These differ.
    Fixed(Vec<Fixed>),
    /// The rules could not be written.
    NotWritten(anyhow::Error),
}

impl fmt::Display for ReplaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(fixed) => {
                let keys: Vec<_> = fixed.iter().map(|fixed| fixed.key()).collect();
                let keys = keys.join(", ");
                write!(f, "{keys} cannot change while the router runs; fix: systemctl restart pls-router")
            }
            Self::NotWritten(error) => write!(f, "the rules cannot be written: {error:#}"),
        }
    }
}

impl std::error::Error for ReplaceError {}

/// Returns what differs between two configurations and cannot change while the router runs.
pub(crate) fn fixed_differences(now: &Config, wanted: &Config) -> Vec<Fixed> {
    let (one, other) = (&now.interfaces, &wanted.interfaces);
    [
        (Fixed::Interfaces, (&one.pls, &one.firewall) != (&other.pls, &other.firewall)),
        (Fixed::Mode, one.mode != other.mode),
        (Fixed::SnatPorts, now.snat.ports != wanted.snat.ports),
        (Fixed::ProbeListener, now.health.listen != wanted.health.listen),
        (Fixed::Probers, now.health.from != wanted.health.from),
        (Fixed::AdminListener, now.admin.listen != wanted.admin.listen),
        (Fixed::ApiSocket, now.admin.socket != wanted.admin.socket),
        (Fixed::Pins, now.admin.pins != wanted.admin.pins),
        (Fixed::Flows, now.limits.flows != wanted.limits.flows),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(fixed, _)| fixed)
    .collect()
}
