//! From the chains of a table to one list of rules: jumps are followed, and what earlier rules
//! exempt is taken off.

use super::{
    action::{self, Action},
    conditions::{Conditions, NEVER},
    report::Report,
    ruleset::{Family, Rule, Ruleset},
};

/// Chains within chains, at most: iptables itself refuses loops.
const DEPTH: usize = 16;
/// Rules in the end, at most: jumps can multiply them.
const MOST: usize = 20_000;

/// A rule as a packet meets it.
#[derive(Clone, Debug)]
pub(super) struct Found<'a> {
    pub(super) rule: &'a Rule,
    /// Its own, and those of the jumps that lead to it.
    pub(super) conditions: Conditions,
    pub(super) action: Action,
}

/// Follows a chain and those that it jumps to. Returns the rules that translate something.
pub(super) fn walk<'a>(
    ruleset: &'a Ruleset,
    table: &'a str,
    chain: &'a str,
    report: &mut Report,
) -> Vec<Found<'a>> {
    let mut walker = Walker { ruleset, table, report, found: Vec::new() };
    walker.chain(chain, &Conditions::default(), &mut Vec::new(), 0);
    walker.found
}

struct Walker<'a, 'r> {
    ruleset: &'a Ruleset,
    table: &'a str,
    report: &'r mut Report,
    found: Vec<Found<'a>>,
}

impl<'a> Walker<'a, '_> {
    /// Follows a chain that packets of `given` come to. `exempt` are packets that have left the
    /// table; those that only go back to the caller are forgotten at the end.
    fn chain(&mut self, chain: &str, given: &Conditions, exempt: &mut Vec<Conditions>, depth: usize) {
        let (ruleset, table) = (self.ruleset, self.table);
        let mut returned = Vec::new();
        let rules = ruleset
            .rules()
            .filter(|rule| rule.family == Family::V4 && rule.table == table && rule.chain == chain);
        for rule in rules {
            if self.found.len() >= MOST {
                self.report.left_out(rule.line, &rule.text, "there are too many rules");
                return;
            }
            let read = action::read(rule).and_then(|(own, action)| Ok((given.and(&own)?, action)));
            let (conditions, action) = match read {
                Ok(read) => read,
                // It does nothing here, whatever it is.
                Err(why) if why == NEVER && depth > 0 => continue,
                Err(why) => {
                    self.report.left_out(rule.line, &rule.text, why);
                    continue;
                }
            };
            match action {
                Action::To(_) | Action::Redirect | Action::From(_) | Action::Other(_) => {
                    let mut taken = exempt.iter().chain(&returned);
                    let left = taken.try_fold(conditions, |left, taken| left.without(taken));
                    match left {
                        Ok(conditions) => self.found.push(Found { rule, conditions, action }),
                        Err(why) => self.report.left_out(rule.line, &rule.text, why),
                    }
                }
                Action::Jump(next) | Action::Goto(next) if depth >= DEPTH => {
                    self.report.left_out(
                        rule.line,
                        &rule.text,
                        format!("the way to the chain {next} is too long"),
                    );
                }
                Action::Jump(next) => {
                    // What came back from here does not come there.
                    let before = exempt.len();
                    exempt.append(&mut returned.clone());
                    let here = exempt.len();
                    self.chain(&next, &conditions, exempt, depth + 1);
                    exempt.drain(before..here);
                }
                Action::Goto(next) => {
                    self.chain(&next, &conditions, exempt, depth + 1);
                    returned.push(conditions);
                }
                Action::Return if depth > 0 => returned.push(conditions),
                Action::Accept | Action::Return => exempt.push(conditions),
                Action::Drop | Action::Nothing => {}
            }
        }
    }
}
