//! The trial that decides whether a compiler and a linker work together.
//!
//! Versions do not tell: the linker has to read the bitcode of the compiler's LLVM, which it
//! borrows, has built in or finds on the system. So a small program goes the whole way that the
//! real ones go, and the outcome is remembered under the identity of everything that took part.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::TARGET;
use crate::compile::{Action, cargo};
use crate::search::Toolchain;

const MANIFEST: &str = "\
[package]
name = \"bpf-probe\"
version = \"0.0.0\"
edition = \"2024\"

[workspace]
";

/// One program in the section of an XDP program, with a call into `core` so that it has to be
/// there.
const PROGRAM: &str = r#"
#![no_std]
#![no_main]

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
pub extern "C" fn probe(context: *const u32) -> u32 {
    unsafe { core::ptr::read_volatile(context) }.leading_zeros()
}
"#;

const OK: &str = "works";

/// Whether `toolchain` makes a BPF object, and if not, why not.
pub(crate) fn works(toolchain: &Toolchain, target_dir: &Path) -> Result<(), String> {
    let name = format!("{:016x}", fingerprint(toolchain));
    let dir = target_dir.join("probe");
    let verdict = dir.join(&name);
    if let Ok(text) = std::fs::read_to_string(&verdict) {
        return if text == OK { Ok(()) } else { Err(text) };
    }
    let outcome = attempt(toolchain, target_dir, &dir.join(format!("{name}-{}", std::process::id())));
    // Without a record the next build tries again: slower, not wrong.
    _ = std::fs::write(&verdict, outcome.as_ref().err().map_or(OK, |reason| reason));
    outcome
}

/// Forgets the trials that failed, e.g. for want of disk space, so that they are made again.
pub fn forget_failures(target_dir: &Path) {
    let Ok(entries) = target_dir.join("probe").read_dir() else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if std::fs::read_to_string(&path).is_ok_and(|text| text != OK) {
            _ = std::fs::remove_file(&path);
        }
    }
}

fn fingerprint(toolchain: &Toolchain) -> u64 {
    let Toolchain { rustc, release: _, core, linker, llvm, cargo, version } = toolchain;
    let mut hasher = DefaultHasher::new();
    // Files are told apart by size and time as well: an upgrade keeps the path.
    for file in [Some(rustc), Some(linker), llvm.as_ref(), cargo.as_ref()] {
        let stat = file.and_then(|file| file.metadata().ok()).map(|data| (data.len(), data.mtime()));
        (file, stat).hash(&mut hasher);
    }
    (version, format!("{core:?}"), PROGRAM).hash(&mut hasher);
    hasher.finish()
}

fn attempt(toolchain: &Toolchain, target_dir: &Path, package: &Path) -> Result<(), String> {
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(package.join("src"))?;
        std::fs::write(package.join("Cargo.toml"), MANIFEST)?;
        std::fs::write(package.join("src/main.rs"), PROGRAM)
    };
    write().map_err(|error| format!("cannot write a trial program to {}: {error}", package.display()))?;
    let outcome = build(toolchain, target_dir, package);
    _ = std::fs::remove_dir_all(package);
    outcome
}

fn build(toolchain: &Toolchain, target_dir: &Path, package: &Path) -> Result<(), String> {
    let output = cargo(toolchain, Action::Build, target_dir)
        .map_err(|error| format!("{error:#}"))?
        .current_dir(package)
        .output()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if !output.status.success() {
        return Err(summary(&String::from_utf8_lossy(&output.stderr)));
    }
    let object = target_dir.join(TARGET).join("release/bpf-probe");
    let bytes = std::fs::read(&object).map_err(|error| format!("left no object behind: {error}"))?;
    check_object(&bytes)
}

/// The error out of a compiler's output, in one line.
fn summary(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    // The linker's own words come as a note after rustc's "linking failed" and its long command
    // line.
    let line = lines()
        .find(|line| {
            line.contains("ERROR llvm")
                || line.contains("unable to find LLVM")
                || line.contains("Invalid record")
        })
        .or_else(|| lines().find(|line| line.starts_with("error")))
        .or_else(|| lines().next_back())
        .unwrap_or("no message");
    let short: String = line.chars().take(200).collect();
    format!("cannot make a BPF object: {short}")
}

fn check_object(object: &[u8]) -> Result<(), String> {
    const EM_BPF: [u8; 2] = 247_u16.to_le_bytes();
    let contains = |wanted: &[u8]| object.windows(wanted.len()).any(|window| window == wanted);
    if !object.starts_with(b"\x7fELF") || object.get(18..20) != Some(EM_BPF.as_slice()) {
        return Err("makes an object that is not BPF".to_owned());
    }
    if !contains(b".BTF\0") {
        return Err("makes an object without BTF".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_own_words_are_kept() {
        let stderr = "   Compiling bpf-probe v0.0.0\n\
                      error: linking with `bpf-linker` failed: exit status: 1\n\
                      \x20 = note:  \"bpf-linker\" \"--export-symbols\" \"/tmp/x\"\n\
                      \x20 = note: 12:00:00 [ERROR] ERROR llvm: Invalid record (Producer: 'LLVM23' Reader: 'LLVM 22')\n";
        assert!(summary(stderr).contains("Invalid record"), "{}", summary(stderr));
        assert!(summary("error[E0463]: can't find crate for `core`\n").contains("E0463"));
        assert!(summary("").contains("no message"));
    }

    #[test]
    fn only_bpf_objects_with_btf_pass() {
        let mut object = b"\x7fELF".to_vec();
        object.resize(64, 0);
        object[18] = 62;
        assert!(check_object(&object).unwrap_err().contains("not BPF"));
        object[18] = 247;
        assert!(check_object(&object).unwrap_err().contains("without BTF"));
        object.extend(b"\0.BTF\0");
        check_object(&object).unwrap();
        check_object(&[]).unwrap_err();
    }
}
