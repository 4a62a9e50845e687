//! The machines that there are packages for.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::program;

/// A kind of machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Architecture {
    X86_64,
    Aarch64,
}

use Architecture::{Aarch64, X86_64};

impl Architecture {
    pub(crate) const ALL: [Self; 2] = [X86_64, Aarch64];

    /// Returns the kind of this machine.
    pub(crate) fn native() -> Result<Self> {
        let name = std::env::consts::ARCH;
        Self::named(name).with_context(|| format!("there are no packages for {name}, which this machine is"))
    }

    /// Returns the one with this name: `uname -m`'s, or Debian's.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| [one.machine(), one.debian()].contains(&name))
    }

    /// Returns the one that a program is built for.
    pub(crate) fn of(program: &Path) -> Result<Self> {
        let machine = program::machine(program)?;
        Self::named(&machine).with_context(|| {
            format!("{} is for {machine}, and there are packages for x86_64 and aarch64", program.display())
        })
    }

    /// Its name in `uname -m`.
    pub(crate) fn machine(self) -> &'static str {
        match self {
            X86_64 => "x86_64",
            Aarch64 => "aarch64",
        }
    }

    /// Its name in Debian.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            X86_64 => "amd64",
            Aarch64 => "arm64",
        }
    }

    /// Rust's target for a static program for it.
    pub(crate) fn target(self) -> &'static str {
        match self {
            X86_64 => "x86_64-unknown-linux-musl",
            Aarch64 => "aarch64-unknown-linux-musl",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_name_will_do() {
        assert_eq!(Architecture::named("arm64"), Some(Aarch64));
        assert_eq!(Architecture::named("x86_64"), Some(X86_64));
        assert_eq!(Architecture::named("riscv64"), None);
    }
}
