//! Repairs settings, programs and pins that the data plane depends on and others change.
//!
//! They belong to the machine, and others change them: another `sysctl`, `bpftool`, a driver that
//! is loaded again, a clean-up script. Each implements [`Kept`] and is checked every second, and at
//! once when the kernel reports a change ([`notices`]). A change is undone, logged and counted. The
//! daemon does not race a program that makes the change again and again ([`pace`]): that becomes a
//! condition.

mod attachment;
mod kept;
pub(crate) mod loss;
mod notices;
mod pace;
mod pins;
pub(crate) mod record;
mod route_lookups;

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

pub(crate) use self::notices::Notices;
use self::{
    attachment::KeptAttachment,
    kept::{Kept, Look},
    pace::Pace,
    pins::KeptPins,
    record::Record,
    route_lookups::RouteLookups,
};
use crate::{
    config::Config,
    daemon::{state::Attachments, sync::Locked},
    dataplane::Dataplane,
};

/// The period in which everything is checked without a notice.
const PERIOD: Duration = Duration::from_secs(1);
/// The time for which notices are gathered after a look: one command makes many.
const SETTLE: Duration = Duration::from_millis(5);

/// Everything that is kept.
pub(super) struct Upkeep {
    notices: Notices,
    kept: Vec<(Box<dyn Kept>, Pace)>,
}

impl Upkeep {
    /// Keeps what this configuration's data plane depends on.
    pub(super) fn new(config: &Config, plane: &Dataplane, notices: Notices) -> Self {
        let mut kept: Vec<Box<dyn Kept>> = vec![Box::new(RouteLookups)];
        for (slot, name) in (0..).zip(config.interfaces.names()) {
            kept.push(Box::new(KeptAttachment::new(slot, name)));
        }
        if let Some(pins) = plane.pins() {
            kept.push(Box::new(KeptPins::new(pins)));
        }
        let kept = kept.into_iter().map(|kept| (kept, Pace::default())).collect();
        Self { notices, kept }
    }

    /// Checks and repairs, periodically and on notices.
    pub(super) async fn run(
        mut self,
        attachments: Locked<Attachments>,
        plane: Locked<Dataplane>,
    ) -> Result<()> {
        attachments.lock().upkeep = self.kept.iter().map(|(kept, _)| record(&**kept)).collect();
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                told = self.notices.wait() => told?,
                _ = period.tick() => {}
            }
            for (position, (kept, pace)) in self.kept.iter_mut().enumerate() {
                // Written without the lock.
                let said = look_after(&mut **kept, pace, position, &mut attachments.lock(), &plane);
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

/// The record of something to which nothing has happened yet.
fn record(kept: &dyn Kept) -> Record {
    Record::new(kept.what(), kept.name(), kept.trouble(), kept.is_vital())
}

/// A line for the log.
enum Said {
    Repaired(String),
    Calm(String),
}

/// Looks at something and sets it again if need be. What goes wrong is in its record, from where it
/// gets to the log, `status` and the probe.
fn look_after(
    kept: &mut dyn Kept,
    pace: &mut Pace,
    position: usize,
    attachments: &mut Attachments,
    plane: &Locked<Dataplane>,
) -> Option<Said> {
    if attachments.is_being_detached {
        return None;
    }
    let now = Instant::now();
    let plane = &mut *plane.lock();
    let look = kept.look(attachments, plane).unwrap_or_else(|error| Look::Missing(format!("{error:#}")));
    let (mut said, mut trouble, mut flaw, mut is_repaired) = (None, None, None, false);
    match look {
        Look::Good => {}
        Look::Flawed(id, text) => flaw = Some((id, text)),
        Look::Missing(text) => trouble = Some(text),
        Look::Changed(change) if pace.allows(now) => {
            pace.note(now);
            match kept.restore(attachments, plane) {
                Ok(done) => {
                    is_repaired = true;
                    // Repeated changes are a condition, which is logged once.
                    said = (!pace.is_contended(now)).then(|| Said::Repaired(format!("{change}; {done}")));
                }
                Err(error) => trouble = Some(format!("{change}; {error:#}")),
            }
        }
        // The last repair has failed, or the next one is due in a moment.
        Look::Changed(change) => {
            let known = attachments.upkeep.get(position).and_then(|record| record.trouble.clone());
            trouble = Some(known.unwrap_or(change));
        }
    }
    let record = attachments.upkeep.get_mut(position)?;
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
    (record.trouble, record.flaw) = (trouble, flaw);
    said
}
