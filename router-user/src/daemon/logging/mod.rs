//! Lines for operators: when they are written (`watch`), how many (`lines`), and of which
//! characters (`text`).

pub(crate) mod lines;
pub(crate) mod text;
pub(crate) mod watch;
