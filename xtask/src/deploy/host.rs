//! One machine: look at it, upgrade it, put the previous version back.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};

use super::facts::{self, CONFIG, Facts, How};
use super::outcome::{Failure, State};
use super::plan;
use super::release::{Artifact, Kind, Release};
use super::remote::{Machine, Remote};
use super::report::Story;
use super::scripts;
use super::ssh::{Root, Ssh};

/// The names of copies on a machine: what is new lies in `tree` by the path that it will have.
const PACKAGE: &str = "pls-router.deb";
const BINARY_PATH: &str = "/usr/bin/pls-router";

/// The time that a machine may need to notice that the connection is gone and to put the previous
/// version back.
const PUT_BACK: Duration = Duration::from_secs(120);

/// The amount of words about a look at a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Detail {
    /// All that the check says, and what changes in the configuration.
    All,
    /// Verdicts and the plan: of one machine among several.
    Brief,
    /// Only what is wrong.
    Nothing,
}

/// The parts of a deploy that are the same for all machines.
#[derive(Debug)]
pub(super) struct Order<'a> {
    pub(super) ssh: &'a Ssh,
    pub(super) config: Option<&'a Path>,
    pub(super) timeout: Duration,
    pub(super) healthy_for: Duration,
    pub(super) drain: Option<Duration>,
    pub(super) restart: bool,
    pub(super) dry_run: bool,
}

/// Connects, and returns an error unless the machine can be worked on.
pub(super) fn reach(order: &Order<'_>, story: Story<'_>, bytes: u64, detail: Detail) -> Result<Remote> {
    let remote = Remote::connect(order.ssh, story.host(), bytes)?;
    facts::suits(story.host(), &remote.machine)?;
    let root = match remote.root()? {
        Root::Login => "as root".to_owned(),
        Root::Sudo => format!("as {}, with sudo", remote.machine.user),
    };
    if detail != Detail::Nothing {
        let Machine { architecture, kernel, .. } = &remote.machine;
        story.tell("connected", &format!("{root}; {architecture}, Linux {kernel}"));
    }
    Ok(remote)
}

/// A machine that was looked at, and on which nothing has been changed yet.
#[derive(Debug)]
pub(super) struct Prepared {
    remote: Remote,
    facts: Facts,
    version: String,
}

impl Prepared {
    /// Returns `true` if there is nothing to do.
    pub(super) fn is_done(&self, order: &Order<'_>) -> bool {
        self.facts.is_done() && !order.restart
    }

    /// The version of the binary to install, as it says itself.
    pub(super) fn version(&self) -> &str {
        &self.version
    }
}

/// Copies everything, checks, and shows what would be done.
pub(super) fn prepare(
    order: &Order<'_>,
    release: &Release,
    story: Story<'_>,
    detail: Detail,
) -> Result<Prepared> {
    let host = story.host();
    let remote = reach(order, story, release.room(), detail)?;
    let artifact = release.choose(host, &remote.machine)?;
    copy(order, release, artifact, &remote, story)?;
    let (binary, copied) = (remote.path(&tree(BINARY_PATH)), remote.path(&tree(CONFIG)));
    let version = version(&remote, host, &binary)?;
    let facts = Facts::of(&remote.run(scripts::LOOK, &[remote.directory()])?, host)?;
    facts.suffice(host)?;
    let installed = match order.config {
        // People know the file by the name that it has here.
        Some(config) => (copied.as_str(), config.display().to_string()),
        None => (CONFIG, CONFIG.to_owned()),
    };
    check(&remote, story, &binary, installed, detail)?;
    if detail != Detail::Nothing {
        let lines = plan::lines(&facts, artifact.kind, &version, order.drain);
        story.tell("plan", &lines.join("\n"));
        if facts.config == facts::Change::Replace && detail == Detail::All {
            let diff = remote.run(scripts::DIFF, &[&copied, CONFIG])?;
            story.tell("", &indented(&diff.stdout));
        }
    }
    Ok(Prepared { remote, facts, version })
}

fn tree(path: &str) -> String {
    format!("tree{path}")
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("         {line}\n")).collect()
}

fn copy(
    order: &Order<'_>,
    release: &Release,
    artifact: &Artifact,
    remote: &Remote,
    story: Story<'_>,
) -> Result<()> {
    match artifact.kind {
        Kind::Binary => {
            remote.copy(&artifact.path, &tree(BINARY_PATH), story)?;
            for (unit, path) in release.units() {
                remote.copy(unit, &tree(&path), story)?;
            }
        }
        Kind::Package => {
            remote.copy(&artifact.path, PACKAGE, story)?;
            let output = remote.run_as_user(scripts::UNPACK, &[remote.directory()])?;
            ensure!(
                output.code == 0,
                "{}: {} cannot be unpacked there, and nothing was changed: {}\n  fix: name a whole package for \
                 this machine with --package FILE",
                story.host(),
                artifact.path.display(),
                output.text()
            );
        }
    }
    if let Some(config) = order.config {
        remote.copy(config, &tree(CONFIG), story)?;
    }
    Ok(())
}

/// Runs the new binary for the first time, which tells whether the machine has the libraries for
/// it.
fn version(remote: &Remote, host: &str, binary: &str) -> Result<String> {
    let output = remote.run(r#""$1" --version"#, &[binary])?;
    let text = output.text();
    if output.code == 0 {
        return Ok(text);
    }
    let fix = if text.contains("GLIBC") {
        "its C library is older than that of the machine that built it: give a static one, which `cargo xtask dist` \
         makes, with --binary FILE"
    } else {
        "name a pls-router for this machine with --binary FILE or --package FILE"
    };
    bail!("{host}: the new pls-router does not run there, and nothing was changed: {text}\n  fix: {fix}")
}

/// `pls-router check` with the new binary, and the configuration that it will have: its path there,
/// and the name to show.
fn check(
    remote: &Remote,
    story: Story<'_>,
    binary: &str,
    (path, shown): (&str, String),
    detail: Detail,
) -> Result<()> {
    let output = remote.run(r#"NO_COLOR=1 "$1" check --config "$2""#, &[binary, path])?;
    let text = output.text().replace(path, &shown);
    ensure!(
        output.code == 0,
        "{}: the check fails there, so that nothing was changed\n{text}\n  fix: what it says, here or there; then \
         start again",
        story.host()
    );
    match detail {
        Detail::All => story.tell("check", &text),
        // The verdict comes last.
        Detail::Brief => story.tell("check", text.lines().last().unwrap_or_default()),
        Detail::Nothing => {}
    }
    Ok(())
}

/// Installs, restarts, and leaves the machine either with the new version healthy or as it was.
pub(super) fn upgrade(
    order: &Order<'_>,
    prepared: &Prepared,
    story: Story<'_>,
) -> Result<State, (Failure, anyhow::Error)> {
    let about = match &prepared.facts.installed {
        Some(installed) => format!("{installed} -> {}", prepared.version),
        None => prepared.version.clone(),
    };
    switch(order, &prepared.remote, prepared.remote.directory(), &about, story)
}

/// Puts back what the last deploy has replaced; or undoes one that was interrupted.
pub(super) fn rollback(order: &Order<'_>, story: Story<'_>) -> Result<State, (Failure, anyhow::Error)> {
    let host = story.host();
    let untouched = |error| (Failure::Untouched, error);
    let remote = reach(order, story, 0, Detail::All).map_err(untouched)?;
    let output = remote.run(scripts::STATUS, &[]).map_err(untouched)?;
    let fact = |key: &str| {
        let mut lines = output.stdout.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
    };
    if let Some(about) = fact("unfinished") {
        story.tell("plan", &format!("undo a deploy that was interrupted: {about}"));
        return if order.dry_run { Ok(State::WouldChange) } else { recover(order, &remote, story) };
    }
    let Some(previous) = fact("previous") else {
        return Err(untouched(anyhow!(
            "{host}: no deploy has replaced anything there\n  fix: deploy the version that you want"
        )));
    };
    let directory = "/var/lib/pls-router-deploy/previous";
    let prepare = || {
        let facts = Facts::of(&remote.run(scripts::LOOK, &[directory])?, host)?;
        ensure!(
            facts.how != How::None,
            "{host}: pls-router is not installed there\n  fix: deploy the version that you want"
        );
        facts.suffice(host)?;
        let (binary, config) =
            (format!("{directory}/tree{BINARY_PATH}"), format!("{directory}/tree{CONFIG}"));
        check(&remote, story, &binary, (&config, format!("{config} (the previous one)")), Detail::All)?;
        let kind = if facts.offered.is_some() { Kind::Package } else { Kind::Binary };
        story.tell("plan", &plan::lines(&facts, kind, &previous, order.drain).join("\n"));
        Ok(facts)
    };
    let facts = prepare().map_err(untouched)?;
    if order.dry_run {
        return Ok(State::WouldChange);
    }
    let about = format!("{} -> {previous}, back", facts.installed.unwrap_or_default());
    switch(order, &remote, "previous", &about, story)
}

fn recover(order: &Order<'_>, remote: &Remote, story: Story<'_>) -> Result<State, (Failure, anyhow::Error)> {
    let limit = order.timeout.as_secs().to_string();
    let code = remote.converse(scripts::RECOVER, &[&limit], |line| {
        story.tell("", line);
        None
    });
    match code.map_err(|error| (Failure::Unknown, error))? {
        3 => Ok(State::BackAgain),
        4 => Err(not_as_before(story.host())),
        5 => Err(nothing_changed(story.host())),
        _ => Err(broken(order, story.host())),
    }
}

fn switch(
    order: &Order<'_>,
    remote: &Remote,
    directory: &str,
    about: &str,
    story: Story<'_>,
) -> Result<State, (Failure, anyhow::Error)> {
    let host = story.host();
    let (mut gone, mut healthy, mut draining) = (false, false, false);
    let seconds = |time: Duration| time.as_secs().to_string();
    let drain = order.drain.map(|drain| format!("{}s", drain.as_secs())).unwrap_or_default();
    let arguments = [directory, &seconds(order.timeout), &seconds(order.healthy_for), &drain, about];
    let code = remote.converse(scripts::SWITCH, &arguments, |line| {
        match line {
            "@draining" => draining = true,
            "@go" => {
                gone = true;
                return Some("go");
            }
            "@healthy" => {
                healthy = true;
                return Some("keep");
            }
            _ => story.tell("", line),
        }
        None
    });
    match code.map_err(|error| (Failure::Unknown, error))? {
        0 if draining => {
            let text = "it forwards, and drains as before: `pls-router undrain` there ends that";
            story.tell("done", text);
            Ok(State::Done)
        }
        0 => {
            story.tell("done", "the probe answers 200");
            Ok(State::Done)
        }
        3 => Err((
            Failure::PutBack,
            anyhow!(
                "{host}: the new version was taken back for the reasons above, and all is as it was before\n  fix: \
                 what they say; then start again"
            ),
        )),
        4 => Err(not_as_before(host)),
        5 => Err(nothing_changed(host)),
        _ if healthy => Err((
            Failure::Unknown,
            anyhow!(
                "{host}: the connection broke when all was done; the new version was healthy\n  fix: see whether it \
                 stayed: `cargo xtask deploy status {host}`; it is taken back unless the machine heard from this \
                 one"
            ),
        )),
        _ if !gone => Err((
            Failure::Unknown,
            anyhow!(
                "{host}: the connection broke before anything was installed\n  fix: start again; the machine ends \
                 its drain by itself"
            ),
        )),
        _ => Err(broken(order, host)),
    }
}

fn not_as_before(host: &str) -> (Failure, anyhow::Error) {
    let error = anyhow!(
        "{host}: the new version was taken back for the reasons above, but NOT ALL IS AS BEFORE\n  fix: log in, and \
         see `pls-router status` and `journalctl -u pls-router`"
    );
    (Failure::NotAsBefore, error)
}

fn nothing_changed(host: &str) -> (Failure, anyhow::Error) {
    let error =
        anyhow!("{host}: nothing was changed, for the reason above\n  fix: what it says; then start again");
    (Failure::Untouched, error)
}

fn broken(order: &Order<'_>, host: &str) -> (Failure, anyhow::Error) {
    let error = anyhow!(
        "{host}: the connection broke on the way\n  fix: wait {} seconds: the machine puts the previous version back \
         by itself; then see `cargo xtask deploy status {host}`",
        order.timeout.saturating_add(PUT_BACK).as_secs()
    );
    (Failure::Unknown, error)
}
