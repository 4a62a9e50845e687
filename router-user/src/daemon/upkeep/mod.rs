//! Keeps what the data plane depends on as the daemon has set it, whoever changes it.
//!
//! System settings, the programs on the interfaces and the pins belong to the machine, and others
//! get at them: another `sysctl`, `bpftool`, a driver that is loaded again, somebody who tidies up.
//! What is [`Kept`] is looked at every second, and at once when the kernel tells of a
//! change ([`notices`]). What has been changed is set again, said in the log and counted. Whoever
//! changes it again and again is not raced ([`pace`]): that is a condition that lasts, and `status`
//! shows it.

mod attachment;
mod notices;
mod pace;
mod pins;
mod route_lookups;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use self::{
    attachment::KeptAttachment, notices::Notices, pace::Pace, pins::KeptPins, route_lookups::RouteLookups,
};
use super::shared::{Shared, State};
use crate::{
    config::Config,
    dataplane::Dataplane,
    health::{Conditions, Id, Severity},
    model,
};

pub(super) use self::attachment::lost;

/// How often everything is looked at without being told.
const PERIOD: Duration = Duration::from_secs(1);
/// How long notices are gathered after a look: one command makes many.
const SETTLE: Duration = Duration::from_millis(5);

/// Something that the data plane depends on and that others can change.
///
/// Both functions run with the daemon's lock held.
trait Kept: Send {
    /// Its kind, for people and monitoring.
    fn what(&self) -> &'static str;

    /// The condition that it is not as it has to be.
    fn trouble(&self) -> Id;

    /// Which one of its kind.
    fn name(&self) -> &str;

    /// Whether the probe has to answer 503 while it is not as it has to be.
    fn is_vital(&self) -> bool;

    /// Looks at it and changes nothing.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn look(&self, state: &State) -> Result<Look>;

    /// Sets it again; says what has been done, in words that follow what [`look`](Self::look) has
    /// said.
    ///
    /// # Errors
    /// When it cannot be set.
    fn restore(&mut self, state: &mut State) -> Result<&'static str>;

    /// Who may change it again and again, and how to find out.
    fn suspects(&self) -> String;
}

/// What a look has shown.
enum Look {
    /// It is as it has to be.
    Good,
    /// So it is, but somebody should know this.
    Doubtful(Id, String),
    /// Somebody has changed it: what it is now.
    Changed(String),
    /// Only others can bring it back: what is missing.
    Missing(String),
}

/// What `status` tells of something that is kept.
#[derive(Debug)]
pub(super) struct Record {
    what: &'static str,
    name: String,
    trouble_id: Id,
    is_vital: bool,
    repairs: u64,
    last_repair: Option<Instant>,
    /// What is wrong with it now.
    trouble: Option<String>,
    /// What is not as it should be although it works.
    doubt: Option<(Id, String)>,
    /// Who may be behind it that it is changed again and again.
    contended: Option<String>,
}

impl Record {
    fn of(kept: &dyn Kept) -> Self {
        Self {
            what: kept.what(),
            name: kept.name().to_owned(),
            trouble_id: kept.trouble(),
            is_vital: kept.is_vital(),
            repairs: 0,
            last_repair: None,
            trouble: None,
            doubt: None,
            contended: None,
        }
    }

    /// Whether it is this one, and something is known to be wrong with it.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.name == name && self.trouble.is_some()
    }

    /// Adds what is wrong with it.
    pub(super) fn add_to(&self, conditions: &mut Conditions) {
        let severity = if self.is_vital { Severity::Down } else { Severity::Degraded };
        if let Some(detail) = &self.trouble {
            conditions.add(severity, self.trouble_id, &self.name, detail);
        }
        if let Some((id, detail)) = &self.doubt {
            conditions.add(Severity::Degraded, *id, &self.name, detail);
        }
        if let Some(detail) = &self.contended {
            conditions.add(Severity::Degraded, Id::Contended, &self.name, detail);
        }
    }

    /// All of it, as `status` has it.
    pub(super) fn status(&self) -> model::Repairs {
        let doubt = self.doubt.as_ref().map(|(_, detail)| detail);
        let wrong = [self.trouble.as_ref(), doubt, self.contended.as_ref()].into_iter().flatten();
        model::Repairs {
            what: self.what.to_owned(),
            name: self.name.clone(),
            count: self.repairs,
            last_seconds: self.last_repair.map(|last| last.elapsed().as_secs()),
            problem: wrong.cloned().collect::<Vec<_>>().join("; "),
        }
    }
}

/// Everything that is kept.
pub(super) struct Upkeep {
    notices: Notices,
    kept: Vec<(Box<dyn Kept>, Pace)>,
}

impl Upkeep {
    /// Begins to listen for changes.
    pub(super) fn of(config: &Config, plane: &Dataplane) -> Result<Self> {
        let mut kept: Vec<Box<dyn Kept>> = vec![Box::new(RouteLookups)];
        for (slot, name) in (0..).zip(config.interfaces.names()) {
            kept.push(Box::new(KeptAttachment::new(slot, name)));
        }
        if let Some(pins) = plane.pins() {
            kept.push(Box::new(KeptPins::new(pins)));
        }
        let kept = kept.into_iter().map(|kept| (kept, Pace::default())).collect();
        Ok(Self { notices: Notices::open()?, kept })
    }

    /// Looks and repairs for ever.
    pub(super) async fn run(mut self, shared: Arc<Shared>) -> Result<()> {
        shared.state().upkeep = self.kept.iter().map(|(kept, _)| Record::of(&**kept)).collect();
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                told = self.notices.wait() => told?,
                _ = period.tick() => {}
            }
            for (position, (kept, pace)) in self.kept.iter_mut().enumerate() {
                // Written without the lock.
                let said = look_after(&mut **kept, pace, position, &mut shared.state());
                match said {
                    Some(Said::Repaired(text)) => warn!("{text}"),
                    Some(Said::Calm(text)) => info!("{text}"),
                    None => {}
                }
            }
            sleep(SETTLE).await;
        }
    }
}

/// A line for the log.
enum Said {
    Repaired(String),
    Calm(String),
}

/// Looks at something and sets it again if need be. What goes wrong is in its record, from where it
/// gets to the log, `status` and the probe.
fn look_after(kept: &mut dyn Kept, pace: &mut Pace, position: usize, state: &mut State) -> Option<Said> {
    if state.stood_down {
        return None;
    }
    let now = Instant::now();
    let look = kept.look(state).unwrap_or_else(|error| Look::Missing(format!("{error:#}")));
    let (mut said, mut trouble, mut doubt, mut is_repaired) = (None, None, None, false);
    match look {
        Look::Good => {}
        Look::Doubtful(id, text) => doubt = Some((id, text)),
        Look::Missing(text) => trouble = Some(text),
        Look::Changed(change) if pace.allows(now) => {
            pace.note(now);
            match kept.restore(state) {
                Ok(done) => {
                    is_repaired = true;
                    // Who goes on is told of as a condition, once.
                    said = (!pace.is_contended(now)).then(|| Said::Repaired(format!("{change}; {done}")));
                }
                Err(error) => trouble = Some(format!("{change}; {error:#}")),
            }
        }
        // What kept it from being repaired is still the case, or it will be in a moment.
        Look::Changed(change) => {
            let known = state.upkeep.get(position).and_then(|record| record.trouble.clone());
            trouble = Some(known.unwrap_or(change));
        }
    }
    let record = state.upkeep.get_mut(position)?;
    if is_repaired {
        record.repairs += 1;
        record.last_repair = Some(now);
    }
    let contended = pace.is_contended(now) && record.last_repair.is_some() && trouble.is_none();
    if contended && record.contended.is_none() {
        record.contended = Some(format!("{} is changed again and again: {}", record.name, kept.suspects()));
    } else if !pace.is_contended(now) && record.contended.take().is_some() {
        let text = format!("{} is left alone again; it was repaired {} times", record.name, record.repairs);
        said = Some(Said::Calm(text));
    }
    (record.trouble, record.doubt) = (trouble, doubt);
    said
}
