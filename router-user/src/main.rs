//! `pls-router`: everything is in the library, where tests reach it.

use std::process::ExitCode;

/// The allocator of static programs. With that of musl a scrape takes half as long again as with
/// glibc: see `docs/package.md`.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    router_user::cli::main()
}
