//! Fragments.

use router_common::reason::Reason;

use crate::{Outcome, Work};

pub(crate) fn forward(_work: &mut Work) -> Outcome {
    Err(Reason::Fragment.into())
}
