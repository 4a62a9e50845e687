//! The ways in which labs differ.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The number of NICs of the router VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Nics {
    /// One: packets leave by the NIC that they came in by.
    One,
    /// Two: one faces the Private Link Service, one the firewall.
    Two,
}

/// The router of a lab.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Router {
    /// This binary of pls-router.
    PlsRouter(PathBuf),
    /// nftables with the same rules, and a responder for the probe: what pls-router replaces.
    Nftables,
    /// A virtual machine, which is plugged into the lab's switches after the lab is up:
    /// [`Machine`](crate::machine::Machine).
    Machine,
}

impl Router {
    /// pls-router as `PLS_ROUTER_BIN` names it, else as it lies beside the running binary.
    pub fn find() -> Result<Self> {
        let binary = match std::env::var_os("PLS_ROUTER_BIN") {
            Some(binary) => PathBuf::from(binary),
            None => {
                let this = std::env::current_exe().context("cannot tell which binary this is")?;
                beside(&this, "pls-router")
            }
        };
        ensure!(
            binary.is_file(),
            "there is no {}; `cargo build -p router-user` makes it, PLS_ROUTER_BIN names another",
            binary.display()
        );
        let binary = binary.canonicalize().with_context(|| format!("cannot resolve {}", binary.display()))?;
        Ok(Self::PlsRouter(binary))
    }

    /// pls-router with another layout of its maps (`--features other-layout`), as it lies beside
    /// the one of [`find`](Self::find). `None` if it was not built.
    pub fn find_other_layout() -> Result<Option<Self>> {
        let Self::PlsRouter(binary) = Self::find()? else { return Ok(None) };
        let other = binary.with_file_name(OTHER_LAYOUT);
        Ok(other.is_file().then_some(Self::PlsRouter(other)))
    }
}

/// The name of the binary of pls-router with another layout of its maps.
pub const OTHER_LAYOUT: &str = "pls-router-other-layout";

/// The Private Link Service's choice of the client's port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PlsPorts {
    /// Keep it if it is free.
    Keep,
    /// Any.
    Random,
}

/// The file next to a binary, or next to the `deps` directory that a test binary is in.
pub(crate) fn beside(binary: &Path, name: &str) -> PathBuf {
    let directory = binary.parent().unwrap_or(Path::new("."));
    let directory =
        if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    directory.join(name)
}
