//! Shared by the tests on a machine.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
pub(crate) use harness::check;
use lab::{
    Lab, Nics, Options, Router, clients, command,
    helper::Helper,
    machine::{Image, Machine, Seed},
};

/// The time in which a machine boots, up to a login or to a probe that answers 200. Half a minute
/// is usual, and many times as long on a machine that has other things to do.
pub(crate) const BOOT: Duration = Duration::from_secs(600);

/// Names the package to install.
const PACKAGE_VARIABLE: &str = "LAB_PACKAGE";

/// The name of the package on the seed's disk.
pub(crate) const PACKAGE: &str = "pls-router.deb";

/// The load balancer's interval, as in Azure: it waits as long for an answer, and two are needed.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// A lab and the machine in it.
pub(crate) struct Place {
    pub(crate) machine: Machine,
    // Dropped last: it removes all.
    pub(crate) lab: Lab,
}

/// The image of a machine; the test is skipped if none was made or asked for.
pub(crate) fn image() -> Image {
    match Image::find() {
        Err(error) if env::var_os(Image::VARIABLE).is_none() => harness::skip(format!("{error:#}")),
        found => check(found),
    }
}

/// The package of the router; the test is skipped if none was made or asked for.
pub(crate) fn package() -> PathBuf {
    match env::var_os(PACKAGE_VARIABLE) {
        Some(package) => package.into(),
        None => {
            harness::skip(format!("{PACKAGE_VARIABLE} names no package, as `cargo xtask vm --machine` does"))
        }
    }
}

impl Place {
    /// A lab whose router, with this number of NICs and this seed, is being switched on.
    pub(crate) fn switch_on(nics: Nics, seed: &Seed) -> Self {
        Self::switch_on_with(nics, |_| Ok(seed.clone()))
    }

    /// As [`Self::switch_on`], with a seed that is made for the lab.
    pub(crate) fn switch_on_with(nics: Nics, seed: impl FnOnce(&Lab) -> Result<Seed>) -> Self {
        let image = image();
        let helper = Helper::new(env!("CARGO_BIN_EXE_lab"));
        let options = Options {
            start_router: false,
            probe_interval: PROBE_INTERVAL,
            ..Options::new(nics, Router::Machine, helper)
        };
        let lab = check(Lab::up(options));
        let seed = check(seed(&lab));
        let machine = check(Machine::boot(&lab, &image, &seed));
        Self { machine, lab }
    }
}

/// The configuration of a router with two NICs, with the rules of the lab and of its clients.
pub(crate) fn configuration() -> String {
    format!(
        "[interfaces]\npls = \"eth0\"\nfirewall = \"eth1\"\n\n{}\n{}\n[limits]\nflows = 65536\n",
        clients::rules(),
        lab::rules()
    )
}

/// A seed by which cloud-init installs a package with this configuration.
pub(crate) fn seed(package: &Path) -> Seed {
    let (mount, directory) = Seed::mounted();
    let indented: String = configuration().lines().map(|line| format!("      {line}\n")).collect();
    let user_data = format!(
        "#cloud-config\n\
         write_files:\n\
         \x20 - path: /etc/pls-router/config.toml\n\
         \x20   permissions: \"0640\"\n\
         \x20   content: |\n\
         {indented}\
         runcmd:\n\
         \x20 - {mount}\n\
         \x20 - dpkg --force-confold -i {directory}/{PACKAGE}\n"
    );
    let files = vec![(PACKAGE.to_owned(), package.to_owned())];
    Seed { user_data: Some(user_data), files, ..Seed::default() }
}

/// Makes another version of a package, with the same content.
pub(crate) fn next_version(package: &Path, to: &Path) -> Result<PathBuf> {
    version(package, to, "next", |_| Ok(()))
}

/// Makes another version of a package: its version ends with `+` and `suffix`, and its unpacked
/// content is changed before it is packed again.
pub(crate) fn version(
    package: &Path,
    to: &Path,
    suffix: &str,
    change: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let unpacked = to.join(format!("unpacked-{suffix}"));
    // `deploy` reads the architecture in the name.
    let made = to.join(format!("pls-router_{suffix}_amd64.deb"));
    command::run(Command::new("dpkg-deb").arg("-R").arg(package).arg(&unpacked))?;
    change(&unpacked)?;
    let control = unpacked.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control).context("the package has no control file")?;
    let changed = text.lines().map(|line| match line.strip_prefix("Version: ") {
        Some(version) => format!("Version: {version}+{suffix}\n"),
        None => format!("{line}\n"),
    });
    let changed: String = changed.collect();
    ensure!(changed != text, "the package has no version: {text}");
    std::fs::write(&control, changed).context("cannot write a control file")?;
    let mut build = Command::new("dpkg-deb");
    command::run(build.args(["-Zgzip", "-z1", "--root-owner-group", "-b"]).arg(&unpacked).arg(&made))?;
    Ok(made)
}
