//! The machine itself: the emulator's process, and the ways to talk to the system in it.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    image::Image,
    monitor::Monitor,
    prober::Prober,
    seed::{MACS, Seed},
    ssh::Ssh,
};
use crate::{Lab, Nics, Process, Router, wait};

/// The virtual CPUs.
const CPUS: u32 = 2;

/// The memory, in MiB.
const MEMORY: u32 = 1024;

/// A machine that runs. Dropping it cuts its power.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    monitor: Monitor,
    ssh: Ssh,
    prober: Prober,
}

impl Machine {
    /// Switches a machine on, with this seed for cloud-init, in a lab whose router is
    /// [`Router::Machine`]. It boots while the caller goes on.
    pub fn boot(lab: &Lab, image: &Image, seed: &Seed) -> Result<Self> {
        ensure!(lab.options.router == Router::Machine, "this lab has another router than a machine");
        let state = lab.state();
        let ssh = Ssh::prepare(lab)?;
        let seed = seed.write(lab, &ssh.keys()?)?;
        let monitor = Monitor::new(state.path("machine/monitor"));
        let mut command = lab.hosts.vnet.command(&image.emulator)?;
        command.args(arguments(lab.options.nics, image, &seed, &monitor));
        // Where it keeps what the machine writes to its disk: not in memory, as the lab's directory
        // is.
        command.env("TMPDIR", &image.directory);
        let process = Process::spawn(state, "machine", command)?;
        let prober = Prober::new(&lab.hosts.pls)?;
        Ok(Self { process, monitor, ssh, prober })
    }

    /// Waits until somebody can log in. An error has the end of what the machine has printed.
    pub fn wait_for_ssh(&mut self, limit: Duration) -> Result<()> {
        let Self { process, ssh, .. } = self;
        process.wait_until(limit, || ssh.run("true").map(drop))
    }

    /// Waits until cloud-init has done its work, and fails unless all of it succeeded.
    pub fn wait_for_cloud_init(&self) -> Result<()> {
        let said = self.ssh(
            "cloud-init status --wait --long; grep -E 'WARN|ERROR' /var/log/cloud-init.log; \
             tail -n 20 /var/log/cloud-init-output.log",
        )?;
        ensure!(said.contains("status: done"), "cloud-init says {said}");
        Ok(())
    }

    /// Runs a command of its shell as root. Returns what it wrote to standard output; a failure's
    /// error has its standard error.
    pub fn ssh(&self, command: &str) -> Result<String> {
        self.ssh.run(command)
    }

    /// Same as [`Self::ssh`], and gives the command this input.
    pub fn ssh_with_input(&self, command: &str, input: &str) -> Result<String> {
        self.ssh.run_with_input(command, input)
    }

    /// Copies a file or a directory of this machine to a path there.
    pub fn copy(&self, from: &std::path::Path, to: &str) -> Result<()> {
        self.ssh.copy(from, to)
    }

    /// Returns the configuration for `ssh -F` on the lab's *vm*: it reaches the machine as
    /// `machine` (root), and as [`OPERATOR`](super::OPERATOR), who may use sudo.
    pub fn ssh_config(&self) -> PathBuf {
        self.ssh.config()
    }

    /// Asks the probe as the load balancer does. Returns its status and text; that nobody answers
    /// is an error.
    pub fn probe(&self) -> Result<(u16, String)> {
        self.prober.ask("/")
    }

    /// Returns the load balancer's probe, to ask from another thread or for another path.
    pub fn prober(&self) -> Result<Prober> {
        self.prober.another()
    }

    /// Waits until the probe answers 200.
    pub fn wait_for_probe(&mut self, limit: Duration) -> Result<()> {
        wait::until("the probe to answer 200", limit, || {
            let (status, text) = self.probe()?;
            ensure!(status == 200, "{status}: {}", text.trim());
            Ok(())
        })
        .with_context(|| format!("the machine's console:\n{}", self.console_tail()))
    }

    /// Reboots it, as a person would, and waits until it has gone down.
    pub fn reboot(&self, limit: Duration) -> Result<()> {
        let before = self.boot_id()?;
        // The connection may end before the command does.
        _ = self.ssh("systemctl reboot");
        self.ssh.forget();
        wait::until("the machine to boot again", limit, || {
            let now = self.boot_id()?;
            ensure!(now != before, "it has not gone down yet");
            Ok(())
        })
    }

    /// Cuts the power and switches it on again: what was not written to the disk is gone.
    pub fn reset(&self) -> Result<()> {
        self.ssh.forget();
        self.monitor.say("system_reset")
    }

    /// Shuts it down and waits until it is off.
    pub fn power_off(&mut self, limit: Duration) -> Result<()> {
        _ = self.ssh("systemctl poweroff");
        self.ssh.forget();
        let status = self.process.wait(limit)?;
        ensure!(status.success(), "the emulator ended with {status}");
        Ok(())
    }

    /// Returns all that it has printed on its serial console.
    pub fn console(&self) -> String {
        self.process.output()
    }

    fn console_tail(&self) -> String {
        let console = self.console();
        let lines: Vec<_> = console.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Returns the kernel's name for this boot.
    fn boot_id(&self) -> Result<String> {
        self.ssh("cat /proc/sys/kernel/random/boot_id")
    }
}

/// The emulator's arguments.
fn arguments(nics: Nics, image: &Image, seed: &std::path::Path, monitor: &Monitor) -> Vec<OsString> {
    // Not KVM: in a virtual machine there often is one that starts and then stops in the middle.
    let mut arguments: Vec<OsString> = ["-accel", "tcg,thread=multi", "-cpu", "max", "-nodefaults"]
        .into_iter()
        .chain(["-display", "none", "-serial", "stdio"])
        .map(Into::into)
        .collect();
    let mut add = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    add("-smp", CPUS.to_string().into());
    add("-m", MEMORY.to_string().into());
    add("-kernel", image.directory.join("vmlinuz").into());
    add("-initrd", image.directory.join("initrd").into());
    // A panic is the end, not another boot.
    add("-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 panic=-1".into());
    add("-action", "panic=shutdown".into());
    let with = |before: &str, path: &std::path::Path, after: &str| -> OsString {
        let mut text = OsString::from(before);
        text.push(path);
        text.push(after);
        text
    };
    let disk = image.directory.join("disk");
    add("-drive", with("file=", &disk, ",if=virtio,format=raw,snapshot=on,cache=unsafe"));
    add("-drive", with("if=virtio,read-only=on,file.driver=vvfat,file.label=CIDATA,file.dir=", seed, ""));
    add("-qmp", with("unix:", monitor.path(), ",server=on,wait=off"));
    add("-device", "virtio-rng-pci".into());
    let ends: &[&str] = match nics {
        Nics::One => &["router"],
        Nics::Two => &["router", "router1"],
    };
    // Native XDP takes one more queue for each CPU to send from; a queue has two interrupts, and
    // there are two more.
    let queues = 2 * CPUS;
    let vectors = 2 * queues + 2;
    for (end, mac) in ends.iter().zip(MACS) {
        let tap = format!("tap,id={end},ifname={end},script=no,downscript=no,vhost=off,queues={queues}");
        add("-netdev", tap.into());
        let nic = format!("virtio-net-pci,netdev={end},mac={mac},mq=on,vectors={vectors}");
        add("-device", nic.into());
    }
    arguments
}
