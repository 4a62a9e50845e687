//! Several routers behind the load balancer: a [`Lab`] in which all of them run.
//!
//! Each has its own host, addresses, daemon, pins and API. Nothing is shared between them, as
//! between VMs.

mod crowd;
mod report;
pub mod story;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use router_user::model::{Flow, Status};
use serde::de::DeserializeOwned;

pub use self::crowd::{Crowd, Kind, Newcomers};
use crate::{
    balancer, command,
    hosts::router,
    lab::{Lab, Options},
    namespace,
    process::Process,
    variants::Router,
    wait,
};

/// The limit for the processes of a VM that is killed to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The limit for a daemon to start and take over from another one, on a machine that is busy.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(60);

/// A fleet that is up. Its routers go by their numbers, from 0.
#[derive(Debug)]
pub struct Fleet {
    /// The daemons; `None` for a VM that is dead.
    daemons: Vec<Option<Process>>,
    // Last, so that it is dropped last: it removes all that is left.
    lab: Lab,
}

impl Fleet {
    /// Brings a fleet up; all routers are in service when this returns.
    pub fn up(options: Options) -> Result<Self> {
        ensure!(matches!(options.router, Router::PlsRouter(_)), "a fleet's routers are pls-router");
        let lab = Lab::up(Options { start_router: false, ..options })?;
        let mut fleet = Self { daemons: (0..lab.options.routers).map(|_| None).collect(), lab };
        for number in fleet.numbers() {
            fleet.daemons[number] = Some(fleet.spawn(number, &["run"])?);
        }
        for number in fleet.numbers() {
            fleet.wait_healthy(number)?;
            fleet.wait_in_service(number, true, router::HEALTHY_LIMIT)?;
        }
        Ok(fleet)
    }

    /// The lab around the routers.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The numbers of all routers.
    pub fn numbers(&self) -> Vec<usize> {
        (0..self.lab.options.routers).collect()
    }

    /// The numbers of the routers that are not dead.
    pub fn alive(&self) -> Vec<usize> {
        self.numbers().into_iter().filter(|number| self.daemons[*number].is_some()).collect()
    }

    /// The name of a router's host.
    pub fn name(&self, number: usize) -> String {
        self.lab.seat(number).host
    }

    /// The address of a router, which is its SNAT address as well if it has one NIC.
    pub fn address(&self, number: usize) -> Ipv4Addr {
        self.lab.seat(number).address
    }

    /// The address of a router's second NIC, if the fleet's routers have one.
    pub fn second_address(&self, number: usize) -> Ipv4Addr {
        self.lab.seat(number).second
    }

    /// Starts a daemon with these arguments, and the configuration of this lab.
    fn spawn(&self, number: usize, arguments: &[&str]) -> Result<Process> {
        let seat = self.lab.seat(number);
        seat.configure(&self.lab.configuration_of(number, &self.lab.options.rules))?;
        Process::spawn(self.lab.state(), &seat.log_name(), self.command(number, arguments)?)
    }

    fn wait_healthy(&mut self, number: usize) -> Result<()> {
        let Self { daemons, lab } = self;
        let daemon = daemons[number].as_mut().context("this router is dead")?;
        let seat = lab.seat(number);
        daemon.wait_until(router::HEALTHY_LIMIT, || router::healthy(&seat, lab.hosts.router(number)))
    }

    /// A command of pls-router on a router VM.
    pub fn command(&self, number: usize, arguments: &[&str]) -> Result<Command> {
        let Router::PlsRouter(binary) = &self.lab.options.router else {
            bail!("this fleet's routers are not pls-router")
        };
        let configuration = self.lab.seat(number).configuration();
        router::command(self.lab.hosts.router(number), binary, &configuration, arguments)
    }

    /// Runs a command of pls-router on a router VM to its end.
    pub fn run(&self, number: usize, arguments: &[&str]) -> Result<Output> {
        command::output(&mut self.command(number, arguments)?)
    }

    /// Returns the output of `pls-router ARGUMENTS -o json` on a router VM.
    pub fn json<T: DeserializeOwned>(&self, number: usize, arguments: &[&str]) -> Result<T> {
        let arguments = [arguments, &["-o", "json"]].concat();
        let text = command::run(&mut self.command(number, &arguments)?)?;
        serde_json::from_str(&text).with_context(|| format!("`pls-router {}`: {text}", arguments.join(" ")))
    }

    /// Returns the output of `pls-router status -o json`, for a healthy and an unhealthy router.
    pub fn status(&self, number: usize) -> Result<Status> {
        let output = self.run(number, &["status", "-o", "json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`pls-router status` says {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The status and body that a router's health endpoint answers with for a path.
    pub fn health(&self, number: usize, path: &str) -> Result<(u16, String)> {
        router::health(&self.lab.seat(number), self.lab.hosts.router(number), path)
    }

    /// Waits until a router's health endpoint answers `wanted`. Returns its text.
    pub fn wait_health(&self, number: usize, path: &str, wanted: u16, limit: Duration) -> Result<String> {
        wait::until(&format!("{path} of {} to answer {wanted}", self.name(number)), limit, || {
            let (status, body) = self.health(number, path)?;
            ensure!(status == wanted, "it answers {status}: {}", body.trim());
            Ok(body)
        })
    }

    /// The numbers of the routers that get new flows.
    pub fn in_service(&self) -> Result<BTreeSet<usize>> {
        let chosen = balancer::in_service(&self.lab.hosts.pls)?;
        Ok(self.numbers().into_iter().filter(|number| chosen.contains(&self.address(*number))).collect())
    }

    /// Waits until the load balancer has taken a router in, or out. Returns how long that took.
    pub fn wait_in_service(&self, number: usize, wanted: bool, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let word = if wanted { "in" } else { "out" };
        wait::until(&format!("the load balancer to take {} {word}", self.name(number)), limit, || {
            let chosen = self.in_service()?;
            ensure!(
                chosen.contains(&number) == wanted,
                "{chosen:?} are in service; the probe's log:\n{}",
                self.lab.probe_log()
            );
            Ok(start.elapsed())
        })
    }

    /// The sessions of a router.
    pub fn flows(&self, number: usize) -> Result<Vec<Flow>> {
        self.json(number, &["flows"])
    }

    /// The routers that have sessions of clients' ports, by kind and port. Private Link keeps the
    /// port, and the lab's client has a port for each of its connections.
    pub fn carriers(&self) -> Result<BTreeMap<(Kind, u16), BTreeSet<usize>>> {
        let mut carriers: BTreeMap<_, BTreeSet<usize>> = BTreeMap::new();
        for number in self.alive() {
            for flow in self.flows(number)? {
                if let Some(kind) = Kind::of(&flow) {
                    carriers.entry((kind, flow.client.port())).or_default().insert(number);
                }
            }
        }
        Ok(carriers)
    }

    /// The addresses from which the firewall has got new connections since the lab is up.
    pub fn seen_by_firewall(&self) -> Result<BTreeSet<Ipv4Addr>> {
        self.lab.seen_by_firewall()
    }

    /// Kills a VM as the failure of its host does, in one moment: wires, processes, programs.
    pub fn kill_vm(&mut self, number: usize) -> Result<()> {
        let seat = self.lab.seat(number);
        self.lab.disconnect_router(number)?;
        let host = self.lab.hosts.router(number).name().to_owned();
        wait::until(&format!("the processes of {host} to end"), KILL_LIMIT, || {
            let pids = command::run(Command::new("ip").args(["netns", "pids", &host]))?;
            for pid in pids.lines().filter_map(|pid| pid.trim().parse().ok()) {
                // One that is gone by now is what we want.
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            ensure!(pids.trim().is_empty(), "there are still {pids}");
            Ok(())
        })?;
        self.daemons[number] = None;
        namespace::remove(&host)?;
        // Programs and maps live as long as their pins.
        if seat.pins.exists() {
            fs::remove_dir_all(&seat.pins)
                .with_context(|| format!("cannot remove {}", seat.pins.display()))?;
        }
        seat.clear()
    }

    /// Puts a new VM in the place of a dead one, as a scale set does: with the same configuration
    /// and the same address. It is healthy when this returns.
    pub fn replace_vm(&mut self, number: usize) -> Result<()> {
        ensure!(self.daemons[number].is_none(), "{} is not dead", self.name(number));
        self.lab.recreate_router(number)?;
        self.daemons[number] = Some(self.spawn(number, &["run"])?);
        self.wait_healthy(number)
    }

    /// Starts another daemon that takes over from the one that runs, as an upgrade does. Returns
    /// how long that took.
    pub fn upgrade(&mut self, number: usize) -> Result<Duration> {
        let start = Instant::now();
        let mut successor = self.spawn(number, &["run", "--take-over"])?;
        let before = self.daemons[number].as_mut().context("this router is dead")?;
        // It loads its programs first, and only then does the one before it end.
        successor.wait_until(TAKE_OVER_LIMIT, || {
            before.ended()?.map(drop).context("the daemon before it still runs")
        })?;
        let status = before.wait(router::STOP_LIMIT)?;
        self.daemons[number] = Some(successor);
        ensure!(status.success(), "the daemon before it ended with {status}");
        wait::until("the new daemon", router::HEALTHY_LIMIT, || {
            self.status(number)?;
            Ok(start.elapsed())
        })
    }

    /// Takes the firewall off its wire to the routers, or puts it back.
    pub fn set_firewall(&self, is_up: bool) -> Result<()> {
        let state = if is_up { "up" } else { "down" };
        self.lab.hosts.vnet.ip(&format!("link set firewall {state}")).map(drop)
    }

    /// Leaves the lab up after this process.
    pub fn keep(mut self) -> Result<()> {
        for daemon in self.daemons.iter_mut().flatten() {
            daemon.leave();
        }
        self.lab.keep()
    }
}
