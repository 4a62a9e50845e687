//! Limits on how often something is done that somebody on the network can cause.

pub(crate) mod pace;
pub(crate) mod paced;
