//! Runs sequences through both routers, compares, and reports.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Write as _},
    net::Ipv4Addr,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use super::{
    category::{Category, enabled_and},
    compare::{Ran, Verdict, is_comparable},
    differences::DIFFERENCES,
    generate::{generate, slot},
    life::{self, Change},
    plan::{IDENTIFIED, MAX_DATAGRAMS, Sequence},
    rig::{Arm, Rig, Timeouts, Traffic},
    show,
    topology::{Side, Targets},
    track::{Output, Track},
};
use crate::{
    Nics,
    view::{Tuple, View},
};

/// The number of sequences for one pair of routers. Two with the same identifications must not
/// meet: a datagram that stays incomplete is remembered, and servers are shared.
const ROUND: u64 = IDENTIFIED as u64;

/// The number of packets under way at a time. A veth has room for 256, and a packet may become
/// several.
const CHUNK: usize = 60;

/// With fewer sequences than this a declared difference may not occur.
const MANY: u64 = 2_000;

/// After how many sequences the totals are told.
const TOLD_EACH: u64 = 20 * ROUND;

/// The number of failures that are listed, and of those that are shown in full.
const TOLD: usize = 40;
const STORIES: usize = 3;

/// `true` if a difference was found in this process.
static FAILED: AtomicBool = AtomicBool::new(false);

/// The options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The number of the routers' NICs.
    pub nics: Nics,
    /// The pls-router; none compares the kernel with itself.
    pub binary: Option<PathBuf>,
    /// The number of sequences; 0: until it is interrupted.
    pub sequences: u64,
    /// The first sequence's seed; the next ones' follow.
    pub seed: u64,
    /// Categories to run although they are not enabled, by name with commas between them; or `all`.
    pub categories: String,
    /// The subject of the sequences.
    pub mode: Mode,
}

/// The subject of sequences.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// All kinds of packets.
    Packets,
    /// Ports that are used again, while rules change and time goes by.
    Lives,
}

/// The mode and the categories of sequences, and the changes of the routers meanwhile.
struct Round<'a> {
    mode: Mode,
    categories: &'a [Category],
    changes: Vec<Change>,
}

impl<'a> Round<'a> {
    fn new(mode: Mode, seed: u64, categories: &'a [Category]) -> Self {
        let changes = match mode {
            Mode::Packets => Vec::new(),
            Mode::Lives => life::changes(seed / ROUND),
        };
        Self { mode, categories, changes }
    }

    fn sequence(&self, seed: u64, slot: u32) -> Sequence {
        match self.mode {
            Mode::Packets => generate(seed, slot, self.categories),
            Mode::Lives => life::generate(seed, slot, self.categories, &self.changes),
        }
    }

    fn timeouts(&self) -> Timeouts {
        if self.changes.contains(&Change::Expire) { Timeouts::Short } else { Timeouts::Long }
    }
}

/// Counts of packets by verdict.
#[derive(Clone, Copy, Debug, Default)]
struct Fates {
    forwarded: u64,
    answered: u64,
    swallowed: u64,
}

impl Fates {
    fn count(&mut self, outputs: &[&Output]) {
        let fate = match outputs {
            [] => &mut self.swallowed,
            [first, ..] if first.own => &mut self.answered,
            _ => &mut self.forwarded,
        };
        *fate += 1;
    }
}

impl fmt::Display for Fates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { forwarded, answered, swallowed } = self;
        write!(f, "forwarded {forwarded}, answered {answered}, swallowed {swallowed}")
    }
}

/// The totals of all sequences.
#[derive(Debug, Default)]
struct Totals {
    /// The title of the comparison.
    title: String,
    sequences: u64,
    packets: u64,
    /// The oracle's verdicts about them.
    fates: Fates,
    /// By the category that the packets were added for.
    by_category: BTreeMap<&'static str, Fates>,
    stated: BTreeMap<&'static str, u64>,
    /// By their short form: the number, and the first one's sequence and text.
    problems: BTreeMap<String, (u64, u64, String)>,
}

/// Runs sequences through both routers.
///
/// # Errors
/// Returns an error if there are differences that are not stated, with the seeds that show them
/// again.
pub fn run(options: &Options) -> Result<()> {
    let mut categories = enabled_and(&options.categories)?;
    if options.mode == Mode::Packets {
        // Only lives have them, and what is stated of them is to excuse nothing else.
        categories.retain(|category| *category != Category::Late);
    }
    let end = match options.sequences {
        0 => u64::MAX,
        sequences => options.seed.saturating_add(sequences),
    };
    let who = if options.binary.is_some() { "pls-router" } else { "the kernel" };
    let nics = match options.nics {
        Nics::One => "one NIC",
        Nics::Two => "two NICs",
    };
    let mode = match options.mode {
        Mode::Packets => "",
        Mode::Lives => ", ports used again",
    };
    let title = format!("differential, {who} with {nics}{mode}");
    tell(&format!("{title}: from seed {}\n", options.seed));
    let start = Instant::now();
    let mut totals = Totals { title, ..Totals::default() };
    let mut seed = options.seed;
    while seed < end {
        let round_end = match options.mode {
            Mode::Packets => seed.saturating_add(ROUND),
            // One sequence alone sees the changes that it has seen among others.
            Mode::Lives => (seed / ROUND).saturating_add(1).saturating_mul(ROUND),
        };
        let round = seed..end.min(round_end);
        let makes = Round::new(options.mode, seed, &categories);
        let mut rig = Rig::up(options.nics, options.binary.as_deref(), makes.timeouts())?;
        let mut failed = Vec::new();
        if options.sequences == 0 && FAILED.load(Ordering::Relaxed) {
            // The other one has something to say, and waits for this one's end to say it.
            return Ok(());
        }
        let sequences = round.clone().map(|seed| makes.sequence(seed, slot(seed))).collect();
        for ran in through(&mut rig, sequences, &makes.changes)? {
            totals.count(&ran);
            let verdict = ran.judge(&categories);
            let fails = !verdict.problems.is_empty();
            totals.add(&ran, verdict);
            if fails && failed.len() < STORIES {
                failed.push(ran);
            }
        }
        if !failed.is_empty() {
            FAILED.store(true, Ordering::Relaxed);
            let mut fresh = (round.end..).map(slot);
            let mut stories = String::new();
            for ran in failed {
                let smaller = shrink(&mut rig, ran, &mut fresh, &makes)?;
                _ = writeln!(stories, "{}", story(&smaller, &categories));
            }
            let text = format!("{}{stories}{}", totals.problems(), totals.summary(start));
            bail!(text);
        }
        seed = round.end;
        if seed == end || totals.sequences.is_multiple_of(TOLD_EACH) {
            tell(&totals.summary(start));
        }
    }
    if totals.sequences >= MANY && options.binary.is_some() {
        let unused: Vec<_> = DIFFERENCES
            .iter()
            .filter(|difference| categories.contains(&difference.category))
            .filter(|difference| (difference.category == Category::Late) == (options.mode == Mode::Lives))
            .map(|difference| difference.name)
            .filter(|name| !totals.stated.contains_key(name))
            .collect();
        if !unused.is_empty() {
            bail!(
                "stated differences that none of {} sequences has shown: {}",
                totals.sequences,
                unused.join(", ")
            );
        }
    }
    Ok(())
}

/// Prints to standard error past the test harness, which captures the output of a passing test.
fn tell(text: &str) {
    use std::io::Write as _;
    _ = std::io::stderr().write_all(text.as_bytes());
}

impl Totals {
    fn count(&mut self, ran: &Ran) {
        self.sequences += 1;
        let [oracle, _] = &ran.tracks;
        for step in &ran.sequence.steps {
            if oracle.sent(step.number).next().is_none() {
                continue;
            }
            self.packets += 1;
            let outputs: Vec<_> =
                oracle.outputs.iter().filter(|output| output.number == step.number).collect();
            self.fates.count(&outputs);
            if let Some(category) = step.spice {
                self.by_category.entry(category.name()).or_default().count(&outputs);
            }
        }
    }

    fn add(&mut self, ran: &Ran, verdict: Verdict) {
        for name in verdict.stated {
            *self.stated.entry(name).or_default() += 1;
        }
        for (kind, text) in verdict.problems {
            self.problems.entry(kind).or_insert((0, ran.sequence.seed, text)).0 += 1;
        }
    }

    fn summary(&self, start: Instant) -> String {
        let Self { title, sequences, packets, fates, .. } = self;
        let mut text = format!(
            "{title}: {sequences} sequences, {packets} packets in {:.1} s; nftables {fates}\n",
            start.elapsed().as_secs_f32()
        );
        for (category, fates) in &self.by_category {
            _ = writeln!(text, "  {category:<12} {fates}");
        }
        for (name, count) in &self.stated {
            let reason =
                DIFFERENCES.iter().find(|known| known.name == *name).map_or("", |known| known.reason);
            _ = writeln!(text, "  {count:>6} times {name}: {reason}");
        }
        text
    }

    fn problems(&self) -> String {
        let mut text = "the routers differ (`cargo xtask test --only net differential --sequences 1 --seed ...` shows one \
                        again):\n"
            .to_owned();
        let mut problems: Vec<_> = self.problems.iter().collect();
        problems.sort_by_key(|(_, (count, ..))| std::cmp::Reverse(*count));
        for (kind, (count, seed, _)) in problems.iter().take(TOLD) {
            _ = writeln!(text, "  {count:>6} times {kind} (--seed {seed})");
        }
        if problems.len() > TOLD {
            _ = writeln!(text, "  and {} more kinds", problems.len() - TOLD);
        }
        text
    }
}

/// A failure for a person.
fn story(ran: &Ran, categories: &[Category]) -> String {
    let mut text = format!("sequence {} (--seed {0}), as small as it gets:\n", ran.sequence.seed);
    text.push_str(&ran.story());
    for (kind, problem) in ran.judge(categories).problems {
        _ = writeln!(text, "  {kind}\n  {problem}");
    }
    text
}

/// Leaves out steps as long as the sequence fails.
fn shrink(
    rig: &mut Rig,
    failed: Ran,
    fresh: &mut impl Iterator<Item = u32>,
    makes: &Round<'_>,
) -> Result<Ran> {
    // Every try would take all the changes again.
    if makes.mode == Mode::Lives {
        return Ok(failed);
    }
    let kinds = |ran: &Ran| -> Vec<String> {
        ran.judge(makes.categories).problems.into_iter().map(|(kind, _)| kind).collect()
    };
    // The first of its failures, so that reducing it does not turn it into another one.
    let Some(kind) = kinds(&failed).into_iter().next() else { return Ok(failed) };
    let mut smallest = failed;
    let mut at = smallest.sequence.steps.len();
    while at > 0 {
        at -= 1;
        // With other addresses and ports: the routers remember the last try's.
        let slot = fresh.next().context("slots have no end")?;
        let Sequence { seed, .. } = smallest.sequence;
        let mut steps = smallest.sequence.steps.clone();
        steps.remove(at);
        let again = makes.sequence(seed, slot);
        let steps = steps
            .iter()
            .filter_map(|step| {
                let found =
                    again.steps.iter().find(|other| (other.number, other.cut) == (step.number, step.cut));
                found.cloned()
            })
            .collect();
        let ran = through(rig, vec![Sequence { steps, ..again }], &makes.changes)?.pop();
        let ran = ran.context("a sequence comes back")?;
        if kinds(&ran).contains(&kind) {
            smallest = ran;
        }
    }
    Ok(smallest)
}

/// Sends sequences through both routers, all at the same time, while the routers change.
fn through(rig: &mut Rig, sequences: Vec<Sequence>, changes: &[Change]) -> Result<Vec<Ran>> {
    let address = rig.snat_address();
    let ran = sequences.into_iter().map(|sequence| {
        let track = Track::new(&sequence, address);
        Ran { tracks: [track.clone(), track], sequence }
    });
    let mut group = Group::new(ran.collect());
    let mut next = vec![0; group.ran.len()];
    if !changes.is_empty() {
        // The initial state, even after other sequences.
        rig.change(Change::Lead(Targets::First))?;
    }
    group.run_phase(rig, &mut next, 0)?;
    for (phase, change) in (1..).zip(changes) {
        rig.change(*change)?;
        group.run_phase(rig, &mut next, phase)?;
    }
    Ok(group.ran)
}

/// Sequences that run at the same time.
struct Group {
    ran: Vec<Ran>,
    /// The sequences by their first IP identification, and by their clients' addresses.
    by_id: HashMap<u16, usize>,
    by_client: HashMap<Ipv4Addr, usize>,
    /// The packets to send next, to each router.
    pending: [Vec<Traffic>; 2],
    /// The owner of each pending packet, by its tuple: the sequence and the datagram.
    owners: [HashMap<Tuple, (usize, u16)>; 2],
    /// The owner of the fragments of an answer, by addresses and IP identification.
    fragments: HashMap<(Ipv4Addr, Ipv4Addr, u16), (usize, u16)>,
}

impl Group {
    fn new(ran: Vec<Ran>) -> Self {
        let by_id = ran.iter().enumerate().map(|(index, ran)| (ran.sequence.id(0), index)).collect();
        let clients = |(index, ran): (usize, &Ran)| {
            let clients = ran.sequence.sessions.iter().map(move |session| (*session.client.ip(), index));
            clients.collect::<Vec<_>>()
        };
        let by_client = ran.iter().enumerate().flat_map(clients).collect();
        Self {
            by_id,
            by_client,
            ran,
            pending: [const { Vec::new() }; 2],
            owners: [HashMap::new(), HashMap::new()],
            fragments: HashMap::new(),
        }
    }

    /// Sends the steps up to this phase's last; `next` is each sequence's next one.
    fn run_phase(&mut self, rig: &mut Rig, next: &mut [usize], phase: usize) -> Result<()> {
        loop {
            let is_of_phase = |group: &Self, index: usize, at: usize| {
                group.ran[index].sequence.steps.get(at).is_some_and(|step| step.phase <= phase)
            };
            let mut turn: Vec<usize> =
                (0..next.len()).filter(|index| is_of_phase(self, *index, next[*index])).collect();
            if turn.is_empty() {
                return Ok(());
            }
            while !turn.is_empty() {
                for index in &turn {
                    self.add(rig, *index, next[*index])?;
                    next[*index] += 1;
                }
                self.flush(rig)?;
                // The fragments of a datagram are one turn, even if that takes long: early ones are
                // held for a limited time only.
                turn.retain(|index| match &self.ran[*index].sequence.steps[next[*index] - 1..] {
                    [last, following, ..] => last.number == following.number,
                    _ => false,
                });
            }
        }
    }

    /// Adds a step to what is sent next, unless it quotes a packet that has not come out of both
    /// routers.
    fn add(&mut self, rig: &mut Rig, index: usize, at: usize) -> Result<()> {
        let Ran { sequence, tracks } = &self.ran[index];
        let step = sequence.steps[at].clone();
        if !is_comparable(tracks, &step) {
            return Ok(());
        }
        let packets = tracks.each_ref().map(|track| sequence.packet(&step, track));
        let [Some(oracle), Some(ours)] = packets else { return Ok(()) };
        let tuples = [&oracle, &ours].map(|packet| View::new(packet).map(View::tuple));
        let taken = tuples
            .iter()
            .zip(&self.owners)
            .any(|(tuple, owners)| tuple.is_some_and(|tuple| owners.contains_key(&tuple)));
        if taken || self.pending[0].len() >= CHUNK {
            self.flush(rig)?;
        }
        for (arm, packet) in [oracle, ours].into_iter().enumerate() {
            if let Some(tuple) = tuples[arm] {
                self.owners[arm].insert(tuple, (index, step.number));
            }
            self.ran[index].tracks[arm].send(&step, &packet);
            self.pending[arm].push(Traffic { side: step.from, packet });
        }
        Ok(())
    }

    /// Sends what is pending and takes what comes out.
    fn flush(&mut self, rig: &mut Rig) -> Result<()> {
        if self.pending[0].is_empty() {
            return Ok(());
        }
        let mut errors = 0;
        for (index, arm) in Arm::BOTH.into_iter().enumerate() {
            let pending = std::mem::take(&mut self.pending[index]);
            let out = rig.exchange(arm, &pending, errors)?;
            let is_error =
                |out: &&Traffic| View::new(&out.packet).is_some_and(|view| view.quoted().is_some());
            errors = out.iter().filter(is_error).count();
            for Traffic { side, packet } in out {
                self.take(arm, index, side, packet)?;
            }
            self.fragments.clear();
            self.owners[index].clear();
        }
        Ok(())
    }

    /// Gives a packet to the sequence that it belongs to.
    fn take(&mut self, arm: Arm, index: usize, side: Side, packet: Vec<u8>) -> Result<()> {
        let view = View::new(&packet).with_context(|| format!("{} sent {packet:02x?}", arm.name()))?;
        let id = view.id();
        if let Some(first) = id.checked_sub(1)
            && let Some(owner) = self.by_id.get(&(first - first % (MAX_DATAGRAMS + 1) + 1))
            && self.ran[*owner].tracks[index].take_forwarded(side, &packet)
        {
            return Ok(());
        }
        // The router's own: an answer to one of the packets that have just been sent.
        let quoted = view.quoted().and_then(View::new).map(View::tuple);
        let tuple = quoted.unwrap_or(view.tuple().reversed());
        let answered = self.owners[index].get(&tuple);
        // An answer to a fragment without ports may have ports.
        let answered = answered.or_else(|| self.owners[index].get(&tuple.without_ports()));
        // And only the first fragment of an answer has them.
        let fragment = (view.source(), view.destination(), id);
        let answered = answered.or_else(|| self.fragments.get(&fragment));
        let found = answered.copied().or_else(|| {
            let owner = *self.by_client.get(&view.destination())?;
            let of_this = |(_, (sequence, _)): &(&Tuple, &(usize, u16))| *sequence == owner;
            self.owners[index].iter().find(of_this).map(|(_, found)| *found)
        });
        let Some((owner, number)) = found else {
            bail!(
                "{} sent a packet to {side:?} that belongs to nothing: {}",
                arm.name(),
                show::packet(&packet)
            );
        };
        if view.is_fragment() {
            self.fragments.insert(fragment, (owner, number));
        }
        self.ran[owner].tracks[index].take_own(number, side, packet);
        Ok(())
    }
}
