//! The start and the end of the daemon, apart from what it does in between.

pub(crate) mod listeners;
pub(crate) mod loading;
pub(crate) mod privileges;
pub(crate) mod signals;
