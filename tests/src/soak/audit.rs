//! The audit: the table and the counters of the data plane, read from its pinned maps.

use std::{fs, mem::offset_of, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use router_common::{
    maps::stats::CpuStats,
    reason::{Action, Reason},
    table::Occupancy,
    tuple::Direction,
};
use router_user::dataplane::{Dataplane, LoadOptions};
use serde_json::Value;

use super::{place::Place, plan::CAPACITY};
use crate::{command, wait};

/// The limit for consistent counters: packets come in while they are read.
const QUIET_LIMIT: Duration = Duration::from_secs(20);

/// The limit for a fault that may be a session in the making, while packets come in.
const AUDIT_LIMIT: Duration = Duration::from_secs(20);

/// Reasons that show a defect of the router or of this test's configuration.
const NEVER: [Reason; 13] = [
    // These two belong to a lost session: no end here goes on after a session's end.
    Reason::NoSession,
    Reason::NotMatched,
    Reason::Malformed,
    Reason::BadChecksum,
    Reason::NoTarget,
    Reason::PortsExhausted,
    Reason::TableFull,
    Reason::RedirectFailed,
    Reason::StageMissing,
    Reason::RouteLookupsOff,
    Reason::Internal,
    // The program stays attached.
    Reason::AnswerWithheld,
    Reason::HalfOpenLimit,
];

/// The counters of the data plane and those of the kernel.
pub(super) struct Books {
    stats: PerCpuArray<MapData, CpuStats>,
    /// `router_common::table::Occupancy` as numbers.
    occupancy: Array<MapData, [u32; size_of::<Occupancy>() / 4]>,
    /// Packets that the kernel counted before the program was there.
    before: u64,
}

impl Books {
    /// Opens them. The daemon has to run, or to have run.
    pub(super) fn open(place: &Place) -> Result<Self> {
        let stats = Map::PerCpuArray(pinned(place, "STATS")?).try_into()?;
        let occupancy = Map::Array(pinned(place, "OCCUPANCY")?).try_into()?;
        let mut books = Self { stats, occupancy, before: 0 };
        (books.before, _) = books.difference(place)?;
        Ok(books)
    }

    /// The counters, summed over CPUs.
    pub(super) fn stats(&self) -> Result<Box<CpuStats>> {
        let mut sum = Box::new(CpuStats::ZERO);
        for cpu in self.stats.get(&0, 0).context("cannot read STATS")?.iter() {
            sum.merge(cpu);
        }
        Ok(sum)
    }

    /// Returns the number of sessions.
    pub(super) fn sessions(&self) -> Result<u32> {
        let occupancy = self.occupancy.get(&0, 0).context("cannot read OCCUPANCY")?;
        Ok(occupancy[offset_of!(Occupancy, sessions) / 4])
    }

    /// Returns how many more packets the kernel has received than the program has ended, and how
    /// many the program has given to the daemon.
    fn difference(&self, place: &Place) -> Result<(u64, u64)> {
        wait::until("consistent counters", QUIET_LIMIT, || {
            let before = kernel_received(place)?;
            let stats = self.stats()?;
            let after = kernel_received(place)?;
            ensure!(before == after, "packets come in");
            let (ended, punted) = reasons(&stats);
            let difference = after.checked_sub(ended).with_context(|| {
                format!("the program has ended {ended} packets, and the kernel received only {after}")
            })?;
            Ok((difference, punted))
        })
    }

    /// Checks that every received packet was counted under exactly one reason. Returns their
    /// number.
    ///
    /// A packet that waited for a neighbour has a second reason, from when the daemon sent it. Only
    /// those that a killed daemon had may lack it.
    pub(super) fn balance(&self, place: &Place) -> Result<u64> {
        wait::until("the counters to match the kernel's", QUIET_LIMIT, || {
            let (without, punted) = self.difference(place)?;
            ensure!(
                (self.before..=self.before + punted).contains(&without),
                "{without} packets of the kernel's count have no reason: {} of them came before the program, and up to \
                 {punted} may have waited in a daemon that was killed",
                self.before
            );
            let stats = self.stats()?;
            let received: u64 = stats.interfaces.iter().map(|interface| interface.received.packets).sum();
            let (ended, punted) = reasons(&stats);
            ensure!(
                (ended..=ended + punted).contains(&received),
                "{received} packets were received, but {ended} have ended and {punted} have waited"
            );
            Ok(received)
        })
    }

    /// Returns an error if a reason was counted that never may be.
    pub(super) fn never(&self) -> Result<()> {
        let stats = self.stats()?;
        for reason in NEVER {
            let packets = stats.reasons[reason as usize].packets;
            ensure!(packets == 0, "{packets} packets are counted as {}", reason.as_str());
        }
        Ok(())
    }

    /// Returns all reasons that were counted, with their packets.
    pub(super) fn reasons(&self) -> Result<String> {
        let stats = self.stats()?;
        let reasons =
            Reason::ALL.iter().map(|reason| (reason.as_str(), stats.reasons[*reason as usize].packets));
        let reasons = reasons.filter(|(_, packets)| *packets > 0);
        Ok(reasons.map(|(name, packets)| format!("{name} {packets}")).collect::<Vec<_>>().join(", "))
    }
}

/// Returns how many packets have a reason that ends them, and how many were given to the daemon.
fn reasons(stats: &CpuStats) -> (u64, u64) {
    let packets = |is_punt: bool| {
        let reasons = Reason::ALL.iter().filter(|reason| matches!(reason.action(), Action::Punt) == is_punt);
        reasons.map(|reason| stats.reasons[*reason as usize].packets).sum()
    };
    (packets(false), packets(true))
}

fn pinned(place: &Place, name: &str) -> Result<MapData> {
    let path = place.map(name);
    MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
}

fn kernel_received(place: &Place) -> Result<u64> {
    let mut ip = Command::new("ip");
    let text = command::run(ip.args(["-n", place.router.name(), "-s", "-j", "link", "show", "eth0"]))?;
    let links: Value = serde_json::from_str(&text).context("`ip -j` wrote no JSON")?;
    links[0]["stats64"]["rx"]["packets"].as_u64().with_context(|| format!("`ip -s` has no counters: {text}"))
}

/// The content of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) sessions: u32,
    pub(super) flows: u64,
}

/// Looks at the whole table while no daemon runs; packets may come in. Nothing may be half, twice,
/// or leaked; but a daemon that was `killed` may have been between the two flows of a session that
/// it removed, of which it removes the client's first: one target's flow alone is the next daemon's
/// to find.
///
/// Like a new daemon, this first loads the programs on top of the maps. They are in force from then
/// on, and stay so when this process closes them.
pub(super) fn table(place: &Place, killed: bool) -> Result<Found> {
    let options = LoadOptions {
        pins: Some(place.pins()),
        sessions: CAPACITY,
        half_open_per_source: CAPACITY / 8,
        generic: false,
        log: None,
    };
    let plane = place.router.inside(|| Dataplane::load(&options))?.context("cannot load the data plane")?;
    ensure!(plane.adopted, "there were no maps to adopt");
    wait::until("a table without faults", AUDIT_LIMIT, || {
        let mut audit = plane.flows.audit()?;
        if killed && matches!(audit.half_sessions[..], [half] if half.direction() == Direction::Reply) {
            audit.half_sessions.clear();
        }
        let faults = [
            ("half", audit.half_sessions.len()),
            ("twice", audit.twice.len()),
            ("leaked ports", audit.leaked_ports.len()),
        ];
        if faults.iter().any(|(_, count)| *count > 0) {
            let (half, leaked) = (audit.half_sessions.first(), audit.leaked_ports.first());
            bail!("the table has faults: {faults:?}; {half:?} {leaked:?}");
        }
        Ok(Found { sessions: audit.sessions, flows: audit.flows })
    })
}

/// Returns an error if a source still counts as having half-open sessions.
pub(super) fn no_half_open(place: &Place) -> Result<()> {
    let counters: Array<_, u32> = Map::Array(pinned(place, "HALF_OPEN")?).try_into()?;
    let mut left = Vec::new();
    for (slot, count) in counters.iter().enumerate() {
        let count = count.context("cannot read HALF_OPEN")?;
        if count > 0 {
            left.push((slot, count));
        }
    }
    ensure!(left.is_empty(), "counters of half-open sessions are left, as (slot, sessions): {left:?}");
    Ok(())
}

/// A process's CPU time and memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) cpu: Duration,
    /// Resident, in KiB.
    pub(super) memory: u64,
}

impl Usage {
    /// Returns the usage of a running process.
    pub(super) fn of(pid: u32) -> Result<Self> {
        /// The kernel's `USER_HZ`, which is the same on all architectures that matter.
        const HERTZ: u64 = 100;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the daemon is not in /proc")?;
        // proc_pid_stat(5): after the name, which may have anything in it, utime and stime are the
        // 12th and 13th.
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).context("the daemon is not in /proc")?;
        let memory = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        Ok(Self { cpu: Duration::from_millis(ticks * 1000 / HERTZ), memory: memory.unwrap_or(0) })
    }
}
