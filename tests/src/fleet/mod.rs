//! Several routers behind the load balancer: a [`Lab`] in which all of them run.
//!
//! Each has its own host and file system, addresses, daemon, pins and API: it is a [`Target`], on
//! which `cargo xtask deploy` has installed pls-router. Nothing is shared between them, as between
//! VMs.

mod crowd;
mod report;
pub mod story;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
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
    hosts::router::{self, Seat},
    lab::{Lab, Options},
    namespace,
    process::Process,
    target::{self, Target},
    variants::Router,
    wait,
};

/// The limit for the processes of a VM that is killed to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The directory of what is deployed, in the lab's.
pub const RELEASE: &str = "release";
/// The list of the routers, in [`RELEASE`].
pub const INVENTORY: &str = "inventory";
/// The configuration for ssh by which they are reached, in [`RELEASE`].
pub const SSH_CONFIG: &str = "ssh_config";
/// The program, in [`RELEASE`].
const BINARY: &str = "pls-router";
/// The configuration of all routers, in [`RELEASE`].
const CONFIGURATION: &str = "router.toml";

/// The rights of a program.
const EXECUTABLE: u32 = 0o755;

/// The options of a deploy that asks for nothing but a probe that answers 200.
const AT_ONCE: [&str; 4] = ["--drain", "0", "--healthy-for", "0"];

/// A fleet that is up. Its routers go by their numbers, from 0.
#[derive(Debug)]
pub struct Fleet {
    /// The router VMs; `None` for one that is dead.
    machines: Vec<Option<Target>>,
    // Last, so that it is dropped last: it removes all that is left.
    lab: Lab,
}

impl Fleet {
    /// Brings a fleet up; all routers are in service when this returns.
    pub fn up(options: Options) -> Result<Self> {
        let Router::PlsRouter(binary) = &options.router else { bail!("a fleet's routers are pls-router") };
        let binary = binary.clone();
        let lab = Lab::up(Options { start_router: false, ..options })?;
        let mut fleet = Self { machines: (0..lab.options.routers).map(|_| None).collect(), lab };
        fleet.lab.state().directory(RELEASE)?;
        target::strip(&binary, &fleet.released(BINARY))?;
        fleet.release(CONFIGURATION, &fleet.lab.machine_configuration(&fleet.lab.options.rules))?;
        let names: Vec<_> = fleet.numbers().into_iter().map(|number| fleet.name(number)).collect();
        fleet.release(INVENTORY, &names.join("\n"))?;
        for number in fleet.numbers() {
            fleet.machines[number] = Some(Target::start(&fleet.lab, number)?);
        }
        fleet.write_ssh_config()?;
        let (config, number) = (fleet.released(CONFIGURATION), fleet.numbers().len().to_string());
        let mut install = fleet.deploy_to_all()?;
        install.arg("--config").arg(config).args(["--max-unavailable", &number]).args(AT_ONCE);
        command::run(&mut install)?;
        for number in fleet.numbers() {
            fleet.wait_in_service(number, true, router::HEALTHY_LIMIT)?;
        }
        Ok(fleet)
    }

    /// The path of a file of what is deployed.
    fn released(&self, name: &str) -> PathBuf {
        self.lab.state().path(RELEASE).join(name)
    }

    fn release(&self, name: &str, content: &str) -> Result<()> {
        self.lab.state().write(&format!("{RELEASE}/{name}"), content).map(drop)
    }

    fn write_ssh_config(&self) -> Result<()> {
        let known = self.numbers().into_iter().filter_map(|number| {
            let machine = self.machines[number].as_ref()?;
            Some(machine.known_as(&self.lab, &self.name(number)))
        });
        self.release(SSH_CONFIG, &known.collect::<String>())
    }

    /// `xtask deploy` of the program.
    fn deploy(&self) -> Result<Command> {
        let mut deploy = target::deploy(&self.lab)?;
        deploy.arg("--ssh-config").arg(self.released(SSH_CONFIG));
        deploy.arg("--binary").arg(self.released(BINARY));
        Ok(deploy)
    }

    fn deploy_to_all(&self) -> Result<Command> {
        let mut deploy = self.deploy()?;
        deploy.arg("--inventory").arg(self.released(INVENTORY));
        Ok(deploy)
    }

    /// Begins to deploy another version to all routers, one after the other: each is drained for
    /// `drain`, and has to be healthy for `healthy_for` before the next one's turn.
    pub(crate) fn begin_upgrade(&self, drain: Duration, healthy_for: Duration) -> Result<Process> {
        let binary = self.released(BINARY);
        let mut next = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
        // Another version by its bytes; nothing reads those after the last section of an ELF file.
        next.push(0);
        let written = fs::write(&binary, next)
            .and_then(|()| fs::set_permissions(&binary, fs::Permissions::from_mode(EXECUTABLE)));
        written.with_context(|| format!("cannot write {}", binary.display()))?;
        let mut upgrade = self.deploy_to_all()?;
        for (option, time) in [("--drain", drain), ("--healthy-for", healthy_for)] {
            upgrade.arg(option).arg(time.as_secs().to_string());
        }
        Process::spawn(self.lab.state(), "deploy", upgrade)
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
        self.numbers().into_iter().filter(|number| self.machines[*number].is_some()).collect()
    }

    /// The name of a router's host.
    pub fn name(&self, number: usize) -> String {
        Seat::new(number).host
    }

    /// The address of a router, which is its SNAT address as well if it has one NIC.
    pub fn address(&self, number: usize) -> Ipv4Addr {
        Seat::new(number).address
    }

    /// The address of a router's second NIC, if the fleet's routers have one.
    pub fn second_address(&self, number: usize) -> Ipv4Addr {
        Seat::new(number).second
    }

    fn machine(&self, number: usize) -> Result<&Target> {
        self.machines[number].as_ref().with_context(|| format!("{} is dead", self.name(number)))
    }

    /// The id of a router's daemon.
    pub(crate) fn daemon(&self, number: usize) -> Result<u32> {
        let daemon = self.machine(number)?.daemon();
        daemon.with_context(|| format!("no daemon runs on {}", self.name(number)))
    }

    /// A command of pls-router on a router VM.
    fn command(&self, number: usize, arguments: &[&str]) -> Result<Command> {
        let mut command = self.machine(number)?.command(&self.lab, "pls-router")?;
        command.args(arguments);
        Ok(command)
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
        router::health(&Seat::new(number), self.lab.hosts.router(number), path)
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
        // Its programs, maps and files go with the last process.
        self.machines[number] = None;
        namespace::remove(&host)
    }

    /// Puts a new VM in the place of a dead one, as a scale set does: with the same configuration
    /// and the same address. It is healthy when this returns.
    pub fn replace_vm(&mut self, number: usize) -> Result<()> {
        ensure!(self.machines[number].is_none(), "{} is not dead", self.name(number));
        self.lab.recreate_router(number)?;
        self.machines[number] = Some(Target::start(&self.lab, number)?);
        self.write_ssh_config()?;
        let mut install = self.deploy()?;
        install.arg(self.name(number)).arg("--config").arg(self.released(CONFIGURATION)).args(AT_ONCE);
        command::run(&mut install).map(drop)
    }

    /// Takes the firewall off its wire to the routers, or puts it back.
    pub fn set_firewall(&self, is_up: bool) -> Result<()> {
        let state = if is_up { "up" } else { "down" };
        self.lab.hosts.vnet.ip(&format!("link set firewall {state}")).map(drop)
    }

    /// Leaves the lab up after this process.
    pub fn keep(mut self) -> Result<()> {
        let mut processes = BTreeMap::new();
        for number in self.alive() {
            let name = self.name(number);
            if let Some(machine) = &mut self.machines[number] {
                machine.leave();
                processes.insert(name, machine.pid());
            }
        }
        self.lab.keep_with(processes)
    }
}
