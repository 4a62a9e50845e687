//! Limits on the rate of work that hosts on the network can cause.

pub(crate) mod pace;
pub(crate) mod paced;
