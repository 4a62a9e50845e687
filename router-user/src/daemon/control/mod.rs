//! Decides what the data plane has to do, and has it done.

pub(crate) mod rule_set;
