//! The soak: hundreds of thousands of sessions through the router for minutes, in bad weather, with
//! everything that happens to a router in months; and then nothing may be left of it.
//!
//! ```text
//!  clients            vnet                              router           servers
//!  10.0.2.65 -------- clients ]                         10.0.2.68        10.0.2.66, .67
//!   raw: 10.64/14             ] br0 [ router ---------- eth0              raw: 198.51.100.10
//!   kernel: .69               ]     [ servers --------------------------- kernel: 203.0.113.10
//!                             [ detour ---- delay (packets that others overtake)
//! ```
//!
//! - `crowd`: the many sessions. Each sends a word now and then and gets it back. The server checks
//!   that its address stays the same and belongs to no other session.
//! - `churn`: sessions that come and go in every way: unanswered, half open, reset, closed,
//!   abandoned.
//! - `streams`: TCP connections of the kernel's, which carry random bytes both ways. Not one may be
//!   missing or wrong.
//! - `weather`: loses, holds up and doubles packets at every port of the switch.
//! - `trouble`: the daemon is killed and comes back, routes move, neighbours are forgotten or get
//!   another MAC address.
//! - `audit`: what the data plane's maps say, during and after it.

mod audit;
mod churn;
mod crowd;
mod ends;
pub mod lifecycle;
mod place;
mod plan;
mod report;
mod streams;
mod trouble;
mod weather;

use std::{
    sync::atomic::Ordering,
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

pub use self::plan::Options;
use self::{
    audit::Books,
    place::Place,
    plan::{CAPACITY, Phases},
    report::Tally,
    streams::Streams,
    trouble::Trouble,
    weather::Weather,
};
use crate::wait;

const _: () = assert!(crowd::MOST + 30_000 <= CAPACITY / 5 * 4);

/// The time that the crowd may take to gather: it is as fast as the machine lets it.
const GATHER_LIMIT: Duration = Duration::from_secs(600);

/// The time that the crowd has for its last words to be answered, and the streams for their last
/// bytes.
const FINISH_LIMIT: Duration = Duration::from_secs(180);

/// The longest timeout, and what sweeps and a busy machine may add.
const EXPIRY_LIMIT: Duration = Duration::from_secs(place::LONGEST_TIMEOUT.as_secs() + 60);

/// From one report to the next.
const REPORT_PERIOD: Duration = Duration::from_secs(10);

/// From the end of one trouble to the next.
const TROUBLE_PERIOD: Duration = Duration::from_secs(10);

/// Ends the threads when the scope is left in any way.
struct StopAtTheEnd<'a>(&'a Phases);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.finish.store(true, Ordering::Relaxed);
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

type Threads<'scope> = Vec<ScopedJoinHandle<'scope, Result<()>>>;

/// One run.
struct Soak<'a> {
    place: &'a Place,
    weather: &'a Weather,
    tally: &'a Tally,
    trouble: Trouble,
    books: Books,
    began: Instant,
    reported: Instant,
}

/// Soaks the router, and tells on standard output how it goes; an error says what went wrong.
pub fn run(options: &Options) -> Result<()> {
    let Options { duration, sessions, churn, streams, seed, .. } = *options;
    ensure!((1..=crowd::MOST).contains(&sessions), "there may be 1 to {} sessions", crowd::MOST);
    let length = humantime::format_duration(duration);
    println!(
        "soak: {sessions} sessions, {churn} short ones a second, {streams} TCP streams, for {length}; seed {seed}"
    );
    let rules = [streams::rules(), crowd::rules(), churn::rules()].concat();
    let place = Place::make(&options.binary, &rules, CAPACITY)?;
    let weather = Weather::begin(&place)?;
    let (tally, phases) = (Tally::default(), Phases::default());
    let tcp = Streams::new(seed, &phases, &tally);
    let trouble = Trouble::new(&place).context("the router does not start")?;
    let books = Books::open(&place)?;
    let now = Instant::now();
    let mut soak =
        Soak { place: &place, weather: &weather, tally: &tally, trouble, books, began: now, reported: now };
    let outcome = thread::scope(|scope| {
        let _stop = StopAtTheEnd(&phases);
        let others: Threads<'_> = vec![
            scope.spawn(|| weather::hold_up(&place.vnet, seed, &phases)),
            scope.spawn(|| ends::servers(&place, options, &phases, &tally)),
            scope.spawn(|| ends::clients(&place, options, &phases, &tally)),
            scope.spawn(|| tcp.serve(&place)),
        ];

        while tally.gathered.get() < u64::from(sessions) {
            soak.turn(&others)?;
            ensure!(
                soak.began.elapsed() < GATHER_LIMIT,
                "only {} sessions were opened within {GATHER_LIMIT:?}",
                tally.gathered
            );
        }
        println!("all sessions of the crowd are open, after {:.0} s", soak.began.elapsed().as_secs_f64());
        phases.crowded.store(true, Ordering::Relaxed);
        let clients = scope.spawn(|| tcp.run(&place, streams));
        let start = Instant::now();
        let mut calm = Instant::now();
        while start.elapsed() < duration {
            soak.turn(&others)?;
            if calm.elapsed() >= TROUBLE_PERIOD {
                let what = soak.trouble.next(&place, &tally)?;
                println!("{:5.0} s  {what}", soak.began.elapsed().as_secs_f64());
                calm = Instant::now();
            }
        }

        let held = soak.books.sessions()?;
        ensure!(held >= sessions, "only {held} sessions were left at the end");
        println!("the traffic ends, with {held} sessions");
        phases.finish.store(true, Ordering::Relaxed);
        let finishing = Instant::now();
        while !clients.is_finished() || tally.outstanding.get() > 0 {
            soak.turn(&others)?;
            ensure!(
                finishing.elapsed() < FINISH_LIMIT,
                "{} words were not answered within {FINISH_LIMIT:?}",
                tally.outstanding
            );
        }
        phases.stop.store(true, Ordering::Relaxed);
        for thread in others.into_iter().chain([clients]) {
            thread.join().map_err(|_| anyhow!("a thread of the soak has panicked"))??;
        }
        ensure!(tally.mistakes.count() == 0, "{}", tally.mistakes);
        soak.verdict(options)
    });
    if outcome.is_err()
        && let Ok(reasons) = soak.books.reasons()
    {
        println!("packets by reason so far: {reasons}");
    }
    outcome
}

impl Soak<'_> {
    /// Waits a moment; reports when it is time to; an error when something has gone wrong.
    fn turn(&mut self, others: &Threads<'_>) -> Result<()> {
        const TURN: Duration = Duration::from_millis(200);
        thread::sleep(TURN);
        ensure!(self.tally.mistakes.count() == 0, "{}", self.tally.mistakes);
        ensure!(!others.iter().any(ScopedJoinHandle::is_finished), "a thread of the soak has ended early");
        if self.reported.elapsed() >= REPORT_PERIOD {
            self.reported = Instant::now();
            self.books.never()?;
            println!("{:5.0} s  {}", self.began.elapsed().as_secs_f64(), self.line()?);
        }
        Ok(())
    }

    /// The progress of the run, in one line.
    fn line(&self) -> Result<String> {
        let Tally { heard, repeated, begun, connections, bytes, .. } = self.tally;
        let usage = self.trouble.usage()?;
        Ok(format!(
            "{} sessions; crowd: {heard} words, {repeated} repeated; {begun} short sessions; {connections} connections ended, {:.1} MB; \
             daemon: {:.1} s of CPU time, {} MiB; {}",
            self.books.sessions()?,
            bytes.get() as f64 / 1e6,
            usage.cpu.as_secs_f64(),
            usage.memory >> 10,
            self.weather.damage()?
        ))
    }

    /// Waits until everything has expired, and looks at what is left.
    fn verdict(&mut self, options: &Options) -> Result<()> {
        let quiet = Instant::now();
        wait::until("all sessions to expire", EXPIRY_LIMIT, || {
            let left = self.books.sessions()?;
            ensure!(left == 0, "{left} sessions are left");
            Ok(())
        })?;
        println!("all sessions have expired, after {:.0} s", quiet.elapsed().as_secs_f64());
        let usage = self.trouble.usage()?;
        // With the daemon dead, no sweep is under way, and nothing else changes the table.
        self.trouble.kill()?;
        let found = audit::table(self.place, false)?;
        ensure!(found.sessions == 0 && found.flows == 0, "the table is not empty: {found:?}");
        audit::no_half_open(self.place)?;
        let received = self.books.balance(self.place)?;
        self.books.never()?;
        let damage = self.weather.damage()?;
        ensure!(
            damage.lost > 0 && damage.held_up > 0 && damage.doubled > 0,
            "the weather did no damage: {damage}"
        );

        let Tally { said, repeated, heard, moved, begun, answered, connections, bytes, .. } = self.tally;
        println!(
            "\nsoak: good\n\
             crowd     {} sessions sent {said} words, {repeated} of them again, and got {heard} back; {moved} expired and were opened again\n\
             churn     {begun} short sessions, {answered} answers\n\
             streams   {connections} connections, {bytes} bytes arrived, none lost or wrong\n\
             weather   {damage}\n\
             TCP       {}\n\
             daemon    killed {} times; {:.1} s of CPU time, {} MiB\n\
             router    {received} packets received, each counted under one reason: {}\n\
             table     empty: no half session, no duplicate, no leaked port, no half-open counter",
            options.sessions,
            tcp_trouble(self.place)?,
            self.trouble.kills(),
            usage.cpu.as_secs_f64(),
            usage.memory >> 10,
            self.books.reasons()?,
        );
        Ok(())
    }
}

/// Returns the counters of the streams' kernels that show that the weather had an effect.
fn tcp_trouble(place: &Place) -> Result<String> {
    let mut all = Vec::new();
    for (name, end) in [("clients", &place.clients), ("servers", &place.servers)] {
        let text = end.run("cat", &["/proc/net/snmp", "/proc/net/netstat"])?;
        let value = |protocol: &str, field: &str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol));
            let at = lines.next()?.split_whitespace().position(|name| name == field)?;
            lines.next()?.split_whitespace().nth(at)?.parse::<u64>().ok()
        };
        let fields = [
            ("retransmitted", value("Tcp:", "RetransSegs")),
            ("came out of order", value("TcpExt:", "TCPOFOQueue")),
            ("retransmitted needlessly", value("TcpExt:", "TCPDSACKRecv")),
        ];
        for (what, value) in fields {
            let value = value.with_context(|| format!("the kernel does not say how many segments {what}"))?;
            ensure!(value > 0, "no segment of the {name} {what}");
            all.push(format!("{value} {what}"));
        }
    }
    Ok(format!("segments of the clients: {}; of the servers: {}", all[..3].join(", "), all[3..].join(", ")))
}
