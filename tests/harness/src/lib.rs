//! What tests need from the machine they run on.

pub mod packages;
