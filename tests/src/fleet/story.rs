//! The story of a fleet: traffic over all routers, one drained, one dead, all upgraded, and the
//! firewall gone. The tests of fleets play the same acts.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use router_user::model::Drain;

use super::{
    Fleet,
    crowd::{Crowd, Kind, Newcomer, Newcomers},
    report::{Book, Stay, seconds},
};
use crate::{
    addresses::{ECHO_PORT, ENDPOINT},
    balancer::PROBE_THRESHOLD,
    client::Tcp,
    hosts::router::HEALTHY_LIMIT,
    lab::Options,
    story::{Story, tell},
    variants::Nics,
    wait,
};

/// The limit for what goes on while nothing is wrong.
const LIMIT: Duration = Duration::from_secs(10);
/// The limit for a router to find out that its next hop has gone.
const FOUND_OUT: Duration = Duration::from_secs(20);
/// The limit for connections to go on after an outage: TCP sends a lost segment again after 0.2,
/// 0.6, 1.4, 3, 6.2, 12.6, 25.4 and 51 s.
const RESUMED: Duration = Duration::from_secs(60);
/// The limit for one router's upgrade.
const UPGRADE_LIMIT: Duration = Duration::from_secs(120);
/// After so long without an answer, while others get theirs within a second, a connection is lost.
const SILENCE: Duration = Duration::from_secs(3);
/// A new connection takes no longer than this, where it gets answers.
const BARELY: Duration = Duration::from_secs(1);
/// The number of new connections before something happens, and after it has.
const SOME: usize = 15;
/// The idle timeout of UDP sessions: so short that a drained router ends empty within the story. By
/// default it is five minutes.
const UDP_TIMEOUT: &str = "[timeouts]\nudp = \"10s\"\nudp_unreplied = \"10s\"\n";

/// How large the story is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// TCP connections that stay, for each router.
    pub connections: usize,
    /// UDP sockets that stay, for each router.
    pub sockets: usize,
    /// The time for which a router is drained before it is upgraded, in whole seconds: longer than
    /// the load balancer takes to notice.
    pub drain: Duration,
    /// The time for which an upgraded router has to be healthy before the next one's turn, in whole
    /// seconds: longer than the load balancer takes to notice.
    pub healthy_for: Duration,
}

/// A fleet with its clients, and the story so far.
#[derive(Debug)]
pub struct Stage {
    /// The scenes so far.
    pub story: Story,
    size: Size,
    crowd: Crowd,
    book: Book,
    /// The datagrams without an answer while the firewall was gone.
    in_outage: u64,
    fleet: Fleet,
}

impl Stage {
    /// Brings a fleet up for the story.
    pub fn up(options: Options, size: Size) -> Result<Self> {
        let rules = format!("{}\n{UDP_TIMEOUT}", options.rules);
        let fleet = Fleet::up(Options { rules, ..options })?;
        let crowd = Crowd::new(&fleet.lab().hosts.serverless)?;
        Ok(Self { story: Story::default(), size, crowd, book: Book::default(), in_outage: 0, fleet })
    }

    /// Plays all acts.
    pub fn play(&mut self) {
        let last = self.fleet.numbers().len() - 1;
        self.spread();
        self.drain(1);
        self.death(last);
        self.upgrades();
        self.outage();
        self.table();
    }

    /// Ends the story: the clients go.
    pub fn end(self) -> (Story, Fleet) {
        let Self { story, fleet, crowd, .. } = self;
        drop(crowd);
        (story, fleet)
    }

    /// Connections are opened, and each is on one router.
    pub fn spread(&mut self) {
        let Self { story, size, crowd, book, fleet, .. } = self;
        let routers = fleet.numbers();
        let (connections, sockets) = (size.connections * routers.len(), size.sockets * routers.len());
        story.scene(
            &format!("serverless opens {connections} TCP connections and {sockets} UDP sockets"),
            "each on one router, and every router to have some",
            || {
                open(crowd, book, connections, sockets)?;
                all_answer(crowd)?;
                book.look(fleet)?;
                let carriers = fleet.carriers()?;
                let several: Vec<_> = carriers.iter().filter(|(_, routers)| routers.len() > 1).collect();
                ensure!(several.is_empty(), "on several routers: {several:?}");
                for kind in [Kind::Tcp, Kind::Udp] {
                    for port in crowd.ports(kind) {
                        ensure!(carriers.contains_key(&(kind, port)), "no router has {kind:?} {port}");
                    }
                }
                let share = |router: &usize| {
                    let on = |kind| book.on(*router, &crowd.ports(kind)).len();
                    (fleet.name(*router), on(Kind::Tcp), on(Kind::Udp))
                };
                let shares: Vec<_> = routers.iter().map(share).collect();
                ensure!(shares.iter().all(|(_, tcp, _)| *tcp > 0), "a router has none: {shares:?}");
                let tell = |(name, tcp, udp): &(String, usize, usize)| format!("{name} has {tcp} and {udp}");
                Ok(shares.iter().map(tell).collect::<Vec<_>>().join(", "))
            },
        );
        story.scene(
            "the answers come back",
            "by the router that the connection went by: each router has its own source address",
            || {
                let mut own = BTreeSet::new();
                for router in fleet.numbers() {
                    let address = snat_address(fleet, router);
                    for flow in fleet.flows(router)?.iter().filter(|flow| Kind::of(flow).is_some()) {
                        ensure!(flow.snat.ip() == address, "{} has {flow:?}", fleet.name(router));
                        ensure!(flow.reply_packets > 0, "no answer came by {}: {flow:?}", fleet.name(router));
                    }
                    own.insert(address);
                }
                let seen = fleet.seen_by_firewall()?;
                ensure!(seen == own, "the firewall sees {seen:?}, not {own:?}");
                let seen: Vec<_> = seen.iter().map(Ipv4Addr::to_string).collect();
                Ok(format!("the firewall sees {} sources: {}", seen.len(), seen.join(", ")))
            },
        );
    }

    /// A router is drained under load, ends empty, and comes back.
    pub fn drain(&mut self, router: usize) {
        let Self { story, crowd, book, fleet, .. } = self;
        let name = fleet.name(router);
        let mut its = BTreeSet::new();
        story.scene(
            &format!("{name} is drained, while new connections come all the time"),
            "its TCP connections to stay, its UDP flows to move, and new ones to go to the others",
            || {
                book.look(fleet)?;
                its = book.on(router, &crowd.ports(Kind::Tcp));
                let sockets = book.on(router, &crowd.ports(Kind::Udp));
                let newcomers = some_newcomers(crowd)?;
                let began = Instant::now();
                let _drain: Drain = fleet.json(router, &["drain"])?;
                fleet.wait_in_service(router, false, out_limit(fleet))?;
                let out = Instant::now();
                wait_for_newcomers(&newcomers, SOME * fleet.numbers().len())?;
                let newcomers = newcomers.finish()?;
                enter(book, &newcomers, fleet)?;
                none_failed(&newcomers)?;
                let late: BTreeSet<_> =
                    newcomers.iter().filter(|new| new.began > out).map(|new| new.port).collect();
                ensure!(!late.is_empty() && book.on(router, &late).is_empty(), "new ones go to {name}");
                all_answer(crowd)?;
                book.look(fleet)?;
                ensure!(book.moved(&crowd.ports(Kind::Tcp)).is_empty(), "TCP connections have moved");
                let left = book.on(router, &sockets);
                ensure!(left.is_empty(), "UDP flows have stayed: {left:?}");
                Ok(format!(
                    "out of service after {}; its {} connections stay, its {} UDP flows moved, {} new \
                     connections went to the others",
                    seconds(out - began),
                    its.len(),
                    sockets.len(),
                    late.len()
                ))
            },
        );
        story.scene(&format!("the clients of {name} end their connections"), "it to end empty", || {
            crowd.leave(&its)?;
            let began = Instant::now();
            let output = fleet.run(router, &["drain", "--wait", "60s"])?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "`pls-router drain --wait`: {said}");
            Ok(format!(
                "empty after {} (UDP sessions end after 10 s of silence here)",
                seconds(began.elapsed())
            ))
        });
        story.scene(&format!("{name} is undrained"), "new connections to come to it again", || {
            let began = Instant::now();
            let output = fleet.run(router, &["undrain"])?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            fleet.wait_in_service(router, true, HEALTHY_LIMIT)?;
            let back = began.elapsed();
            open(crowd, book, its.len().max(SOME), 0)?;
            book.look(fleet)?;
            let now = book.on(router, &crowd.ports(Kind::Tcp)).len();
            ensure!(now > 0, "none has come");
            Ok(format!("in service after {}; it has {now} connections", seconds(back)))
        });
    }

    /// A VM dies, and is replaced.
    pub fn death(&mut self, router: usize) {
        let Self { story, crowd, book, fleet, .. } = self;
        let name = fleet.name(router);
        story.scene(
            &format!("the VM of {name} dies"),
            "exactly its TCP connections to be lost, and new ones to fail only until the probe has seen it",
            || {
                book.look(fleet)?;
                let its = book.on(router, &crowd.ports(Kind::Tcp));
                let sockets = book.on(router, &crowd.ports(Kind::Udp));
                let others = &crowd.ports(Kind::Tcp) - &its;
                let newcomers = some_newcomers(crowd)?;
                crowd.take_slowest(&others);
                let died = Instant::now();
                fleet.kill_vm(router)?;
                let taken_out = fleet.wait_in_service(router, false, out_limit(fleet));
                let out = died.elapsed();
                taken_out?;
                wait_for_newcomers(&newcomers, SOME * fleet.numbers().len())?;
                let newcomers = newcomers.finish()?;
                enter(book, &newcomers, fleet)?;
                thread::sleep(SILENCE.saturating_sub(died.elapsed()));
                let look = Instant::now();
                wait::until("the other connections and all sockets to have answers", LIMIT, || {
                    let alive = crowd.answered_since(Kind::Tcp, look);
                    ensure!(alive.is_superset(&others), "silent: {:?}", &others - &alive);
                    let sockets = &crowd.ports(Kind::Udp) - &crowd.answered_since(Kind::Udp, look);
                    ensure!(sockets.is_empty(), "silent sockets: {sockets:?}");
                    Ok(())
                })?;
                let survivors = &crowd.answered_since(Kind::Tcp, look) & &its;
                ensure!(survivors.is_empty(), "connections of a dead VM have answers: {survivors:?}");
                let broken: BTreeSet<_> = crowd.broken().into_keys().collect();
                ensure!(broken.is_subset(&its), "others broke: {:?}", crowd.broken());
                let failed: Vec<_> = newcomers.iter().filter(|new| new.failed.is_some()).collect();
                let after = failed.iter().filter(|new| new.began > died + out).count();
                ensure!(after == 0, "{after} new connections failed after it was out of service");
                ensure!(failed.iter().all(|new| new.began + BARELY > died), "some failed before: {failed:?}");
                book.look(fleet)?;
                ensure!(book.moved(&others).is_empty(), "TCP connections have moved");
                book.lose(&its);
                let slowest = crowd.take_slowest(&others);
                crowd.leave(&its)?;
                Ok(format!(
                    "out of service after {}; {} connections lost, {} others had no answer slower than {} ms, \
                     {} UDP flows moved; {} of {} new connections got no answer, the last of them begun {} after it",
                    seconds(out),
                    its.len(),
                    others.len(),
                    slowest.as_millis(),
                    sockets.len(),
                    failed.len(),
                    newcomers.len(),
                    failed.last().map_or("0 s".to_owned(), |last| seconds(last.began.saturating_duration_since(died)))
                ))
            },
        );
        story.scene(&format!("a new VM takes the place of {name}"), "it to get new connections", || {
            let began = Instant::now();
            fleet.replace_vm(router)?;
            let healthy = began.elapsed();
            fleet.wait_in_service(router, true, HEALTHY_LIMIT)?;
            let back = began.elapsed();
            open(crowd, book, SOME, 0)?;
            book.look(fleet)?;
            let now = book.on(router, &crowd.ports(Kind::Tcp)).len();
            ensure!(now > 0, "none has come");
            Ok(format!(
                "healthy after {}, in service after {}; it knows no connection of before, and has {now} new ones",
                seconds(healthy),
                seconds(back)
            ))
        });
    }

    /// All routers are upgraded, one after the other.
    pub fn upgrades(&mut self) {
        let Self { story, size, crowd, book, fleet, .. } = self;
        story.scene(
            &format!(
                "`cargo xtask deploy` upgrades all in turn: drained for {}, restarted, healthy for {}",
                seconds(size.drain),
                seconds(size.healthy_for)
            ),
            "no connection to be lost, and never more than one router to be out of service",
            || {
                let newcomers = some_newcomers(crowd)?;
                let standing = crowd.ports(Kind::Tcp);
                crowd.take_slowest(&standing);
                let turns = upgrade(fleet, size)?;
                let newcomers = newcomers.finish()?;
                enter(book, &newcomers, fleet)?;
                none_failed(&newcomers)?;
                all_answer(crowd)?;
                book.look(fleet)?;
                ensure!(crowd.broken().is_empty(), "{:?}", crowd.broken());
                ensure!(book.moved(&standing).is_empty(), "TCP connections have moved");
                let turns: Vec<_> = turns
                    .into_iter()
                    .map(|(router, out)| format!("{} for {}", fleet.name(router), seconds(out)))
                    .collect();
                Ok(format!(
                    "0 of {} connections lost, no answer slower than {} ms; 0 of {} new ones failed; out of \
                     service: {}",
                    standing.len(),
                    crowd.take_slowest(&standing).as_millis(),
                    newcomers.len(),
                    turns.join(", ")
                ))
            },
        );
    }

    /// The firewall is gone, and comes back.
    pub fn outage(&mut self) {
        let Self { story, crowd, fleet, in_outage, .. } = self;
        let (_, before) = crowd.messages(Kind::Udp);
        story.scene(
            "the firewall is gone",
            "503 from / of every router, and 200 from /live: none of them has to be repaired",
            || {
                let began = Instant::now();
                fleet.set_firewall(false)?;
                let mut reasons = BTreeSet::new();
                for router in fleet.numbers() {
                    reasons.insert(fleet.wait_health(router, "/", 503, FOUND_OUT)?.trim().to_owned());
                }
                let found = began.elapsed();
                for router in fleet.numbers() {
                    let (status, body) = fleet.health(router, "/live")?;
                    ensure!(status == 200, "/live of {} answers {status}: {body}", fleet.name(router));
                }
                let reason = reasons.first().map(String::as_str).unwrap_or_default();
                Ok(format!("503 from all after {} ({reason}), and 200 from /live of all", seconds(found)))
            },
        );
        story.scene(
            "the load balancer, with every probe down",
            "no answer to new connections (AllProbedDown, the default)",
            || {
                for router in fleet.numbers() {
                    fleet.wait_in_service(router, false, out_limit(fleet))?;
                }
                let target = (ENDPOINT, ECHO_PORT).into();
                match Tcp::connect(&fleet.lab().hosts.serverless, target, Duration::from_millis(500)) {
                    Ok(_) => bail!("one opened"),
                    Err(error) => Ok(format!("none is in service; {}", error.root_cause())),
                }
            },
        );
        story.scene(
            "the firewall is back",
            "all routers to be in service by themselves, and the connections to go on",
            || {
                let began = Instant::now();
                fleet.set_firewall(true)?;
                for router in fleet.numbers() {
                    fleet.wait_in_service(router, true, FOUND_OUT)?;
                }
                let back = began.elapsed();
                wait::until("all connections to go on", RESUMED, || answer_since(crowd, began))?;
                ensure!(crowd.broken().is_empty(), "{:?}", crowd.broken());
                Ok(format!(
                    "all in service after {}; 0 of {} connections lost, the last went on after {}",
                    seconds(back),
                    crowd.ports(Kind::Tcp).len(),
                    seconds(began.elapsed())
                ))
            },
        );
        *in_outage = crowd.messages(Kind::Udp).1 - before;
    }

    /// Prints what each connection saw.
    pub fn table(&mut self) {
        let Self { crowd, book, fleet, in_outage, .. } = self;
        let names: Vec<_> = fleet.numbers().into_iter().map(|router| fleet.name(router)).collect();
        for line in book.table(&names).lines() {
            tell(&format!("  {line}"));
        }
        let (answers, _) = crowd.messages(Kind::Tcp);
        let (echoes, unanswered) = crowd.messages(Kind::Udp);
        tell(&format!(
            "  {answers} messages of the connections that are left, every byte compared; of {} datagrams, \
             {unanswered} had no answer, {in_outage} of them while the firewall was gone",
            echoes + unanswered
        ));
    }
}

/// The source address that a router gives to sessions.
fn snat_address(fleet: &Fleet, router: usize) -> Ipv4Addr {
    match fleet.lab().options.nics {
        Nics::One => fleet.address(router),
        Nics::Two => fleet.second_address(router),
    }
}

/// The limit for the load balancer to take a router out: the probes that it takes, one more that
/// was under way, and what a daemon waits before its probe answers 503.
fn out_limit(fleet: &Fleet) -> Duration {
    fleet.lab().options.probe_interval * (PROBE_THRESHOLD + 1) + LIMIT
}

/// Opens connections and sockets that stay, and enters them.
fn open(crowd: &mut Crowd, book: &mut Book, connections: usize, sockets: usize) -> Result<()> {
    let connections = crowd.connect(connections)?;
    let sockets = crowd.open_sockets(sockets)?;
    book.enter(Kind::Tcp, Stay::Long, connections);
    book.enter(Kind::Udp, Stay::Long, sockets);
    Ok(())
}

/// Waits until each client has got an answer from now on.
fn all_answer(crowd: &Crowd) -> Result<()> {
    let now = Instant::now();
    wait::until("all clients to have answers", LIMIT, || answer_since(crowd, now))
}

fn answer_since(crowd: &Crowd, then: Instant) -> Result<()> {
    for kind in [Kind::Tcp, Kind::Udp] {
        let silent = &crowd.ports(kind) - &crowd.answered_since(kind, then);
        ensure!(silent.is_empty(), "{kind:?} has no answer at {silent:?}; broken: {:?}", crowd.broken());
    }
    Ok(())
}

/// Begins to make new connections, and waits until there are some.
fn some_newcomers(crowd: &Crowd) -> Result<Newcomers> {
    let newcomers = crowd.newcomers()?;
    wait_for_newcomers(&newcomers, SOME)?;
    Ok(newcomers)
}

/// Waits for this many more new connections.
fn wait_for_newcomers(newcomers: &Newcomers, more: usize) -> Result<()> {
    let wanted = newcomers.count() + more;
    wait::until(&format!("{more} new connections"), LIMIT * 6, || {
        ensure!(newcomers.count() >= wanted, "{} of {wanted}", newcomers.count());
        Ok(())
    })
}

/// Enters new connections, and finds out which routers had them.
fn enter(book: &mut Book, newcomers: &[Newcomer], fleet: &Fleet) -> Result<()> {
    let made = newcomers.iter().filter(|new| new.failed.is_none()).map(|new| new.port);
    book.enter(Kind::Tcp, Stay::Short, made);
    book.fail(newcomers.iter().filter(|new| new.failed.is_some()).count());
    book.look(fleet)
}

fn none_failed(newcomers: &[Newcomer]) -> Result<()> {
    let failed: Vec<_> = newcomers.iter().filter(|new| new.failed.is_some()).collect();
    ensure!(failed.is_empty(), "{} of {} new connections failed: {failed:?}", failed.len(), newcomers.len());
    Ok(())
}

/// Upgrades all routers. Returns which of them the load balancer has taken out, one after the
/// other, and for how long.
fn upgrade(fleet: &Fleet, size: &Size) -> Result<Vec<(usize, Duration)>> {
    let all: BTreeSet<_> = fleet.numbers().into_iter().collect();
    let daemons = || all.iter().map(|router| fleet.daemon(*router)).collect::<Result<Vec<_>>>();
    let before = daemons()?;
    let mut deploy = fleet.begin_upgrade(size.drain, size.healthy_for)?;
    let mut turns: Vec<(usize, Instant, Duration)> = Vec::new();
    let limit = UPGRADE_LIMIT * u32::try_from(all.len())?;
    let status = wait::until("the deploy to end", limit, || {
        let status = deploy.ended()?;
        let out = &all - &fleet.in_service()?;
        if out.len() > 1 {
            return Ok(Err(anyhow!(
                "{out:?} are out of service at the same time; the load balancer has {} to notice",
                seconds(size.healthy_for)
            )));
        }
        for router in out {
            match turns.last_mut() {
                Some((last, since, lasted)) if *last == router => *lasted = since.elapsed(),
                _ => turns.push((router, Instant::now(), Duration::ZERO)),
            }
        }
        status.map(Ok).context("it still runs")
    });
    let said = || deploy.output();
    let status = status.and_then(|status| status).with_context(said)?;
    ensure!(status.success(), "it ended with {status}: {}", said());
    for router in &all {
        let name = format!("{}:", fleet.name(*router));
        let is_done = said().lines().any(|line| line.split_whitespace().eq([name.as_str(), "done"]));
        ensure!(is_done, "it does not say \"{name} done\": {}", said());
        fleet.wait_in_service(*router, true, HEALTHY_LIMIT)?;
    }
    let out: Vec<_> = turns.iter().map(|(router, ..)| *router).collect();
    ensure!(
        out == fleet.numbers(),
        "out of service were {out:?}; the load balancer had {} to notice: {}",
        seconds(size.drain),
        said()
    );
    let kept = before.iter().zip(daemons()?).filter(|(before, after)| *before == after).count();
    ensure!(kept == 0, "{kept} daemons are those of before");
    Ok(turns.into_iter().map(|(router, _, lasted)| (router, lasted)).collect())
}
