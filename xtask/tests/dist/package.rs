//! The content of the package.

use std::{fs, process::Command};

use anyhow::Result;
use harness::{check, packages, skip};

use crate::{Packages, run, said};

/// Files that the package has, each with its mode.
const FILES: &[&str] = &[
    "-rwxr-xr-x root/root ./usr/bin/pls-router",
    "-rw-r--r-- root/root ./etc/pls-router/config.toml",
    "-rw-r--r-- root/root ./usr/lib/systemd/system/pls-router.service",
    "-rw-r--r-- root/root ./usr/lib/systemd/system/pls-router.socket",
    "-rw-r--r-- root/root ./usr/lib/sysusers.d/pls-router.conf",
    "-rw-r--r-- root/root ./usr/share/bash-completion/completions/pls-router",
    "-rw-r--r-- root/root ./usr/share/fish/vendor_completions.d/pls-router.fish",
    "-rw-r--r-- root/root ./usr/share/zsh/vendor-completions/_pls-router",
    "-rw-r--r-- root/root ./usr/share/man/man8/pls-router.8.gz",
    "-rw-r--r-- root/root ./usr/share/man/man8/pls-router-drain.8.gz",
    "-rw-r--r-- root/root ./usr/share/doc/pls-router/examples/config.toml",
];

#[test]
fn all_that_belongs_to_it() -> Result<()> {
    let packages = Packages::new()?;
    let deb = packages.make("dist", "1.2.3")?;
    let listing = run(Command::new("dpkg-deb").arg("--contents").arg(&deb))?;
    // `-rw-r--r-- root/root  278 2026-11-30 17:09 ./etc/pls-router/config.toml`
    let shown: Vec<String> = listing
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .map(|words| format!("{} {} {}", words[0], words[1], words[5]))
        .collect();
    for file in FILES {
        assert!(shown.iter().any(|line| line == file), "{file} is not in\n{listing}");
    }
    let field = |name: &str| run(Command::new("dpkg-deb").arg("--field").arg(&deb).arg(name));
    assert_eq!(field("Version")?.trim(), "1.2.3");
    let conffiles = run(Command::new("dpkg-deb").arg("--info").arg(&deb).arg("conffiles"))?;
    assert_eq!(conffiles, "/etc/pls-router/config.toml\n");
    Ok(())
}

/// In another directory, at another time, with another umask.
#[test]
fn the_same_source_gives_the_same_bytes() -> Result<()> {
    let packages = Packages::new()?;
    let one = packages.make("one", "1.2.3")?;
    let other = packages.make_under("077", "a/longer/name", "1.2.3")?;
    assert!(fs::read(one)? == fs::read(other)?, "the two packages differ");
    Ok(())
}

#[test]
fn units_are_understood_by_systemd() -> Result<()> {
    let Some(analyze) = packages::find_program("systemd-analyze") else {
        skip("there is no systemd-analyze here");
    };
    let packages = Packages::new()?;
    let root = packages.place.path().join("root");
    run(Command::new("dpkg-deb").arg("--extract").arg(packages.make("dist", "1.2.3")?).arg(&root))?;
    // It looks for the programs here.
    let program = root.join("usr/bin/pls-router");
    for unit in fs::read_dir(root.join("usr/lib/systemd/system"))? {
        let unit = unit?.path();
        let text = fs::read_to_string(&unit)?;
        fs::write(&unit, text.replace("/usr/bin/pls-router", &program.display().to_string()))?;
        let output = Command::new(&analyze).args(["verify", "--man=no"]).arg(&unit).output()?;
        let said = said(&output);
        assert!(output.status.success() && !said.contains("pls-router"), "{said}");
    }
    Ok(())
}

/// Debian's own checker finds nothing but what the package says it has reasons for.
#[test]
fn lintian_finds_nothing() -> Result<()> {
    let lintian = check(program("lintian"));
    let packages = Packages::new()?;
    let deb = packages.make("dist", "1.2.3")?;
    let mut command = Command::new(lintian);
    command.args(["--allow-root", "--fail-on=error,warning,info", "--display-info", "--tag-display-limit=0"]);
    let output = command.arg(&deb).output()?;
    assert!(output.status.success(), "{}", said(&output));
    Ok(())
}

/// Finds a program, or says in which package it is.
pub(crate) fn program(name: &str) -> Result<std::path::PathBuf> {
    match (packages::find_program(name), packages::with_program(name)) {
        (Some(path), _) => Ok(path),
        (None, Some(package)) => Err(packages::Absent(package).into()),
        (None, None) => anyhow::bail!("there is no {name} here"),
    }
}
