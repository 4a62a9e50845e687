//! Whether the rules have somewhere to lead to, and what that means for the probe.
//!
//! The probe takes this whole machine out of service, with every rule that works. So what only some rules lack is *degraded*: to be seen and
//! to be repaired, while the others go on. It is a *problem*, and the probe's matter, when no forward has a way: none has a target, or the next
//! hops of all are missing, as when the gateway that they share is dead, which another machine behind the load balancer may still reach.
//!
//! A load balancer sends to forwards. Who uses a masquerade has this machine as its gateway, whatever the probe says, so masquerades count
//! only where there is no forward.

use std::collections::{HashMap, HashSet};

use router_common::MAX_TARGETS;

use super::{
    names::{Names, Resolved},
    rule_set,
    target_health::TargetHealth,
    text,
};
use crate::{
    config::{Config, Forward},
    model::NextHopStatus,
};

/// As many of a kind are told one by one: the probe's answer and the log stay short whatever a name
/// server says.
const LISTED: usize = 32;

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
    let refused = without
        .iter()
        .map(|Forward { name, .. }| format!("rule {name}: no target: new sessions are refused"));
    ways.degraded.extend(text::first(refused, LISTED, |more| format!("{more} more rules have no target")));
    let doubts: Vec<String> = with.iter().filter_map(|forward| targets(forward, names, health)).collect();
    let rest = |more| format!("{more} more rules have such targets");
    ways.degraded.extend(text::first(doubts.into_iter(), LISTED, rest));
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
        let mut names: Vec<_> = names.iter().collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        let failing: Vec<_> = names.iter().filter(|(_, resolved)| !resolved.problem.is_empty()).collect();
        let (stale, without): (Vec<_>, Vec<_>) =
            failing.into_iter().partition(|(_, resolved)| !resolved.addresses.is_empty());
        let without = without
            .iter()
            .map(|(name, Resolved { problem, .. })| format!("target {name}: no address: {problem}"));
        let place = if all_at_once { &mut self.problems } else { &mut self.degraded };
        place.extend(text::first(without, LISTED, |more| format!("{more} more names have no address")));
        let stale = stale.iter().map(|(name, Resolved { problem, .. })| {
            format!("target {name}: cannot be resolved again: {problem}")
        });
        let rest = |more| format!("{more} more names cannot be resolved again");
        self.degraded.extend(text::first(stale, LISTED, rest));
        let partly: Vec<_> = names.iter().filter(|(_, resolved)| !resolved.left_out.is_empty()).collect();
        let partly = partly.iter().map(|(name, Resolved { left_out, .. })| {
            format!("target {name}: not all of its answer is used: {left_out}")
        });
        let rest = |more| format!("not all of the answers for {more} more names is used");
        self.degraded.extend(text::first(partly, LISTED, rest));
    }

    /// `with`: the forwards that have targets.
    fn next_hops(&mut self, config: &Config, with: &[&Forward], next_hops: &[NextHopStatus]) {
        let decisive: HashSet<&str> = if config.forwards.is_empty() {
            config.masquerades.iter().map(|masquerade| masquerade.name.as_str()).collect()
        } else {
            with.iter().map(|forward| forward.name.as_str()).collect()
        };
        // Of each rule, whether one of its next hops is there. A target that has just come has not
        // been looked at yet.
        let mut has_way: HashMap<&str, bool> = HashMap::new();
        for next_hop in next_hops {
            for rule in &next_hop.rules {
                *has_way.entry(rule).or_default() |= next_hop.resolved;
            }
        }
        let is_lost = |rule: &&str| has_way.get(rule) == Some(&false);
        let all_are_lost = !decisive.is_empty() && decisive.iter().all(is_lost);
        let lost = next_hops.iter().filter(|next_hop| !next_hop.resolved);
        let (decisive, others): (Vec<_>, Vec<_>) = lost.partition(|next_hop| {
            all_are_lost && next_hop.rules.iter().any(|rule| decisive.contains(rule.as_str()))
        });
        for (place, lost) in [(&mut self.problems, decisive), (&mut self.degraded, others)] {
            let texts = lost.into_iter().map(|NextHopStatus { rules, target, problem, .. }| {
                let rules: Vec<String> =
                    text::first(rules.iter().cloned(), LISTED, |more| format!("{more} more"));
                format!("rule {}: no next hop to {target}: {problem}", rules.join(", "))
            });
            place.extend(text::first(texts, LISTED, |more| format!("{more} more targets have no next hop")));
        }
    }
}

#[cfg(test)]
mod tests;
