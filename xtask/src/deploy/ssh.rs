//! ssh: how it is called, and what its failures mean.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};

use crate::system;

/// ssh's exit status if ssh itself has failed, and not the remote command.
pub(super) const FAILED: i32 = 255;

/// The way in which commands become root.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Root {
    /// The user who logs in is root.
    Login,
    /// By `sudo -n`.
    Sudo,
}

/// ssh, and what it is told for every connection.
#[derive(Clone, Debug)]
pub(super) struct Ssh {
    program: PathBuf,
    config: Option<PathBuf>,
}

impl Ssh {
    /// The ssh of this machine, with the user's configuration or this one instead.
    pub(super) fn find(config: Option<&Path>) -> Result<Self> {
        let program = system::find_program("ssh").context(
            "there is no ssh on this machine\n  fix: install it (Debian and Ubuntu: apt-get install openssh-client)",
        )?;
        if let Some(config) = config {
            File::open(config)
                .with_context(|| format!("cannot read the ssh configuration {}", config.display()))?;
        }
        Ok(Self { program, config: config.map(Path::to_path_buf) })
    }

    /// An ssh that never prompts, never waits without a limit, and ignores the user's settings for
    /// interactive sessions with this host.
    pub(super) fn command(&self, control: &Path) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(config) = &self.config {
            command.arg("-F").arg(config);
        }
        command.arg("-T").arg("-S").arg(control);
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=10",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "ClearAllForwardings=yes",
            "ForwardAgent=no",
            "ForwardX11=no",
            "PermitLocalCommand=no",
            "RemoteCommand=none",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        command
    }

    /// Returns the command by which a person can try the connection.
    fn by_hand(&self, host: &str) -> String {
        let config = self.config.as_ref().map(|config| format!("-F {} ", config.display()));
        format!("ssh {}{host} true", config.unwrap_or_default())
    }
}

/// The command line for the remote login shell, whichever that is: a script for sh, and its
/// arguments.
pub(super) fn shell_command(root: Option<Root>, script: &str, args: &[&str]) -> OsString {
    let mut line = match root {
        Some(Root::Sudo) => "sudo -n sh -c ".to_owned(),
        Some(Root::Login) | None => "sh -c ".to_owned(),
    };
    line.push_str(&quote(script));
    line.push_str(" sh");
    for arg in args {
        line.push(' ');
        line.push_str(&quote(arg));
    }
    line.into()
}

/// A word that every shell takes as it is.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Why ssh failed, and what to do, from what it said.
pub(super) fn failure(ssh: &Ssh, host: &str, said: &str) -> anyhow::Error {
    let by_hand = ssh.by_hand(host);
    // ssh's own message comes last, after a server's banner.
    let why = said.trim().lines().last().unwrap_or("ssh failed without a word").trim().to_owned();
    let has = |text: &str| said.contains(text);
    let (what, fix) = if has("REMOTE HOST IDENTIFICATION HAS CHANGED") {
        (
            "its host key is not the one that is known",
            format!(
                "find out why before anything else. If the machine was made anew: ssh-keygen -R {}, then `{by_hand}` \
                 once, comparing the fingerprint",
                host.rsplit('@').next().unwrap_or(host)
            ),
        )
    } else if has("Host key verification failed") {
        ("its host key is not known here", format!("run `{by_hand}` once, and compare the fingerprint"))
    } else if has("Permission denied") || has("Too many authentication failures") {
        (
            "it does not let us in",
            format!(
                "`{by_hand}` has to work without a password: load the key (ssh-add), install it (ssh-copy-id {host}), or name the user (USER@HOST)"
            ),
        )
    } else if has("Could not resolve hostname") {
        ("there is no such host", "check the name, and `Host` in the ssh configuration".to_owned())
    } else if ["timed out", "No route to host", "unreachable", "Connection refused"]
        .iter()
        .any(|text| has(text))
    {
        (
            "it cannot be reached",
            "check that it is up, that it runs sshd, and that routes, network security groups and firewalls let \
             this machine in"
                .to_owned(),
        )
    } else {
        ("the connection failed", format!("make `{by_hand}` work first"))
    };
    anyhow!("{host}: {what}: {why}\n  fix: {fix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh() -> Ssh {
        Ssh { program: "ssh".into(), config: Some("my config".into()) }
    }

    #[test]
    fn words_reach_the_remote_script_as_they_are() {
        let line = shell_command(None, "printf '%s|' \"$@\"", &["a b", "it's", "$HOME", "", "*\n\\"]);
        let output = Command::new("sh").arg("-c").arg(line).output().expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|it's|$HOME||*\n\\|");
        assert!(shell_command(Some(Root::Sudo), "x", &[]).to_string_lossy().starts_with("sudo -n sh -c 'x'"));
    }

    #[test]
    fn failures_of_ssh_come_with_what_to_do() {
        let cases = [
            (
                "ssh: Could not resolve hostname x: Name or service not known",
                "no such host",
                "check the name",
            ),
            (
                "ssh: connect to host x port 22: Connection timed out",
                "cannot be reached",
                "network security groups",
            ),
            ("ssh: connect to host x port 22: Connection refused", "cannot be reached", "runs sshd"),
            ("Host key verification failed.", "not known here", "compare the fingerprint"),
            (
                "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
                "not the one",
                "ssh-keygen -R x,",
            ),
            (
                "Welcome\nme@x: Permission denied (publickey).",
                "me@x: Permission denied (publickey)",
                "ssh-add",
            ),
            (
                "kex_exchange_identification: Connection closed by remote host",
                "Connection closed",
                "work first",
            ),
            ("", "without a word", "work first"),
        ];
        for (said, what, fix) in cases {
            let error = failure(&ssh(), "me@x", said).to_string();
            assert!(error.starts_with("me@x: ") && error.contains(what), "{error}");
            let (_, advice) = error.split_once("\n  fix: ").expect("a line with what to do");
            assert!(advice.contains(fix), "{error}");
        }
    }
}
