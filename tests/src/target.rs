//! A machine to deploy to: a real sshd on a lab's router VM, with a separate file system.
//!
//! It is a mount namespace in which what is written to `/etc`, `/usr` and `/var` lands in memory,
//! so that nothing of the machine that runs the test is touched. There is no systemd in it:
//! `systemctl` and `journalctl` are stand-ins, scripts that know one service. That the real ones
//! take the unit and work with it has to be tested on a real machine.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{Lab, Process, addresses::SSHD_PORT, command, hosts::router::Seat, variants::beside};

/// Names the program of `cargo xtask`.
const XTASK_VARIABLE: &str = "PLS_XTASK_BIN";

/// The time that its sshd may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

const MACHINE: &str = include_str!("target/machine.sh");
const SYSTEMCTL: &str = include_str!("target/systemctl");
const JOURNALCTL: &str = include_str!("target/journalctl");

/// The directory in which a deploy keeps what it has replaced.
pub const KEPT: &str = "/var/lib/pls-router-deploy";

/// The user on the target who is not root: by the name that Azure gives to a first user.
pub const OPERATOR: &str = "azureuser";

/// The sshd and what is around it. The machine goes away with the lab.
#[derive(Debug)]
pub struct Target {
    /// The number of the lab's router that it is.
    number: usize,
    sshd: Process,
    /// The files of the machine, and those for ssh.
    directory: PathBuf,
}

impl Target {
    /// Makes a machine of the lab's router with this number. `ssh -F` with [`Target::ssh_config`]
    /// reaches it from the lab's *vm* as `target` (root), and as `azureuser`; `stranger`,
    /// `impostor`, `locked-out`, `closed` and `nowhere` are ways not to reach it.
    pub fn start(lab: &Lab, number: usize) -> Result<Self> {
        for package in ["openssh-client", "openssh-server", "socat"] {
            command::require(package)?;
        }
        let seat = Seat::new(number);
        let (state, router) = (lab.state(), lab.hosts.router(number));
        let place = format!("target-{}", seat.host);
        let directory = state.path(&place);
        if directory.exists() {
            // Of the machine that was there before.
            fs::remove_dir_all(&directory)
                .with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        for name in ["memory", "files", "stand-ins"] {
            state.directory(&format!("{place}/{name}"))?;
        }
        let host_key = key(&directory.join("files/host_key"))?;
        let user_key = key(&directory.join("user_key"))?;
        let other_key = key(&directory.join("other_key"))?;
        let known = |key: &str| format!("[{}]:{SSHD_PORT} {key}", seat.address);
        for (name, content) in [
            ("files/authorized_keys", user_key),
            ("files/sshd_config", sshd_config(seat.address)),
            ("known_hosts", known(&host_key)),
            ("changed_hosts", known(&other_key)),
            ("ssh_config", ssh_config(seat.address, &directory)),
            ("stand-ins/systemctl", SYSTEMCTL.to_owned()),
            ("stand-ins/journalctl", JOURNALCTL.to_owned()),
            ("machine.sh", MACHINE.to_owned()),
        ] {
            state.write(&format!("{place}/{name}"), content)?;
        }

        let mut machine = router.command("sh")?;
        machine.arg(directory.join("machine.sh"));
        machine.args(["memory", "files", "stand-ins"].map(|name| directory.join(name)));
        let mut sshd = Process::spawn(state, &format!("sshd-{}", seat.host), machine)?;
        sshd.wait_until(START_LIMIT, || router.listens_tcp(SSHD_PORT))?;
        Ok(Self { number, sshd, directory })
    }

    /// The machine stays up after this process.
    pub(crate) fn leave(&mut self) {
        self.sshd.leave();
    }

    /// The id of a process of the machine.
    pub(crate) fn pid(&self) -> u32 {
        self.sshd.pid()
    }

    /// A file of the target, as this process reaches it.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.sshd.pid().to_string()).join("root").join(path.trim_start_matches('/'))
    }

    /// The configuration for ssh, with the names that [`Target::start`] tells of.
    pub fn ssh_config(&self) -> PathBuf {
        self.directory.join("ssh_config")
    }

    /// A part of a configuration for ssh: the machine of `lab` by another name, as root unless
    /// another user is asked for, from anywhere on the machine that runs the lab.
    pub fn known_as(&self, lab: &Lab, name: &str) -> String {
        // By its own loopback, which takes large frames: the lab's wires take long for a program.
        let (directory, router) = (self.directory.display(), lab.hosts.router(self.number).name());
        let address = Seat::new(self.number).address;
        format!(
            "Host {name}\n\
             \tHostName {address}\n\
             \tPort {SSHD_PORT}\n\
             \tUser root\n\
             \tProxyCommand ip netns exec {router} socat - TCP:{address}:{SSHD_PORT}\n\
             \tIdentityFile {directory}/user_key\n\
             \tIdentitiesOnly yes\n\
             \tUserKnownHostsFile {directory}/known_hosts\n\
             \tGlobalKnownHostsFile /dev/null\n\
             \tStrictHostKeyChecking yes\n"
        )
    }

    /// `xtask deploy` with these arguments, on the lab's *vm*. The first may be what to do.
    pub fn deploy_command(&self, lab: &Lab, args: &[&str]) -> Result<Command> {
        let mut command = deploy(lab)?;
        command.args(args);
        if !args.contains(&"--ssh-config") {
            command.arg("--ssh-config").arg(self.ssh_config());
        }
        Ok(command)
    }

    /// Runs `xtask deploy` to its end.
    pub fn deploy(&self, lab: &Lab, args: &[&str]) -> Result<Output> {
        command::output(&mut self.deploy_command(lab, args)?)
    }

    /// Runs `xtask dist` on a binary. Returns what it says of the package.
    pub fn dist(&self, binary: &Path, version: &str) -> Result<String> {
        let mut command = Command::new(xtask()?);
        command::run(command.args(["dist", "--version", version, "--binary"]).arg(binary))
    }

    /// A command on the machine, as root.
    pub(crate) fn command(&self, lab: &Lab, program: &str) -> Result<Command> {
        let mut nsenter = lab.hosts.router(self.number).command("nsenter")?;
        nsenter.args(enter(self.pid())).arg(program);
        Ok(nsenter)
    }

    /// Runs a script of sh on the machine, as root. Returns its output.
    pub fn run(&self, lab: &Lab, script: &str) -> Result<String> {
        command::run(self.command(lab, "sh")?.args(["-c", script]))
    }

    /// Puts a program of the machine in the place of another one; it is found before the real one.
    pub fn stand_in(&self, name: &str, script: &str) -> Result<()> {
        let path = self.path("/usr/local/bin").join(name);
        let made = fs::write(&path, format!("#!/bin/sh\n{script}\n"));
        made.and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The id of the daemon that the target's service runs, if one does.
    pub fn daemon(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.path("/run/stand-in/pid")).ok()?.trim().parse().ok()?;
        // The link of one that has ended leads nowhere.
        fs::read_link(format!("/proc/{pid}/exe")).is_ok().then_some(pid)
    }

    /// Lets the [`OPERATOR`] use sudo without a password, if there is a sudo.
    pub fn allow_sudo(&self) -> Result<()> {
        let path = self.path("/etc/sudoers.d/azureuser");
        fs::write(&path, format!("{OPERATOR} ALL=(ALL) NOPASSWD: ALL\n"))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// While the target is on hold, its service does not start: the start waits.
    pub fn hold(&self, hold: bool) -> Result<()> {
        let path = self.path("/run/stand-in/hold");
        if hold { fs::write(&path, "") } else { fs::remove_file(&path) }
            .with_context(|| format!("cannot change {}", path.display()))
    }

    /// All that a deploy may change, and the daemon: what two looks have in common has not changed.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut files = Vec::new();
        for folder in ["/usr/bin", "/etc/pls-router", "/etc/systemd/system", "/tmp", KEPT] {
            let Ok(entries) = fs::read_dir(self.path(folder)) else { continue };
            for entry in entries {
                let entry = entry.with_context(|| format!("cannot read {folder}"))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                // Of /usr/bin only ours; and that a unit was enabled once leaves an empty
                // directory.
                if folder == "/usr/bin" && !name.starts_with("pls-router") || name.ends_with(".wants") {
                    continue;
                }
                let path = entry.path();
                let metadata =
                    entry.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
                let content = if metadata.is_file() {
                    command::run(Command::new("sha256sum").arg("-b").arg(&path))?
                        .split(' ')
                        .next()
                        .unwrap_or_default()
                        .to_owned()
                } else {
                    String::new()
                };
                let mode = format!("{:o}", metadata.permissions().mode() & 0o7777);
                files.push((format!("{folder}/{name}"), mode, content));
            }
        }
        files.sort();
        Ok(Snapshot { files, daemon: self.daemon() })
    }
}

/// The program of `cargo xtask`: the one that runs this process, else the one beside it.
pub fn xtask() -> Result<PathBuf> {
    let xtask = match std::env::var_os(XTASK_VARIABLE) {
        Some(xtask) => xtask.into(),
        None => beside(&std::env::current_exe().context("cannot tell which binary this is")?, "xtask"),
    };
    ensure!(xtask.is_file(), "there is no {}; `cargo build -p xtask` makes it", xtask.display());
    Ok(xtask)
}

/// `xtask deploy`, on a lab's *vm*.
pub(crate) fn deploy(lab: &Lab) -> Result<Command> {
    let mut command = lab.hosts.vm.command(xtask()?)?;
    command.env("TMPDIR", lab.state().path("tmp")).arg("deploy");
    Ok(command)
}

/// Copies a program without its symbols: less to copy over and over.
pub fn strip(binary: &Path, to: &Path) -> Result<()> {
    command::run(Command::new("strip").arg("-o").arg(to).arg(binary)).map(drop)
}

/// The arguments of nsenter that lead into the machine of a process.
pub fn enter(pid: u32) -> [String; 4] {
    ["--mount".to_owned(), "--target".to_owned(), pid.to_string(), "--wd=/".to_owned()]
}

/// The files on a target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Snapshot {
    /// Path, permissions and checksum of what a deploy may change, and everything in `/tmp`.
    pub files: Vec<(String, String, String)>,
    /// The daemon's id.
    pub daemon: Option<u32>,
}

/// Makes a key pair. Returns the public half.
pub(crate) fn key(path: &Path) -> Result<String> {
    let mut keygen = Command::new("ssh-keygen");
    command::run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"]).arg(path))?;
    let public = path.with_extension("pub");
    fs::read_to_string(&public).with_context(|| format!("cannot read {}", public.display()))
}

fn sshd_config(address: Ipv4Addr) -> String {
    format!(
        "Port {SSHD_PORT}\n\
         ListenAddress {address}\n\
         HostKey /run/target/host_key\n\
         AuthorizedKeysFile /run/target/authorized_keys\n\
         PermitRootLogin prohibit-password\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         UsePAM no\n\
         PidFile none\n\
         # Greets as many do, in the way of whoever parses.\n\
         Banner /run/target/sshd_config\n"
    )
}

fn ssh_config(address: Ipv4Addr, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "Host target {OPERATOR} stranger impostor locked-out closed\n\
         \tHostName {address}\n\
         Host closed\n\
         \tPort 2223\n\
         Host impostor\n\
         \tUserKnownHostsFile {directory}/changed_hosts\n\
         Host nowhere\n\
         \tHostName 10.0.2.126\n\
         Host {OPERATOR}\n\
         \tUser {OPERATOR}\n\
         Host stranger\n\
         \tUserKnownHostsFile /dev/null\n\
         Host locked-out\n\
         \tIdentityFile {directory}/other_key\n\
         Host * !locked-out\n\
         \tIdentityFile {directory}/user_key\n\
         Host *\n\
         \tPort {SSHD_PORT}\n\
         \tUser root\n\
         \tIdentitiesOnly yes\n\
         \tUserKnownHostsFile {directory}/known_hosts\n\
         \tGlobalKnownHostsFile /dev/null\n\
         \tStrictHostKeyChecking ask\n"
    )
}
