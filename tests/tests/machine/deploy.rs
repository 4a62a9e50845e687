//! `cargo xtask deploy` to a machine with the real sshd, sudo, dpkg and systemd.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Nics, command,
    machine::{Machine, OPERATOR, Seed, Traffic},
};

use crate::{
    common::{BOOT, Place, check, configuration, image, next_version, package},
    full::{PROBE, nothing_is_left},
    quick::{MORE, main_pid, traffic, unnoticed},
    scenes::Scenes,
};

/// The options of all deploys: an emulated machine takes longer than a real one for everything.
const PATIENCE: [&str; 4] = ["--timeout", "120", "--healthy-for", "5"];

#[test]
#[ignore = "takes minutes: --full"]
fn deploy_installs_upgrades_and_removes() {
    let (image, package) = (image(), package());
    let mut scenes = check(Scenes::begin(&image, "deploy, to a machine without a router"));
    let mut place = Place::switch_on(Nics::Two, &Seed::default());
    check(place.machine.wait_for_ssh(BOOT));
    check(place.machine.wait_for_cloud_init());
    let Place { machine, lab } = &mut place;
    let next = check(next_version(&package, &check(lab.state().directory("tmp/next"))));
    let deploy = Deploy { machine, lab, packages: [&package, &next] };
    scenes.play("deploy installs", || deploy.install());
    scenes.play("deploy upgrades under traffic", || deploy.upgrade_under_traffic());
    scenes.play("deploy takes back what is not healthy", || deploy.roll_back());
    scenes.play("deploy status", || deploy.status());
    scenes.play("deploy remove --purge", || deploy.remove());
    scenes.end();
}

/// Deploys from the lab's *vm*, as a person does who may use sudo there.
struct Deploy<'a> {
    machine: &'a Machine,
    lab: &'a Lab,
    /// The packages to install, and to upgrade to.
    packages: [&'a Path; 2],
}

impl Deploy<'_> {
    /// Runs `xtask deploy` with these arguments. Returns `true` if it succeeds, and what it says.
    fn attempt(&self, args: &[&str]) -> Result<(bool, String)> {
        let xtask = PathBuf::from(env!("CARGO_BIN_EXE_lab")).with_file_name("xtask");
        ensure!(xtask.is_file(), "there is no {}; `cargo build -p xtask` makes it", xtask.display());
        let mut command = self.lab.hosts.vm.command(&xtask)?;
        command.env("TMPDIR", self.lab.state().path("tmp"));
        command.arg("deploy").args(args).arg("--ssh-config").arg(self.machine.ssh_config());
        let output = command::output(&mut command)?;
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        Ok((output.status.success(), text.concat()))
    }

    fn xtask(&self, args: &[&str]) -> Result<String> {
        let (good, said) = self.attempt(args)?;
        ensure!(good, "deploy {}: {said}", args.join(" "));
        Ok(said)
    }

    fn upgrade(&self, package: &Path, more: &[&str]) -> Result<String> {
        let package = package.display().to_string();
        let args = [&[OPERATOR, "--package", &package], &PATIENCE[..], more].concat();
        self.xtask(&args)
    }

    fn install(&self) -> Result<String> {
        let config = self.lab.state().write("tmp/deploy.toml", configuration())?;
        let said = self.upgrade(self.packages[0], &["--config", &config.display().to_string()])?;
        ensure!(said.contains("the probe answers 200"), "{said}");
        self.lab.wait_in_service(PROBE)?;
        let version = self.version()?;
        Ok(format!("{version} as {OPERATOR} with sudo; {}", traffic(self.lab)?))
    }

    fn upgrade_under_traffic(&self) -> Result<String> {
        let before = main_pid(self.machine)?;
        let said = unnoticed(self.machine, self.lab, || {
            let said = self.upgrade(self.packages[1], &[])?;
            ensure!(said.contains("the probe answers 200"), "{said}");
            Ok(())
        })?;
        ensure!(main_pid(self.machine)? != before, "the daemon {before} still runs");
        let version = self.version()?;
        ensure!(version.ends_with("+next"), "version {version}");
        Ok(format!("{version}; {said}"))
    }

    fn status(&self) -> Result<String> {
        let said = self.xtask(&["status", OPERATOR])?;
        let line = said.lines().find(|line| line.starts_with(OPERATOR));
        let line = line.with_context(|| format!("no line of {OPERATOR}: {said}"))?;
        ensure!(line.contains("+next"), "{said}");
        Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Takes back a version that never gets healthy, and no open connection notices. Its probe
    /// answers 503 meanwhile, so the load balancer takes the router out of service.
    fn roll_back(&self) -> Result<String> {
        let bad = self.lab.state().write("tmp/unhealthy.toml", unhealthy())?;
        let before = self.version()?;
        let traffic = Traffic::start(self.lab)?;
        traffic.carry(MORE)?;
        let args = ["--config", &bad.display().to_string(), "--timeout", "20"];
        let package = self.packages[1].display().to_string();
        let attempt = self.attempt(&[&[OPERATOR, "--package", &package], &args[..]].concat());
        let carried = traffic.carry(MORE);
        let lost = traffic.finish().no_session_lost();
        carried?;
        let (good, said) = attempt?;
        ensure!(!good, "it was deployed: {said}");
        ensure!(said.contains("all is as it was before"), "{said}");
        ensure!(self.version()? == before, "another version than {before}");
        self.lab.wait_in_service(PROBE)?;
        Ok(format!("taken back; {}", lost?))
    }

    fn remove(&self) -> Result<String> {
        let said = self.xtask(&["remove", OPERATOR, "--purge"])?;
        ensure!(said.contains("pls-router is gone"), "{said}");
        nothing_is_left(self.machine)
    }

    fn version(&self) -> Result<String> {
        self.machine.ssh("dpkg-query -W -f '${Version}' pls-router")
    }
}

/// A configuration that `check` takes and whose probe never answers 200: no neighbour has the
/// address of its target.
fn unhealthy() -> String {
    format!(
        "[interfaces]\npls = \"eth0\"\nfirewall = \"eth1\"\n\n[[forward]]\nname = \"nowhere\"\nprotocol = \"tcp\"\n\
         listen = \"443\"\ntarget = \"{UNUSED}:443\"\nsources = [\"10.0.2.64/26\"]\n\n\
         [local]\nallow = [\"tcp/22 from 10.0.2.0/24\"]\n\n[limits]\nflows = 65536\n"
    )
}

/// An unused address of the subnet that faces the firewall.
const UNUSED: &str = "10.0.3.62";
