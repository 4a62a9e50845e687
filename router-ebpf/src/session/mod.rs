//! Processing of a session's packets that several stages have in common.

pub(crate) mod answer_request;
pub(crate) mod datagrams;
pub(crate) mod departure;
pub(crate) mod existing;
pub(crate) mod lookup;
pub(crate) mod mss;
pub(crate) mod opening;
pub(crate) mod rewrite;
pub(crate) mod tracking;
