//! Which LLVM a compiler uses, so that bpf-linker can be given the same one.
//!
//! bpf-linker loads the first `libLLVM*` that it finds on `LD_LIBRARY_PATH` and then beside the
//! directories of the PATH. A machine may have several, and an older one cannot read what the
//! compiler wrote ("Invalid record").

use std::path::{Path, PathBuf};
use std::process::Command;

/// The LLVM library that `rustc` is linked to; none if it has LLVM built in or the C library is of
/// an unusual kind.
pub(crate) fn of_rustc(rustc: &Path) -> Option<PathBuf> {
    // What ldd does, without needing ldd: the dynamic loader prints instead of running the program.
    let output = Command::new(rustc)
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    library_in_trace(&String::from_utf8_lossy(&output.stdout))
}

fn library_in_trace(trace: &str) -> Option<PathBuf> {
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
    fn debian() {
        let trace = "\tlinux-vdso.so.1 (0x00007f4ef1c23000)\n\
                     \tlibrustc_driver-ea0e.so => /lib/x86_64-linux-gnu/librustc_driver-ea0e.so (0x00007f4eec000000)\n\
                     \tlibLLVM.so.22.1 => /lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x00007f4ee2e00000)\n\
                     \t/lib64/ld-linux-x86-64.so.2 (0x00007f4ef1c25000)\n";
        assert_eq!(library_in_trace(trace), Some("/lib/x86_64-linux-gnu/libLLVM.so.22.1".into()));
    }

    #[test]
    fn rustup() {
        let trace = "\tlibLLVM.so.22.1-rust-1.95.0-stable => /home/u/.rustup/a b/lib/libLLVM.so.22.1-rust-1.95.0-stable (0x1)\n";
        assert_eq!(
            library_in_trace(trace),
            Some("/home/u/.rustup/a b/lib/libLLVM.so.22.1-rust-1.95.0-stable".into())
        );
    }

    #[test]
    fn built_in_or_missing() {
        assert_eq!(library_in_trace("\tlibc.so.6 => /lib/libc.so.6 (0x1)\n"), None);
        assert_eq!(library_in_trace("\tlibLLVM.so.22.1 => not found\n"), None);
        assert_eq!(library_in_trace("\tnot a dynamic executable\n"), None);
    }
}
