//! Puts the configuration file in force again, while the router runs.
//!
//! The file is checked as a whole, and against this machine. What differs from what is in force is
//! then put in force all at once, or not at all.

pub(crate) mod cut;
mod difference;
pub(crate) mod old;

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use router_common::session::State as SessionState;
use sd_notify::NotifyState;
use tokio::{sync::Mutex, task::spawn_blocking};
use tracing::{info, warn};

use self::{
    cut::Cutter,
    difference::difference,
    old::{Changes, Judge},
};
use crate::{
    changes,
    config::{self, Config, Interfaces},
    daemon::{
        control::{Control, replace::of_instance},
        kernel::own_traffic::follow as own_traffic,
        lifecycle::{replacement::Replacer, signals},
        names::resolved::Names,
        self_test,
        sessions::timeouts::RemovedTimeouts,
        sync::Locked,
    },
    dataplane::{RuleTable, Session},
    findings,
    model::{CheckFinding, Reload, ReloadQuery},
    preflight::{self, Severity},
};

/// The memory that reloads have in common, over all instances of a process. A clone is the same.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    /// The changes of rules whose sessions go on. Held during a reload: there is one at a
    /// time.
    changes: Arc<Mutex<Changes>>,
    pub(crate) removed_timeouts: Locked<RemovedTimeouts>,
    /// The instance that runs. Read after `changes` is locked: a reload that had to wait for
    /// another one may have been asked of an instance that is gone by then.
    running: Locked<Option<InForce>>,
}

/// The parts of an instance that a reload works on.
#[derive(Clone)]
struct InForce {
    config: Locked<Arc<Config>>,
    control: Control,
    own_traffic: own_traffic::Access,
    tables: Tables,
}

/// The sessions of an instance, and what they are called.
#[derive(Clone)]
pub(crate) struct Tables {
    pub(crate) names: Locked<Names>,
    pub(crate) rules: RuleTable,
    pub(crate) cutter: Cutter,
}

/// Reloads the configuration. A clone is the same.
#[derive(Clone)]
pub(crate) struct Reloader {
    config_path: Arc<Path>,
    replacer: Replacer,
    memory: Memory,
}

/// Why the configuration of before stays in force.
struct Refusal {
    findings: Vec<CheckFinding>,
    problem: String,
}

impl Refusal {
    fn of(problem: impl Into<String>) -> Self {
        Self { findings: Vec::new(), problem: problem.into() }
    }
}

impl Reloader {
    /// Makes the reloader of an instance that is about to run, whose tables these are.
    pub(crate) fn new(
        config_path: Arc<Path>,
        control: Control,
        replacer: Replacer,
        own_traffic: own_traffic::Access,
        memory: Memory,
        tables: Tables,
    ) -> Self {
        let config = own_traffic.config.clone();
        memory.running.set(Some(InForce { config, control, own_traffic, tables }));
        Self { config_path, replacer, memory }
    }

    /// Returns the instance that runs.
    fn in_force(&self) -> Result<InForce> {
        self.memory.running.get().context("nothing runs")
    }

    /// Reads the file again and puts it in force, or says why not. The log tells the same. Goes on
    /// if the caller gives up.
    ///
    /// # Errors
    /// Returns an error if the work has crashed.
    pub(crate) async fn reload(&self, query: ReloadQuery) -> Result<Reload> {
        let reloader = self.clone();
        let work = tokio::spawn(async move {
            let mut changes = reloader.memory.changes.clone().lock_owned().await;
            if query.dry_run {
                return reloader.run(query, &mut changes).await;
            }
            // Without a service manager there is none to notify.
            let now = NotifyState::monotonic_usec_now().ok();
            let _ = sd_notify::notify(
                &[Some(NotifyState::Reloading), now].into_iter().flatten().collect::<Vec<_>>(),
            );
            let reload = reloader.run(query, &mut changes).await;
            let _ = sd_notify::notify(&[NotifyState::Ready]);
            log(&reload, query);
            reload
        });
        work.await.context("the reload has crashed")
    }

    async fn run(&self, query: ReloadQuery, changes: &mut Changes) -> Reload {
        let config = self.config_path.display().to_string();
        let mut reload = Reload { dry_run: query.dry_run, config, ..Reload::default() };
        match self.attempt(query, changes, &mut reload).await {
            Ok(()) => reload.ok = true,
            Err(Refusal { findings, problem }) => {
                reload.findings.extend(findings);
                reload.problem = problem;
            }
        }
        reload
    }

    async fn attempt(
        &self,
        query: ReloadQuery,
        changes: &mut Changes,
        reload: &mut Reload,
    ) -> Result<(), Refusal> {
        let refusal = |error: anyhow::Error| Refusal::of(format!("{error:#}"));
        let wanted = self.read(reload).await?;
        let running = self.in_force().map_err(refusal)?;
        let now = running.config.get();
        let difference = difference(&now, &wanted);
        reload.changed = !difference.is_empty();
        (reload.rules, reload.keys) = (difference.rules, difference.keys);
        self.check(&wanted, &now, reload).await?;
        reload.findings.extend(disturbances(&now.interfaces, &wanted.interfaces));

        let all = {
            let numbers = running.tables.rules.names();
            let has_sessions = |name: &str| numbers.iter().flatten().any(|known| known == name);
            changes.and(&now, &wanted, has_sessions)
        };
        let wanted = Arc::new(wanted);
        if query.dry_run {
            let old = self.old_sessions(wanted, all).await.map_err(refusal)?;
            reload.old_sessions = old.len() as u64;
            return Ok(());
        }
        if reload.changed {
            self.replace(&running, &wanted).await?;
        }
        *changes = all.clone();
        let old = match self.old_sessions(wanted, all).await {
            Ok(old) => old,
            // The configuration is in force.
            Err(error) => {
                warn!("{error:#}");
                return Ok(());
            }
        };
        reload.old_sessions = old.len() as u64;
        if query.cut {
            match self.cut(&old).await {
                Ok(count) => {
                    reload.cut_sessions = count;
                    changes.clear();
                }
                Err(error) => {
                    let problem = format!("the configuration is in force, but old sessions go on: {error:#}");
                    return Err(Refusal::of(problem));
                }
            }
        }
        Ok(())
    }

    /// Puts another configuration in force, at once and whole.
    async fn replace(&self, running: &InForce, wanted: &Config) -> Result<(), Refusal> {
        let now = &running.config.get();
        if of_instance(now, wanted).is_empty() {
            running.control.replace(wanted.clone()).await.map_err(|error| Refusal::of(error.to_string()))?;
            // Now, and not at the next look: the kernel is not to give ports of new sessions out.
            let own_traffic = running.own_traffic.clone();
            let _ = spawn_blocking(move || own_traffic::look(&own_traffic)).await;
            return Ok(());
        }
        let replaced = self.replacer.replace(Box::new(wanted.clone())).await;
        replaced.map_err(|error| Refusal::of(format!("{error:#}")))?;
        self.memory.removed_timeouts.lock().follow(now, wanted);
        info!("another configuration is in force");
        Ok(())
    }

    /// Ends sessions of the instance that runs.
    async fn cut(&self, sessions: &[Session]) -> Result<u64> {
        self.in_force()?.tables.cutter.cut(sessions).await
    }

    /// Reads the file.
    async fn read(&self, reload: &mut Reload) -> Result<Config, Refusal> {
        let path = self.config_path.clone();
        let loaded = spawn_blocking(move || Config::load(&path)).await;
        match loaded {
            Ok(Ok(config::Loaded { config, warnings })) => {
                reload.findings.extend(warnings.iter().map(findings::of_file));
                Ok(config)
            }
            Ok(Err(error)) => Err(Refusal {
                findings: findings::of_error(&error),
                problem: "the file is no configuration\n  fix: what `pls-router check` says".to_owned(),
            }),
            Err(error) => Err(Refusal::of(format!("the reading of the file has crashed: {error}"))),
        }
    }

    /// Looks at the machine, where another configuration is in force.
    async fn check(&self, config: &Config, now: &Config, reload: &mut Reload) -> Result<(), Refusal> {
        let facts = preflight::inspect_beside(config, &now.admin.pins).await;
        let found = preflight::findings(config, &facts);
        let has_errors = found.iter().any(|finding| finding.severity == Severity::Error);
        reload.findings.extend(found.iter().map(findings::of_machine));
        if has_errors {
            return Err(Refusal::of("this machine cannot run the configuration"));
        }
        Ok(())
    }

    /// Returns the sessions that a configuration would not open, after these changes, and that have
    /// not ended.
    async fn old_sessions(&self, config: Arc<Config>, changes: Changes) -> Result<Vec<Session>> {
        let Tables { names, rules, cutter } = self.in_force()?.tables;
        let judge = Judge::new(&config, &names.get(), &changes, &rules.names());
        let is_old = move |session: &Session| {
            session.state() != Some(SessionState::Closed)
                && !self_test::is_test_session(&session.forward.key)
                && judge.is_old(session)
        };
        cutter.find(is_old).await
    }
}

/// Returns what a change of interfaces does to sessions, apart from what it is for.
fn disturbances(now: &Interfaces, wanted: &Interfaces) -> Vec<CheckFinding> {
    let warning = |text: String, fix: &str| CheckFinding {
        severity: Severity::Warning.to_string(),
        id: None,
        text,
        place: None,
        fix: fix.to_owned(),
    };
    let mut found = Vec::new();
    if now.mode != wanted.mode {
        let (from, to) = (now.mode.as_str(), wanted.mode.as_str());
        found.push(warning(
            format!(
                "interfaces.mode changes from {from} to {to}: between taking the program off and attaching it again, \
                 for milliseconds, packets are lost; connections go on"
            ),
            "if no packet may be lost, before the reload: pls-router drain --wait 10m; after it: pls-router \
             undrain",
        ));
    }
    for left_out in now.names().filter(|name| wanted.names().all(|other| other != *name)) {
        found.push(warning(
            format!(
                "{left_out} is left out: packets that come by it are not forwarded any more, so sessions whose \
                 clients or answers come by it end"
            ),
            "if no connection may be lost, before the reload: pls-router drain --wait 10m; after it: pls-router \
             undrain",
        ));
    }
    found
}

/// Writes the outcome to the log.
fn log(reload: &Reload, query: ReloadQuery) {
    for found in &reload.findings {
        let line = changes::finding(found);
        match found.severity.as_str() {
            "note" => info!("{line}"),
            _ => warn!("{line}"),
        }
    }
    if !reload.ok {
        warn!(
            "not reloaded: {}; the configuration of before stays in force",
            reload.problem.replace('\n', ";")
        );
        return;
    }
    for line in changes::lines(reload) {
        info!("reload: {line}");
    }
    if let Some(line) = changes::sessions(reload, query.cut) {
        info!("reload: {line}");
    }
}

/// Reloads whenever a signal asks for it.
pub(crate) async fn follow(reloader: Reloader) -> Result<()> {
    loop {
        signals::reload().await;
        reloader.reload(ReloadQuery::default()).await?;
    }
}
