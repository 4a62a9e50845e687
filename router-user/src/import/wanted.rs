//! Settings that a configuration needs and the rules do not say.

use ipnet::Ipv4Net;

/// Settings that the configuration needs and the rules do not say.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The interface that faces the Private Link Service; `None` for what the rules name.
    pub pls: Option<String>,
    /// The interface whose routes lead to the firewall; `None` for what the rules name.
    pub firewall: Option<String>,
    /// The networks that may use rules that name no source; empty for everyone.
    pub sources: Vec<Ipv4Net>,
}
