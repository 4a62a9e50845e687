//! Checks that rules have reachable targets, and decides what that means for the probe.
//!
//! The probe takes this whole machine out of service, with every rule that works. So what only some
//! rules lack is *degraded*: to be seen and to be repaired, while the others go on. It is a
//! *problem*, and the probe's matter, when no forward can be reached: each of them has no target,
//! has lost its next hops, as when the gateway that they share is dead, which another machine
//! behind the load balancer may still reach, or fails its active check. An operator may require
//! more: all forwards, or certain rules (`require` of `[health]`).
//!
//! What sessions have shown of targets (passive health) is only a suspicion, and never the probe's
//! matter.
//!
//! A load balancer sends to forwards. The clients of a masquerade have this machine as their
//! gateway, whatever the probe answers, so masquerades count only where there is no forward, or
//! where they are required by name.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::SocketAddrV4,
};

use router_common::limits::MAX_TARGETS;

use crate::{
    config::{Config, Forward, Require, RequiredRules},
    daemon::{
        control::desired,
        kernel::next_hop::NextHop,
        logging::text,
        names::resolved::{Names, Resolved},
        observe::{check_health::CheckHealth, target_health::TargetHealth},
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
    let lost = without_next_hop(next_hops);
    let failures: HashMap<&str, Failure> = with
        .iter()
        .filter_map(|forward| Some((forward.name.as_str(), failure(forward, names, health)?)))
        .collect();
    let are_without: HashSet<&str> = without.iter().map(|forward| forward.name.as_str()).collect();
    let unreachable =
        |rule: &str| are_without.contains(rule) || lost.contains(rule) || failures.contains_key(rule);
    let decisive = decisive(config, unreachable);

    // Where only some rules matter, it is said of each of these.
    let all_matter = !matches!(config.health.require, RequiredRules::These(_));
    if with.is_empty() && !without.is_empty() && all_matter {
        conditions.add(Severity::Down, Id::NoTargets, "", "no forward rule has a target");
    }
    // The probe's answer says once what all rules lack.
    let is_any = config.health.require == RequiredRules::Any;
    let (down, degraded): (Vec<_>, Vec<_>) = without
        .iter()
        .map(|forward| forward.name.as_str())
        .partition(|rule| !is_any && decisive.contains(rule));
    for (severity, rules) in [(Severity::Down, down), (Severity::Degraded, degraded)] {
        let refused = rules
            .into_iter()
            .map(|name| (name.to_owned(), format!("rule {name}: no target: new sessions are refused")));
        let rest = |more| format!("{more} more rules have no target");
        conditions.add_first(severity, Id::RuleWithoutTarget, refused, LISTED, rest);
    }
    judge_checks(conditions, &with, &failures, &decisive);
    judge_targets(conditions, &with, names, health);
    judge_names(conditions, names, with.is_empty() && all_matter);
    judge_next_hops(conditions, next_hops, |rule| lost.contains(rule) && decisive.contains(rule));
}

/// Returns the rules whose faults make the probe answer 503, of those that cannot be reached.
fn decisive(config: &Config, is_unreachable: impl Fn(&str) -> bool) -> HashSet<&str> {
    let forwards = config.forwards.iter().map(|forward| forward.name.as_str());
    let masquerades = config.masquerades.iter().map(|masquerade| masquerade.name.as_str());
    let all: Vec<&str> = if config.forwards.is_empty() { masquerades.collect() } else { forwards.collect() };
    match &config.health.require {
        RequiredRules::Any if !all.iter().all(|rule| is_unreachable(rule)) => HashSet::new(),
        RequiredRules::Any | RequiredRules::All => {
            all.into_iter().filter(|rule| is_unreachable(rule)).collect()
        }
        RequiredRules::These(these) => {
            these.iter().map(String::as_str).filter(|rule| is_unreachable(rule)).collect()
        }
    }
}

/// Returns the rules that have lost the next hops of all their targets. One whose targets are new
/// is not among them: its next hops have not been looked at yet.
fn without_next_hop(next_hops: &[NextHop]) -> HashSet<&str> {
    // `true` if one of its next hops is there.
    let mut has_next_hop: HashMap<&str, bool> = HashMap::new();
    for next_hop in next_hops {
        for rule in &next_hop.rules {
            *has_next_hop.entry(rule).or_default() |= next_hop.is_resolved();
        }
    }
    has_next_hop.into_iter().filter(|(_, is_there)| !is_there).map(|(rule, _)| rule).collect()
}

/// The targets that fail the check of a rule.
struct Failure {
    /// The number of all targets.
    of: usize,
    failed: usize,
    /// The first of them, and why.
    first: (String, String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of, failed, first: (target, reason) } = self;
        match (of, of == failed) {
            (1, _) => write!(f, "its target {target} fails its check: {reason}"),
            (_, true) => write!(f, "none of its {of} targets passes its check; {target}: {reason}"),
            (_, false) => write!(f, "{failed} of its {of} targets fail their check; {target}: {reason}"),
        }
    }
}

/// Returns `true` if a rule has no active check, or enough of its targets pass it.
pub(crate) fn passes_its_checks(forward: &Forward, names: &Names, health: &TargetHealth) -> bool {
    failure(forward, names, health).is_none()
}

/// Returns what makes a rule unhealthy, by its active check; `None` if it is healthy.
fn failure(forward: &Forward, names: &Names, health: &TargetHealth) -> Option<Failure> {
    let check = forward.check.as_ref()?;
    let all = desired::targets(forward, names);
    let failed: Vec<_> = all.iter().filter_map(|target| failed_target(forward, target, health)).collect();
    let is_unhealthy = match check.require {
        Require::Any => failed.len() == all.len(),
        Require::All => !failed.is_empty(),
    };
    let count = failed.len();
    let first = failed.into_iter().next().filter(|_| is_unhealthy)?;
    Some(Failure { of: all.len(), failed: count, first })
}

/// Returns the words for a target if it fails the check of its rule, and why.
fn failed_target(
    forward: &Forward,
    target: &desired::Target,
    health: &TargetHealth,
) -> Option<(String, String)> {
    let (address, port, _) = desired::endpoint(forward, target);
    let checked = health.checks.of(&forward.name, (address, port))?;
    if checked.health != CheckHealth::Failed {
        return None;
    }
    // The port may be the client's.
    let target = if port == 0 { address.to_string() } else { SocketAddrV4::new(address, port).to_string() };
    Some((target, checked.reason().to_owned()))
}

/// Adds the rules that are unhealthy by their active checks.
fn judge_checks(
    conditions: &mut Conditions,
    with: &[&Forward],
    failures: &HashMap<&str, Failure>,
    decisive: &HashSet<&str>,
) {
    let unhealthy = with.iter().filter_map(|forward| {
        let name = forward.name.as_str();
        Some((name, failures.get(name)?))
    });
    let (down, degraded): (Vec<_>, Vec<_>) = unhealthy.partition(|(rule, _)| decisive.contains(rule));
    for (severity, rules) in [(Severity::Down, down), (Severity::Degraded, degraded)] {
        let items =
            rules.into_iter().map(|(name, failure)| (name.to_owned(), format!("rule {name}: {failure}")));
        let rest = |more| format!("{more} more rules fail their checks");
        conditions.add_first(severity, Id::RuleUnhealthy, items, LISTED, rest);
    }
}

/// Adds what is wrong with the targets of the rules that have some.
fn judge_targets(conditions: &mut Conditions, with: &[&Forward], names: &Names, health: &TargetHealth) {
    let (mut unresponsive, mut left_out, mut failed) = (Vec::new(), Vec::new(), Vec::new());
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
        let of_rule = all.iter().filter_map(|target| failed_target(forward, target, health));
        failed.extend(of_rule.map(|(target, reason)| {
            (format!("{name} {target}"), format!("rule {name}: target {target} fails its check: {reason}"))
        }));
    }
    let rest = |more| format!("{more} more rules have such targets");
    conditions.add_first(Severity::Degraded, Id::TargetsLeftOut, left_out.into_iter(), LISTED, rest);
    conditions.add_first(Severity::Degraded, Id::TargetsUnresponsive, unresponsive.into_iter(), LISTED, rest);
    let rest = |more| format!("{more} more targets fail their check");
    conditions.add_first(Severity::Degraded, Id::TargetFailed, failed.into_iter(), LISTED, rest);
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

/// Adds next hops that are missing. Those of the rules that `are_decisive` are the probe's matter.
fn judge_next_hops(conditions: &mut Conditions, next_hops: &[NextHop], are_decisive: impl Fn(&str) -> bool) {
    let lost = next_hops.iter().filter(|next_hop| !next_hop.is_resolved());
    let (decisive, others): (Vec<_>, Vec<_>) =
        lost.partition(|next_hop| next_hop.rules.iter().any(|rule| are_decisive(rule)));
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
