//! Writes a configuration.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

use super::{
    conditions::written,
    forwards::{Forward, Forwards, Target},
    masquerades::{Masquerade, Masquerades},
    names::Interfaces,
    networks::EVERYWHERE,
    report::{Report, printable},
};
use crate::config::{Protocol, defaults};

/// The parts of the configuration that is to be written.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    /// Where the rules come from, for people.
    pub(super) from: &'a str,
    pub(super) names: Interfaces,
    pub(super) forwards: Forwards,
    pub(super) masquerades: Masquerades,
    /// `mss` of every rule.
    pub(super) mss: Option<String>,
}

/// A configuration, and the lines at which its rules begin.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) text: String,
    rules: Vec<(usize, Place)>,
}

/// A rule of a draft, by its number.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Place {
    Forward(usize),
    Masquerade(usize),
}

impl Draft<'_> {
    /// Returns the number of rules.
    pub(super) fn rules(&self) -> usize {
        self.forwards.all.len() + self.masquerades.all.len()
    }

    /// Writes it.
    pub(super) fn write(&self) -> Written {
        let mut written = Written::default();
        let text = &mut written.text;
        text.push_str(&format!(
            "# Made by `pls-router import iptables-save` from {}. Read it, then: pls-router check\n\n\
             [interfaces]\npls = {}\n",
            printable(self.from),
            quoted(&self.names.pls)
        ));
        if self.names.firewall != self.names.pls {
            text.push_str(&format!("firewall = {}\n", quoted(&self.names.firewall)));
        }
        self.write_snat(text);
        self.write_probe(text);
        for (number, forward) in self.forwards.all.iter().enumerate() {
            written.begin(Place::Forward(number));
            self.write_forward(&mut written.text, forward);
        }
        for (number, masquerade) in self.masquerades.all.iter().enumerate() {
            written.begin(Place::Masquerade(number));
            self.write_masquerade(&mut written.text, masquerade);
        }
        written
    }

    fn write_snat(&self, text: &mut String) {
        let Masquerades { addresses, ports, .. } = &self.masquerades;
        if addresses.is_empty() && ports.is_none() {
            return;
        }
        text.push_str("\n[snat]\n");
        if !addresses.is_empty() {
            text.push_str(&format!("addresses = {}\n", list(addresses)));
        }
        if let Some(ports) = ports {
            text.push_str(&format!("ports = \"{}\"\n", written(ports)));
        }
    }

    /// The probe has a port of its own: a forward may have the usual one.
    fn write_probe(&self, text: &mut String) {
        let is_taken = |port: u16| {
            let takes =
                |forward: &Forward| forward.protocol == Protocol::Tcp && forward.listen.ports.contains(&port);
            self.forwards.all.iter().any(takes)
        };
        let usual = defaults::HEALTH.port();
        if is_taken(usual)
            && let Some(free) = (usual..=usual + 1000).find(|port| !is_taken(*port))
        {
            text.push_str(&format!(
                "\n[health]\n# A forward has {usual}, the usual port: give the load balancer's probe this one.\n\
                 listen = \"0.0.0.0:{free}\"\n"
            ));
        }
    }

    fn write_forward(&self, text: &mut String, forward: &Forward) {
        let Forward { name, protocol, listen, targets, sources, is_open, line, rule, .. } = forward;
        let target = |Target { address, port }: &Target| {
            port.map_or_else(|| address.to_string(), |port| format!("{address}:{port}"))
        };
        let targets: Vec<String> = targets.iter().map(target).collect();
        let target = match &targets[..] {
            [only] => quoted(only),
            all => list(all),
        };
        text.push_str(&format!(
            "# line {line}: {}\n[[forward]]\nname = {}\nprotocol = \"{}\"\nlisten = \"{listen}\"\ntarget = {target}\n",
            printable(rule),
            quoted(name),
            protocol.as_str(),
        ));
        if *is_open {
            text.push_str("# Everyone, as before. Name the networks that may use it: the Private Link Service's subnet.\n");
        }
        text.push_str(&format!("sources = {}\n", networks(sources)));
        if *protocol == Protocol::Tcp {
            self.write_mss(text);
        }
    }

    fn write_masquerade(&self, text: &mut String, masquerade: &Masquerade) {
        let Masquerade { name, sources, destinations, line, rule } = masquerade;
        text.push_str(&format!(
            "# line {line}: {}\n[[masquerade]]\nname = {}\nsources = {}\ndestinations = {}\n",
            printable(rule),
            quoted(name),
            networks(sources),
            networks(destinations),
        ));
        self.write_mss(text);
    }

    fn write_mss(&self, text: &mut String) {
        if let Some(mss) = &self.mss {
            text.push_str(&format!("mss = {mss}\n"));
        }
    }

    /// Keeps this many rules, the first.
    pub(super) fn keep(&mut self, most: usize, report: &mut Report) {
        let forwards = self.forwards.all.drain(self.forwards.all.len().min(most)..);
        let forwards: Vec<_> = forwards.map(|forward| (forward.line, forward.rule)).collect();
        let left = most - self.forwards.all.len();
        let masquerades = self.masquerades.all.drain(self.masquerades.all.len().min(left)..);
        let masquerades: Vec<_> = masquerades.map(|masquerade| (masquerade.line, masquerade.rule)).collect();
        for (line, rule) in forwards.into_iter().chain(masquerades) {
            report.left_out(line, &rule, format!("a configuration has {most} rules at most"));
        }
    }

    /// Takes off the rules that lines of what was written belong to, for what is wrong there.
    pub(super) fn leave_out(&mut self, written: &Written, errors: &[(usize, String)], report: &mut Report) {
        let mut wrong = BTreeMap::new();
        for (line, why) in errors {
            match written.rules.iter().rev().find(|(begin, _)| begin <= line) {
                Some((_, place)) => _ = wrong.entry(*place).or_insert(why),
                None => report.left_out(0, "", why.clone()),
            }
        }
        // The last first: the numbers of the others stay.
        for (place, why) in wrong.into_iter().rev() {
            let (line, rule) = match place {
                Place::Forward(number) => {
                    let Forward { line, rule, .. } = self.forwards.all.remove(number);
                    (line, rule)
                }
                Place::Masquerade(number) => {
                    let Masquerade { line, rule, .. } = self.masquerades.all.remove(number);
                    (line, rule)
                }
            };
            report.left_out(line, &rule, why.clone());
        }
    }
}

impl Written {
    fn begin(&mut self, place: Place) {
        self.text.push('\n');
        self.rules.push((self.text.matches('\n').count() + 1, place));
    }
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            _ if character.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(character))),
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(&item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

/// Networks; everywhere is written as that, whatever parts it has.
fn networks(networks: &[Ipv4Net]) -> String {
    let all = Ipv4Net::aggregate(&networks.to_vec());
    list(if all == [EVERYWHERE] { &all[..] } else { networks })
}
