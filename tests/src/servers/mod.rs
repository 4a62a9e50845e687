//! Servers that a test adds to a lab that is up, one a file: what real clients talk to through the
//! router.

mod database;
mod files;
mod git;
mod shell;
mod stun;

pub use database::Database;
pub use files::Files;
pub use git::Git;
pub use shell::Shell;
pub use stun::{STUN, STUN_OTHER, Stun};
