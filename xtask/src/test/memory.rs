//! The memory that several CPUs, or the programs and the daemon, share: its code under Miri, and
//! models of what is done with it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::report::Report;
use super::{libtest, parts, test_command};
use crate::{toolchain, workspace};

/// The package that has all of it.
const PACKAGE: &str = "router-common";

/// Runs both.
pub(super) fn run(report: &mut Report, filter: Option<&OsStr>) {
    libtest::run(
        report,
        &format!("models {PACKAGE}"),
        &mut models(),
        [filter.unwrap_or(OsStr::new("models::"))],
    );
    let name = format!("miri {PACKAGE}");
    match toolchain::miri() {
        Ok(rustup) => parts::run(report, &name, &|| with_miri(&rustup), filter),
        Err(error) => report.skip(&name, &format!("{error:#}")),
    }
}

/// The tests as models, in which everything happens in every order. In a directory of their own, or
/// everything would be compiled again and again.
fn models() -> Command {
    let mut command = test_command(PACKAGE);
    command
        .args(["--lib", "--target-dir"])
        .arg(workspace::target_dir().join("model"))
        .env("CARGO_ENCODED_RUSTFLAGS", "--cfg=model");
    command
}

/// The tests in an interpreter that refuses what the language does not allow.
fn with_miri(rustup: &Path) -> Command {
    let mut command = toolchain::cargo_miri(rustup);
    command
        .args(["test", "--package", PACKAGE, "--lib"])
        // Some tests keep what they have found, and all read the time.
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(workspace::root());
    command
}
