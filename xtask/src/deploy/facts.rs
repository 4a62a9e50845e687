//! Facts of a machine before anything is changed there, and the obstacles to a deploy among them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};

use super::remote::{Machine, Output};
use crate::system::{OLDEST_KERNEL, kernel_version};

/// The greatest difference between two clocks. Within it, journals can be compared, and
/// certificates of checks are judged alike.
const CLOCK: Duration = Duration::from_secs(300);

/// The path of the configuration on a machine.
pub(super) const CONFIG: &str = "/etc/pls-router/config.toml";

/// Returns an error unless the router can run on such a machine at all.
pub(super) fn suits(host: &str, machine: &Machine) -> Result<()> {
    let Machine { system, kernel, .. } = machine;
    ensure!(system == "Linux", "{host}: pls-router runs on Linux, and this is {system}");
    let (major, minor) = OLDEST_KERNEL;
    if kernel_version(kernel).is_some_and(|version| version < OLDEST_KERNEL) {
        bail!(
            "{host}: its kernel {kernel} is too old\n  fix: install Linux {major}.{minor} or newer there (Debian 12, \
             Ubuntu 24.04, Azure Linux 3) and reboot"
        );
    }
    let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if let Some(there) = machine.time.map(Duration::from_secs)
        && let apart = there.abs_diff(here)
        && apart > CLOCK
    {
        let apart = humantime::format_duration(Duration::from_secs(apart.as_secs()));
        let word = if there > here { "ahead of" } else { "behind" };
        bail!(
            "{host}: its clock is {apart} {word} this machine's\n  fix: set the wrong one, on Linux with \
             `timedatectl set-ntp true`"
        );
    }
    Ok(())
}

/// The difference between a file on a machine and the one to install.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Change {
    /// None is there.
    New,
    /// Another one is there.
    Replace,
    /// The same is there.
    Same,
    /// None was given, and the one that is there stays.
    Keep,
    /// None was given, and none is there.
    Missing,
}

/// The way in which the router is installed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum How {
    Package,
    Files,
    None,
}

impl How {
    /// From the word that the scripts have for it.
    pub(super) fn of(word: &str) -> Option<Self> {
        match word {
            "package" => Some(Self::Package),
            "files" => Some(Self::Files),
            "none" => Some(Self::None),
            _ => None,
        }
    }
}

/// Free space that is needed somewhere, in KiB.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Room {
    pub(super) needed: u64,
    pub(super) free: u64,
    pub(super) place: String,
}

/// The package that was copied, as dpkg reads it there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Offered {
    pub(super) name: String,
    pub(super) version: String,
    /// Its architecture and the machine's, in dpkg's words.
    pub(super) architectures: (String, String),
}

/// The state of a target, from the output of [`super::scripts::LOOK`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    pub(super) how: How,
    pub(super) binary: Option<Change>,
    pub(super) units: Option<Change>,
    pub(super) package: Option<Change>,
    pub(super) config: Change,
    pub(super) offered: Option<Offered>,
    /// The state and the version of the package that is installed.
    package_state: String,
    pub(super) package_version: Option<String>,
    systemd: bool,
    active: String,
    foreign: Option<String>,
    lacks: Vec<String>,
    busy: bool,
    unfinished: Option<String>,
    rooms: Vec<Room>,
    /// The version of the installed binary, as it says itself.
    pub(super) installed: Option<String>,
    pub(super) healthy: bool,
    pub(super) draining: bool,
    pub(super) sessions: String,
}

impl Facts {
    pub(super) fn of(output: &Output, host: &str) -> Result<Self> {
        ensure!(output.code == 0, "{host}: cannot see what is installed: {}", output.text());
        let lines: Vec<_> = output.stdout.lines().filter_map(|line| line.split_once(' ')).collect();
        let all =
            |wanted: &'static str| lines.iter().filter(move |(key, _)| *key == wanted).map(|(_, it)| *it);
        let get = |wanted: &'static str| all(wanted).next().filter(|value| !value.is_empty());
        let change = |wanted: &'static str| {
            get(wanted).and_then(|word| match word {
                "new" => Some(Change::New),
                "replace" => Some(Change::Replace),
                "same" => Some(Change::Same),
                "keep" => Some(Change::Keep),
                "missing" => Some(Change::Missing),
                _ => None,
            })
        };
        let (Some(how), Some(config)) = (get("how").and_then(How::of), change("config")) else {
            bail!("{host}: cannot make out what is installed: {}", output.text());
        };
        let pair = |wanted: &'static str| {
            get(wanted).and_then(|text| text.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned()))
        };
        Ok(Self {
            how,
            binary: change("binary"),
            units: change("units"),
            package: change("package"),
            config,
            offered: pair("offered").map(|(name, version)| Offered {
                name,
                version,
                architectures: pair("architecture").unwrap_or_default(),
            }),
            package_state: get("package_state").unwrap_or_default().to_owned(),
            package_version: get("package_version").map(str::to_owned),
            systemd: get("systemd") == Some("yes"),
            active: get("active").unwrap_or_default().to_owned(),
            foreign: get("foreign").map(str::to_owned),
            lacks: all("lacks").map(str::to_owned).collect(),
            busy: get("busy").is_some(),
            unfinished: lines
                .iter()
                .find(|(key, _)| *key == "unfinished")
                .map(|(_, about)| (*about).to_owned()),
            rooms: all("room").filter_map(room).collect(),
            installed: get("installed").map(str::to_owned),
            healthy: get("healthy").is_some(),
            draining: get("draining").is_some(),
            sessions: get("sessions").unwrap_or_default().to_owned(),
        })
    }

    /// Returns an error unless the machine has all that a deployment needs, and is in a state from
    /// which there is a way back.
    pub(super) fn suffice(&self, host: &str) -> Result<()> {
        ensure!(
            self.systemd,
            "{host}: systemd does not run there, and deploy installs a service of systemd\n  fix: install by hand \
             there, and start `pls-router run` with what that machine has"
        );
        ensure!(
            self.lacks.is_empty(),
            "{host}: there is no {}\n  fix: install coreutils, diffutils, findutils, gawk or mawk, sed and \
             util-linux there",
            self.lacks.join(" and no ")
        );
        ensure!(
            !self.busy,
            "{host}: somebody else is deploying to this machine right now, or it is undoing a deploy that lost its \
             connection\n  fix: try again in a minute or two"
        );
        if let Some(about) = &self.unfinished {
            bail!(
                "{host}: half of an earlier deploy is there ({about}); it was interrupted, by a reboot for \
                 example\n  fix: `cargo xtask deploy rollback {host}` puts back what was there before it; then \
                 deploy again"
            );
        }
        if let Some(foreign) = &self.foreign {
            bail!(
                "{host}: another unit has the name pls-router.service: {foreign}\n  fix: if nobody needs it, \
                 `systemctl disable --now pls-router.service` and remove its file there (a masked one: `systemctl \
                 unmask pls-router.service`)"
            );
        }
        let states = ["installed", ""];
        ensure!(
            states.contains(&self.package_state.as_str()),
            "{host}: dpkg has the package pls-router there half done: {}\n  fix: `dpkg --configure -a` there, or \
             `apt-get install --reinstall pls-router`",
            self.package_state
        );
        if let Some(offered) = &self.offered {
            let (of_package, of_machine) = &offered.architectures;
            ensure!(
                offered.name == "pls-router",
                "{host}: the package is `{}`, and not pls-router\n  fix: name the right file with --package",
                offered.name
            );
            ensure!(
                of_package == of_machine,
                "{host}: the package is for {of_package}, and this machine is {of_machine}\n  fix: name one that was \
                 built for {of_machine} with --package FILE"
            );
        }
        ensure!(
            self.how != How::Package || self.offered.is_some(),
            "{host}: pls-router is there as a package ({}), and a binary alone would make dpkg's records wrong\n  \
             fix: give a package with --package FILE, or take the package off first: `cargo xtask deploy remove \
             {host}`",
            self.package_version.as_deref().unwrap_or_default()
        );
        ensure!(
            self.config != Change::Missing,
            "{host}: there is no {CONFIG} yet, and none was given\n  fix: copy deploy/config.toml, edit it for this \
             machine, and give it with --config FILE"
        );
        if let Some(Room { needed, free, place }) = self.rooms.iter().find(|room| room.free < room.needed) {
            bail!(
                "{host}: there is no room in {place}: {} MiB are free, and {} MiB are needed\n  fix: make room there: \
                 `apt-get clean`, `journalctl --vacuum-size=100M`, or a larger disk",
                free / 1024,
                needed.div_ceil(1024)
            );
        }
        Ok(())
    }

    /// Returns `true` if the service runs.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.active.as_str(), "active" | "activating" | "reloading")
    }

    /// Returns `true` if all files are there already.
    pub(super) fn is_installed(&self) -> bool {
        let files = match &self.offered {
            Some(offered) => {
                self.package == Some(Change::Same)
                    && self.package_version.as_deref() == Some(offered.version.as_str())
            }
            None => self.binary == Some(Change::Same) && self.units == Some(Change::Same),
        };
        files && matches!(self.config, Change::Same | Change::Keep)
    }

    /// Returns `true` if there is nothing to do.
    pub(super) fn is_done(&self) -> bool {
        self.is_installed() && self.active == "active" && self.healthy
    }
}

fn room(text: &str) -> Option<Room> {
    let (needed, rest) = text.split_once(' ')?;
    let (free, place) = rest.split_once(' ')?;
    Some(Room { needed: needed.parse().ok()?, free: free.parse().ok()?, place: place.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(text: &str) -> Facts {
        Facts::of(&Output { code: 0, stdout: text.to_owned(), stderr: String::new() }, "h").unwrap()
    }

    const FILES: &str =
        "how files\nbinary same\nconfig keep\nunits same\nsystemd yes\nactive active\nhealthy yes\n";
    const PACKAGE: &str = "how package\npackage same\nconfig same\noffered pls-router 0.2\n\
                           architecture amd64 amd64\npackage_state installed\npackage_version 0.2\n\
                           systemd yes\nactive active\nhealthy yes\n";

    #[test]
    fn done_is_what_is_installed_and_healthy() {
        for (all, cases) in [
            (
                FILES,
                vec![
                    ("binary same", "binary replace"),
                    ("units same", "units new"),
                    ("healthy yes", ""),
                    ("active active", "active failed"),
                ],
            ),
            (
                PACKAGE,
                vec![
                    ("package same", "package replace"),
                    ("package_version 0.2", "package_version 0.1"),
                    ("config same", "config replace"),
                ],
            ),
        ] {
            assert!(facts(all).is_done());
            facts(all).suffice("h").unwrap();
            for (one, other) in cases {
                assert!(!facts(&all.replace(one, other)).is_done(), "{other}");
            }
        }
    }

    #[test]
    fn what_keeps_a_machine_from_it_is_said_with_what_to_do() {
        let cases = [
            (FILES, "systemd yes", "systemd no", "systemd does not run", "by hand"),
            (FILES, "config keep", "config missing", "there is no /etc/pls-router", "--config FILE"),
            (FILES, "config keep", "config keep\nlacks flock", "there is no flock", "util-linux"),
            (FILES, "config keep", "config keep\nbusy yes", "somebody else", "try again"),
            (
                FILES,
                "how files",
                "how files\nunfinished 0.1 -> 0.2",
                "half of an earlier",
                "deploy rollback h",
            ),
            (FILES, "how files", "how files\nunfinished ", "half of an earlier", "deploy rollback h"),
            (FILES, "how files", "how files\nforeign /x starts /bin/y", "another unit", "disable --now"),
            (FILES, "how files", "how files\nroom 20480 1024 /usr", "no room in /usr: 1 MiB", "make room"),
            (FILES, "how files", "how package\npackage_version 0.1", "as a package (0.1)", "--package FILE"),
            (PACKAGE, "_state installed", "_state half-configured", "half done", "dpkg --configure -a"),
            (PACKAGE, "offered pls-router", "offered nginx", "`nginx`", "the right file"),
            (PACKAGE, "amd64 amd64", "arm64 amd64", "is for arm64", "built for amd64"),
        ];
        for (all, one, other, what, fix) in cases {
            let error = facts(&all.replace(one, other)).suffice("h").unwrap_err().to_string();
            let (said, advice) = error.split_once("\n  fix: ").expect("a line with what to do");
            assert!(said.starts_with("h: ") && said.contains(what) && advice.contains(fix), "{error}");
        }
        facts(&FILES.replace("how files", "how files\nroom 20480 20480 /usr")).suffice("h").unwrap();
    }

    #[test]
    fn machines_that_cannot_run_it_are_refused() {
        let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let good = Machine {
            system: "Linux".to_owned(),
            kernel: "6.1.0-13-cloud-amd64".to_owned(),
            time: Some(here + 100),
            ..Machine::default()
        };
        suits("h", &good).unwrap();
        let cases = [
            (Machine { system: "FreeBSD".to_owned(), ..good.clone() }, "runs on Linux"),
            (
                Machine { kernel: "5.15.0-1-azure".to_owned(), ..good.clone() },
                "too old\n  fix: install Linux 6.1",
            ),
            (Machine { time: Some(here - 86_400), ..good.clone() }, "behind this machine's\n  fix: set"),
            (Machine { time: Some(here + 3600), ..good.clone() }, "ahead of this machine's"),
        ];
        for (machine, said) in cases {
            let error = suits("h", &machine).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
