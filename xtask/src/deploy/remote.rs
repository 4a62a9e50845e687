//! A machine at the other end of ssh: running scripts there, and copying files to it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

use super::report::Story;
use super::scripts;
use super::ssh::{self, Root, Ssh, shell_command};

/// The prefix of [`scripts::CONNECT`]'s lines: shells may greet with other lines.
const MARK: &str = "pls-router-deploy ";

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

/// The first answer of a machine, about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Machine {
    pub(super) user: String,
    /// `uname -s`, `-m` and `-r`.
    pub(super) system: String,
    pub(super) architecture: String,
    pub(super) kernel: String,
    /// Its time, in seconds since 1970.
    pub(super) time: Option<u64>,
    /// `true` if it has dpkg.
    pub(super) dpkg: bool,
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
    pub(super) machine: Machine,
    /// The directory for what is copied.
    directory: String,
    root: Result<Root, String>,
}

impl Remote {
    /// Connects to what ssh takes as a host, and asks who and where we are. Nothing needs root yet.
    /// Makes a directory for that many bytes.
    pub(super) fn connect(ssh: &Ssh, host: &str, bytes: u64) -> Result<Self> {
        let private = PrivateDir::create()?;
        let control = private.path.join("control");
        let errors = private.path.join("errors");
        let mut command = ssh.command(&control);
        command.args(["-o", "ControlMaster=yes", "-o", "ControlPersist=no", "--", host]);
        let needed = (bytes / 1024 + 1024).to_string();
        command.arg(shell_command(None, scripts::CONNECT, &[&needed]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(&errors).with_context(|| format!("cannot make {}", errors.display()))?);
        let mut master = command.spawn().context("cannot start ssh")?;
        let stdin = master.stdin.take();
        let facts = master.stdout.take().map(greeting).transpose()?.unwrap_or_default();
        let fact = |wanted: &str| {
            let found = facts.iter().find(|(key, _)| key == wanted);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let root = match fact("root").as_str() {
            "login" => Ok(Root::Login),
            "sudo" => Ok(Root::Sudo),
            other => Err(other.strip_prefix("no ").unwrap_or(other).to_owned()),
        };
        let machine = Machine {
            user: fact("user"),
            system: fact("system"),
            architecture: fact("machine"),
            kernel: fact("kernel"),
            time: fact("time").parse().ok(),
            dpkg: fact("dpkg") == "yes",
        };
        let directory = fact("directory");
        let mut remote = Self {
            host: host.to_owned(),
            ssh: ssh.clone(),
            master,
            stdin,
            private,
            machine,
            directory,
            root,
        };
        if facts.is_empty() {
            remote.stdin = None;
            // Its end tells which; a stuck one is not waited for, see `drop`.
            let _ended = remote.master.wait();
            let said = fs::read_to_string(&errors).unwrap_or_default();
            return Err(ssh::failure(ssh, host, &said));
        }
        if remote.directory.is_empty() {
            let refused = facts.iter().filter(|(key, _)| key == "refused");
            let refused: Vec<_> = refused.map(|(_, why)| format!("\n  - {why}")).collect();
            bail!(
                "{host}: no directory there lets {} keep and run a program:{}\n  fix: make room in one of them, or \
                 mount it without noexec",
                remote.machine.user,
                refused.concat()
            );
        }
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
                user = self.machine.user,
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
    pub(super) fn copy(&self, from: &Path, name: &str, story: Story<'_>) -> Result<()> {
        let mut file = open(from)?;
        let total = file.metadata().map_or(0, |metadata| metadata.len());
        let path = self.path(name);
        let script = r#"umask 077; mkdir -p "${1%/*}" && cat >"$1" && chmod 700 "$1""#;
        let mut command = self.command(None, script, &[&path]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start ssh")?;
        if let Some(mut stdin) = child.stdin.take() {
            let mut progress = story.progress("copying", total);
            let mut buffer = vec![0; 256 * 1024];
            loop {
                let read =
                    file.read(&mut buffer).with_context(|| format!("cannot read {}", from.display()))?;
                // If the other end takes no more, its exit status and words tell why.
                if read == 0 || stdin.write_all(&buffer[..read]).is_err() {
                    break;
                }
                progress.advance(read as u64);
            }
        }
        let output = self.judge(&child.wait_with_output().context("lost ssh")?)?;
        if output.code != 0 {
            let text = output.text();
            let fix = if text.contains("No space left") { "\n  fix: make room there" } else { "" };
            bail!("{}: cannot copy {} to {path}: {text}{fix}", self.host, from.display());
        }
        Ok(())
    }

    /// Runs a script of sh as the user who logged in, to its end. Its failure is the caller's.
    pub(super) fn run_as_user(&self, script: &str, args: &[&str]) -> Result<Output> {
        self.output(self.command(None, script, args).stdin(Stdio::null()))
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
                    && let Some(stdin) = &mut stdin
                {
                    // If the connection is gone, the exit status tells.
                    let _closed = writeln!(stdin, "{answer}");
                }
            }
        }
        let status = child.wait().context("lost ssh")?;
        Ok(status.code().unwrap_or(ssh::FAILED))
    }

    fn command(&self, root: Option<Root>, script: &str, args: &[&str]) -> Command {
        let mut command = self.ssh.command(&self.private.path.join("control"));
        command.args(["-o", "ControlMaster=no", "--", &self.host]).arg(shell_command(root, script, args));
        command
    }

    fn output(&self, command: &mut Command) -> Result<Output> {
        let output =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().context("cannot start ssh")?;
        self.judge(&output)
    }

    /// The result of a script, or the reason why ssh failed.
    fn judge(&self, output: &std::process::Output) -> Result<Output> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(ssh::FAILED);
        let output = Output { code, stdout: text(&output.stdout), stderr: text(&output.stderr) };
        if code == ssh::FAILED {
            bail!(ssh::failure(&self.ssh, &self.host, &output.stderr));
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

/// Reads what [`scripts::CONNECT`] says, up to its end.
fn greeting(stdout: impl std::io::Read) -> Result<Vec<(String, String)>> {
    let mut facts = Vec::new();
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
    Ok(facts)
}

/// Opens a file of this machine.
pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
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

#[cfg(test)]
mod tests {
    use super::*;

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
