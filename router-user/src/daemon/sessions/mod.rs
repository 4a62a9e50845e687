//! The sessions in the flow table: their end (`sweep`), their number (`recount`), their consistency
//! (`audit`), their list (`listing`), and how long they may be idle (`timeouts`).

pub(crate) mod audit;
pub(crate) mod listing;
pub(crate) mod recount;
pub(crate) mod sweep;
pub(crate) mod timeouts;
