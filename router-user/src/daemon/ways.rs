//! Whether the rules have somewhere to lead to, and what that means for the probe.
//!
//! The probe takes this whole machine out of service, with every rule that works. So what one rule or one target lacks is *degraded*: to be
//! seen and to be repaired, while the others go on. It is a *problem*, and the probe's matter, when there is no way for any forward, or
//! when the way out of this machine is missing, which another machine behind the load balancer may have.

use router_common::MAX_TARGETS;

use super::{names::Names, rule_set, target_health::TargetHealth};
use crate::{
    config::{Config, Forward},
    model::NextHopStatus,
};

/// What is wrong with the ways to targets, in words for the operator.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Ways {
    /// Why the probe answers 503.
    pub(super) problems: Vec<String>,
    /// What is wrong besides.
    pub(super) degraded: Vec<String>,
}

/// Judges by names, targets and next hops as they are now.
pub(super) fn judge(
    config: &Config,
    names: &Names,
    health: &TargetHealth,
    next_hops: &[NextHopStatus],
) -> Ways {
    let mut ways = Ways::default();
    let (with, without): (Vec<_>, Vec<_>) =
        config.forwards.iter().partition(|forward| !rule_set::targets(forward, names).is_empty());
    if with.is_empty() && !without.is_empty() {
        ways.problems.push("no forward rule has a target".to_owned());
    }
    for Forward { name, .. } in without {
        ways.degraded.push(format!("rule {name}: no target: new sessions are dropped"));
    }
    ways.degraded.extend(with.iter().filter_map(|forward| targets(forward, names, health)));
    ways.names(names, with.is_empty());
    ways.next_hops(config, next_hops);
    ways
}

/// What is wrong with the targets of a rule that has some.
fn targets(forward: &Forward, names: &Names, health: &TargetHealth) -> Option<String> {
    let (name, all) = (&forward.name, rule_set::targets(forward, names));
    if all.len() > 1 && all.iter().all(|target| health.avoids(rule_set::endpoint(forward, target))) {
        return Some(format!("rule {name}: none of its {} targets answers new sessions", all.len()));
    }
    (all.len() > MAX_TARGETS).then(|| {
        format!("rule {name}: its targets have {} addresses; {MAX_TARGETS} of them are used", all.len())
    })
}

impl Ways {
    fn names(&mut self, names: &Names, all_at_once: bool) {
        let mut failing: Vec<_> = names.iter().filter(|(_, resolved)| !resolved.problem.is_empty()).collect();
        failing.sort_unstable_by_key(|(name, _)| *name);
        for (name, resolved) in failing {
            let problem = &resolved.problem;
            if !resolved.addresses.is_empty() {
                self.degraded.push(format!("target {name}: cannot be resolved again: {problem}"));
            } else if all_at_once {
                self.problems.push(format!("target {name}: no address: {problem}"));
            } else {
                self.degraded.push(format!("target {name}: no address: {problem}"));
            }
        }
    }

    fn next_hops(&mut self, config: &Config, next_hops: &[NextHopStatus]) {
        // The targets of a forward stand in for each other; the destinations of a masquerade do not.
        let has_another = |rule: &String| {
            config.forwards.iter().any(|forward| forward.name == *rule)
                && next_hops.iter().any(|other| other.resolved && other.rules.contains(rule))
        };
        for NextHopStatus { rules, target, problem, .. } in
            next_hops.iter().filter(|next_hop| !next_hop.resolved)
        {
            let text = format!("rule {}: no next hop to {target}: {problem}", rules.join(", "));
            if rules.iter().all(has_another) { &mut self.degraded } else { &mut self.problems }.push(text);
        }
    }
}

#[cfg(test)]
mod tests;
