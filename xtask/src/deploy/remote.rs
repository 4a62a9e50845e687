//! A machine at the other end of ssh: running scripts there, and copying files to it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::system;

/// ssh's exit status if ssh itself has failed, and not the remote command.
const SSH_FAILED: i32 = 255;

/// See there.
const CONNECT: &str = include_str!("connect.sh");

/// The prefix of [`CONNECT`]'s lines: shells may greet with other lines.
const MARK: &str = "pls-router-deploy ";

/// The way in which commands become root.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Root {
    /// The user who logs in is root.
    Login,
    /// By `sudo -n`.
    Sudo,
}

/// The result of a script.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Output {
    /// All that it wrote, for showing.
    pub(super) fn text(&self) -> String {
        format!("{}\n{}", self.stdout.trim_end(), self.stderr.trim_end()).trim().to_owned()
    }
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
    fn command(&self, control: &Path) -> Command {
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

/// A connection: one ssh that the others go through. It ends with the value, or with this process.
#[derive(Debug)]
pub(super) struct Remote {
    host: String,
    ssh: Ssh,
    master: Child,
    /// The remote end of the master waits for the end of its input, and then cleans up.
    stdin: Option<ChildStdin>,
    private: PrivateDir,
    /// The name of the user, the kernel and the machine there, and the directory for what is
    /// copied.
    pub(super) user: String,
    pub(super) system: String,
    pub(super) machine: String,
    directory: String,
    root: Result<Root, String>,
}

impl Remote {
    /// Connects to what ssh takes as a host, and asks who and where we are. Nothing needs root yet.
    pub(super) fn connect(ssh: &Ssh, host: &str) -> Result<Self> {
        let private = PrivateDir::create()?;
        let control = private.path.join("control");
        let errors = private.path.join("errors");
        let mut command = ssh.command(&control);
        command.args(["-o", "ControlMaster=yes", "-o", "ControlPersist=no", "--", host]);
        command.arg(shell_command(None, CONNECT, &[]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(&errors).with_context(|| format!("cannot make {}", errors.display()))?);
        let mut master = command.spawn().context("cannot start ssh")?;
        let stdin = master.stdin.take();
        let mut facts = Vec::new();
        if let Some(stdout) = master.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                let line = line.context("lost ssh")?;
                let Some((key, value)) = line.strip_prefix(MARK).and_then(|fact| fact.split_once(' ')) else {
                    continue;
                };
                if key == "ready" {
                    break;
                }
                facts.push((key.to_owned(), value.to_owned()));
            }
        }
        let fact = |wanted: &str| {
            let found = facts.iter().find(|(key, _)| key == wanted);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let [user, system, machine, directory, root] =
            ["user", "system", "machine", "directory", "root"].map(fact);
        let root = match root.as_str() {
            "login" => Ok(Root::Login),
            "sudo" => Ok(Root::Sudo),
            other => Err(other.strip_prefix("no ").unwrap_or(other).to_owned()),
        };
        let connected = !facts.is_empty();
        let mut remote = Self {
            host: host.to_owned(),
            ssh: ssh.clone(),
            master,
            stdin,
            private,
            user,
            system,
            machine,
            directory,
            root,
        };
        if !connected {
            remote.stdin = None;
            // Its end tells which; a stuck one is not waited for, see `drop`.
            let _ended = remote.master.wait();
            let said = fs::read_to_string(&errors).unwrap_or_default();
            return Err(failure(ssh, host, &said));
        }
        ensure!(
            !remote.directory.is_empty(),
            "{host}: no directory there lets {} keep and run a program: /tmp, /var/tmp and the home directory do \
             not\n  fix: make room, or mount one of them without noexec",
            remote.user
        );
        Ok(remote)
    }

    /// The way in which commands become root there.
    pub(super) fn root(&self) -> Result<Root> {
        self.root.clone().map_err(|why| {
            anyhow!(
                "{host}: {user} is not root and may not become it: {why}\n  fix: log in as root, or let {user} use \
                 sudo without a password: echo '{user} ALL=(ALL) NOPASSWD: ALL' | sudo tee \
                 /etc/sudoers.d/pls-router-deploy",
                host = self.host,
                user = self.user,
            )
        })
    }

    /// The path of what was copied as `name`.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// The directory of what was copied.
    pub(super) fn directory(&self) -> &str {
        &self.directory
    }

    /// Copies a file into the directory for it, which goes away with the connection.
    ///
    /// Through ssh itself: `scp` needs the server's SFTP subsystem, which hardened servers disable,
    /// and has another syntax for hosts.
    pub(super) fn copy(&self, from: impl Into<Stdio>, name: &str) -> Result<()> {
        let path = self.path(name);
        let mut command = self.command(None, r#"umask 077; cat >"$1" && chmod 700 "$1""#, &[&path]);
        let output = self.output(command.stdin(from))?;
        ensure!(output.code == 0, "{}: cannot copy to {path}: {}", self.host, output.text());
        Ok(())
    }

    /// Runs a script of sh as root, to its end. That it fails is for the caller to judge; that the
    /// connection fails is an error.
    pub(super) fn run(&self, script: &str, args: &[&str]) -> Result<Output> {
        self.output(self.command(Some(self.root()?), script, args).stdin(Stdio::null()))
    }

    /// Runs a script of sh as root, hands each of its lines to `line`, and sends back what that
    /// returns. Gives the exit status.
    pub(super) fn converse(
        &self,
        script: &str,
        args: &[&str],
        mut line: impl FnMut(&str) -> Option<&'static str>,
    ) -> Result<i32> {
        // In one stream: what fails in the script is told between its own lines.
        let script = format!("exec 2>&1\n{script}");
        let mut command = self.command(Some(self.root()?), &script, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start ssh")?;
        let mut stdin = child.stdin.take();
        if let Some(stdout) = child.stdout.take() {
            for text in BufReader::new(stdout).lines() {
                let Ok(text) = text else { break };
                if let Some(answer) = line(&text)
                    && let Some(mut stdin) = stdin.take()
                {
                    // If the connection is gone, the exit status tells.
                    let _closed = writeln!(stdin, "{answer}");
                }
            }
        }
        let status = child.wait().context("lost ssh")?;
        Ok(status.code().unwrap_or(SSH_FAILED))
    }

    fn command(&self, root: Option<Root>, script: &str, args: &[&str]) -> Command {
        let mut command = self.ssh.command(&self.private.path.join("control"));
        command.args(["-o", "ControlMaster=no", "--", &self.host]).arg(shell_command(root, script, args));
        command
    }

    fn output(&self, command: &mut Command) -> Result<Output> {
        let output =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().context("cannot start ssh")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(SSH_FAILED);
        let output = Output { code, stdout: text(&output.stdout), stderr: text(&output.stderr) };
        if code == SSH_FAILED {
            bail!(failure(&self.ssh, &self.host, &output.stderr));
        }
        Ok(output)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // The end of its input lets the remote end clean up, and the master goes when that has
        // ended.
        self.stdin = None;
        let _ended = self.master.wait();
    }
}

/// A directory of our own on this machine, for the socket of the connection.
#[derive(Debug)]
struct PrivateDir {
    path: PathBuf,
}

impl PrivateDir {
    fn create() -> Result<Self> {
        let base = std::env::temp_dir();
        for number in 0..100 {
            let path = base.join(format!("pls-router-deploy-{}-{number}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                // Left by a process that was killed, or put there to be in the way.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", path.display())),
            }
        }
        bail!("cannot make a directory in {}: too many are there already", base.display())
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.path);
    }
}

/// The command line for the remote login shell, whichever that is: a script for sh, and its
/// arguments.
fn shell_command(root: Option<Root>, script: &str, args: &[&str]) -> OsString {
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
fn failure(ssh: &Ssh, host: &str, said: &str) -> anyhow::Error {
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

    #[test]
    fn private_directories_are_private_and_go_away() {
        use std::os::unix::fs::PermissionsExt as _;
        let (one, two) = (PrivateDir::create().unwrap(), PrivateDir::create().unwrap());
        assert_ne!(one.path, two.path);
        assert_eq!(one.path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let path = one.path.clone();
        drop(one);
        assert!(!path.exists());
    }
}
