//! The kind of machine that a binary is for.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// The offsets of the byte order and of the machine in the header of ELF (elf(5)).
const DATA: usize = 5;
const MACHINE: usize = 18;

/// The machine that a program is built for, as `uname -m` names it.
pub(super) fn machine(path: &Path) -> Result<String> {
    let mut header = [0; MACHINE + 2];
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let read = file.read_exact(&mut header);
    if read.is_err() || !header.starts_with(b"\x7fELF") {
        bail!("{} is not a program for Linux", path.display());
    }
    let bytes = [header[MACHINE], header[MACHINE + 1]];
    let number = if header[DATA] == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
    Ok(match number {
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv64".to_owned(),
        other => format!("ELF machine {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_for_this_machine() {
        let machine = machine(&std::env::current_exe().unwrap()).unwrap();
        assert_eq!(machine, std::env::consts::ARCH);
    }

    #[test]
    fn other_files_are_refused() {
        let error = machine(&crate::workspace::root().join("Cargo.toml")).unwrap_err().to_string();
        assert!(error.contains("not a program"), "{error}");
        machine(Path::new("/nonexistent")).unwrap_err();
    }
}
