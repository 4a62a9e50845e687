//! `cargo xtask dist`: what is in the package, and what happens when it is installed, upgraded and
//! removed.
//!
//! The packages have a stand-in for the router, a small static program: how it is built makes no
//! difference to the package, and what the router does is for other tests.

// Its `#[test]` takes the place of the compiler's.
#[macro_use]
extern crate harness;

mod install;
mod package;
mod root;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

fn main() -> ExitCode {
    harness::main(None)
}

/// A program that succeeds, whatever it is asked, unless the file `/stand-in-fails` is there.
const STAND_IN: &str = r#"
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // lintian takes one of these words for a mistake, as it does those of the program.
    println!("stand-in, with the iif of a packet: {}", arguments.join(" "));
    if std::path::Path::new("/stand-in-fails").exists() {
        println!("error: no interface eth0");
        std::process::exit(1);
    }
}
"#;

/// The root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A directory with packages.
struct Packages {
    place: TempDir,
}

impl Packages {
    /// Compiles the stand-in.
    fn new() -> Result<Self> {
        let place = tempfile::tempdir()?;
        std::fs::write(place.path().join("stand-in.rs"), STAND_IN)?;
        let mut rustc = Command::new("rustc");
        let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
        rustc.args([
            "--target",
            &target,
            "-Clinker=rust-lld",
            "-Cstrip=symbols",
            "-o",
            "stand-in",
            "stand-in.rs",
        ]);
        let output = rustc.current_dir(&place).output().context("cannot start rustc")?;
        if !output.status.success() {
            // Added by `cargo xtask dist`, which needs a network for it.
            harness::skip(format!("rustc cannot compile for {target}: {}", said(&output)));
        }
        Ok(Self { place })
    }

    /// Makes a package, in a directory of its own.
    fn make(&self, folder: &str, version: &str) -> Result<PathBuf> {
        self.make_under("022", folder, version)
    }

    /// Makes a package, with this umask.
    fn make_under(&self, umask: &str, folder: &str, version: &str) -> Result<PathBuf> {
        let target = self.place.path().join(folder);
        let mut dist = Command::new("sh");
        dist.args(["-c", r#"umask $0 && exec "$@""#, umask, env!("CARGO_BIN_EXE_xtask")]);
        dist.args(["dist", "--version", version, "--output"]).arg(&target);
        dist.arg("--binary").arg(self.place.path().join("stand-in")).current_dir(repository());
        run(&mut dist)?;
        let debian = if std::env::consts::ARCH == "x86_64" { "amd64" } else { "arm64" };
        Ok(target.join(format!("pls-router_{version}_{debian}.deb")))
    }
}

/// Runs a command that has to succeed, and returns its standard output.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed ({}):\n{}", output.status, said(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// All that a command has said.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
