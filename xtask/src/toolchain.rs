//! The toolchains that this repository needs beside the one that compiles it: a Rust compiler and
//! linker for BPF, and Miri. Each is found, or installed and said so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use bpf_build::{LINKER, LINKER_VARIABLE, LINKER_VERSION, Missing, RUSTC_VARIABLE, Toolchain};

use crate::packages::apt;
use crate::{system, workspace};

/// The release that rustup is asked for. A fixed one, not a channel: its LLVM (22) has to be one
/// that bpf-linker [`LINKER_VERSION`] can drive, and the next nightly's may not be.
const RUSTUP_TOOLCHAIN: &str = "1.96.0";

/// The toolchain that has Miri, which no release has.
pub(crate) const NIGHTLY: &str = "nightly";
/// The components that Miri needs: itself, and the library to interpret.
const MIRI: [&str; 2] = ["miri", "rust-src"];

/// Debian's packages: a recent compiler (packaged for web browsers), and `core` for BPF.
const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];

/// The clippy of Debian's compiler, without which `cargo xtask test` cannot lint BPF programs.
const DEBIAN_CLIPPY: &str = "rust-web-clippy";

/// Returns a toolchain for BPF that works, installed if there is none.
pub(crate) fn bpf() -> Result<Toolchain> {
    let target_dir = workspace::bpf_target_dir();
    let missing = match bpf_build::find(&target_dir) {
        Ok(toolchain) => return Ok(toolchain),
        Err(missing) => missing,
    };
    for variable in [RUSTC_VARIABLE, LINKER_VARIABLE] {
        if std::env::var_os(variable).is_some() {
            // The user has chosen a program, so no other is installed.
            bail!("{missing}\n\n{variable} is set, so nothing is installed");
        }
    }
    eprintln!("The BPF programs cannot be compiled yet:");
    for rejection in &missing.rejections {
        eprintln!("  {rejection}");
    }
    install(&missing)?;
    bpf_build::find(&target_dir).context("what was installed does not work together")
}

/// Installs what is missing, in the order that finds out soonest: with a compiler there, the linker
/// may be all.
fn install(missing: &Missing) -> Result<()> {
    if !missing.has_compiler {
        install_compiler()?;
    }
    let target_dir = workspace::bpf_target_dir();
    if let Err(missing) = bpf_build::find(&target_dir) {
        install_linker(&missing)?;
    }
    if missing.has_compiler && bpf_build::find(&target_dir).is_err() {
        install_compiler()?;
    }
    Ok(())
}

fn install_compiler() -> Result<()> {
    let mut failures = Vec::new();
    match rustup() {
        Ok(()) => return Ok(()),
        Err(error) => failures.push(format!("rustup: {error:#}")),
    }
    eprintln!("Not from rustup ({})", failures[0]);
    match debian() {
        Ok(()) => return Ok(()),
        Err(error) => failures.push(format!("Debian's packages: {error:#}")),
    }
    bail!(
        "no Rust compiler for BPF could be installed\n  {}\n\nby hand, one of:\n  \
         rustup toolchain install {RUSTUP_TOOLCHAIN} --profile minimal --component rust-src\n  \
         apt-get install {}    (Debian 12 or newer, as root)\n  \
         any rustc {} or newer with its sources (library/core below lib/rustlib/src/rust), and {RUSTC_VARIABLE} set to it",
        failures.join("\n  "),
        DEBIAN_PACKAGES.join(" "),
        env!("CARGO_PKG_RUST_VERSION"),
    );
}

fn rustup() -> Result<()> {
    let rustup = system::find_program("rustup").context("it is not installed")?;
    eprintln!(
        "Installing Rust {RUSTUP_TOOLCHAIN} with its sources by rustup, as a second toolchain beside yours: core has to be \
         compiled for BPF. About 100 MB."
    );
    let mut command = quick_rustup(&rustup);
    command.args(["toolchain", "install", RUSTUP_TOOLCHAIN, "--profile", "minimal", "--no-self-update"]);
    command.args(["--component", "rust-src", "--component", "clippy"]);
    system::run(&mut command)
}

/// Without a network there is no use in trying again, and a panic's backtrace is not news.
fn quick_rustup(rustup: &Path) -> Command {
    let mut command = Command::new(rustup);
    command.env("RUSTUP_MAX_RETRIES", "0").env("RUST_BACKTRACE", "0");
    command
}

fn debian() -> Result<()> {
    let mut wanted = DEBIAN_PACKAGES.to_vec();
    wanted.push(DEBIAN_CLIPPY);
    eprintln!("Installing Debian's Rust compiler for BPF by apt-get ({}). About 140 MB.", wanted.join(", "));
    apt::install(&wanted)
}

/// Installs the clippy that belongs to the compiler, from where the compiler came. Without it one
/// lint step is skipped.
pub(crate) fn clippy_for(toolchain: &Toolchain) -> Result<()> {
    if toolchain.clippy().is_some() {
        return Ok(());
    }
    if let Some(name) = rustup_name(&toolchain.rustc) {
        let rustup = system::find_program("rustup").context("there is no rustup")?;
        eprintln!("Adding clippy to Rust {name} by rustup, to lint BPF programs. About 5 MB.");
        let mut command = quick_rustup(&rustup);
        return system::run(command.args(["component", "add", "clippy", "--toolchain", &name]));
    }
    if toolchain.rustc == Path::new("/usr/bin/rustc") && apt::is_installed(DEBIAN_PACKAGES[0]) {
        eprintln!("Installing {DEBIAN_CLIPPY} by apt-get, to lint BPF programs.");
        return apt::install(&[DEBIAN_CLIPPY]);
    }
    bail!("no clippy came with {}", toolchain.rustc.display())
}

/// Returns rustup's name for the toolchain of a compiler, if it is one of rustup's.
fn rustup_name(rustc: &Path) -> Option<String> {
    let toolchain = rustc.parent()?.parent()?;
    let is_rustups = toolchain.parent()?.file_name()? == "toolchains";
    is_rustups.then(|| toolchain.file_name()?.to_str().map(str::to_owned))?
}

/// Adds the standard library for another target to the toolchain that compiles this repository.
pub(crate) fn add_target(target: &str) -> Result<()> {
    if has_target(target) {
        return Ok(());
    }
    let by_hand = format!("a Rust toolchain with the standard library for {target} is needed");
    let rustup = system::find_program("rustup").with_context(|| {
        format!("{by_hand}, and there is no rustup to add it\n  fix: install rustup, or add it by hand")
    })?;
    eprintln!("Adding the standard library for {target} by rustup, for static programs. About 30 MB.");
    system::run(quick_rustup(&rustup).args(["target", "add", target])).context(by_hand)
}

/// Returns `true` if the toolchain that compiles this repository has the standard library for a
/// target.
pub(crate) fn has_target(target: &str) -> bool {
    // The path is printed whether it is there or not.
    rustc(&["--print", "target-libdir", "--target", target]).is_ok_and(|path| Path::new(path.trim()).is_dir())
}

/// Returns what the compiler of this repository says of itself.
pub(crate) fn rustc(arguments: &[&str]) -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(arguments).output().context("cannot start rustc")?;
    ensure!(output.status.success(), "`rustc {}` failed ({})", arguments.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns rustup, which has Miri now: installed if it was not there. Without Miri one step of the
/// tests is skipped.
pub(crate) fn miri() -> Result<PathBuf> {
    let rustup = system::find_program("rustup").context("there is no rustup")?;
    if !has_miri(&rustup) {
        eprintln!(
            "Installing Rust {NIGHTLY} with Miri by rustup, as a toolchain beside yours, for `cargo xtask test`. About 150 MB."
        );
        let mut command = quick_rustup(&rustup);
        command.args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--no-self-update"]);
        system::run(command.args(MIRI.iter().flat_map(|component| ["--component", component])))?;
    }
    Ok(rustup)
}

/// The command `cargo miri`, which looks at each access to memory.
pub(crate) fn cargo_miri(rustup: &Path) -> Command {
    let mut command = Command::new(rustup);
    command.args(["run", NIGHTLY, "cargo", "miri"]);
    // These variables of the cargo that started us name another toolchain.
    for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(variable);
    }
    command
}

fn has_miri(rustup: &Path) -> bool {
    let mut command = quick_rustup(rustup);
    command.args(["component", "list", "--installed", "--toolchain", NIGHTLY]);
    let Ok(output) = command.output() else { return false };
    let installed = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success()
        && MIRI.iter().all(|component| installed.lines().any(|line| line.starts_with(component)))
}

fn install_linker(missing: &Missing) -> Result<()> {
    let mut command = workspace::cargo("install");
    command.args([LINKER, "--version", LINKER_VERSION, "--locked"]);
    let place = if missing.has_linker {
        // The user's own bpf-linker does not fit, but it may fit other projects.
        let root = bpf_build::private_tools().context("neither HOME nor XDG_CACHE_HOME is set")?;
        command.arg("--root").arg(&root);
        root.display().to_string()
    } else {
        "cargo's bin directory".to_owned()
    };
    // Our workspace's configuration is not for other people's programs.
    command.current_dir(std::env::temp_dir()).stdin(Stdio::null());
    for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"] {
        command.env_remove(variable);
    }
    // It asks for all debug information, which takes a while and serves those who work on it.
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    eprintln!(
        "Installing {LINKER} {LINKER_VERSION} into {place}: it turns rustc's output into a BPF object. About 90 s."
    );
    system::run(&mut command)
}
