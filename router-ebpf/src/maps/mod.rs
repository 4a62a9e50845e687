//! The maps, each beside the functions that read and write it.

pub(crate) mod addresses;
pub(crate) mod flows;
pub(crate) mod half_open;
pub(crate) mod local_allow;
pub(crate) mod peers;
pub(crate) mod pools;
pub(crate) mod removal;
pub(crate) mod rules;
pub(crate) mod scratch;
pub(crate) mod settings;
pub(crate) mod stats;
