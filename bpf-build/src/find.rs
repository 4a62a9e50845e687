//! The search for a compiler and a linker that together make a BPF object: the ones that the
//! environment names, or else the first of two known places that works.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt};

use crate::command::forget_outer_build;
use crate::probe;
use crate::toolchain::{
    Core, LINKER, LINKER_VARIABLE, LINKER_VERSION, RUSTC_VARIABLE, TARGET, Toolchain, home_dir,
};

/// The reason why nothing on this machine makes a BPF object. Its text tells the user what to do.
#[derive(Debug)]
pub struct Missing {
    /// The compilers and linkers that were tried.
    pub rejections: Vec<Rejection>,
    /// `true` if there is a compiler with `core` for BPF, so that only the linker is at fault.
    pub has_compiler: bool,
    /// `true` if there is a linker, working or not.
    pub has_linker: bool,
}

/// A candidate and the reason why it does not do.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// The compiler, or compiler and linker.
    pub candidate: String,
    /// The reason.
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
            f.write_str("\ntried:")?;
        }
        self.rejections
            .iter()
            .try_for_each(|Rejection { candidate, reason }| write!(f, "\n  {candidate}: {reason}"))
    }
}

/// Returns the first toolchain that works: the one that `PLS_ROUTER_BPF_RUSTC` names, or else one
/// of rustup's toolchains, or else a compiler on the PATH.
///
/// Each candidate has to compile and link a small program. `target_dir` (see
/// [`target_dir`](crate::target_dir)) remembers the outcome, so that this costs nothing until the
/// compiler or the linker changes.
///
/// # Errors
///
/// Returns an error if there is none: the candidates, the reason against each, and what to run.
pub fn find(target_dir: &Path) -> Result<Toolchain, Missing> {
    let linkers = linkers();
    let mut missing =
        Missing { rejections: Vec::new(), has_compiler: false, has_linker: !linkers.is_empty() };
    let mut reject = |candidate: String, reason| missing.rejections.push(Rejection { candidate, reason });
    let mut seen = BTreeSet::new();
    for rustc in compilers() {
        let compiler = match inspect(&rustc) {
            // rustup's `rustc` stands for one of its toolchains, which has been tried already.
            Ok(compiler) if !seen.insert(compiler.rustc.clone()) => continue,
            Ok(compiler) => compiler,
            Err(reason) => {
                reject(rustc.display().to_string(), reason);
                continue;
            }
        };
        missing.has_compiler = true;
        for linker in &linkers {
            let candidate = Toolchain { linker: linker.clone(), ..compiler.clone() };
            match probe::works(&candidate, target_dir) {
                Ok(()) => return Ok(candidate),
                Err(reason) => reject(candidate.to_string(), reason),
            }
        }
    }
    Err(missing)
}

/// Returns the linkers to try: the one that the user names, or those on the PATH, in cargo's
/// directory and in the cache, where `cargo xtask setup` puts it if the user has another version.
fn linkers() -> Vec<PathBuf> {
    if let Some(linker) = env::var_os(LINKER_VARIABLE) {
        return vec![linker.into()];
    }
    let cargo = home_dir("CARGO_HOME", ".cargo");
    let installed = [cargo, private_tools()].into_iter().flatten().map(|root| root.join("bin").join(LINKER));
    existing(on_path(LINKER).chain(installed))
}

/// Returns the compilers to try: the one that the user names, or those of rustup and on the PATH.
fn compilers() -> Vec<PathBuf> {
    if let Some(rustc) = env::var_os(RUSTC_VARIABLE) {
        return vec![rustc.into()];
    }
    let toolchains =
        home_dir("RUSTUP_HOME", ".rustup").and_then(|dir| dir.join("toolchains").read_dir().ok());
    let mut toolchains: Vec<_> =
        toolchains.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    // Named versions before channels, which change from one day to the next.
    toolchains.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (!name.starts_with(|c: char| c.is_ascii_digit()), name)
    });
    let rustup = toolchains.into_iter().map(|toolchain| toolchain.join("bin/rustc"));
    // Not every process has a user's PATH.
    existing(rustup.chain(on_path("rustc")).chain(["/usr/bin/rustc".into()]))
}

/// Returns the directory of tools that must not replace the user's own.
pub fn private_tools() -> Option<PathBuf> {
    let cache = home_dir("XDG_CACHE_HOME", ".cache")?;
    Some(cache.join(format!("pls-router/{LINKER}-{LINKER_VERSION}")))
}

fn on_path(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join(name)).collect::<Vec<_>>().into_iter()
}

/// Returns those of `files` that exist, each once.
fn existing(files: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let mut is_new = |file: &PathBuf| seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone()));
    files.filter(|file| file.is_file() && is_new(file)).collect()
}

/// Checks that `rustc` has, or can compile, `core` for BPF. The caller fills in the linker.
fn inspect(rustc: &Path) -> Result<Toolchain, String> {
    let version = ask(rustc, &["-vV"])?;
    let release = version.lines().find_map(|line| line.strip_prefix("release: "));
    let release = release.ok_or("does not say its release")?.trim().to_owned();
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
    let program = |name| Some(sysroot.join("bin").join(name)).filter(|program| program.is_file());
    // The compiler itself, where `rustc` is rustup's proxy.
    let rustc = program("rustc").unwrap_or_else(|| rustc.to_path_buf());
    let llvm = llvm(&rustc);
    Ok(Toolchain { rustc, release, core, linker: PathBuf::new(), llvm, cargo: program("cargo"), version })
}

fn ask(rustc: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(rustc);
    forget_outer_build(&mut command);
    let output = command.args(arguments).output().map_err(|error| format!("does not start: {error}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let why = why.lines().next().unwrap_or_default();
        return Err(format!("`rustc {}` failed: {why}", arguments.join(" ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn has_core(dir: &Path) -> bool {
    let is_core = |name: &str| name.starts_with("libcore-") && name.ends_with(".rlib");
    dir.read_dir().is_ok_and(|mut dir| {
        dir.any(|file| file.is_ok_and(|file| is_core(&file.file_name().to_string_lossy())))
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

/// Returns the LLVM library that `rustc` is linked to; `None` if LLVM is built in or the C library
/// is of an unusual kind.
///
/// bpf-linker has to be given the same one. It loads the first `libLLVM*` that it finds on
/// `LD_LIBRARY_PATH` and beside the directories of the PATH, and an older one cannot read the
/// compiler's output ("Invalid record").
fn llvm(rustc: &Path) -> Option<PathBuf> {
    // As ldd does: the dynamic loader prints the libraries and does not run the program.
    let mut command = Command::new(rustc);
    let output = command.env("LD_TRACE_LOADED_OBJECTS", "1").env_remove("LD_LIBRARY_PATH").output().ok()?;
    output.status.success().then(|| llvm_in_trace(&String::from_utf8_lossy(&output.stdout)))?
}

fn llvm_in_trace(trace: &str) -> Option<PathBuf> {
    trace.lines().find_map(|line| {
        let (name, rest) = line.trim().split_once(" => ")?;
        let path = rest.rsplit_once(" (").map_or(rest, |(path, _address)| path);
        (name.starts_with("libLLVM") && path.starts_with('/')).then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_by_number() {
        for (release, than) in [("1.85.0", "1.95"), ("1.9.0", "1.95"), ("1.95.0", "1.95.1")] {
            assert!(older(release, than), "{release} {than}");
        }
        for release in ["1.95.0", "1.97.0-nightly", "2.0.0"] {
            assert!(!older(release, "1.95"), "{release}");
        }
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
    fn a_file_with_two_names_is_one_candidate() {
        let dir = env::temp_dir().join(format!("bpf-build-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (file, link) = (dir.join("rustc"), dir.join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let files = [file.clone(), link, dir.join("none"), file.clone()];
        assert_eq!(existing(files.into_iter()), [file]);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_compilers_llvm_is_found() {
        let debian = "\tlinux-vdso.so.1 (0x00007f4ef1c23000)\n\
                      \tlibLLVM.so.22.1 => /lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x00007f4ee2e00000)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f4ef1c25000)\n";
        assert_eq!(llvm_in_trace(debian), Some("/lib/x86_64-linux-gnu/libLLVM.so.22.1".into()));
        let rustup =
            "\tlibLLVM.so.22.1-rust-1.95.0 => /home/u/.rustup/a b/lib/libLLVM.so.22.1-rust-1.95.0 (0x1)\n";
        assert_eq!(llvm_in_trace(rustup), Some("/home/u/.rustup/a b/lib/libLLVM.so.22.1-rust-1.95.0".into()));
        for none in ["\tlibc.so.6 => /lib/libc.so.6 (0x1)\n", "\tlibLLVM.so.22.1 => not found\n", "\tno\n"] {
            assert_eq!(llvm_in_trace(none), None);
        }
    }
}
