//! `pls-router`: everything is in the library, where tests reach it.

use std::process::ExitCode;

/// The allocator of static programs, written in Rust, since that of musl takes several times as
/// long for small pieces: a listing of all sessions took 3 times as long as with glibc.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    router_user::cli::main()
}
