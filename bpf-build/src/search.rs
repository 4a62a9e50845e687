//! The search for a compiler and a linker that together make a BPF object.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{LINKER, LINKER_VARIABLE, LINKER_VERSION, RUSTC_VARIABLE, TARGET, env, llvm, probe};

/// A compiler and a linker that have together made a BPF object on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Toolchain {
    /// The compiler itself, not rustup's proxy.
    pub rustc: PathBuf,
    /// Its release, e.g. `1.96.0`.
    pub release: String,
    /// Where `core` for BPF comes from.
    pub core: Core,
    /// The linker.
    pub linker: PathBuf,
    /// The LLVM that the compiler uses and the linker is to load.
    pub(crate) llvm: Option<PathBuf>,
    /// The toolchain's own cargo, where it has one.
    pub(crate) cargo: Option<PathBuf>,
    /// What the compiler says of itself; tells one from its successor at the same path.
    pub(crate) version: String,
}

/// Where `core` for BPF comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Core {
    /// It came with the compiler.
    Prebuilt,
    /// Cargo compiles it from the compiler's sources.
    FromSource,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match self.core {
            Core::Prebuilt => "prebuilt core",
            Core::FromSource => "core from source",
        };
        let (rustc, linker) = (self.rustc.display(), self.linker.display());
        write!(f, "{rustc} {} ({core}) with {linker}", self.release)
    }
}

/// Why nothing on this machine makes a BPF object. Its text is for the user and says what to do.
#[derive(Debug)]
pub struct Missing {
    /// The compilers and linkers that were looked at.
    pub rejections: Vec<Rejection>,
    /// A compiler with `core` for BPF was found, so that only the linker is to blame.
    pub has_compiler: bool,
    /// A linker was found, working or not.
    pub has_linker: bool,
}

/// A candidate and what is wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// What was looked at.
    pub candidate: String,
    /// What is wrong with it.
    pub reason: String,
}

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.has_compiler, self.has_linker) {
            (false, false) => "no Rust compiler that can target BPF, and no bpf-linker",
            (false, true) => "no Rust compiler that can target BPF",
            (true, false) => "no bpf-linker",
            (true, true) => "no compiler and linker that work together",
        };
        writeln!(f, "cannot compile the BPF programs: {what} on this machine\n\n    run: cargo xtask setup")?;
        if !self.rejections.is_empty() {
            write!(f, "\nlooked at:")?;
        }
        for Rejection { candidate, reason } in &self.rejections {
            write!(f, "\n  {candidate}: {reason}")?;
        }
        Ok(())
    }
}

/// The first toolchain that works, out of (in this order) the one that `PLS_ROUTER_BPF_RUSTC`
/// names, rustup's toolchains that have their sources, and the compilers on the PATH that came with
/// `core` for BPF.
///
/// "Works" is tried, not guessed: each candidate has to compile and link a small program.
/// `target_dir` (see [`target_dir`](crate::target_dir)) remembers the outcome, so that this costs
/// nothing until the compiler or the linker changes.
///
/// # Errors
///
/// When there is none: what was looked at, what is wrong with each, and what to run.
pub fn find(target_dir: &Path) -> Result<Toolchain, Missing> {
    let mut rejections = Vec::new();
    let linkers = linkers();
    let mut has_compiler = false;
    for rustc in compilers() {
        let compiler = match inspect(&rustc) {
            Ok(compiler) => compiler,
            Err(reason) => {
                rejections.push(Rejection { candidate: rustc.display().to_string(), reason });
                continue;
            }
        };
        has_compiler = true;
        for linker in &linkers {
            let candidate = Toolchain { linker: linker.clone(), ..compiler.clone() };
            match probe::works(&candidate, target_dir) {
                Ok(()) => return Ok(candidate),
                Err(reason) => rejections.push(Rejection { candidate: candidate.to_string(), reason }),
            }
        }
    }
    Err(Missing { rejections, has_compiler, has_linker: !linkers.is_empty() })
}

/// The linkers to try: the one that the user names and no other, or those on the PATH, in cargo's
/// directory and in the cache, where `cargo xtask setup` puts it if the user has another version.
fn linkers() -> Vec<PathBuf> {
    if let Some(linker) = std::env::var_os(LINKER_VARIABLE) {
        return vec![linker.into()];
    }
    let mut linkers = env::on_path(LINKER);
    linkers.extend(env::dir("CARGO_HOME", ".cargo").map(|home| home.join("bin").join(LINKER)));
    linkers.extend(private_tools().map(|tools| tools.join("bin").join(LINKER)));
    let mut seen = BTreeSet::new();
    linkers.into_iter().filter(|linker| linker.is_file() && seen.insert(real_path(linker))).collect()
}

/// Where tools go that must not replace the user's own.
pub fn private_tools() -> Option<PathBuf> {
    env::dir("XDG_CACHE_HOME", ".cache")
        .map(|cache| cache.join(format!("pls-router/{LINKER}-{LINKER_VERSION}")))
}

/// The compilers to look at: the one that the user names and no other, or all that are installed.
fn compilers() -> Vec<PathBuf> {
    if let Some(rustc) = std::env::var_os(RUSTC_VARIABLE) {
        return vec![rustc.into()];
    }
    let mut compilers = Vec::new();
    if let Some(rustup) = env::dir("RUSTUP_HOME", ".rustup")
        && let Ok(entries) = rustup.join("toolchains").read_dir()
    {
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        // Named versions before channels: what they are does not change from one day to the next.
        names.sort_by_key(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            (!name.starts_with(|c: char| c.is_ascii_digit()), name)
        });
        compilers.extend(names.into_iter().map(|toolchain| toolchain.join("bin/rustc")));
    }
    compilers.extend(env::on_path("rustc"));
    // Not every process has a user's PATH.
    compilers.push("/usr/bin/rustc".into());
    let mut seen = BTreeSet::new();
    compilers
        .into_iter()
        .filter(|rustc| rustc.is_file() && !is_rustup_proxy(rustc) && seen.insert(real_path(rustc)))
        .collect()
}

fn real_path(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

/// rustup's `rustc` is rustup under another name (a link to it, or a copy beside it). The
/// toolchains behind it are candidates by themselves.
fn is_rustup_proxy(rustc: &Path) -> bool {
    let real = real_path(rustc);
    let size = |path: &Path| path.metadata().ok().map(|metadata| metadata.len());
    real.file_stem().is_some_and(|name| name == "rustup")
        || real
            .parent()
            .map(|dir| dir.join("rustup"))
            .is_some_and(|rustup| rustup.is_file() && size(&rustup) == size(&real))
}

/// Whether `rustc` has, or can compile, `core` for BPF. The linker is left for the caller to fill
/// in.
fn inspect(rustc: &Path) -> Result<Toolchain, String> {
    let version = ask(rustc, &["-vV"])?;
    let release = version
        .lines()
        .find_map(|line| line.strip_prefix("release: "))
        .ok_or_else(|| "does not say its release".to_owned())?
        .trim()
        .to_owned();
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    if older(&release, wanted) {
        return Err(format!("is {release}, and this project needs {wanted}"));
    }
    let sysroot = PathBuf::from(ask(rustc, &["--print", "sysroot"])?.trim());
    let library = sysroot.join("lib/rustlib");
    let core = if has_core(&library.join(TARGET).join("lib")) {
        Core::Prebuilt
    } else if library.join("src/rust/library/core/src/lib.rs").is_file() {
        Core::FromSource
    } else {
        return Err(format!("has neither core for {TARGET} nor its source (rust-src)"));
    };
    let cargo = Some(sysroot.join("bin/cargo")).filter(|cargo| cargo.is_file());
    // Where a proxy stands before the compiler, this is the compiler.
    let own = sysroot.join("bin/rustc");
    let rustc = if own.is_file() { own } else { rustc.to_path_buf() };
    let llvm = llvm::of_rustc(&rustc);
    Ok(Toolchain { rustc, release, core, linker: PathBuf::new(), llvm, cargo, version })
}

fn ask(rustc: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(rustc);
    env::scrub(&mut command);
    let output = command.args(arguments).output().map_err(|error| format!("does not start: {error}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let why = why.lines().next().unwrap_or_default();
        return Err(format!("`rustc {}` failed: {why}", arguments.join(" ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn has_core(dir: &Path) -> bool {
    let Ok(entries) = dir.read_dir() else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

/// Compares `1.96.0-nightly` with `1.95`, by numbers.
fn older(release: &str, than: &str) -> bool {
    let numbers = |version: &str| -> Vec<u32> {
        let plain = version.split(['-', '+']).next().unwrap_or_default();
        plain.split('.').map(|part| part.parse().unwrap_or(0)).chain([0, 0]).take(3).collect()
    };
    numbers(release) < numbers(than)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_by_number() {
        assert!(older("1.85.0", "1.95"));
        assert!(older("1.9.0", "1.95"));
        assert!(!older("1.95.0", "1.95"));
        assert!(!older("1.97.0-nightly", "1.95"));
        assert!(!older("2.0.0", "1.95"));
        assert!(older("1.95.0", "1.95.1"));
    }

    #[test]
    fn the_message_names_what_is_missing_and_what_to_run() {
        let rejections = vec![Rejection { candidate: "/usr/bin/rustc".into(), reason: "is 1.63.0".into() }];
        let message = Missing { rejections, has_compiler: false, has_linker: true }.to_string();
        assert!(message.contains("no Rust compiler that can target BPF on this machine"), "{message}");
        assert!(message.contains("run: cargo xtask setup"), "{message}");
        assert!(message.contains("/usr/bin/rustc: is 1.63.0"), "{message}");
    }

    #[test]
    fn a_compiler_that_is_none_is_rejected_with_a_reason() {
        assert!(inspect(Path::new("/bin/true")).unwrap_err().contains("does not say its release"));
        assert!(inspect(Path::new("/bin/false")).unwrap_err().contains("failed"));
        assert!(inspect(Path::new("/nowhere/rustc")).unwrap_err().contains("does not start"));
    }

    #[test]
    fn proxies_are_recognised() {
        let dir = std::env::temp_dir().join(format!("bpf-build-test-{}", std::process::id()));
        let (bin, other) = (dir.join("bin"), dir.join("other"));
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        std::fs::write(bin.join("rustup"), "12345").unwrap();
        std::fs::write(bin.join("rustc"), "12345").unwrap();
        std::os::unix::fs::symlink(bin.join("rustup"), other.join("rustc")).unwrap();
        assert!(is_rustup_proxy(&bin.join("rustc")), "a copy");
        assert!(is_rustup_proxy(&other.join("rustc")), "a link");
        std::fs::write(bin.join("rustc"), "a compiler").unwrap();
        assert!(!is_rustup_proxy(&bin.join("rustc")));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
