//! New versions of the package that do not start, installed by hand: what dpkg and apt say, and
//! what goes on.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Nics,
    machine::{Answer, Machine, Traffic, Watch},
    wait,
};

use crate::{
    common::{Place, check, image, package, seed, version},
    full::PROBE,
    quick::{self, MORE, RESTART, first_boot, main_pid, told, unnoticed},
    scenes::Scenes,
};

/// The directory of the packages on the machine.
const UPLOADED: &str = "/root/versions";

/// How a person installs a file.
const APT: &str = "apt-get install --yes --allow-downgrades";
/// See [`APT`].
const DPKG: &str = "dpkg -i";

/// A program that cannot even check the configuration.
const REFUSES: &str = "echo 'error: this version is for another machine' >&2; exit 1";

/// A program whose check succeeds, and that ends when it is to run.
const ENDS: &str = "[ \"$1\" != run ] || { echo 'error: this version ends at once' >&2; exit 1; }\n\
                    exec /usr/libexec/pls-router \"$@\"";

/// The versions to install, by their suffix, and the script in front of each one's program.
const VERSIONS: [(&str, Option<&str>); 5] =
    [("2", Some(REFUSES)), ("3", Some(REFUSES)), ("4", None), ("5", Some(ENDS)), ("6", Some(ENDS))];

#[test]
#[ignore = "takes minutes: --full"]
fn a_version_that_does_not_start_leaves_the_one_before_forwarding() {
    let (image, package) = (image(), package());
    let mut scenes = check(Scenes::begin(&image, "new versions that do not start"));
    let mut place = Place::switch_on(Nics::Two, &seed(&package));
    scenes.play("cloud-init installs the package", || first_boot(&mut place));
    let Place { machine, lab } = &mut place;
    check(machine.ssh(&format!("mkdir {UPLOADED}")));
    let directory = check(lab.state().directory("tmp/versions"));
    for (suffix, script) in VERSIONS {
        let made = check(version(&package, &directory, suffix, |unpacked| put_before(unpacked, script)));
        check(machine.copy(&made, &uploaded(suffix)));
    }
    let first = check(installed(machine));
    let router = Router { machine, lab, first };
    scenes.play("apt-get install ./FILE: its check fails", || router.refuse(APT, "2"));
    scenes.play("dpkg -i: its check fails, too", || router.refuse(DPKG, "3"));
    scenes.play("dpkg -i: it runs", || router.upgrade(DPKG, "4"));
    scenes.play("two in turn that do not start, and the way back", || router.fail_and_return());
    scenes.end();
}

/// Puts a script in the place of an unpacked package's program, which it may start.
fn put_before(unpacked: &Path, script: Option<&str>) -> Result<()> {
    let Some(script) = script else { return Ok(()) };
    let (program, moved) = (unpacked.join("usr/bin/pls-router"), unpacked.join("usr/libexec"));
    fs::create_dir_all(&moved).context("cannot make a directory")?;
    fs::rename(&program, moved.join("pls-router")).context("the package has no program")?;
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).context("cannot write a script")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).context("cannot make it a program")
}

/// The path on the machine of the package with this suffix.
fn uploaded(suffix: &str) -> String {
    format!("{UPLOADED}/{suffix}.deb")
}

/// Returns the version that dpkg believes to be there, and whole.
fn installed(machine: &Machine) -> Result<String> {
    let said = machine.ssh("dpkg-query -W -f '${db:Status-Status} ${Version}' pls-router")?;
    said.strip_prefix("installed ").map(str::to_owned).with_context(|| format!("it is {said}"))
}

/// The machine, for somebody who installs packages by hand.
struct Router<'a> {
    machine: &'a Machine,
    lab: &'a Lab,
    /// The version of the package from its first boot.
    first: String,
}

impl Router<'_> {
    fn version(&self, suffix: &str) -> String {
        format!("{}+{suffix}", self.first)
    }

    /// Installs a version, which has to succeed. Returns what was said.
    fn install(&self, installer: &str, suffix: &str) -> Result<String> {
        let command =
            format!("DEBIAN_FRONTEND=noninteractive {installer} {} </dev/null 2>&1", uploaded(suffix));
        let said = self.machine.ssh(&command)?;
        let installed = installed(self.machine)?;
        ensure!(installed == self.version(suffix), "{installed} is installed: {said}");
        Ok(said)
    }

    /// Installs a version whose check fails. The daemon of the first one goes on, and no client nor
    /// probe notices.
    fn refuse(&self, installer: &str, suffix: &str) -> Result<String> {
        let before = main_pid(self.machine)?;
        let seen = unnoticed(self.machine, self.lab, || {
            let said = self.install(installer, suffix)?;
            tells(
                &said,
                &[
                    "    error: this version is for another machine",
                    "pls-router: *** THE NEW VERSION WAS NOT STARTED: its check fails, see above ***",
                    &format!(
                        "pls-router: the daemon of version {} goes on running and forwarding",
                        self.first
                    ),
                    "pls-router: then: pls-router check && systemctl restart pls-router",
                ],
            )
        })?;
        ensure!(main_pid(self.machine)? == before, "the daemon {before} does not run any more");
        Ok(format!("not started, and said so; the daemon of {} goes on; {seen}", self.first))
    }

    fn upgrade(&self, installer: &str, suffix: &str) -> Result<String> {
        let before = main_pid(self.machine)?;
        let seen = unnoticed(self.machine, self.lab, || {
            let said = self.install(installer, suffix)?;
            ensure!(!said.contains("***"), "{said}");
            Ok(())
        })?;
        ensure!(main_pid(self.machine)? != before, "the daemon {before} still runs");
        Ok(seen)
    }

    /// Installs two versions that do not start, and then the one of before. Connections that were
    /// open go on through all of it. New ones wait: the load balancer hears no answer to its probe.
    fn fail_and_return(&self) -> Result<String> {
        let traffic = Traffic::start(self.lab)?;
        let watch = Watch::start(self.machine)?;
        let story = traffic.carry(MORE).and_then(|()| {
            let before = self.version("4");
            for (installer, suffix) in [(DPKG, "5"), (APT, "6")] {
                self.fail(installer, suffix, &before)?;
                traffic.carry(MORE)?;
            }
            self.lab.wait_out_of_service(PROBE)?;
            traffic.carry(MORE)?;
            let said = self.install(APT, "4")?;
            ensure!(!said.contains("***"), "{said}");
            self.lab.wait_in_service(PROBE)?;
            traffic.carry(MORE)
        });
        let changes = watch.finish();
        let lost = traffic.finish().no_session_lost();
        story?;
        let last = changes.last().is_some_and(|change| change.answer == Answer::Status(200));
        let lies =
            changes.iter().any(|change| matches!(change.answer, Answer::Status(status) if status != 200));
        ensure!(last && !lies, "the probe: {}", told(&changes));
        Ok(format!(
            "both say so and name the version to go back to; {}; the probe: {}; afterwards {}",
            lost?,
            told(&changes),
            quick::traffic(self.lab)?
        ))
    }

    /// Installs a version that does not start. The programs of the one before go on forwarding.
    fn fail(&self, installer: &str, suffix: &str, before: &str) -> Result<()> {
        let said = self.install(installer, suffix)?;
        tells(
            &said,
            &[
                "    error: this version ends at once",
                "pls-router: *** THE NEW VERSION DOES NOT START, for the reasons above ***",
                &format!("pls-router: the programs of version {before} go on forwarding all sessions"),
                "nobody answers the probe",
                "systemd tries again every 2 s",
                &format!("pls-router: the way back: install version {before} again"),
            ],
        )?;
        quick::attached(self.machine)?;
        // It does try again.
        let tries = || self.machine.ssh("systemctl show -P NRestarts -P ActiveState pls-router");
        let first = tries()?;
        wait::until("systemd to try again", RESTART, || {
            let now = tries()?;
            ensure!(now != first && now.contains("activating"), "{now}");
            Ok(())
        })
    }
}

/// Checks that an installer has said all of these words.
fn tells(said: &str, words: &[&str]) -> Result<()> {
    words.iter().try_for_each(|words| {
        ensure!(said.contains(words), "not \"{words}\" in:\n{said}");
        Ok(())
    })
}
