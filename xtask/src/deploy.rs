//! `cargo xtask deploy`: the router on machines that ssh reaches, with a way back.

mod remote;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::verb::Verb;
use crate::{program, system, toolchain, workspace};
use remote::{Output, Remote, Root, Ssh};

pub(crate) const VERB: Verb = Verb {
    name: "deploy",
    about: "install or upgrade the router over ssh, with a rollback if it fails",
    help: Some(HELP),
    run,
};

const HELP: &str = "\
Builds pls-router, installs it on each HOST over ssh, starts it, and waits until its health probe answers 200.
If the probe does not, the previous version is put back and the reasons are printed.

usage: cargo xtask deploy HOST... [--config FILE] [--drain DURATION] [--dry-run]

  HOST                 a host for ssh: an address, user@address, or a name of your ssh configuration
  --config FILE        install this configuration (default: keep the one on the machine);
                       deploy/config.toml is a commented sample
  --dry-run            connect, check and show what would be done, and change nothing
  --drain DURATION     before the restart, have the load balancer send no new connections, and wait until
                       the sessions have ended, at most for this time, such as 90s or 10m
  --restart            restart even if everything is installed already and the probe answers 200
  --timeout SECONDS    the limit until the probe answers 200 (30)
  --binary FILE        install this pls-router instead of building one
  --ssh-config FILE    give ssh this configuration in place of yours (`ssh -F`)

Hosts are done in turn, up to the first failure: the ones after it are not changed.

On each host, in this order:
  1. connect with your ssh configuration and agent, without prompts; sudo if the user is not root
  2. copy binary, configuration and unit to a temporary directory; run `pls-router check` there
  3. install, and keep the previous files as *.previous:
       /usr/bin/pls-router
       /etc/pls-router/config.toml
       /etc/systemd/system/pls-router.service
  4. drain, if wanted; enable and restart pls-router.service, and wait until the probe answers 200

Up to the end of step 2 nothing is changed. The host itself undoes steps 3 and 4, even if the connection breaks:
the new version stays only if it is healthy and this machine has confirmed it.
No session is lost: the programs go on forwarding in the kernel from the end of one daemon to the start of the next,
also if the new version does not start, and systemd keeps the probe's socket meanwhile.

The host needs a login without a password (key or agent), Linux 6.1 with systemd, and either a login as root or sudo without
a password. Exit codes: 0 all hosts done; 1 a host failed; 2 wrong usage.

Examples:
  cargo xtask deploy azureuser@10.0.2.68 --config router.toml --dry-run
  cargo xtask deploy azureuser@10.0.2.68 --config router.toml
  cargo xtask deploy router-1 router-2            upgrade both, with the configurations they have
";

/// The files to install: the name in the directory for copies, the path on the target, and the name
/// in the output of [`LOOK`].
const FILES: [(&str, &str, &str); 3] = [
    (BINARY, "/usr/bin/pls-router", "binary"),
    (CONFIG, "/etc/pls-router/config.toml", "config"),
    (UNIT, "/etc/systemd/system/pls-router.service", "unit"),
];
const BINARY: &str = "pls-router";
const CONFIG: &str = "config.toml";
const UNIT: &str = "pls-router.service";

/// The path of the configuration on a machine.
const INSTALLED_CONFIG: &str = "/etc/pls-router/config.toml";

/// See there.
const LOOK: &str = include_str!("deploy/look.sh");
const SWITCH: &str = include_str!("deploy/switch.sh");

/// The number of seconds that a machine may need to notice that the connection is gone and to put
/// the previous version back.
const PUT_BACK: u32 = 120;

/// Shows what changes in the configuration; that there is no `diff` is no reason to fail.
const DIFF: &str = r#"command -v diff >/dev/null || exit 0; diff -u --label installed --label new "$2" "$1""#;

#[derive(Debug, PartialEq)]
struct Options {
    hosts: Vec<String>,
    config: Option<PathBuf>,
    binary: Option<PathBuf>,
    ssh_config: Option<PathBuf>,
    timeout: u32,
    /// For how long to drain before the restart.
    drain: Option<String>,
    dry_run: bool,
    restart: bool,
}

fn parse(arguments: &[OsString]) -> Result<Options, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options {
        hosts: Vec::new(),
        config: None,
        binary: None,
        ssh_config: None,
        timeout: 30,
        drain: None,
        dry_run: false,
        restart: false,
    };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") => options.config = Some(parser.value()?.into()),
            Long("binary") => options.binary = Some(parser.value()?.into()),
            Long("ssh-config") => options.ssh_config = Some(parser.value()?.into()),
            Long("timeout") => options.timeout = parser.value()?.parse_with(seconds)?,
            Long("drain") => options.drain = Some(parser.value()?.parse_with(duration)?),
            Long("dry-run") => options.dry_run = true,
            Long("restart") => options.restart = true,
            Value(host) => options.hosts.push(host.parse_with(hostname)?),
            Short(_) | Long(_) => return Err(argument.unexpected()),
        }
    }
    if options.hosts.is_empty() {
        return Err(
            "which HOST? For example: cargo xtask deploy azureuser@10.0.2.68 --config router.toml".into()
        );
    }
    Ok(options)
}

fn seconds(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=3600).contains(number));
    number.ok_or_else(|| "--timeout takes 1 to 3600 seconds".to_owned())
}

/// A time that `pls-router drain --wait` takes; it says itself what is wrong with one.
fn duration(text: &str) -> Result<String, String> {
    let is_word = text.starts_with(|first: char| first.is_ascii_digit())
        && text.chars().all(|one| one.is_ascii_alphanumeric());
    if is_word { Ok(text.to_owned()) } else { Err("--drain takes a time such as 90s or 10m".to_owned()) }
}

fn hostname(text: &str) -> Result<String, String> {
    // ssh would take the first for an option.
    if text.is_empty() || text.starts_with('-') || text.contains(char::is_whitespace) {
        return Err("a HOST is what ssh takes: an address, user@address or a name".to_owned());
    }
    Ok(text.to_owned())
}

/// The files to install on every target.
struct Release {
    binary: PathBuf,
    machine: String,
    unit: PathBuf,
}

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let options = parse(arguments)?;
    // All that can go wrong on this machine does so before any other is asked.
    let ssh = Ssh::find(options.ssh_config.as_deref())?;
    if let Some(config) = &options.config {
        open(config)?;
    }
    let unit = workspace::root().join("deploy").join(UNIT);
    open(&unit)?;
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => build()?,
    };
    let machine = program::machine(&binary)?;
    let release = Release { binary, machine, unit };

    for (index, host) in options.hosts.iter().enumerate() {
        println!("{host}");
        if let Err(error) = deploy(&options, &ssh, &release, host) {
            eprintln!("error: {error:#}");
            summary(&options.hosts, index, options.dry_run);
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}

fn build() -> Result<PathBuf> {
    toolchain::bpf()?;
    let mut build = workspace::cargo("build");
    build.args(["--release", "--package", "router-user", "--bin", BINARY]);
    system::run(&mut build)?;
    Ok(workspace::target_dir().join("release").join(BINARY))
}

/// Says after a failure which of several hosts are in which state.
fn summary(hosts: &[String], failed: usize, dry_run: bool) {
    if hosts.len() < 2 {
        return;
    }
    let done = if dry_run { "would be done" } else { "done" };
    for (index, host) in hosts.iter().enumerate() {
        let state = match index.cmp(&failed) {
            std::cmp::Ordering::Less => done,
            std::cmp::Ordering::Equal => "FAILED, see above",
            std::cmp::Ordering::Greater => "not touched",
        };
        eprintln!("  {host}: {state}");
    }
}

/// One line of the story of a host.
fn tell(what: &str, text: &str) {
    let mut heading = what;
    for line in text.lines() {
        println!("{}", format!("  {heading:<12}{line}").trim_end());
        heading = "";
    }
}

fn deploy(options: &Options, ssh: &Ssh, release: &Release, host: &str) -> Result<()> {
    let remote = Remote::connect(ssh, host)?;
    ensure!(remote.system == "Linux", "{host}: pls-router runs on Linux, and this is {}", remote.system);
    ensure!(
        remote.machine == release.machine,
        "{host}: this machine is {}, and {} is for {}\n  fix: build on a {0} machine, and name what came out with \
         --binary FILE",
        remote.machine,
        release.binary.display(),
        release.machine
    );
    let root = match remote.root()? {
        Root::Login => "as root".to_owned(),
        Root::Sudo => format!("as {}, with sudo", remote.user),
    };
    tell("connected", &format!("{root}; {}", remote.machine));

    remote.copy(open(&release.binary)?, BINARY)?;
    remote.copy(open(&release.unit)?, UNIT)?;
    if let Some(config) = &options.config {
        remote.copy(open(config)?, CONFIG)?;
    }
    let version = version(&remote, host)?;
    let facts = Facts::of(&remote.run(LOOK, &[remote.directory()])?, host)?;
    facts.suffice(host)?;
    check(&remote, host, options.config.as_deref())?;
    plan(&remote, &facts, &version, options.drain.as_deref())?;

    if options.dry_run {
        tell("dry run", "nothing was changed");
        return Ok(());
    }
    if facts.is_done() && !options.restart {
        tell(
            "done",
            "all of this is installed already, and the probe answers 200 (--restart restarts it anyway)",
        );
        return Ok(());
    }
    switch(&remote, host, options.timeout, options.drain.as_deref())
}

/// Runs the new binary for the first time, which tells whether the machine has the libraries for
/// it.
fn version(remote: &Remote, host: &str) -> Result<String> {
    let output = remote.run(r#""$1" --version"#, &[&remote.path(BINARY)])?;
    let text = output.text();
    if output.code == 0 {
        return Ok(text);
    }
    let fix = if text.contains("GLIBC") {
        "its C library is older than that of the machine that built it: build on a machine as old as the target, \
         and name what came out with --binary FILE"
    } else {
        "name a pls-router for this machine with --binary FILE"
    };
    bail!("{host}: the new pls-router does not run there, and nothing was changed: {text}\n  fix: {fix}")
}

/// The state of a target, from the output of [`LOOK`].
#[derive(Debug)]
struct Facts(Vec<(String, String)>);

impl Facts {
    fn of(output: &Output, host: &str) -> Result<Self> {
        ensure!(output.code == 0, "{host}: cannot see what is installed: {}", output.text());
        let fact = |line: &str| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.to_owned()))
        };
        Ok(Self(output.stdout.lines().filter_map(fact).collect()))
    }

    fn get(&self, wanted: &str) -> &str {
        self.0.iter().find(|(key, _)| key == wanted).map_or("", |(_, value)| value)
    }

    /// Returns an error unless the machine has all that a deployment needs.
    fn suffice(&self, host: &str) -> Result<()> {
        ensure!(
            self.get("systemd") == "yes",
            "{host}: systemd does not run there, and deploy installs a service of systemd"
        );
        let lacks: Vec<_> =
            self.0.iter().filter(|(key, _)| key == "lacks").map(|(_, tool)| tool.as_str()).collect();
        ensure!(
            lacks.is_empty(),
            "{host}: there is no {}\n  fix: install coreutils and util-linux there",
            lacks.join(" and no ")
        );
        ensure!(
            self.get("config") != "missing",
            "{host}: there is no {INSTALLED_CONFIG} yet, and none was given\n  fix: copy deploy/config.toml, edit \
             it for this machine, and give it with --config FILE"
        );
        Ok(())
    }

    /// Returns `true` if there is nothing to do.
    fn is_done(&self) -> bool {
        FILES.iter().all(|(_, _, kind)| matches!(self.get(kind), "same" | "keep"))
            && self.get("active") == "active"
            && self.get("healthy") == "yes"
    }
}

/// `pls-router check` with the new binary, and the configuration that it will have.
fn check(remote: &Remote, host: &str, config: Option<&Path>) -> Result<()> {
    let copied = remote.path(CONFIG);
    let path = if config.is_some() { copied.as_str() } else { INSTALLED_CONFIG };
    let output = remote.run(r#"NO_COLOR=1 "$1" check --config "$2""#, &[&remote.path(BINARY), path])?;
    // People know the file by the name that it has here.
    let shown = config.map_or_else(|| INSTALLED_CONFIG.into(), |config| config.display().to_string());
    let text = output.text().replace(path, &shown);
    ensure!(output.code == 0, "{host}: the check fails there, so that nothing was changed\n{text}");
    tell("check", &text);
    Ok(())
}

fn plan(remote: &Remote, facts: &Facts, version: &str, drain: Option<&str>) -> Result<()> {
    for (_, path, kind) in FILES {
        let line = match facts.get(kind) {
            "new" => format!("install  {path}"),
            "replace" => format!("replace  {path}"),
            "same" => format!("keep     {path} (the same)"),
            _ => format!("keep     {path}"),
        };
        let versions = match (kind, facts.get("installed")) {
            ("binary", "") => format!(": {version}"),
            ("binary", installed) if installed == version => format!(": {version}"),
            ("binary", installed) => format!(": {installed} -> {version}"),
            _ => String::new(),
        };
        tell(if kind == "binary" { "plan" } else { "" }, &format!("{line}{versions}"));
    }
    if facts.get("config") == "replace" {
        let diff = remote.run(DIFF, &[&remote.path(CONFIG), INSTALLED_CONFIG])?;
        for line in diff.stdout.lines() {
            tell("", &format!("           {line}"));
        }
    }
    let running = matches!(facts.get("active"), "active" | "activating" | "reloading");
    if !running {
        tell("", "enable and start pls-router.service");
        return Ok(());
    }
    let sessions = match facts.get("sessions") {
        "" => String::new(),
        sessions => format!("; now {sessions}"),
    };
    if let Some(drain) = drain {
        tell("", &format!("drain for up to {drain}: the load balancer sends no new connections"));
    }
    tell("", &format!("restart pls-router.service: it forwards meanwhile, and no session is lost{sessions}"));
    if facts.get("healthy") != "yes" {
        tell("", "what runs there now is unhealthy: `pls-router status` there says why");
    }
    Ok(())
}

/// Installs, restarts, and leaves the machine either with the new version healthy or as it was.
fn switch(remote: &Remote, host: &str, timeout: u32, drain: Option<&str>) -> Result<()> {
    let (mut healthy, mut draining) = (false, false);
    let arguments = [remote.directory(), &timeout.to_string(), drain.unwrap_or_default()];
    let code = remote.converse(SWITCH, &arguments, |line| {
        if line == "@draining" {
            draining = true;
            return None;
        }
        if line == "@healthy" {
            healthy = true;
            return Some("keep");
        }
        tell("", line);
        None
    })?;
    match code {
        0 => {
            let state = if draining {
                "it forwards, and drains as before: `pls-router undrain` there ends that"
            } else {
                "the probe answers 200"
            };
            tell("done", state);
            Ok(())
        }
        3 => Err(anyhow!(
            "{host}: the new version was taken back for the reasons above, and all is as it was before"
        )),
        4 => Err(anyhow!(
            "{host}: the new version was taken back for the reasons above, but NOT ALL IS AS BEFORE\n  fix: log in, \
             and see `pls-router status` and `journalctl -u pls-router`"
        )),
        5 => Err(anyhow!("{host}: nothing was changed, for the reason above")),
        _ if healthy => Err(anyhow!(
            "{host}: the connection broke when all was done; the new version was healthy\n  fix: see whether it \
             stayed: `pls-router status` there; it is taken back unless the machine heard from this one"
        )),
        _ => Err(anyhow!(
            "{host}: the connection broke on the way\n  fix: wait {} seconds: the machine puts the previous version \
             back by itself; then see `pls-router status` there",
            timeout.saturating_add(PUT_BACK)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Options, lexopt::Error> {
        parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn hosts_and_options() {
        let options =
            parsed(&["a@b", "--config", "my router.toml", "c", "--dry-run", "--timeout=5", "--drain", "10m"])
                .unwrap();
        assert_eq!(options.hosts, ["a@b", "c"]);
        assert_eq!(options.config, Some("my router.toml".into()));
        assert!(options.dry_run && !options.restart);
        assert_eq!((options.timeout, options.drain.as_deref()), (5, Some("10m")));
    }

    #[test]
    fn wrong_usage_is_refused() {
        assert!(parsed(&[]).unwrap_err().to_string().contains("which HOST"));
        parsed(&["--config", "x"]).unwrap_err();
        parsed(&["--", "-oProxyCommand=x"]).unwrap_err();
        parsed(&["a b"]).unwrap_err();
        parsed(&["a", "--timeout", "0"]).unwrap_err();
        parsed(&["a", "--drain", "-1s"]).unwrap_err();
        parsed(&["a", "--drain", "1m; reboot"]).unwrap_err();
        parsed(&["a", "--force"]).unwrap_err();
    }

    fn facts(text: &str) -> Facts {
        Facts::of(&Output { code: 0, stdout: text.to_owned(), stderr: String::new() }, "h").unwrap()
    }

    #[test]
    fn done_is_what_is_installed_and_healthy() {
        let all = "binary same\nconfig keep\nunit same\nactive active\nhealthy yes\n";
        assert!(facts(all).is_done());
        for (one, other) in
            [("binary same", "binary replace"), ("healthy yes", ""), ("active active", "active failed")]
        {
            assert!(!facts(&all.replace(one, other)).is_done(), "{other}");
        }
    }

    #[test]
    fn what_a_machine_lacks_is_said() {
        facts("systemd yes\nconfig new\n").suffice("h").unwrap();
        let cases = [
            ("systemd no\nconfig new", "systemd"),
            ("systemd yes\nconfig missing", "--config FILE"),
            ("systemd yes\nconfig new\nlacks flock", "there is no flock"),
        ];
        for (text, said) in cases {
            let error = facts(text).suffice("h").unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
