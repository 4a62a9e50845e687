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

const MANIFEST: &str = concat!(
    "[workspace]\n[package]\nname = \"bpf-probe\"\nversion = \"0.0.0\"\nedition = \"2024\"\nrust-version = \"",
    env!("CARGO_PKG_RUST_VERSION"),
    "\"\n"
);

/// A program in the section of XDP programs, with a call into `core` so that it has to be there.
const PROGRAM: &str = r#"#![no_std]
#![no_main]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
pub extern "C" fn probe(context: *const u32) -> u32 {
    unsafe { core::ptr::read_volatile(context) }.leading_zeros()
}"#;

/// Checks that `toolchain` makes a BPF object. Returns the reason if it does not.
pub(crate) fn works(toolchain: &Toolchain, target_dir: &Path) -> Result<(), String> {
    // Only a success is remembered: a failure may have a passing cause, such as a full disk.
    let record = target_dir.join("probe").join(format!("{:016x}", fingerprint(toolchain)));
    if record.is_file() {
        return Ok(());
    }
    let package = record.with_extension(std::process::id().to_string());
    let outcome = attempt(toolchain, target_dir, &package);
    _ = std::fs::remove_dir_all(package);
    // Without a record the next build probes again: slower, not wrong.
    outcome.inspect(|()| _ = std::fs::write(&record, toolchain.to_string()))
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
    // The linker's own words come as a note after rustc's "linking failed" and its command line.
    const ERRORS: [&str; 5] = ["ERROR llvm", "unable to find LLVM", "Invalid record", "error", ""];
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = ERRORS.iter().find_map(|error| lines().find(|line| line.contains(error)));
    let short: String = line.unwrap_or("no message").chars().take(200).collect();
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
    fn the_linkers_error_is_kept() {
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
