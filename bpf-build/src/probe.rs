//! The probe that decides if a compiler and a linker work together.
//!
//! Versions do not tell: the linker has to read the bitcode of the compiler's LLVM, which it loads,
//! has built in or finds on the system. So a small program goes all the way that the real ones go,
//! and the outcome is remembered under the identity of every file that took part.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use object::{Architecture, Object as _};

use crate::command::{Action, cargo};
use crate::toolchain::{TARGET, Toolchain};

const MANIFEST: &str =
    "[workspace]\n[package]\nname = \"bpf-probe\"\nversion = \"0.0.0\"\nedition = \"2024\"\n";

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

/// Checks that `toolchain` makes a BPF object. Returns the reason if it does not.
pub(crate) fn works(toolchain: &Toolchain, target_dir: &Path) -> Result<(), String> {
    let name = format!("{:016x}", fingerprint(toolchain));
    let dir = target_dir.join("probe");
    let record = dir.join(&name);
    if let Ok(text) = std::fs::read_to_string(&record) {
        return if text == OK { Ok(()) } else { Err(text) };
    }
    let package = dir.join(format!("{name}-{}", std::process::id()));
    let outcome = attempt(toolchain, target_dir, &package);
    _ = std::fs::remove_dir_all(package);
    // Without a record the next build probes again: slower, not wrong.
    _ = std::fs::write(&record, outcome.as_ref().err().map_or(OK, |reason| reason));
    outcome
}

/// Forgets the probes that failed, e.g. because the disk was full, so that they are made again.
pub fn forget_failures(target_dir: &Path) {
    let records = target_dir.join("probe").read_dir().into_iter().flatten().flatten();
    for path in records.map(|entry| entry.path()) {
        if std::fs::read_to_string(&path).is_ok_and(|text| text != OK) {
            _ = std::fs::remove_file(&path);
        }
    }
}

fn fingerprint(toolchain: &Toolchain) -> u64 {
    let mut hasher = DefaultHasher::new();
    (toolchain, PROGRAM).hash(&mut hasher);
    // An upgrade keeps the path, so size and time count as well.
    let Toolchain { rustc, linker, llvm, cargo, .. } = toolchain;
    for file in [Some(rustc), Some(linker), llvm.as_ref(), cargo.as_ref()].into_iter().flatten() {
        file.metadata().ok().map(|data| (data.len(), data.mtime())).hash(&mut hasher);
    }
    hasher.finish()
}

fn attempt(toolchain: &Toolchain, target_dir: &Path, package: &Path) -> Result<(), String> {
    std::fs::create_dir_all(package.join("src"))
        .and_then(|()| std::fs::write(package.join("Cargo.toml"), MANIFEST))
        .and_then(|()| std::fs::write(package.join("src/main.rs"), PROGRAM))
        .map_err(|error| format!("cannot write a trial program to {}: {error}", package.display()))?;
    let mut command = cargo(toolchain, Action::Build, target_dir).map_err(|error| format!("{error:#}"))?;
    let output =
        command.current_dir(package).output().map_err(|error| format!("cannot start cargo: {error}"))?;
    if !output.status.success() {
        return Err(summary(&String::from_utf8_lossy(&output.stderr)));
    }
    let object = target_dir.join(TARGET).join("release/bpf-probe");
    check_object(&std::fs::read(&object).map_err(|error| format!("left no object behind: {error}"))?)
}

/// Returns the error in a compiler's output, in one line.
fn summary(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    // The linker's own words come as a note after rustc's "linking failed" and its long command
    // line.
    const LINKER_ERRORS: [&str; 3] = ["ERROR llvm", "unable to find LLVM", "Invalid record"];
    let line = lines()
        .find(|line| LINKER_ERRORS.iter().any(|error| line.contains(error)))
        .or_else(|| lines().find(|line| line.starts_with("error")))
        .or_else(|| lines().next_back())
        .unwrap_or("no message");
    let short: String = line.chars().take(200).collect();
    format!("cannot make a BPF object: {short}")
}

fn check_object(object: &[u8]) -> Result<(), String> {
    match object::File::parse(object) {
        Ok(file) if file.architecture() != Architecture::Bpf => {
            Err("makes an object that is not BPF".to_owned())
        }
        Ok(file) if file.section_by_name(".BTF").is_none() => Err("makes an object without BTF".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("makes a damaged object: {error}")),
    }
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
        let mut object = crate::btf::tests::object();
        check_object(&object).unwrap();
        object[18] = 62;
        assert!(check_object(&object).unwrap_err().contains("not BPF"));
        let mut object = crate::btf::tests::object();
        let name = object.windows(5).position(|bytes| bytes == b".BTF\0").unwrap();
        object[name] = b'x';
        assert!(check_object(&object).unwrap_err().contains("without BTF"));
        check_object(&[]).unwrap_err();
    }
}
