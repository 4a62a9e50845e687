//! Checks that rules have reachable targets, and decides what that means for the probe.
//!
//! The probe takes this whole machine out of service, with every rule that works. So what only some
//! rules lack is *degraded*: to be seen and to be repaired, while the others go on. It is a
//! *problem*, and the probe's matter, when no forward has a way: none has a target, or the next
//! hops of all are missing, as when the gateway that they share is dead, which another machine
//! behind the load balancer may still reach.
//!
//! A load balancer sends to forwards. The clients of a masquerade have this machine as their
//! gateway, whatever the probe answers, so masquerades count only where there is no forward.

use std::collections::{HashMap, HashSet};

use router_common::limits::MAX_TARGETS;

use crate::{
    config::{Config, Forward},
    daemon::{
        control::desired,
        kernel::next_hop::NextHop,
        logging::text,
        names::resolved::{Names, Resolved},
        observe::target_health::TargetHealth,
    },
    health::{Conditions, Id, Severity},
};

/// The most conditions of a kind that are listed one by one: the probe's answer and the log stay
/// short whatever a name server says.
const LISTED: usize = 32;

/// Adds the conditions of names, targets and next hops, as they are now.
pub(crate) fn judge(
    conditions: &mut Conditions,
    config: &Config,
    names: &Names,
    health: &TargetHealth,
    next_hops: &[NextHop],
) {
    let (with, without): (Vec<_>, Vec<_>) =
        config.forwards.iter().partition(|forward| !desired::targets(forward, names).is_empty());
    if with.is_empty() && !without.is_empty() {
        conditions.add(Severity::Down, Id::NoTargets, "", "no forward rule has a target");
    }
    let refused = without.iter().map(|Forward { name, .. }| {
        (name.clone(), format!("rule {name}: no target: new sessions are refused"))
    });
    let rest = |more| format!("{more} more rules have no target");
    conditions.add_first(Severity::Degraded, Id::RuleWithoutTarget, refused, LISTED, rest);
    judge_targets(conditions, &with, names, health);
    judge_names(conditions, names, with.is_empty());
    judge_next_hops(conditions, config, &with, next_hops);
}

/// Adds what is wrong with the targets of the rules that have some.
fn judge_targets(conditions: &mut Conditions, with: &[&Forward], names: &Names, health: &TargetHealth) {
    let (mut unresponsive, mut left_out) = (Vec::new(), Vec::new());
    for forward in with {
        let (name, all) = (&forward.name, desired::targets(forward, names));
        if all.len() > 1 && all.iter().all(|target| health.avoids(desired::endpoint(forward, target))) {
            let detail = format!("rule {name}: none of its {} targets answers new sessions", all.len());
            unresponsive.push((name.clone(), detail));
        } else if all.len() > MAX_TARGETS {
            let detail = format!(
                "rule {name}: its targets have {} addresses; {MAX_TARGETS} of them are used",
                all.len()
            );
            left_out.push((name.clone(), detail));
        }
    }
    for (id, items) in [(Id::TargetsLeftOut, left_out), (Id::TargetsUnresponsive, unresponsive)] {
        let rest = |more| format!("{more} more rules have such targets");
        conditions.add_first(Severity::Degraded, id, items.into_iter(), LISTED, rest);
    }
}

/// Adds what is wrong with names.
///
/// `all_at_once`: no rule has a target.
fn judge_names(conditions: &mut Conditions, names: &Names, all_at_once: bool) {
    let mut names: Vec<_> = names.iter().collect();
    names.sort_unstable_by_key(|(name, _)| *name);
    let of = |is_one: fn(&Resolved) -> bool, detail: fn(&str, &Resolved) -> String| {
        let those = names.iter().filter(|(_, resolved)| is_one(resolved));
        let items = those.map(|(name, resolved)| ((*name).clone(), detail(name, resolved)));
        items.collect::<Vec<_>>().into_iter()
    };
    let without = of(
        |resolved| resolved.problem.is_some() && resolved.addresses.is_empty(),
        |name, Resolved { problem, .. }| format!("target {name}: no address: {}", words(problem.as_ref())),
    );
    let severity = if all_at_once { Severity::Down } else { Severity::Degraded };
    let rest = |more| format!("{more} more names have no address");
    conditions.add_first(severity, Id::NameUnresolved, without, LISTED, rest);
    let stale = of(
        |resolved| resolved.problem.is_some() && !resolved.addresses.is_empty(),
        |name, Resolved { problem, .. }| {
            format!("target {name}: cannot be resolved again: {}", words(problem.as_ref()))
        },
    );
    let rest = |more| format!("{more} more names cannot be resolved again");
    conditions.add_first(Severity::Degraded, Id::NameStale, stale, LISTED, rest);
    let partly = of(
        |resolved| resolved.left_out.is_some(),
        |name, Resolved { left_out, .. }| {
            format!("target {name}: not all of its answer is used: {}", words(left_out.as_ref()))
        },
    );
    let rest = |more| format!("not all of the answers for {more} more names is used");
    conditions.add_first(Severity::Degraded, Id::NameLeftOut, partly, LISTED, rest);
}

/// Adds next hops that are missing.
///
/// `with`: the forwards that have targets.
fn judge_next_hops(conditions: &mut Conditions, config: &Config, with: &[&Forward], next_hops: &[NextHop]) {
    let decisive: HashSet<&str> = if config.forwards.is_empty() {
        config.masquerades.iter().map(|masquerade| masquerade.name.as_str()).collect()
    } else {
        with.iter().map(|forward| forward.name.as_str()).collect()
    };
    // By rule, `true` if one of its next hops is there. A new target has not been looked at yet.
    let mut has_next_hop: HashMap<&str, bool> = HashMap::new();
    for next_hop in next_hops {
        for rule in &next_hop.rules {
            *has_next_hop.entry(rule).or_default() |= next_hop.is_resolved();
        }
    }
    let is_lost = |rule: &&str| has_next_hop.get(rule) == Some(&false);
    let all_are_lost = !decisive.is_empty() && decisive.iter().all(is_lost);
    let lost = next_hops.iter().filter(|next_hop| !next_hop.is_resolved());
    let (decisive, others): (Vec<_>, Vec<_>) = lost.partition(|next_hop| {
        all_are_lost && next_hop.rules.iter().any(|rule| decisive.contains(rule.as_str()))
    });
    for (severity, lost) in [(Severity::Down, decisive), (Severity::Degraded, others)] {
        let items = lost.into_iter().map(|NextHop { rules, target, problem, .. }| {
            let problem = words(problem.as_ref());
            let rules: Vec<String> =
                text::first(rules.iter().cloned(), LISTED, |more| format!("{more} more"));
            let detail = format!("rule {}: no next hop to {target}: {problem}", rules.join(", "));
            (target.to_string(), detail)
        });
        let rest = |more| format!("{more} more targets have no next hop");
        conditions.add_first(severity, Id::NextHopUnresolved, items, LISTED, rest);
    }
}

/// Returns the words for what may be wrong.
fn words(problem: Option<&impl ToString>) -> String {
    problem.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests;
