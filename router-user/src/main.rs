//! `pls-router`: everything is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    router_user::cli::main()
}
