//! The output of `pls-router capacity -o json`.

use serde::{Deserialize, Serialize};

/// The limits of this router, and how much of them is in use.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Capacity {
    /// The configuration file.
    pub config: String,
    /// `true` if a daemon has answered: `now` is what it has measured. Otherwise there is only what
    /// is configured.
    pub measured: bool,
    /// Seconds over which rates were measured.
    pub sample_seconds: Option<f64>,
    /// Everything that is limited.
    pub limits: Vec<CapacityLimit>,
    /// `false` if something is at 80 % of its limit or above.
    pub ok: bool,
}

/// One thing that is limited.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CapacityLimit {
    /// The kind, which never changes: `sessions`, `azure_flows`, `service_ports`, `snat_ports`,
    /// `snat_ports_per_source`, `new_sessions_ports`, `new_sessions_cpu`, `packets_cpu` or
    /// `bandwidth`.
    pub id: String,
    /// The rule that it is about; empty for all of the router.
    pub subject: String,
    /// The limit; `null` if it is not known.
    pub limit: Option<u64>,
    /// The unit of the numbers: `sessions`, `sessions/s`, `packets/s` or `bit/s`.
    pub unit: String,
    /// The present use; `null` if it is not measured.
    pub now: Option<u64>,
    /// The use as a share of the limit, where both are known.
    pub share: Option<f64>,
    /// Where the limit comes from: `configured`, `calculated`, `measured` (on another machine: see
    /// docs/performance.md) or `azure` (Azure's documentation).
    pub basis: String,
    /// How the limit comes about, in words.
    pub why: String,
    /// The remedy when the limit is near, in words.
    pub fix: String,
}
