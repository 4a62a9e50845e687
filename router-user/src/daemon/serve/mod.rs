//! The daemon's listeners: the probe, the metrics, and the API of the command line.

pub(crate) mod api;
pub(crate) mod http;
pub(crate) mod metrics;
pub(crate) mod probe;
pub(crate) mod reports;
pub(crate) mod waiting;
