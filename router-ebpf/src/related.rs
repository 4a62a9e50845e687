//! ICMP that is no echo.

use router_common::Stage;

use crate::{Exit, Outcome, Work};

pub(crate) fn forward(_work: &mut Work) -> Outcome {
    Err(Exit::To(Stage::Local))
}
