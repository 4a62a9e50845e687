//! Targets given by name: each is resolved again when the time of its answer ends, and keeps the
//! last good one while that fails, also over a restart of the daemon.

mod choice;
mod memory;
mod resolver;
mod schedule;
mod turns;

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    net::Ipv4Addr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use futures_util::future::{join_all, try_join_all};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use self::{
    choice::{Choice, choose},
    memory::{Memory, Unsaved},
    resolver::{Answer, Files, NO_ADDRESS, Resolver},
};
use crate::{
    config::{Config, Host},
    daemon::{
        kernel::netlink::OwnAddresses,
        logging::{lines::Lines, text::printable},
        rate::paced::Paced,
        state::{Shared, State},
        sync::lock,
    },
};

/// How long the start waits for answers. A name that has none by then gets it later.
const START: Duration = Duration::from_secs(5);
/// The time after which the rules, or the file of the last answers, are written again at the
/// earliest: answers may change with every question.
const PAUSE: Duration = Duration::from_secs(1);
/// Times in a row that the rules may fail to be written.
const TRIES: u32 = 5;

/// Addresses by name, with what is known about each.
pub(super) type Names = HashMap<String, Resolved>;

/// What is known of a name.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    /// The addresses of the last good answer, in order.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// When that came; when it was first asked for, if there is none yet.
    pub(super) since: Instant,
    /// How long that answer said it holds; `None` if there is none yet.
    pub(super) ttl: Option<Duration>,
    /// When it is asked for again.
    pub(super) next: Instant,
    /// How many attempts have failed since.
    failures: u32,
    /// What went wrong at the last attempt; empty when it went well.
    pub(super) problem: String,
    /// The part of the last good answer that is not used, and why; empty when all of it is.
    pub(super) left_out: String,
}

/// An answer of which something can be used.
#[derive(Clone, Debug, PartialEq)]
struct Good {
    choice: Choice,
    ttl: Duration,
}

impl Resolved {
    fn unknown(now: Instant) -> Self {
        Self {
            addresses: Vec::new(),
            since: now,
            ttl: None,
            next: now,
            failures: 0,
            problem: String::new(),
            left_out: String::new(),
        }
    }

    /// A name with these addresses.
    #[cfg(test)]
    pub(super) fn of(addresses: Vec<Ipv4Addr>) -> Self {
        Self { addresses, ..Self::unknown(Instant::now()) }
    }

    /// Takes in the outcome of an attempt. `luck` is anything from 0 to 1.
    fn note(&mut self, outcome: Result<Good, String>, now: Instant, luck: f64) -> Noted {
        match outcome {
            Ok(Good { choice: Choice { addresses, left_out }, ttl }) => {
                self.next = now + schedule::after_answer(ttl, luck);
                self.failures = 0;
                self.since = now;
                self.ttl = Some(ttl);
                let noted = Noted {
                    moved: self.addresses != addresses,
                    recovered: !std::mem::take(&mut self.problem).is_empty(),
                };
                self.addresses = addresses;
                self.left_out = left_out;
                noted
            }
            Err(problem) => {
                self.failures = self.failures.saturating_add(1);
                self.next = now + schedule::after_failure(self.failures, luck);
                // It may say what a server has said.
                self.problem = printable(&problem);
                Noted { moved: false, recovered: false }
            }
        }
    }
}

/// What an attempt has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Noted {
    /// The addresses.
    moved: bool,
    /// Something was wrong, and is not any more.
    recovered: bool,
}

/// Whom names are asked of, for as long as the daemon runs, and what they answered last.
pub(super) struct NameService {
    resolver: Resolver,
    memory: Mutex<Memory>,
    /// The writing of the memory.
    saving: Paced,
    /// The writing of the rules.
    applying: Paced,
    /// The lines about answers in the log.
    lines: Mutex<Lines>,
}

impl NameService {
    /// The system's name servers, and the memory of a daemon with this API socket on the machine
    /// with these addresses.
    pub(super) fn of_system(socket: &Path, own: &OwnAddresses) -> Self {
        Self {
            resolver: Resolver::new(Files::default()),
            memory: Mutex::new(Memory::load(Memory::path(socket), SystemTime::now(), own)),
            saving: Paced::new(PAUSE),
            applying: Paced::new(PAUSE),
            lines: Mutex::default(),
        }
    }

    /// Resolves every name of a configuration, all at the same time, for the machine with these
    /// addresses. Takes five seconds at most. What cannot be resolved has the addresses of its last
    /// good answer, if an earlier daemon has left that.
    pub(super) async fn resolve_all(&self, config: &Config, own: &OwnAddresses) -> Names {
        let mut names: Vec<&String> = config
            .forwards
            .iter()
            .flat_map(|forward| &forward.targets)
            .filter_map(|target| match &target.host {
                Host::Name(name) => Some(name),
                Host::Address(_) => None,
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        let answers = names.into_iter().map(async |name| {
            let outcome = timeout(START, self.resolve(name, own)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer in {} s", START.as_secs())));
            let now = Instant::now();
            let mut resolved = Resolved::unknown(now);
            let noted = resolved.note(outcome, now, luck());
            self.log(name, &resolved, noted);
            if resolved.addresses.is_empty() {
                self.recall(name, &mut resolved);
            } else {
                self.remember(name, &resolved);
            }
            (name.clone(), resolved)
        });
        join_all(answers).await.into_iter().collect()
    }

    async fn resolve(&self, name: &str, own: &OwnAddresses) -> Result<Good, String> {
        let Answer { addresses, ttl } = self.resolver.lookup(name).await?;
        Ok(Good { choice: choose(addresses, own)?, ttl })
    }

    /// Gives a name without an address the last one that is known.
    fn recall(&self, name: &str, resolved: &mut Resolved) {
        let memory = lock(&self.memory);
        let Some(remembered) = memory.get(name) else { return };
        let age = remembered.age(SystemTime::now());
        resolved.addresses.clone_from(&remembered.addresses);
        // Before the clock started, that is before the machine did, there is no instant.
        resolved.since = resolved.since.checked_sub(age).unwrap_or(resolved.since);
        drop(memory);
        warn!(name, addresses = ?resolved.addresses, age = age.as_secs(), "cannot be resolved: used as it was resolved last");
    }

    fn remember(&self, name: &str, resolved: &Resolved) {
        lock(&self.memory).note(name, &resolved.addresses, SystemTime::now());
        self.saving.ask();
    }

    /// Resolves names again and again, each when it is time for it.
    pub(super) async fn follow(self, shared: Arc<Shared>) -> Result<()> {
        let names: Vec<String> = shared.state().names.keys().cloned().collect();
        if names.is_empty() {
            return std::future::pending().await;
        }
        tokio::select! {
            followed = try_join_all(names.iter().map(|name| self.follow_one(&shared, name))) => followed.map(drop),
            never = self.apply(&shared) => never,
            never = self.save() => never,
        }
    }

    /// Puts the rules in force whenever a name has moved. The next answer comes when it likes, so
    /// that the kernel may well refuse once, and nobody is to end the daemon by answers.
    async fn apply(&self, shared: &Shared) -> Result<()> {
        let mut failures = 0;
        loop {
            self.applying.turn().await;
            match shared.apply_rules() {
                Ok(()) => failures = 0,
                Err(error) if failures + 1 == TRIES => return Err(error),
                Err(error) => {
                    failures += 1;
                    warn!("new sessions do not follow names yet: {error:#}");
                    self.applying.ask();
                }
            }
        }
    }

    /// Writes the memory whenever it has changed. Nobody waits for the disk: on one that hangs,
    /// names are resolved all the same.
    async fn save(&self) -> Result<()> {
        let mut failing = false;
        loop {
            self.saving.turn().await;
            let Some(unsaved) = lock(&self.memory).unsaved(SystemTime::now()) else { continue };
            let written = write(unsaved).await;
            if let Err(error) = &written
                && !failing
            {
                warn!("a restart will not know the last addresses of names: {error:#}");
            }
            failing = written.is_err();
        }
    }

    async fn follow_one(&self, shared: &Shared, name: &str) -> Result<()> {
        loop {
            let Some(next) = shared.state().names.get(name).map(|resolved| resolved.next) else {
                return Ok(());
            };
            sleep(next.saturating_duration_since(Instant::now())).await;
            let own = shared.state().own_addresses.clone();
            let outcome = self.resolve(name, &own).await;
            let (resolved, noted) = {
                let State { names, .. } = &mut *shared.state();
                let Some(resolved) = names.get_mut(name) else { return Ok(()) };
                let noted = resolved.note(outcome, Instant::now(), luck());
                (resolved.clone(), noted)
            };
            self.log(name, &resolved, noted);
            if resolved.problem.is_empty() {
                self.remember(name, &resolved);
            }
            if noted.moved {
                self.applying.ask();
            }
        }
    }

    /// Logs what has changed for the better; what is wrong, [`watch`](crate::daemon::logging::watch) tells. An
    /// answer may change with every question, so there is a budget.
    fn log(&self, name: &str, Resolved { addresses, ttl, .. }: &Resolved, noted: Noted) {
        if !noted.moved && !noted.recovered {
            return;
        }
        let Some(withheld) = lock(&self.lines).take(Instant::now()) else { return };
        if withheld > 0 {
            info!(withheld, "names have changed more often than is told here");
        }
        if noted.moved {
            let ttl = ttl.unwrap_or_default().as_secs();
            info!(name, ?addresses, ttl, "resolved");
        }
        if noted.recovered {
            info!(name, "can be resolved again");
        }
    }
}

/// Anything from 0 to 1, to keep what happens at the same time from doing so for ever. The standard
/// library's hash keys are random.
fn luck() -> f64 {
    f64::from(RandomState::new().hash_one(()) as u32) / f64::from(u32::MAX)
}

/// Writes by a thread of its own, which does not keep the daemon from ending.
async fn write(unsaved: Unsaved) -> Result<()> {
    let (done, written) = oneshot::channel();
    let work = move || drop(done.send(unsaved.write()));
    std::thread::Builder::new().name("names".to_owned()).spawn(work).context("cannot start a thread")?;
    written.await.context("the thread that writes it has crashed")?
}

#[cfg(test)]
mod tests;
