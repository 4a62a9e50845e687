//! The Debian package.
//!
//! `dpkg-deb` packs what is laid out here. It is on every Debian, and what else a helper would do
//! (cargo-deb, debhelper) is the layout below, which has to be decided here anyway.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::architecture::Architecture;
use super::source::{self, Source};
use super::tree::{FILE, PROGRAM, Tree, read};
use crate::{system, workspace};

/// The address for mail about the package.
const MAINTAINER: &str = "The pls-router contributors <pls-router@example.org>";

/// The directory for documents in a package.
const DOC: &str = "usr/share/doc/pls-router";

/// The manual's directory for commands of system administration.
const MANUAL: &str = "usr/share/man/man8";

/// Where each shell looks for the completions of a command, by the file that `cli-documents`
/// writes.
const COMPLETIONS: [(&str, &str); 3] = [
    ("pls-router.bash", "usr/share/bash-completion/completions/pls-router"),
    ("_pls-router", "usr/share/zsh/vendor-completions/_pls-router"),
    ("pls-router.fish", "usr/share/fish/vendor_completions.d/pls-router.fish"),
];

/// Files of the repository that go into the package as they are.
const FILES: [(&str, &str, u32); 10] = [
    ("deploy/debian/postinst", "DEBIAN/postinst", PROGRAM),
    ("deploy/debian/prerm", "DEBIAN/prerm", PROGRAM),
    ("deploy/debian/postrm", "DEBIAN/postrm", PROGRAM),
    ("deploy/debian/config.toml", CONFIG, FILE),
    ("deploy/pls-router.service", "usr/lib/systemd/system/pls-router.service", FILE),
    ("deploy/pls-router.socket", "usr/lib/systemd/system/pls-router.socket", FILE),
    ("deploy/debian/pls-router.conf", "usr/lib/sysusers.d/pls-router.conf", FILE),
    ("deploy/debian/lintian-overrides", "usr/share/lintian/overrides/pls-router", FILE),
    ("deploy/debian/copyright", "usr/share/doc/pls-router/copyright", FILE),
    ("deploy/config.toml", "usr/share/doc/pls-router/examples/config.toml", FILE),
];
const CONFIG: &str = "etc/pls-router/config.toml";

/// The content of a package that is not in the repository.
pub(super) struct Content<'a> {
    /// The program.
    pub(super) router: &'a Path,
    /// The directory of manual pages and completions.
    pub(super) documents: &'a Path,
    /// The page about the licences of libraries in the program.
    pub(super) licences: &'a str,
    /// Pack it in a second, for a program that is not made to be shipped, and not as small as can
    /// be in a minute.
    pub(super) is_quick: bool,
}

/// Makes a package in `folder`, and returns its path. Does not pack again what is the same.
pub(super) fn package(
    architecture: Architecture,
    source: &Source,
    content: &Content<'_>,
    folder: &Path,
) -> Result<PathBuf> {
    let name = format!("pls-router_{}_{}", source.version, architecture.debian());
    let deb = folder.join(format!("{name}.deb"));
    let tree = lay_out(architecture, source, content, folder.join("work").join(&name))?;
    // All that decides what the package is.
    let contents = format!("{}\n{}", source.time, fingerprint(&tree)?);
    let record = tree.root().with_extension("contents");
    if deb.is_file() && fs::read_to_string(&record).is_ok_and(|packed| packed == contents) {
        return Ok(deb);
    }
    let mut pack = Command::new("dpkg-deb");
    let compression: &[&str] = if content.is_quick { &["-Zgzip", "-z1"] } else { &["-Zxz"] };
    pack.args(["--build", "--root-owner-group"]).args(compression).arg(tree.root()).arg(&deb);
    // Files that are newer get this time.
    pack.env("SOURCE_DATE_EPOCH", source.time.to_string());
    ensure!(
        system::find_program("dpkg-deb").is_some(),
        "there is no dpkg-deb here to make a Debian package with\n  fix: build on Debian or Ubuntu, or install dpkg"
    );
    system::run(&mut pack)?;
    fs::write(&record, contents).with_context(|| format!("cannot write {}", record.display()))?;
    Ok(deb)
}

fn lay_out(
    architecture: Architecture,
    source: &Source,
    content: &Content<'_>,
    root: PathBuf,
) -> Result<Tree> {
    let Content { router, documents, licences, is_quick: _ } = content;
    let mut tree = Tree::new(root)?;
    tree.copy(router, "usr/bin/pls-router", PROGRAM)?;
    for (from, path, mode) in FILES {
        tree.copy(&workspace::root().join(from), path, mode)?;
    }
    let entries = fs::read_dir(documents).with_context(|| format!("cannot read {}", documents.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", documents.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some((_, completion)) = COMPLETIONS.iter().find(|(file, _)| *file == name) {
            tree.copy(&path, completion, FILE)?;
        } else {
            tree.compressed(&format!("{MANUAL}/{name}"), read(&path)?)?;
        }
    }
    tree.compressed(&format!("{DOC}/third-party-licences.txt"), licences)?;
    let changes = read(&workspace::root().join("CHANGELOG.md"))?;
    tree.compressed(&format!("{DOC}/NEWS.md"), changes)?;
    tree.compressed(&format!("{DOC}/changelog"), changelog(source)?)?;
    let size = tree.size();
    tree.file("DEBIAN/md5sums", FILE, tree.checksums()?)?;
    tree.file("DEBIAN/conffiles", FILE, format!("/{CONFIG}\n"))?;
    tree.file("DEBIAN/control", FILE, control(architecture, &source.version, size))?;
    Ok(tree)
}

fn control(architecture: Architecture, version: &str, size: u64) -> String {
    let architecture = architecture.debian();
    format!(
        "\
Package: pls-router
Version: {version}
Architecture: {architecture}
Maintainer: {MAINTAINER}
Installed-Size: {size}
Depends: systemd (>= 247)
Section: net
Priority: optional
Description: forwards a Private Link Service to the firewall, in XDP
 The router VM between an Azure Private Link Service and a firewall. An XDP
 program translates (DNAT and SNAT) and forwards packets before they reach the
 kernel's network stack. A daemon loads the program, keeps its tables up to
 date, and answers the load balancer's health probe with the truth.
 .
 Needs Linux 6.1 or later, and a network driver with native XDP.
"
    )
}

/// The changelog that Debian wants, which leads to the one that is kept.
fn changelog(source: &Source) -> Result<String> {
    let commit = source.commit.as_deref().unwrap_or("unknown");
    let date = source::date(source.time, "+%a, %d %b %Y %H:%M:%S +0000")?;
    Ok(format!(
        "pls-router ({}) stable; urgency=medium\n\n  * Commit {commit}; see NEWS.md.gz for what is new.\n\n \
         -- {MAINTAINER}  {date}\n",
        source.version
    ))
}

/// Tells a tree from one with other files or other contents.
fn fingerprint(tree: &Tree) -> Result<String> {
    let read = |name| read(&tree.root().join("DEBIAN").join(name));
    let mut text = tree.checksums()?.into_bytes();
    for name in ["control", "conffiles", "postinst", "prerm", "postrm"] {
        text.extend(read(name)?);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}
