//! Whether the rules have somewhere to lead to, and what that means for the probe.
//!
//! The probe takes this whole machine out of service, with every rule that works. So what only some rules lack is *degraded*: to be seen and
//! to be repaired, while the others go on. It is a *problem*, and the probe's matter, when no forward has a way: none has a target, or the next
//! hops of all are missing, as when the gateway that they share is dead, which another machine behind the load balancer may still reach.
//!
//! A load balancer sends to forwards. Who uses a masquerade has this machine as its gateway, whatever the probe says, so masquerades count
//! only where there is no forward.

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
        ways.degraded.push(format!("rule {name}: no target: new sessions are refused"));
    }
    ways.degraded.extend(with.iter().filter_map(|forward| targets(forward, names, health)));
    ways.names(names, with.is_empty());
    ways.next_hops(config, &with, next_hops);
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

    /// `with`: the forwards that have targets.
    fn next_hops(&mut self, config: &Config, with: &[&Forward], next_hops: &[NextHopStatus]) {
        let forwards = with.iter().map(|forward| &forward.name);
        let decisive: Vec<&String> = if config.forwards.is_empty() {
            config.masquerades.iter().map(|masquerade| &masquerade.name).collect()
        } else {
            forwards.collect()
        };
        let is_lost = |rule: &&String| {
            let mut of_rule = next_hops.iter().filter(|next_hop| next_hop.rules.contains(rule)).peekable();
            // A target that has just come has not been looked at yet.
            of_rule.peek().is_some() && of_rule.all(|next_hop| !next_hop.resolved)
        };
        let all_are_lost = !decisive.is_empty() && decisive.iter().all(is_lost);
        for NextHopStatus { rules, target, problem, .. } in
            next_hops.iter().filter(|next_hop| !next_hop.resolved)
        {
            let text = format!("rule {}: no next hop to {target}: {problem}", rules.join(", "));
            let concerns_probe = all_are_lost && rules.iter().any(|rule| decisive.contains(&rule));
            if concerns_probe { &mut self.problems } else { &mut self.degraded }.push(text);
        }
    }
}

#[cfg(test)]
mod tests;
