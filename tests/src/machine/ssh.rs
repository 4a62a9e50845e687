//! The way into a machine: ssh from the lab's *vm*, as its operator would come.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{Lab, Namespace, addresses::ROUTER, command, target};

/// The user on the machine who is not root, and may use sudo.
pub const OPERATOR: &str = "azureuser";

/// Keys for a machine.
pub(super) struct Keys {
    /// The public key of who logs in.
    pub(super) user: String,
    /// The machine's own.
    pub(super) host_private: String,
    pub(super) host_public: String,
}

/// The way in.
#[derive(Debug)]
pub(super) struct Ssh {
    vm: Namespace,
    directory: PathBuf,
}

impl Ssh {
    /// Makes keys and a configuration.
    pub(super) fn prepare(lab: &Lab) -> Result<Self> {
        for package in ["openssh-client", "openssh-server"] {
            command::require(package)?;
        }
        let state = lab.state();
        let directory = state.directory("machine")?;
        target::key(&directory.join("user_key"))?;
        let host = target::key(&directory.join("host_key"))?;
        state.write("machine/known_hosts", format!("{ROUTER} {host}"))?;
        state.write("machine/ssh_config", configuration(&directory))?;
        Ok(Self { vm: Namespace::existing(lab.hosts.vm.name())?, directory })
    }

    pub(super) fn keys(&self) -> Result<Keys> {
        let read = |name: &str| {
            let path = self.directory.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Keys {
            user: read("user_key.pub")?.trim().to_owned(),
            host_private: read("host_key")?,
            host_public: read("host_key.pub")?.trim().to_owned(),
        })
    }

    pub(super) fn config(&self) -> PathBuf {
        self.directory.join("ssh_config")
    }

    pub(super) fn run(&self, shell: &str) -> Result<String> {
        let mut command = self.command("ssh")?;
        command::run(command.args(["machine", shell]))
    }

    pub(super) fn run_with_input(&self, shell: &str, input: &str) -> Result<String> {
        let mut command = self.command("ssh")?;
        command::run_with_input(command.args(["machine", shell]), input)
    }

    pub(super) fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let mut command = self.command("scp")?;
        command::run(command.arg("-qr").arg(from).arg(format!("machine:{to}"))).map(drop)
    }

    /// Forgets the connection that commands share: the other end is about to go.
    pub(super) fn forget(&self) {
        if let Ok(mut command) = self.command("ssh") {
            // There may be none.
            _ = command::output(command.args(["-O", "exit", "machine"]));
        }
    }

    /// A command that shares one connection with all others: to make one takes a second there.
    fn command(&self, program: &str) -> Result<std::process::Command> {
        let mut command = self.vm.command(program)?;
        command.arg("-F").arg(self.config());
        command.args(["-o", "ControlMaster=auto", "-o", "ControlPersist=300", "-o"]);
        command.arg(format!("ControlPath={}", self.directory.join("ssh").display()));
        Ok(command)
    }
}

fn configuration(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "Host machine {OPERATOR}\n\
         \tHostName {ROUTER}\n\
         Host {OPERATOR}\n\
         \tUser {OPERATOR}\n\
         Host *\n\
         \tUser root\n\
         \tIdentityFile {directory}/user_key\n\
         \tIdentitiesOnly yes\n\
         \tBatchMode yes\n\
         \tConnectTimeout 10\n\
         \tServerAliveInterval 5\n\
         \tUserKnownHostsFile {directory}/known_hosts\n\
         \tGlobalKnownHostsFile /dev/null\n\
         \tStrictHostKeyChecking yes\n"
    )
}
