//! The parts of a static program that are no crates: what comes with the compilers.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use object::read::archive::ArchiveFile;
use object::{Object as _, ObjectSection as _};

use super::architecture::Architecture;
use crate::toolchain;

/// A library that is linked statically.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: &'static str,
    /// `None` if nothing tells it.
    pub(super) version: Option<String>,
    /// An expression of SPDX.
    pub(super) licence: &'static str,
    pub(super) repository: &'static str,
    /// Its package URL (<https://github.com/package-url/purl-spec>), before the version and after it.
    purl: (&'static str, &'static str),
}

impl Part {
    pub(super) fn purl(&self) -> String {
        let (before, after) = self.purl;
        let version = self.version.as_deref().map(|version| format!("@{version}")).unwrap_or_default();
        format!("pkg:{before}{version}{after}")
    }
}

/// The name of the library of C, whose licence asks for a notice.
pub(super) const MUSL: &str = "musl";

/// Returns the parts of the static program for a kind of machine, as this machine builds it.
pub(super) fn parts(architecture: Architecture) -> Result<Vec<Part>> {
    let compiler = toolchain::rustc(&["-vV"])?;
    let release = compiler.lines().find_map(|line| line.strip_prefix("release: ")).map(str::to_owned);
    // `rustc 1.96.0 (ac68faa20 2026-05-25)`
    let of_bpf = toolchain::bpf()?.version.split_whitespace().nth(1).map(str::to_owned);
    Ok(of_versions(release, of_bpf, musl_version(architecture)?))
}

/// Returns the parts of a program that was built elsewhere: without versions.
pub(super) fn unknown() -> Vec<Part> {
    of_versions(None, None, None)
}

/// The parts by the versions of Rust, of Rust for the BPF programs, and of musl.
fn of_versions(rust: Option<String>, bpf: Option<String>, musl: Option<String>) -> Vec<Part> {
    let of_rust = |name, version, library| Part {
        name,
        version,
        licence: "MIT OR Apache-2.0",
        repository: "https://github.com/rust-lang/rust",
        purl: ("github/rust-lang/rust", library),
    };
    vec![
        of_rust("Rust's standard library", rust, "#library/std"),
        of_rust("Rust's core, in the BPF programs", bpf, "#library/core"),
        Part {
            name: MUSL,
            version: musl,
            licence: "MIT",
            repository: "https://git.musl-libc.org/cgit/musl",
            purl: ("generic/musl", ""),
        },
    ]
}

/// Returns the version of the musl that comes with Rust. Its library has an object with nothing
/// else in it (`src/internal/version.c`).
fn musl_version(architecture: Architecture) -> Result<Option<String>> {
    let sysroot = toolchain::rustc(&["--print", "sysroot"])?;
    let libraries = Path::new(sysroot.trim()).join("lib/rustlib").join(architecture.target()).join("lib");
    let path = libraries.join("self-contained/libc.a");
    if !path.exists() {
        return Ok(None);
    }
    let library = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    version_in(&library).with_context(|| format!("{} is no library", path.display()))
}

fn version_in(library: &[u8]) -> object::Result<Option<String>> {
    for member in ArchiveFile::parse(library)?.members() {
        let member = member?;
        if !matches!(member.name(), b"version.lo" | b"version.o") {
            continue;
        }
        let object = object::File::parse(member.data(library)?)?;
        let texts =
            object.sections().filter(|section| section.name().is_ok_and(|name| name.starts_with(".rodata")));
        for section in texts {
            let text = section.data()?.split(|byte| *byte == 0).next().unwrap_or_default();
            if text.first().is_some_and(u8::is_ascii_digit) {
                return Ok(Some(String::from_utf8_lossy(text).into_owned()));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_library_of_c_tells_its_version() {
        if !toolchain::has_target(Architecture::X86_64.target()) {
            return;
        }
        let version = musl_version(Architecture::X86_64).unwrap().unwrap();
        let numbers = version.split('.').filter(|number| number.parse::<u32>().is_ok());
        assert_eq!(numbers.count(), 3, "{version}");
    }

    #[test]
    fn each_part_has_an_address_of_its_own() {
        let version = || Some("1.96.0".to_owned());
        for parts in [unknown(), of_versions(version(), version(), Some("1.2.5".to_owned()))] {
            let purls: BTreeSet<_> = parts.iter().map(Part::purl).collect();
            assert_eq!(purls.len(), parts.len(), "{purls:?}");
        }
        let purls: Vec<_> = of_versions(version(), None, None).iter().map(Part::purl).collect();
        assert_eq!(purls[0], "pkg:github/rust-lang/rust@1.96.0#library/std");
        assert_eq!(purls[2], "pkg:generic/musl");
    }
}
