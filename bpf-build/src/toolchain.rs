//! A compiler and a linker for BPF.

use std::fmt;
use std::path::{Path, PathBuf};

/// The compilation target: little-endian BPF, as are x86_64 and aarch64.
pub const TARGET: &str = "bpfel-unknown-none";

/// The linker that turns rustc's bitcode into a BPF object.
pub const LINKER: &str = "bpf-linker";

/// The linker's release that `cargo xtask setup` installs: the newest that loads the LLVM of the
/// compiler at run time. Later ones link to an LLVM of the system, which few systems have in the
/// right version.
pub const LINKER_VERSION: &str = "0.10.1";

/// The variable that names the rustc to use, instead of those that are found.
pub const RUSTC_VARIABLE: &str = "PLS_ROUTER_BPF_RUSTC";

/// The variable that names the bpf-linker to use, instead of those that are found.
pub const LINKER_VARIABLE: &str = "PLS_ROUTER_BPF_LINKER";

/// A compiler and a linker that have together made a BPF object on this machine.
#[derive(Clone, Debug, Hash, PartialEq)]
pub struct Toolchain {
    /// The compiler itself, not rustup's proxy.
    pub rustc: PathBuf,
    /// The output of `rustc -vV`; tells a compiler from its successor at the same path.
    pub version: String,
    /// `true` if cargo has to compile `core` for BPF from the compiler's sources.
    pub builds_core: bool,
    /// The linker.
    pub linker: PathBuf,
    /// The LLVM that the compiler uses and the linker has to load.
    pub(crate) llvm: Option<PathBuf>,
    /// The toolchain's own cargo, where it has one.
    pub(crate) cargo: Option<PathBuf>,
}

impl Toolchain {
    /// Returns the clippy that belongs to this compiler, if it is installed.
    pub fn clippy(&self) -> Option<PathBuf> {
        Some(self.rustc.with_file_name("clippy-driver")).filter(|driver| driver.is_file())
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = if self.builds_core { "core from source" } else { "prebuilt core" };
        let release = self.version.lines().next().unwrap_or_default();
        write!(f, "{} ({release}, {core}) with {}", self.rustc.display(), self.linker.display())
    }
}

/// Returns a directory setting such as `CARGO_HOME`, or its default below the home directory.
pub(crate) fn home_dir(variable: &str, below_home: &str) -> Option<PathBuf> {
    match std::env::var_os(variable).filter(|dir| !dir.is_empty()) {
        Some(dir) => Some(dir.into()),
        None => std::env::var_os("HOME").map(|home| Path::new(&home).join(below_home)),
    }
}
