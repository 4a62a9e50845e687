//! Active checks: connects to the targets of rules again and again, and tells whether they answer.
//!
//! A check goes the way of sessions: from the address that sessions to the target come from, by the
//! kernel's routes. Its answers reach the kernel's socket because the programs look for one before
//! they look for a rule; they belong to no session and count as none. The results are in
//! [`CheckResults`](crate::daemon::observe::check_health::CheckResults), for new sessions and for
//! the probe.

mod attempt;
mod hello;
pub(crate) mod plan;
pub(crate) mod schedule;

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher as _,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::{info, warn};

use self::{
    attempt::{Attempt, Hello},
    plan::{Plan, source},
    schedule::{Key, Schedule},
};
use super::{
    control::requests::Requests,
    logging::lines::Lines,
    names::resolved::Names,
    observe::{
        check_health::{Change, CheckHealth, Outcome},
        target_health::TargetHealth,
    },
    state::Routing,
    sync::Locked,
};
use crate::config::Config;

/// The period in which the configuration and the addresses of names are looked at again.
const PERIOD: Duration = Duration::from_secs(1);

/// The parts of the daemon that checks have access to.
pub(crate) struct Access {
    pub(crate) config: Locked<Arc<Config>>,
    pub(crate) names: Locked<Names>,
    pub(crate) target_health: Locked<TargetHealth>,
    pub(crate) routing: Locked<Routing>,
    pub(crate) requests: Requests,
}

/// Makes checks, as long as rules have any.
pub(crate) async fn run(access: Access) -> Result<()> {
    let mut checker = Checker {
        access,
        plan: Plan::default(),
        schedule: Schedule::default(),
        turn: 0,
        lines: Lines::default(),
    };
    let mut running: FuturesUnordered<BoxFuture<'static, (Key, Outcome)>> = FuturesUnordered::new();
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while let Some((key, attempt)) = checker.next() {
            running.push(Box::pin(async move { (key, attempt::make(&attempt).await) }));
        }
        let next = checker.schedule.next();
        tokio::select! {
            _ = period.tick() => checker.follow(),
            Some((key, outcome)) = running.next() => checker.note(&key, outcome),
            () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
        }
    }
}

struct Checker {
    access: Access,
    plan: Plan,
    schedule: Schedule,
    /// Counts checks.
    turn: usize,
    /// The lines about targets in the log, which hosts on the network can cause.
    lines: Lines,
}

impl Checker {
    /// Follows changes of the configuration and of names.
    fn follow(&mut self) {
        let now = Instant::now();
        let changed = {
            // Together: names belong to a configuration.
            let config = self.access.config.lock();
            let names = self.access.names.lock();
            self.plan = Plan::of(&config, &names);
            drop(names);
            let by_rule = self.plan.by_rule(&config);
            self.access.target_health.lock().checks.follow(by_rule, now)
        };
        self.schedule.follow(&self.plan.intervals(), now);
        if changed {
            self.access.requests.ask_paced();
        }
    }

    /// Returns the check that is to start now, if there is one.
    fn next(&mut self) -> Option<(Key, Attempt)> {
        let key = self.schedule.take(Instant::now())?;
        let task = self.plan.tasks.get(&key)?;
        self.turn = self.turn.wrapping_add(1);
        let given = self.access.config.lock().snat.addresses.clone();
        let attempt = Attempt {
            target: task.target,
            source: source(&given, self.source_by_route(key.1), self.turn),
            hello: task
                .hello
                .as_ref()
                .map(|name| Hello { server_name: name.as_ref().map(ToString::to_string), random: random() }),
            timeout: task.timeout,
        };
        Some((key, attempt))
    }

    /// Returns the address that sessions to a target come from, as its route says.
    fn source_by_route(&self, target: Ipv4Addr) -> Option<Ipv4Addr> {
        let routing = self.access.routing.lock();
        let next_hop = routing.next_hops.iter().find(|next_hop| next_hop.target == IpAddr::V4(target))?;
        match next_hop.source? {
            IpAddr::V4(source) => Some(source),
            IpAddr::V6(_) => None,
        }
    }

    fn note(&mut self, key: &Key, outcome: Outcome) {
        let now = Instant::now();
        let (rule, address, port) = key;
        let (change, is_known) = {
            let checks = &mut self.access.target_health.lock().checks;
            let change = checks.note(rule, (*address, *port), outcome, now);
            let is_known = checks
                .of(rule, (*address, *port))
                .is_none_or(|checked| checked.health != CheckHealth::Unknown);
            (change, is_known)
        };
        self.schedule.done(key, is_known, jitter(), now);
        let Some(change) = change else { return };
        self.log(key, &change, now);
        if change.from == CheckHealth::Failed || change.to == CheckHealth::Failed {
            self.access.requests.ask_paced();
        }
    }

    fn log(&mut self, (rule, address, port): &Key, Change { to, reason, .. }: &Change, now: Instant) {
        let Some(withheld) = self.lines.take(now) else { return };
        let withheld = (withheld > 0).then_some(withheld);
        match to {
            CheckHealth::Failed => {
                warn!(rule = &**rule, %address, port, reason, withheld, "a target fails its check");
            }
            CheckHealth::Good | CheckHealth::Unknown => {
                info!(rule = &**rule, %address, port, withheld, "a target passes its check");
            }
        }
    }
}

/// Returns numbers that nobody has to guess: no key is made from them.
fn random() -> hello::Random {
    let mut random = hello::Random::default();
    for bytes in random.iter_mut().flat_map(|bytes| bytes.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&RandomState::new().hash_one(()).to_ne_bytes());
    }
    random
}

/// Returns a number from 0.95 to 1.05.
fn jitter() -> f64 {
    0.95 + (RandomState::new().hash_one(()) % 1000) as f64 / 10_000.0
}
