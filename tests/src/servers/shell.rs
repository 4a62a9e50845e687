//! A real sshd, and how to reach it through the router.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    Lab, Process,
    addresses::{ENDPOINT, TOOLS},
    command,
    hosts::internet::START_LIMIT,
    target,
};

/// Gives sshd a `/run` in memory, which it wants a directory in; the machine's stays as it is.
/// $1: an empty directory. $2: a directory with sshd's files.
const START: &str = r#"
set -eu
mount -t tmpfs -o mode=0755 shell "$1"
mkdir "$1/sshd" "$1/shell"
cp "$2"/* "$1/shell/"
mount --bind "$1" /run
chmod 600 /run/shell/host_key
exec /usr/sbin/sshd -D -e -f /run/shell/sshd_config
"#;

/// An sshd on *internet*, at [`Shell::PORT`] of [`TOOLS`]. It goes away with the lab.
#[derive(Debug)]
pub struct Shell {
    _sshd: Process,
    config: PathBuf,
}

impl Shell {
    /// Its port.
    pub const PORT: u16 = 22;

    /// The name that [`Shell::config`] has for it.
    pub const HOST: &str = "tools";

    /// A directory on the server that clients may write to.
    pub const DIRECTORY: &str = "/run/shell";

    /// Starts it, and writes a configuration for clients on *serverless* whose way to it is this
    /// port of the endpoint.
    pub fn start(lab: &Lab, endpoint_port: u16) -> Result<Self> {
        let state = lab.state();
        let directory = state.directory("shell")?;
        let memory = state.directory("shell/memory")?;
        let files = state.directory("shell/files")?;
        let host_key = target::key(&files.join("host_key"))?;
        let user_key = target::key(&directory.join("user_key"))?;
        state.write("shell/files/authorized_keys", &user_key)?;
        state.write("shell/files/sshd_config", sshd_config())?;
        state.write("shell/known_hosts", format!("[{ENDPOINT}]:{endpoint_port} {host_key}"))?;
        let config = state.write("shell/ssh_config", ssh_config(&directory, endpoint_port))?;

        command::require("openssh-server")?;
        let mut sshd = lab.hosts.internet.command("sh")?;
        sshd.args(["-c", START, "sh"]).arg(memory).arg(files);
        let mut sshd = Process::spawn(state, "shell-sshd", sshd)?;
        sshd.wait_until(START_LIMIT, || lab.hosts.internet.listens_tcp(Self::PORT))?;
        Ok(Self { _sshd: sshd, config })
    }

    /// The configuration for ssh and scp (`-F`), which knows [`Shell::HOST`].
    pub fn config(&self) -> &Path {
        &self.config
    }
}

fn sshd_config() -> String {
    format!(
        "ListenAddress {TOOLS}:{}\n\
         HostKey /run/shell/host_key\n\
         AuthorizedKeysFile /run/shell/authorized_keys\n\
         PermitRootLogin prohibit-password\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         UsePAM no\n\
         UseDNS no\n\
         PidFile none\n\
         Subsystem sftp internal-sftp\n",
        Shell::PORT
    )
}

fn ssh_config(directory: &Path, port: u16) -> String {
    let directory = directory.display();
    format!(
        "Host {}\n\
         \tHostName {ENDPOINT}\n\
         \tPort {port}\n\
         \tUser root\n\
         \tIdentityFile {directory}/user_key\n\
         \tIdentitiesOnly yes\n\
         \tBatchMode yes\n\
         \tConnectTimeout 5\n\
         \tUserKnownHostsFile {directory}/known_hosts\n\
         \tGlobalKnownHostsFile /dev/null\n",
        Shell::HOST
    )
}
