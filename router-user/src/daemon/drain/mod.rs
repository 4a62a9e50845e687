//! Draining: the probe answers 503, so that the load balancer sends no new connections, while
//! everything is forwarded as before, new sessions as well.
//!
//! A drain lasts until it is taken back or the machine boots: a note on disk ([`note`]) hands it on
//! to the next daemon.

mod note;

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use router_common::session::State;
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use self::note::Note;
use crate::{
    config::Config,
    daemon::sync::{Locked, Work},
    dataplane::{FlowTable, RuleTable, Session},
    model::{Drain, RuleSessions},
};

/// The period in which sessions are counted during a drain.
const PERIOD: Duration = Duration::from_secs(1);

/// A drain that is under way.
#[derive(Clone, Debug)]
pub(crate) struct Draining {
    since: Instant,
    note: Note,
    /// The sessions that have not ended, as of the last count.
    left: Left,
}

impl Draining {
    fn of(note: Note) -> Result<Self> {
        let now = Instant::now();
        Ok(Self { since: now.checked_sub(note.age()?).unwrap_or(now), note, left: Left::default() })
    }

    /// Returns the moment at which it began.
    pub(crate) const fn since(&self) -> Instant {
        self.since
    }

    /// Returns the words for the operator and the load balancer's log. They stay the same.
    pub(crate) fn detail(&self) -> String {
        format!("draining since {}; fix: pls-router undrain", self.note.since)
    }

    /// Returns the report, with the sessions of the last count.
    pub(crate) fn report(&self) -> Drain {
        self.report_with(self.left.clone())
    }

    fn report_with(&self, Left { sessions, rules }: Left) -> Drain {
        Drain {
            draining: true,
            since: Some(self.note.since.clone()),
            since_seconds: Some(self.since.elapsed().as_secs()),
            sessions,
            rules,
        }
    }
}

/// Returns the drain that an earlier daemon with this API socket has begun, if it is still in
/// force.
pub(crate) fn of_earlier_daemon(socket: &Path) -> Option<Draining> {
    let path = note::path(socket);
    match Note::read(&path).and_then(|note| note.map(Draining::of).transpose()) {
        Ok(draining) => draining.inspect(|draining| {
            info!("still draining, since {}: the probe answers 503", draining.note.since);
        }),
        // Without a word to the contrary, a router is there to forward.
        Err(error) => {
            warn!(
                "cannot tell if this router was draining: {}: {error:#}; it is not draining now; fix: pls-router drain",
                path.display()
            );
            None
        }
    }
}

/// Notes a drain that is under way for a daemon with another API socket as well.
///
/// # Errors
/// Returns an error if that cannot be noted.
pub(crate) fn carry(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (note::path(from), note::path(to));
    if from != to
        && let Some(note) = Note::read(&from)?
    {
        note.write(&to)?;
    }
    Ok(())
}

/// Removes the note beside an API socket that is used no more, unless it is that of the other one.
pub(crate) fn forget(socket: &Path, used: &Path) {
    let path = note::path(socket);
    if path != note::path(used)
        && let Err(error) = note::remove(&path)
    {
        warn!("{error:#}");
    }
}

/// The sessions that have not ended.
#[derive(Clone, Debug, Default)]
struct Left {
    sessions: u64,
    /// The rule with the most first.
    rules: Vec<RuleSessions>,
}

impl Left {
    /// Counts the sessions in the table.
    fn count(flows: &FlowTable, rules: &RuleTable) -> Self {
        let mut by_rule: HashMap<u16, u64> = HashMap::new();
        flows.for_each(|session| {
            if !has_ended(session) {
                *by_rule.entry(session.forward.rule()).or_default() += 1;
            }
            true
        });
        let names = rules.names();
        let name = |rule: u16| names.get(usize::from(rule)).cloned().flatten();
        let named = by_rule.into_iter().map(|(rule, sessions)| RuleSessions {
            rule: name(rule).unwrap_or_else(|| format!("#{rule}")),
            sessions,
        });
        let mut rules: Vec<_> = named.collect();
        rules.sort_unstable_by(|one, other| (other.sessions, &one.rule).cmp(&(one.sessions, &other.rule)));
        Self { sessions: rules.iter().map(|rule| rule.sessions).sum(), rules }
    }
}

/// Returns `true` if nobody has a use for a session any more, although it may stay in the table for
/// a while.
fn has_ended(session: &Session) -> bool {
    session.state() == Some(State::Closed)
}

/// The parts of the daemon that draining has access to. A clone has the same.
#[derive(Clone)]
pub(crate) struct Access {
    config: Locked<Arc<Config>>,
    draining: Locked<Option<Draining>>,
    flows: FlowTable,
    rules: RuleTable,
    /// Held while the note is written or removed.
    writing: Arc<tokio::sync::Mutex<()>>,
    work: Work,
}

impl Access {
    pub(crate) fn new(
        config: Locked<Arc<Config>>,
        draining: Locked<Option<Draining>>,
        flows: FlowTable,
        rules: RuleTable,
        work: Work,
    ) -> Self {
        Self { config, draining, flows, rules, writing: Arc::default(), work }
    }

    /// Begins a drain; one that is under way goes on.
    ///
    /// # Errors
    /// Returns an error if it cannot be noted for the next daemon. Nothing has changed then.
    pub(crate) async fn begin(&self) -> Result<Drain> {
        let turn = self.writing.clone().lock_owned().await;
        let (access, work) = (self.clone(), self.work.begin().await?);
        let begin = move || -> Result<()> {
            let (_turn, _work) = (turn, work);
            if access.draining.lock().is_some() {
                return Ok(());
            }
            let path = note::path(&access.config.get().admin.socket);
            let note = Note::of_now()?;
            note.write(&path).with_context(|| {
                format!(
                    "this router does not drain, because the next daemon would not know of it; fix: make room \
                     for a small file in {}, and let root write there",
                    path.parent().unwrap_or(Path::new("/")).display()
                )
            })?;
            access.draining.set(Some(Draining::of(note)?));
            info!("draining: the probe answers 503, and everything is forwarded as before");
            Ok(())
        };
        spawn_blocking(begin).await.context("the drain has crashed").flatten()?;
        self.report().await
    }

    /// Ends a drain. Returns the state of before.
    ///
    /// # Errors
    /// Returns an error if the note of it cannot be removed. The drain goes on then.
    pub(crate) async fn end(&self) -> Result<Drain> {
        let before = self.report().await?;
        let turn = self.writing.clone().lock_owned().await;
        let (access, work) = (self.clone(), self.work.begin().await?);
        let end = move || -> Result<()> {
            let (_turn, _work) = (turn, work);
            note::remove(&note::path(&access.config.get().admin.socket))
                .context("this router goes on draining, because the next daemon would")?;
            if access.draining.lock().take().is_some() {
                info!("no longer draining");
            }
            Ok(())
        };
        spawn_blocking(end).await.context("the end of the drain has crashed").flatten()?;
        Ok(before)
    }

    /// Returns the state, with the sessions as they are now.
    ///
    /// # Errors
    /// Returns an error if they cannot be counted.
    pub(crate) async fn report(&self) -> Result<Drain> {
        let left = self.count().await?;
        Ok(match &mut *self.draining.lock() {
            Some(draining) => {
                draining.left = left.clone();
                draining.report_with(left)
            }
            None => Drain { sessions: left.sessions, rules: left.rules, ..Drain::default() },
        })
    }

    async fn count(&self) -> Result<Left> {
        let Self { flows, rules, .. } = self.clone();
        // A walk through a large table takes a while, and must not hold up the probe.
        spawn_blocking(move || Left::count(&flows, &rules)).await.context("the count has crashed")
    }

    /// Counts the sessions that are left, while there is a drain.
    pub(crate) async fn follow(self) -> Result<()> {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The end of the sessions is logged once for each drain.
        let mut was_empty = false;
        loop {
            period.tick().await;
            if self.draining.lock().is_none() {
                was_empty = false;
                continue;
            }
            let Drain { draining, sessions, .. } = self.report().await?;
            let is_empty = draining && sessions == 0;
            if is_empty && !was_empty {
                info!("drained: no session is left");
            }
            was_empty = is_empty;
        }
    }
}
