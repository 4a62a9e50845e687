//! Where pls-router does something else than the kernel, on purpose.

use super::{
    category::Category,
    observe::Seen,
    plan::{Sequence, Step},
};

/// A datagram that the two routers have made different things of.
pub(super) struct Case<'a> {
    pub(super) sequence: &'a Sequence,
    /// Its packets: one, or its fragments.
    pub(super) steps: Vec<&'a Step>,
    pub(super) oracle: &'a [Seen],
    pub(super) ours: &'a [Seen],
}

/// A difference that is meant.
pub(super) struct Difference {
    pub(super) name: &'static str,
    /// The category whose packets show it.
    pub(super) category: Category,
    pub(super) reason: &'static str,
    pub(super) applies: fn(&Case<'_>) -> bool,
}

/// All of them.
pub(super) const DIFFERENCES: &[Difference] = &[];
