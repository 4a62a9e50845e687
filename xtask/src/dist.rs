//! `cargo xtask dist`: what is shipped, static programs and Debian packages with them.

mod architecture;
mod build;
mod debian;
mod dependencies;
mod licences;
mod proof;
mod records;
mod runtime;
mod source;
mod tree;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::verb::Verb;
use crate::{system, workspace};
pub(crate) use architecture::Architecture;
use source::Source;

pub(crate) const VERB: Verb = Verb {
    name: "dist",
    about: "build static programs and Debian packages, to be shipped",
    help: Some(HELP),
    run,
};

const HELP: &str = "\
Builds pls-router as one static program, which needs no library of the machine that it runs on, and a Debian package
with it, into target/dist; and a list of its parts (SBOM, CycloneDX), a manifest and checksums.

usage: cargo xtask dist [--arch ARCH]... [--binary FILE] [--version VERSION] [--output FOLDER] [--unproven]

  --arch ARCH          for these machines: x86_64 or aarch64 (default: both)
  --binary FILE        package this pls-router instead of building one; what is shipped is not made so, but the
                       tests are quick
  --version VERSION    the package's version (default: the release's, or before a release
                       RELEASE~TIME.COMMIT, of the time of the commit)
  --output FOLDER      write to this folder instead of target/dist
  --unproven           do not run what was built

What was built is run: this machine's in the root of an old Debian (root), and that for aarch64 in an emulated
machine, where it loads and attaches its BPF programs. Debian's packages for both are fetched once, 120 MB.

The same source gives the same bytes: all files have the time of the commit (or SOURCE_DATE_EPOCH), and no name of
a directory of this machine is in them.
";

/// A package that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) architecture: Architecture,
    /// This program, instead of building one.
    pub(crate) binary: Option<PathBuf>,
    /// This version, instead of that of the source.
    pub(crate) version: Option<String>,
    /// The directory to write it to; usually [`folder`].
    pub(crate) folder: PathBuf,
}

impl Wanted {
    /// The release for a kind of machine.
    pub(crate) fn release(architecture: Architecture) -> Self {
        Self { architecture, binary: None, version: None, folder: folder() }
    }
}

/// A package that has been made.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) architecture: Architecture,
    /// As Debian has it.
    pub(crate) version: String,
    pub(crate) deb: PathBuf,
    /// The program inside.
    pub(crate) binary: PathBuf,
    /// The list of its parts, in CycloneDX's format.
    pub(crate) parts: PathBuf,
}

impl Package {
    fn files(&self) -> [&PathBuf; 3] {
        [&self.deb, &self.binary, &self.parts]
    }
}

/// The directory of what is shipped.
pub(crate) fn folder() -> PathBuf {
    workspace::target_dir().join("dist")
}

/// Makes a package, and builds the program for it if there is none. What is up to date is not made
/// again.
pub(crate) fn package(wanted: &Wanted) -> Result<Package> {
    let architecture = wanted.architecture;
    let source = Source::look(wanted.version.as_deref())?;
    let (built, documents) = match &wanted.binary {
        Some(binary) => (binary.clone(), build::quick_documents()?),
        None => (build::router(architecture, &source.version)?, build::documents(&source.version)?),
    };
    let folder = &wanted.folder;
    let pages = folder.join("work/documents");
    write_documents(&documents, &pages)?;
    let name = format!("pls-router-{}-{}", source.version, architecture.machine());
    let binary = folder.join(&name);
    fs::copy(&built, &binary)
        .with_context(|| format!("cannot copy {} to {}", built.display(), binary.display()))?;
    let dependencies = dependencies::of_router(architecture)?;
    // The compilers of a program that is there already are not known.
    let runtime = if wanted.binary.is_some() { runtime::unknown() } else { runtime::parts(architecture)? };
    let parts = folder.join(name + ".cdx.json");
    fs::write(&parts, records::bill_of_materials(&source, &dependencies, &runtime)?)
        .with_context(|| format!("cannot write {}", parts.display()))?;
    let licences = licences::page(&dependencies, &runtime)?;
    let content = debian::Content {
        router: &binary,
        documents: &pages,
        licences: &licences,
        is_quick: wanted.binary.is_some(),
    };
    let deb = debian::package(architecture, &source, &content, folder)?;
    Ok(Package { architecture, version: source.version, deb, binary, parts })
}

/// Writes manual pages and completions into `folder`, by the program that makes them.
fn write_documents(program: &Path, folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    system::run(Command::new(program).arg(folder))
}

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let Options { wanted, is_proven } = parse(arguments)?;
    let packages = wanted.iter().map(package).collect::<Result<Vec<_>>>()?;
    let prove = |package| if is_proven { proof::of(package) } else { Ok(Vec::new()) };
    let proofs = packages.iter().map(prove).collect::<Result<Vec<_>>>()?;
    if let Some(Wanted { version, folder, .. }) = wanted.first() {
        records::write(folder, &Source::look(version.as_deref())?, &packages)?;
        println!("in {}:", folder.display());
    }
    for (package, proven) in packages.iter().zip(proofs) {
        println!("  {}, for {}:", package.version, package.architecture.machine());
        for file in package.files() {
            let size = file.metadata().with_context(|| format!("cannot read {}", file.display()))?.len();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            println!("    {:>5.1} MB  {name}", size as f64 / 1e6);
        }
        for proof in proven {
            println!("    {proof}");
        }
    }
    println!("  manifest.json, SHA256SUMS");
    Ok(ExitCode::SUCCESS)
}

/// The options of the command.
struct Options {
    wanted: Vec<Wanted>,
    /// `true` if what was built is run.
    is_proven: bool,
}

fn parse(arguments: &[OsString]) -> Result<Options> {
    use lexopt::prelude::*;
    let mut is_proven = true;
    let (mut architectures, mut binary, mut version) = (Vec::new(), None, None);
    let mut folder = folder();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("arch") => architectures.push(parser.value()?.parse_with(architecture)?),
            Long("binary") => binary = Some(PathBuf::from(parser.value()?)),
            Long("version") => version = Some(parser.value()?.string()?),
            Long("output") => folder = parser.value()?.into(),
            Long("unproven") => is_proven = false,
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected().into()),
        }
    }
    if let Some(binary) = &binary {
        let found = Architecture::of(binary)?;
        if architectures.iter().any(|wanted| *wanted != found) {
            return Err(lexopt::Error::from(format!("--binary is for {}", found.machine())).into());
        }
        architectures = vec![found];
        is_proven = false;
    }
    if architectures.is_empty() {
        architectures = Architecture::ALL.to_vec();
    }
    let wanted = |architecture| Wanted {
        architecture,
        binary: binary.clone(),
        version: version.clone(),
        folder: folder.clone(),
    };
    Ok(Options { wanted: architectures.into_iter().map(wanted).collect(), is_proven })
}

fn architecture(name: &str) -> Result<Architecture, String> {
    Architecture::named(name).ok_or_else(|| "--arch takes x86_64 or aarch64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Vec<Wanted>> {
        Ok(parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())?.wanted)
    }

    #[test]
    fn both_kinds_of_machines_unless_said() {
        assert_eq!(parsed(&[]).unwrap().len(), 2);
        let one = parsed(&["--arch", "arm64"]).unwrap();
        assert_eq!(one[0].architecture, Architecture::Aarch64);
        parsed(&["--arch", "mips"]).unwrap_err();
        parsed(&["--binary", "/nonexistent"]).unwrap_err();
    }

    #[test]
    fn a_program_says_itself_what_it_is_for() {
        let this = std::env::current_exe().unwrap();
        let wanted = parsed(&["--binary", this.to_str().unwrap(), "--version", "1.2"]).unwrap();
        assert_eq!(wanted[0].architecture, Architecture::native().unwrap());
        assert_eq!(wanted[0].version.as_deref(), Some("1.2"));
    }
}
