//! The start and the end of the daemon.

pub(crate) mod descriptors;
pub(crate) mod hand_over;
pub(crate) mod instance;
pub(crate) mod listeners;
pub(crate) mod loading;
mod onlookers;
pub(crate) mod privileges;
pub(crate) mod replacement;
pub(crate) mod signals;
pub(crate) mod succession;
pub(crate) mod waiting;
