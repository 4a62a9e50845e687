//! The search for a compiler and a linker that together make a BPF object.
//!
//! The environment may name either. Otherwise a compiler is one of rustup's toolchains or the
//! distribution's, and the linker is where `cargo install` or `cargo xtask setup` puts it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt};

use crate::command::forget_outer_build;
use crate::probe;
use crate::toolchain::{
    LINKER, LINKER_VARIABLE, LINKER_VERSION, RUSTC_VARIABLE, TARGET, Toolchain, home_dir,
};

/// The reason why nothing on this machine makes a BPF object. Its text tells the user what to do.
#[derive(Debug)]
pub struct Missing {
    /// The compilers and linkers that were tried, each with the reason why it does not do.
    pub rejections: Vec<String>,
    /// `true` if there is a compiler with `core` for BPF, so that only the linker is at fault.
    pub has_compiler: bool,
    /// `true` if there is a linker, working or not.
    pub has_linker: bool,
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
        write!(
            f,
            "cannot compile the BPF programs: {what} on this machine\n\n    run: cargo xtask setup\n\n\
             (or name them: {RUSTC_VARIABLE}=.../rustc {LINKER_VARIABLE}=.../{LINKER})\n"
        )?;
        if !self.rejections.is_empty() {
            write!(f, "\ntried:\n  {}", self.rejections.join("\n  "))?;
        }
        Ok(())
    }
}

/// Returns the first toolchain that works: each candidate has to compile and link a small program.
///
/// `target_dir` (see [`target_dir`](crate::target_dir)) remembers the outcome, so that this costs
/// nothing until the compiler or the linker changes.
///
/// # Errors
///
/// Returns an error if there is none: the candidates, the reason against each, and what to run.
pub fn find(target_dir: &Path) -> Result<Toolchain, Missing> {
    let linkers = linkers();
    let mut missing =
        Missing { rejections: Vec::new(), has_compiler: false, has_linker: !linkers.is_empty() };
    for rustc in compilers() {
        let compiler = match inspect(&rustc) {
            Ok(compiler) => compiler,
            Err(reason) => {
                missing.rejections.push(format!("{}: {reason}", rustc.display()));
                continue;
            }
        };
        missing.has_compiler = true;
        for linker in &linkers {
            let candidate = Toolchain { linker: linker.clone(), ..compiler.clone() };
            match probe::works(&candidate, target_dir) {
                Ok(()) => return Ok(candidate),
                Err(reason) => missing.rejections.push(format!("{candidate}: {reason}")),
            }
        }
    }
    Err(missing)
}

fn compilers() -> Vec<PathBuf> {
    if let Some(rustc) = env::var_os(RUSTC_VARIABLE) {
        return vec![rustc.into()];
    }
    let toolchains =
        home_dir("RUSTUP_HOME", ".rustup").and_then(|dir| dir.join("toolchains").read_dir().ok());
    let mut rustup: Vec<PathBuf> =
        toolchains.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    // Puts named versions before channels, which change from one day to the next.
    rustup.sort();
    let compilers = rustup.into_iter().map(|toolchain| toolchain.join("bin/rustc"));
    compilers.chain(["/usr/bin/rustc".into()]).filter(|rustc| rustc.is_file()).collect()
}

fn linkers() -> Vec<PathBuf> {
    if let Some(linker) = env::var_os(LINKER_VARIABLE) {
        return vec![linker.into()];
    }
    let roots = [home_dir("CARGO_HOME", ".cargo"), private_tools()].into_iter().flatten();
    roots.map(|root| root.join("bin").join(LINKER)).filter(|linker| linker.is_file()).collect()
}

/// Returns the directory of tools that must not replace the user's own.
pub fn private_tools() -> Option<PathBuf> {
    let cache = home_dir("XDG_CACHE_HOME", ".cache")?;
    Some(cache.join(format!("pls-router/{LINKER}-{LINKER_VERSION}")))
}

/// Checks that `rustc` has, or can compile, `core` for BPF. The caller fills in the linker.
fn inspect(rustc: &Path) -> Result<Toolchain, String> {
    let version = ask(rustc, &["-vV"])?;
    let sysroot = PathBuf::from(ask(rustc, &["--print", "sysroot"])?.trim());
    let library = sysroot.join("lib/rustlib");
    let builds_core = !has_core(&library.join(TARGET).join("lib"));
    if builds_core && !library.join("src/rust/library/core/src/lib.rs").is_file() {
        return Err(format!("has neither core for {TARGET} nor its source (rust-src)"));
    }
    let program = |name| Some(sysroot.join("bin").join(name)).filter(|program| program.is_file());
    // The compiler itself, where `rustc` is rustup's proxy.
    let rustc = program("rustc").unwrap_or_else(|| rustc.to_path_buf());
    let (llvm, cargo) = (llvm(&rustc), program("cargo"));
    Ok(Toolchain { rustc, version, builds_core, linker: PathBuf::new(), llvm, cargo })
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
    dir.read_dir().into_iter().flatten().flatten().any(|file| is_core(&file.file_name().to_string_lossy()))
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
    fn the_message_names_what_is_missing_and_what_to_run() {
        let rejections = vec!["/usr/bin/rustc: is 1.63.0".to_owned()];
        let message = Missing { rejections, has_compiler: false, has_linker: true }.to_string();
        assert!(message.contains("no Rust compiler that can target BPF on this machine"), "{message}");
        assert!(message.contains("run: cargo xtask setup"), "{message}");
        assert!(message.contains("/usr/bin/rustc: is 1.63.0"), "{message}");
    }

    #[test]
    fn other_programs_are_rejected_with_a_reason() {
        assert!(inspect(Path::new("/bin/true")).unwrap_err().contains("has neither core"));
        assert!(inspect(Path::new("/bin/false")).unwrap_err().contains("failed"));
        assert!(inspect(Path::new("/nowhere/rustc")).unwrap_err().contains("does not start"));
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
