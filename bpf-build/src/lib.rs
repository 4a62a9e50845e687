//! Finds a toolchain that can compile for BPF, and compiles the programs of `router-ebpf` with it.
//!
//! A build script needs one line:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     bpf_build::build_script("router")
//! }
//! ```
//!
//! and the crate then finds the object at `concat!(env!("OUT_DIR"), "/router")`. `cargo xtask
//! setup` uses the same search, so what it calls ready is what the build uses.
//!
//! `aya_build::build_ebpf` does this job for a rustup nightly only; here a distribution's compiler
//! with a prebuilt `core` for BPF serves as well, which is what a machine without access to
//! rustup's servers has.

mod btf;
mod compile;
mod env;
mod llvm;
mod probe;
mod search;

use std::path::Path;
use std::process::ExitCode;

pub use compile::{Action, cargo, target_dir};
pub use probe::forget_failures;
pub use search::{Core, Missing, Rejection, Toolchain, find, private_tools};

/// The compilation target: little-endian BPF, as are x86_64 and aarch64.
pub const TARGET: &str = "bpfel-unknown-none";

/// The linker that turns rustc's bitcode into a BPF object.
pub const LINKER: &str = "bpf-linker";

/// The linker's release that `cargo xtask setup` installs: the newest that borrows the LLVM of the
/// compiler at run time. Later ones link to an LLVM of the system, which few systems have in the
/// right version.
pub const LINKER_VERSION: &str = "0.10.1";

/// Names the rustc to compile with, before any that is found.
pub const RUSTC_VARIABLE: &str = "PLS_ROUTER_BPF_RUSTC";

/// Names the bpf-linker to link with, before any that is found.
pub const LINKER_VARIABLE: &str = "PLS_ROUTER_BPF_LINKER";

/// Compiles the binary `bin` of `router-ebpf` and puts the object at `$OUT_DIR/<bin>`. For build
/// scripts.
///
/// Tells cargo exactly which files the object depends on, so that an unchanged tree rebuilds
/// nothing. On failure the reason is on standard error, where cargo shows it.
pub fn build_script(bin: &str) -> ExitCode {
    match try_build_script(bin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error:#}\n");
            ExitCode::FAILURE
        }
    }
}

fn try_build_script(bin: &str) -> anyhow::Result<()> {
    let manifest_dir = env::required("CARGO_MANIFEST_DIR")?;
    let out_dir = env::required("OUT_DIR")?;
    let workspace = env::workspace_above(Path::new(&manifest_dir))?;

    for variable in [RUSTC_VARIABLE, LINKER_VARIABLE] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // Whole directories: cargo looks for the newest file below them. Not the workspace itself,
    // where anything else would count too.
    for input in [
        "router-ebpf/Cargo.toml",
        "router-ebpf/src",
        "router-common/Cargo.toml",
        "router-common/src",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo:rerun-if-changed={}", workspace.join(input).display());
    }

    let target_dir = target_dir(&workspace, Some(Path::new(&out_dir)));
    let toolchain = find(&target_dir)?;
    let object = compile::compile(&toolchain, &workspace, &target_dir, bin)?;
    compile::install(&object, &Path::new(&out_dir).join(bin))
}
