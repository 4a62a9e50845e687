//! Answers of the router's own.

use router_common::reason::Reason;

use crate::{Outcome, Work};

pub(crate) fn answer(_work: &mut Work) -> Outcome {
    Err(Reason::TtlExpired.into())
}
