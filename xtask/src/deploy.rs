//! `cargo xtask deploy`: the router on machines that ssh reaches, with a way back.
//!
//! `options` and `inventory` say what to do and where, `release` what to install; `host` does it on
//! one machine, by the `scripts` that run there over `ssh` and `remote`, judged by `facts` and told
//! by `plan`; `fleet` does it on several.

mod facts;
mod fleet;
mod host;
mod inventory;
mod options;
mod outcome;
mod plan;
mod release;
mod remote;
mod remove;
mod report;
mod scripts;
mod ssh;
mod status;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::dist::{self, Architecture, Wanted};
use crate::verb::Verb;
use host::{Detail, Order};
use options::{Action, Options};
use outcome::{Failure, Outcome, State};
use release::Release;
use report::{Report, Story};
use ssh::Ssh;
use status::HostStatus;

pub(crate) const VERB: Verb = Verb {
    name: "deploy",
    about: "install or upgrade the router over ssh, with a rollback if it fails",
    help: Some(HELP),
    run,
};

const HELP: &str = "\
Installs or upgrades pls-router on each HOST over ssh, and waits until its health probe answers 200 and goes on doing
so. If it does not, the previous version is put back and the reasons are printed. No session is lost.

usage: cargo xtask deploy HOST... [OPTIONS]              install or upgrade
       cargo xtask deploy rollback HOST... [OPTIONS]     put back what the last deploy has replaced, or undo one that
                                                         was interrupted
       cargo xtask deploy status HOST... [-o json]       versions, health, sessions; exit code 1 if one is not healthy
       cargo xtask deploy remove HOST... [--purge]       take it off, drained with --drain; --purge: with its
                                                         configuration

  HOST                   a host for ssh: an address, user@address, or a name of your ssh configuration
  --inventory FILE       more hosts: one a line; # begins a comment
  --ssh-config FILE      give ssh this configuration in place of yours (`ssh -F`)
  --dry-run              connect, check and show what would be done, and change nothing

What to install:
  --config FILE          install this configuration (default: keep the one on the machine);
                         deploy/config.toml is a commented sample
  --package FILE         install this .deb, on machines with dpkg, so that apt knows of it
  --binary FILE          install this program and the units of deploy/, on machines without a package.
                         Both can be given several times, for several kinds of machines; what fits is taken.
                         Default: what `cargo xtask dist` makes, for the kinds of machines that the hosts are

How:
  --drain DURATION       before the restart, have the load balancer send no new connections, and wait until the
                         sessions have ended, at most for this time (default: 30s for several hosts, else 0)
  --timeout DURATION     the limit until the probe answers 200 (30s)
  --healthy-for DURATION   how long the probe has to go on answering 200, before this host is done and the next is
                         begun (15s)
  --max-unavailable N    do so many hosts at a time (1)
  --restart              restart even if everything is installed already and the probe answers 200

A DURATION is 90s, 10m, or a number of seconds.

Several hosts: first all are connected to, copied to and checked; if one cannot take it, none is changed. Then they are
done in turn. The first failure ends it: what is begun is finished, and a list says in which state each host is. The
same command again goes on from there: it leaves a host alone that has this version and configuration and is healthy.

On each host, in this order:
  1. connect with your ssh configuration and agent, without prompts; sudo if the user is not root
  2. copy everything to a temporary directory; see that the machine can take it; run `pls-router check` there
  3. keep what is replaced in /var/lib/pls-router-deploy; drain, if wanted
  4. install: the package, or /usr/bin/pls-router and its units in /etc/systemd/system; and
     /etc/pls-router/config.toml, if one is given
  5. enable and restart pls-router.service, and wait until the probe answers 200 and for --healthy-for; undrain

Up to the end of step 2 nothing is changed. The host itself undoes steps 3 to 5, even if the connection breaks: the new
version stays only if it is healthy and this machine has confirmed it. Only a reboot or a power cut in the midst leaves
half of it: `deploy` and `status` say so, and `rollback` undoes it.
No session is lost: the programs go on forwarding in the kernel from the end of one daemon to the start of the next,
also if the new version does not start, and systemd keeps the probe's socket meanwhile.

The host needs a login without a password (key or agent), Linux 6.1 with systemd, and either a login as root or sudo
without a password. Exit codes: 0 all hosts done; 1 a host failed; 2 wrong usage.

Examples:
  cargo xtask deploy azureuser@10.0.2.68 --config router.toml --dry-run
  cargo xtask deploy azureuser@10.0.2.68 --config router.toml
  cargo xtask deploy --inventory routers.txt --drain 5m          upgrade all, with the configurations they have
  cargo xtask deploy status --inventory routers.txt
";

/// The most machines that are asked, or copied to, at a time: it changes nothing there.
const ASK: usize = 8;

/// The drain of several hosts, where nothing else was said: long enough for a load balancer to have
/// noticed, in two probes of 5 s each, that a host is to get no new connections.
const DRAIN: Duration = Duration::from_secs(30);

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let options = Options::parse(arguments)?;
    // All that can go wrong on this machine does so before any other is asked.
    let ssh = Ssh::find(options.ssh_config.as_deref())?;
    let hosts = inventory::hosts(&options.hosts, options.inventory.as_deref())?;
    if let Some(config) = &options.config {
        remote::open(config)?;
    }
    let several = hosts.len() > 1;
    let drain = options.drain.unwrap_or(if several { DRAIN } else { Duration::ZERO });
    let order = Order {
        ssh: &ssh,
        config: options.config.as_deref(),
        timeout: options.timeout,
        healthy_for: options.healthy_for,
        drain: Some(drain).filter(|drain| !drain.is_zero()),
        restart: options.restart,
        dry_run: options.dry_run,
    };
    match options.action {
        Action::Upgrade => {
            let release = release(&options, &order, &hosts)?;
            if several {
                upgrade_all(&options, &order, &release, &hosts)
            } else {
                work(&options, &hosts, |story| upgrade(&order, &release, story))
            }
        }
        Action::Rollback => work(&options, &hosts, |story| host::rollback(&order, story)),
        Action::Remove => work(&options, &hosts, |story| remove::remove(&order, options.purge, story)),
        Action::Status => show_status(&options, &ssh, &hosts),
    }
}

/// The files that were named, or what `dist` makes for the machines that the hosts are.
fn release(options: &Options, order: &Order<'_>, hosts: &[String]) -> Result<Release> {
    if !options.artifacts.is_empty() {
        return Release::of(&options.artifacts);
    }
    // Before the long build: it is for nothing if one of them cannot be reached.
    println!("asking which machine {}", if hosts.len() == 1 { "it is" } else { "each of them is" });
    let report = Report::new(hosts, false);
    let machines = fleet::each(hosts, ASK, |host| {
        host::reach(order, report.of(host), 0, Detail::Nothing)
            .map(|remote| remote.machine.architecture.clone())
    });
    let mut wanted: Vec<Architecture> = Vec::new();
    let mut errors = Vec::new();
    for (host, machine) in hosts.iter().zip(machines.into_iter().flatten()) {
        match machine.map(|machine| Architecture::named(&machine).ok_or(machine)) {
            Ok(Ok(architecture)) if wanted.contains(&architecture) => {}
            Ok(Ok(architecture)) => wanted.push(architecture),
            Ok(Err(machine)) => errors.push(format!(
                "{host}: this machine is {machine}, and pls-router is built for x86_64 and aarch64\n  fix: build one for \
                 it, and name it with --binary FILE"
            )),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    if !errors.is_empty() {
        bail!("{}", errors.join("\nerror: "));
    }
    let mut files = Vec::new();
    for architecture in wanted {
        let package = dist::package(&Wanted::release(architecture))?;
        files.extend([package.deb, package.binary]);
    }
    Release::of(&files)
}

/// One host, from looking at it to its end.
fn upgrade(
    order: &Order<'_>,
    release: &Release,
    story: Story<'_>,
) -> Result<State, (Failure, anyhow::Error)> {
    let prepared =
        host::prepare(order, release, story, Detail::All).map_err(|error| (Failure::Untouched, error))?;
    if prepared.is_done(order) {
        story.tell(
            "done",
            "all of this is installed already, and the probe answers 200 (--restart restarts it anyway)",
        );
        return Ok(State::Already);
    }
    if order.dry_run {
        return Ok(State::WouldChange);
    }
    host::upgrade(order, &prepared, story)
}

/// All hosts are looked at before any is changed.
fn upgrade_all(
    options: &Options,
    order: &Order<'_>,
    release: &Release,
    hosts: &[String],
) -> Result<ExitCode> {
    println!("looking at {} hosts", hosts.len());
    let report = Report::new(hosts, false);
    let detail = if order.dry_run { Detail::All } else { Detail::Brief };
    let looks = fleet::each(hosts, ASK, |host| {
        let story = report.of(host);
        host::prepare(order, release, story, detail)
            .map(|prepared| {
                if prepared.is_done(order) {
                    story.tell("done", "all of this is installed already, and the probe answers 200");
                    State::Already
                } else {
                    story.tell("ready", prepared.version());
                    State::WouldChange
                }
            })
            .inspect_err(|error| story.fail(error))
    });
    let looks: Vec<_> = looks
        .into_iter()
        .map(|look| match look {
            Some(Ok(state)) => Outcome::Good(state),
            Some(Err(_)) => Outcome::Failed(Failure::Untouched),
            None => Outcome::NotReached,
        })
        .collect();
    if looks.iter().any(|look| look.is_failure()) {
        eprint!("nothing was changed on any host:\n{}", fleet::summary(hosts, &looks));
        return Ok(ExitCode::FAILURE);
    }
    if order.dry_run {
        print!("dry run, nothing was changed:\n{}", fleet::summary(hosts, &looks));
        return Ok(ExitCode::SUCCESS);
    }
    println!();
    let due: Vec<_> = hosts
        .iter()
        .zip(&looks)
        .filter(|(_, look)| **look == Outcome::Good(State::WouldChange))
        .map(|(host, _)| host.clone())
        .collect();
    let report = Report::new(&due, options.max_unavailable == 1);
    let outcomes = fleet::roll(&due, options.max_unavailable, |host| {
        let story = report.of(host);
        story.begin();
        // It may have changed since, and what was copied went with the connection.
        let upgraded = host::prepare(order, release, story, Detail::Nothing)
            .map_err(|error| (Failure::Untouched, error))
            .and_then(|prepared| host::upgrade(order, &prepared, story));
        ended(story, upgraded)
    });
    let all: Vec<_> = hosts
        .iter()
        .zip(looks)
        .map(|(host, look)| due.iter().position(|one| one == host).map_or(look, |index| outcomes[index]))
        .collect();
    Ok(conclude(hosts, &all))
}

/// Does something with each host in turn.
fn work(
    options: &Options,
    hosts: &[String],
    work: impl Fn(Story<'_>) -> Result<State, (Failure, anyhow::Error)> + Sync,
) -> Result<ExitCode> {
    let report = Report::new(hosts, options.max_unavailable == 1);
    let outcomes = fleet::roll(hosts, options.max_unavailable, |host| {
        let story = report.of(host);
        story.begin();
        ended(story, work(story))
    });
    Ok(conclude(hosts, &outcomes))
}

fn ended(story: Story<'_>, result: Result<State, (Failure, anyhow::Error)>) -> Outcome {
    match result {
        Ok(State::WouldChange) => {
            story.tell("dry run", "nothing was changed");
            Outcome::Good(State::WouldChange)
        }
        Ok(state) => Outcome::Good(state),
        Err((failure, error)) => {
            story.fail(&error);
            Outcome::Failed(failure)
        }
    }
}

/// Says which of several hosts are in which state.
fn conclude(hosts: &[String], outcomes: &[Outcome]) -> ExitCode {
    let failed = outcomes.iter().any(|outcome| outcome.is_failure());
    if hosts.len() > 1 {
        let summary = fleet::summary(hosts, outcomes);
        if failed {
            eprint!("stopped at the first failure:\n{summary}");
            eprintln!("the same command again goes on from here: what is done is left alone");
        } else {
            print!("all hosts:\n{summary}");
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn show_status(options: &Options, ssh: &Ssh, hosts: &[String]) -> Result<ExitCode> {
    let asked: Vec<_> =
        fleet::each(hosts, ASK, |host| HostStatus::ask(ssh, host)).into_iter().flatten().collect();
    if options.json {
        let all: Vec<_> = asked.iter().map(HostStatus::json).collect();
        println!("{}", serde_json::to_string_pretty(&all).context("cannot write JSON")?);
    } else {
        print!("{}", status::table(&asked));
    }
    let good = asked.iter().all(HostStatus::is_healthy);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
