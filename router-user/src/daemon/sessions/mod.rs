//! The sessions in the flow table: their end (`sweep`), their number (`recount`), their consistency
//! (`audit`) and their list (`listing`).

pub(crate) mod audit;
pub(crate) mod listing;
pub(crate) mod recount;
pub(crate) mod sweep;
