//! From MASQUERADE and SNAT rules to `[[masquerade]]` and `[snat]`.

use std::{net::Ipv4Addr, ops::RangeInclusive};

use ipnet::Ipv4Net;

use super::{
    action::{Action, Source},
    conditions::{Conditions, written},
    forwards::Forwards,
    names::{Interfaces, Names},
    networks::EVERYWHERE,
    report::Report,
    ruleset::Rule,
    walk::Found,
    wanted::Wanted,
};
use crate::config::MAX_SNAT_ADDRESSES;

/// A `[[masquerade]]`, and the line that it comes from.
#[derive(Clone, Debug)]
pub(super) struct Masquerade {
    pub(super) name: String,
    pub(super) sources: Vec<Ipv4Net>,
    pub(super) destinations: Vec<Ipv4Net>,
    pub(super) line: usize,
    pub(super) rule: String,
}

/// All masquerades, and `[snat]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Masquerades {
    pub(super) all: Vec<Masquerade>,
    pub(super) addresses: Vec<Ipv4Addr>,
    pub(super) ports: Option<RangeInclusive<u16>>,
    names: Names,
}

impl Masquerades {
    /// Translates what the chain POSTROUTING says.
    pub(super) fn translate(
        found: &[Found<'_>],
        forwards: &Forwards,
        names: &Interfaces,
        wanted: &Wanted,
        report: &mut Report,
    ) -> Self {
        let mut masquerades = Self { names: forwards.names.clone(), ..Self::default() };
        for Found { rule, conditions, action } in found {
            match action {
                Action::From(source) => {
                    if let Err(why) =
                        masquerades.add((rule, conditions, source), forwards, names, wanted, report)
                    {
                        report.left_out(rule.line, &rule.text, why);
                    }
                }
                Action::Other(why) => report.left_out(rule.line, &rule.text, why.clone()),
                Action::To(_)
                | Action::Redirect
                | Action::Jump(_)
                | Action::Goto(_)
                | Action::Return
                | Action::Accept
                | Action::Drop
                | Action::Nothing => {}
            }
        }
        masquerades
    }

    fn add(
        &mut self,
        (rule, conditions, source): (&Rule, &Conditions, &Source),
        forwards: &Forwards,
        names: &Interfaces,
        wanted: &Wanted,
        report: &mut Report,
    ) -> Result<(), String> {
        if !conditions.leaves_by(&names.firewall) {
            let Interfaces { pls, firewall } = names;
            return Err(format!(
                "its packets leave by another interface than {firewall}: answers to clients (by {pls}) keep their source"
            ));
        }
        if conditions.share.is_some() {
            return Err(
                "it takes a part of the sessions: a configuration has one list of SNAT addresses".to_owned()
            );
        }
        let is_of_forwards = conditions.destinations.as_ref().is_some_and(|all| forwards.lead_to(all));
        if (conditions.protocol.is_some() || conditions.ports.is_some()) && !is_of_forwards {
            let why = "a masquerade is for TCP, UDP and ICMP echo, and all ports: write one if that is not too much";
            return Err(why.to_owned());
        }
        self.take_source(source)?;
        if is_of_forwards {
            // Sessions of forwards have an address of this machine in any case.
            return Ok(());
        }
        let sources = conditions.sources.clone().filter(|sources| *sources != [EVERYWHERE]);
        if sources.is_none() && !forwards.all.is_empty() {
            let text = "forwards always have an address of this machine as source. If other machines use this one as \
                        their router, add a [[masquerade]] with their networks";
            report.remark(rule.line, &rule.text, text);
            return Ok(());
        }
        let wanted = if wanted.sources.is_empty() { vec![EVERYWHERE] } else { wanted.sources.clone() };
        self.all.push(Masquerade {
            name: self.names.for_masquerade(conditions.comments.last().map(String::as_str)),
            sources: sources.unwrap_or(wanted),
            destinations: conditions.destinations.clone().unwrap_or_else(|| vec![EVERYWHERE]),
            line: rule.line,
            rule: rule.text.clone(),
        });
        Ok(())
    }

    /// Takes in the new source of sessions: there is one for all.
    fn take_source(&mut self, source: &Source) -> Result<(), String> {
        let Source { addresses, ports } = source;
        if addresses.len() > MAX_SNAT_ADDRESSES {
            return Err(format!(
                "{} SNAT addresses are too many: {MAX_SNAT_ADDRESSES} at most",
                addresses.len()
            ));
        }
        if !addresses.is_empty() && !self.addresses.is_empty() && *addresses != self.addresses {
            return Err("an earlier rule has other SNAT addresses, and a configuration has one list for all"
                .to_owned());
        }
        if let (Some(new), Some(known)) = (ports, &self.ports)
            && new != known
        {
            return Err(format!("an earlier rule has the SNAT ports {}, for all sessions", written(known)));
        }
        if self.addresses.is_empty() {
            self.addresses.clone_from(addresses);
        }
        self.ports = self.ports.take().or_else(|| ports.clone());
        Ok(())
    }
}
