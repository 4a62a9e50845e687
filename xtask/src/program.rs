//! Facts about a program that its file tells.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use object::elf::{DT_NEEDED, FileHeader64, PT_INTERP};
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Architecture, Endianness, Object as _};

/// The machines that routers are likely to be, as `uname -m` names them.
const NAMES: [(Architecture, &str); 3] = [
    (Architecture::X86_64, "x86_64"),
    (Architecture::Aarch64, "aarch64"),
    (Architecture::Riscv64, "riscv64"),
];

/// The machine that a program is built for, as `uname -m` names it.
pub(crate) fn machine(path: &Path) -> Result<String> {
    let contents = read(path)?;
    let architecture = match object::File::parse(&*contents) {
        Ok(file) if file.format() == object::BinaryFormat::Elf => file.architecture(),
        Ok(_) | Err(_) => bail!("{} is not a program for Linux", path.display()),
    };
    let known = NAMES.iter().find(|(known, _)| *known == architecture);
    Ok(known.map_or_else(|| format!("{architecture:?}"), |(_, name)| (*name).to_owned()))
}

/// Returns an error if a program needs a shared library or a dynamic loader to run.
pub(crate) fn require_static(path: &Path) -> Result<()> {
    let contents = read(path)?;
    let contents = &*contents;
    let parsed = || -> object::Result<(bool, bool)> {
        let file = ElfFile64::<Endianness>::parse(contents)?;
        let (endian, mut loaded, mut linked) = (file.endian(), false, false);
        for header in FileHeader64::program_headers(file.elf_header(), endian, contents)? {
            loaded |= header.p_type(endian) == PT_INTERP;
            let dynamic = header.dynamic(endian, contents)?.unwrap_or_default();
            linked |= dynamic.iter().any(|entry| entry.tag(endian) == DT_NEEDED);
        }
        Ok((loaded, linked))
    };
    match parsed() {
        Ok((false, false)) => Ok(()),
        Ok(_) => bail!("{} is not static: it needs shared libraries to run", path.display()),
        Err(error) => bail!("{} is not a program for Linux: {error}", path.display()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
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
    fn this_program_is_not_static() {
        let error = require_static(&std::env::current_exe().unwrap()).unwrap_err().to_string();
        assert!(error.contains("needs shared libraries"), "{error}");
    }

    #[test]
    fn other_files_are_refused() {
        let error = machine(&crate::workspace::root().join("Cargo.toml")).unwrap_err().to_string();
        assert!(error.contains("not a program"), "{error}");
        machine(Path::new("/nonexistent")).unwrap_err();
    }
}
