//! Targets given by name: each is resolved again when the time of its answer ends, and keeps the
//! last good one while that fails, also over a restart of the daemon.

mod choice;
mod memory;
pub(crate) mod resolved;
mod resolver;
mod schedule;
mod turns;

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::BuildHasher as _,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use tokio::{
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use self::{
    choice::choose,
    memory::{Memory, Unsaved},
    resolved::{Good, Names, Noted, Resolved},
    resolver::{Answer, Files, Resolver},
};
use crate::{
    config::Config,
    daemon::{
        control::{Resolve, desired, requests::Requests},
        kernel::netlink::OwnAddresses,
        logging::lines::Lines,
        rate::paced::Paced,
        state::Routing,
        sync::{Locked, lock},
    },
};

/// The time that the start waits for answers. A name that has none by then gets it later.
const START: Duration = Duration::from_secs(5);
/// The time that it waits for a name that an earlier daemon has left an answer for: the load
/// balancer's probe waits as well.
const RESTART: Duration = Duration::from_millis(500);
/// The time after which the file of the last answers is written again at the earliest: answers may
/// change with every question.
const PAUSE: Duration = Duration::from_secs(1);

/// The parts of the daemon that the name service has access to.
pub(super) struct Access {
    pub(super) names: Locked<Names>,
    pub(super) routing: Locked<Routing>,
    pub(super) requests: Requests,
    /// Tells that there are other names than before.
    pub(super) changed: Arc<Notify>,
}

/// Resolves names with the system's name servers, and remembers the last good answers.
pub(super) struct NameService {
    resolver: Resolver,
    memory: Mutex<Memory>,
    /// The writing of the memory.
    saving: Paced,
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
            lines: Mutex::default(),
        }
    }

    /// Resolves the names of a configuration that are not known yet, all at the same time, for the
    /// machine with these addresses. Takes five seconds at most, and half a second for names that
    /// an earlier daemon has left an answer for. What cannot be resolved has the
    /// addresses of its last good answer, if an earlier daemon has left that.
    pub(super) async fn resolve_new(&self, config: &Config, known: &Names, own: &OwnAddresses) -> Names {
        let is_new = |name: &&String| !known.contains_key(*name);
        let mut names: Vec<&String> = desired::target_names(config).filter(is_new).collect();
        names.sort_unstable();
        names.dedup();
        let answers = names.into_iter().map(async |name| {
            let patience = if lock(&self.memory).get(name).is_some() { RESTART } else { START };
            let outcome = timeout(patience, self.resolve(name, own)).await;
            let outcome =
                outcome.unwrap_or_else(|_| Err(format!("no answer in {} s", patience.as_secs_f64())));
            let now = Instant::now();
            let mut resolved = Resolved::unknown(now);
            let noted = resolved.note(outcome, now, jitter());
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
        warn!(name, addresses = ?resolved.addresses, age = age.as_secs(), "cannot be resolved: its last good answer stays in use");
    }

    fn remember(&self, name: &str, resolved: &Resolved) {
        lock(&self.memory).note(name, &resolved.addresses, SystemTime::now());
        self.saving.ask();
    }

    /// Resolves names again and again, each when it is time for it.
    pub(super) async fn follow(self: Arc<Self>, access: Access) -> Result<()> {
        let mut saving = pin!(self.save());
        let mut following = FuturesUnordered::new();
        let mut followed = HashSet::new();
        loop {
            for name in access.names.lock().keys() {
                if followed.insert(name.clone()) {
                    following.push(self.follow_one(&access, name.clone()));
                }
            }
            tokio::select! {
                () = access.changed.notified() => {}
                Some(name) = following.next() => {
                    followed.remove(&name);
                }
                never = &mut saving => return never,
            }
        }
    }

    /// Writes the memory whenever it has changed. Nothing waits for the disk: if it hangs, names
    /// are resolved all the same.
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
            if failing {
                lock(&self.memory).is_still_unsaved();
            }
        }
    }

    /// Resolves a name again and again. Returns it when it is not among the names any more.
    async fn follow_one(&self, access: &Access, name: String) -> String {
        loop {
            let Some(next) = access.names.lock().get(&name).map(|resolved| resolved.next) else {
                return name;
            };
            sleep(next.saturating_duration_since(Instant::now())).await;
            let own = access.routing.lock().own_addresses.clone();
            let outcome = self.resolve(&name, &own).await;
            let (resolved, noted) = {
                let names = &mut *access.names.lock();
                let Some(resolved) = names.get_mut(&name) else { return name };
                let noted = resolved.note(outcome, Instant::now(), jitter());
                (resolved.clone(), noted)
            };
            self.log(&name, &resolved, noted);
            if resolved.problem.is_none() {
                self.remember(&name, &resolved);
            }
            if noted.moved {
                access.requests.ask_paced();
            }
        }
    }

    /// Logs what has changed for the better; what is wrong,
    /// [`watch`](crate::daemon::logging::watch) tells. An answer may change with every question, so
    /// there is a budget.
    fn log(&self, name: &str, Resolved { addresses, ttl, .. }: &Resolved, noted: Noted) {
        if !noted.moved && !noted.recovered {
            return;
        }
        let Some(withheld) = lock(&self.lines).take(Instant::now()) else { return };
        if withheld > 0 {
            info!(withheld, "further changes of names were not logged");
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

impl Resolve for NameService {
    fn resolve<'a>(
        &'a self,
        config: &'a Config,
        known: &'a Names,
        own: &'a OwnAddresses,
    ) -> BoxFuture<'a, Names> {
        Box::pin(self.resolve_new(config, known, own))
    }
}

/// Returns a random number from 0 to 1, so that events spread over time. The standard
/// library's hash keys are random.
fn jitter() -> f64 {
    f64::from(RandomState::new().hash_one(()) as u32) / f64::from(u32::MAX)
}

/// Writes on a separate thread, which does not keep the daemon from ending.
async fn write(unsaved: Unsaved) -> Result<()> {
    let (done, written) = oneshot::channel();
    let work = move || drop(done.send(unsaved.write()));
    std::thread::Builder::new().name("names".to_owned()).spawn(work).context("cannot start a thread")?;
    written.await.context("the thread that writes it has crashed")?
}

#[cfg(test)]
mod tests;
