//! Both routers' packets of a sequence, side by side.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    category::Category,
    differences::{Case, DIFFERENCES, Difference},
    observe::{self, Seen},
    plan::{Body, Known as _, Sequence, Step, Wrong},
    rig::Arm,
    show,
    topology::Side,
    track::{Output, Track},
};
use crate::{packet::Damage, view::View};

/// A sequence that has run.
#[derive(Clone, Debug)]
pub(super) struct Ran {
    pub(super) sequence: Sequence,
    /// The oracle's, and ours.
    pub(super) tracks: [Track; 2],
}

/// The result of comparing a sequence.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// The declared differences that were found, by their names.
    pub(super) stated: Vec<&'static str>,
    /// An undeclared difference: a short form to sort by, and its text.
    pub(super) problems: Vec<(String, String)>,
}

impl Ran {
    /// Compares what came out of the two routers.
    pub(super) fn judge(&self, categories: &[Category]) -> Verdict {
        let mut verdict = Verdict::default();
        let mut numbers: Vec<u16> = self.sequence.steps.iter().map(|step| step.number).collect();
        numbers.dedup();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let steps: Vec<&Step> = self.sequence.steps.iter().filter(|step| step.number == number).collect();
            let session = steps.first().map_or(0, |step| step.session);
            let [oracle, ours] =
                self.tracks.each_ref().map(|track| seen(track, number, session, Quotes::Whole));
            let same_but_for_quotes = || {
                let [oracle, ours] =
                    self.tracks.each_ref().map(|track| seen(track, number, session, Quotes::Short));
                oracle == ours
            };
            let case = Case {
                sequence: &self.sequence,
                steps,
                oracle: &oracle,
                ours: &ours,
                same_but_for_quotes: &same_but_for_quotes,
            };
            if let Some(problem) = self.spoilt(&case, number) {
                verdict.problems.push(problem);
            } else if oracle != ours {
                let applies = |difference: &&Difference| {
                    categories.contains(&difference.category) && (difference.applies)(&case)
                };
                match DIFFERENCES.iter().find(applies) {
                    Some(difference) => verdict.stated.push(difference.name),
                    None => verdict.problems.push((kind(&case), describe(&case, number))),
                }
            }
        }
        for (arm, track) in Arm::BOTH.iter().zip(&self.tracks) {
            if let Some(problem) = track.port_problem() {
                let what = format!("{}: {problem}", arm.name());
                verdict.problems.push((what.clone(), what));
            }
        }
        verdict
    }

    /// Returns `true` if pls-router has made a wrong checksum of right ones. No declared difference
    /// excuses that.
    fn spoilt(&self, case: &Case<'_>, number: u16) -> Option<(String, String)> {
        let [_, track] = &self.tracks;
        let spoilt = case.ours.iter().any(|seen| !seen.own && seen.has_wrong_checksum());
        let right = track
            .sent(number)
            .all(|packet| !observe::observe(Side::Client, packet, false, 0, track).has_wrong_checksum());
        let meant = |step: &&Step| match (&step.body, step.damage) {
            (Body::Error(quote), _) if quote.wrong != Wrong::Nothing => true,
            (_, damage) => !matches!(damage, None | Some(Damage::Trailer(_))),
        };
        (spoilt && right && !case.steps.iter().any(meant))
            .then(|| ("wrong checksum".to_owned(), describe(case, number)))
    }

    /// The whole sequence, with what came out of both routers.
    pub(super) fn story(&self) -> String {
        let mut text = String::new();
        for (at, session) in self.sequence.sessions.iter().enumerate() {
            _ = writeln!(
                text,
                "  session {at}: protocol {} {} to {} is {}",
                session.protocol, session.client, session.listen, session.server
            );
        }
        let [oracle, ours] = &self.tracks;
        for (at, step) in self.sequence.steps.iter().enumerate() {
            let damage = step.damage.map(|damage| format!(" {damage:?}")).unwrap_or_default();
            let sent = self.sequence.packet(step, ours);
            let sent = sent.map_or("nothing to quote".to_owned(), |packet| show::packet(&packet));
            _ = writeln!(
                text,
                "  step {at}, datagram {}, {:?} sends{damage}: {sent}",
                step.number, step.from
            );
            // With the last of its packets.
            if self.sequence.steps[at + 1..].iter().all(|later| later.number != step.number) {
                for (arm, track) in [("oracle", oracle), ("ours  ", ours)] {
                    for output in track.outputs.iter().filter(|output| output.number == step.number) {
                        let Output { own, side, packet, .. } = output;
                        let own = if *own { ", its own" } else { "" };
                        _ = writeln!(text, "      {arm} to {side:?}{own}: {}", show::packet(packet));
                    }
                }
            }
        }
        text
    }
}

/// The part of a router's own ICMP errors that is compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Quotes {
    Whole,
    /// See [`observe::abridge`].
    Short,
}

/// A router's output for a datagram, in a comparable form.
fn seen(track: &Track, number: u16, session: usize, quotes: Quotes) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut fragments: BTreeMap<_, Vec<&[u8]>> = BTreeMap::new();
    for output in track.outputs.iter().filter(|output| output.number == number) {
        match View::new(&output.packet) {
            Some(view) if view.is_fragment() => {
                let key = (output.side, output.own, view.source(), view.destination());
                fragments.entry(key).or_default().push(&output.packet);
            }
            _ if output.own && quotes == Quotes::Short => {
                seen.push(observe::observe(
                    output.side,
                    &observe::abridge(&output.packet),
                    true,
                    session,
                    track,
                ));
            }
            _ => seen.push(observe::observe(output.side, &output.packet, output.own, session, track)),
        }
    }
    for ((side, own, ..), fragments) in fragments {
        // A router may cut a datagram otherwise, or put it together in between: what counts is what
        // arrives.
        match observe::reassemble(&fragments) {
            Some(whole) => seen.push(observe::observe(side, &whole, own, session, track)),
            None => seen
                .extend(fragments.iter().map(|packet| observe::observe(side, packet, own, session, track))),
        }
    }
    seen.sort();
    seen
}

/// A difference in a few words.
fn kind(case: &Case<'_>) -> String {
    let Some(step) = case.steps.first() else { return "no step".to_owned() };
    let body = match &step.body {
        Body::Tcp { flags, .. } => format!("tcp flags {flags:#04x}"),
        Body::Udp { .. } => "udp".to_owned(),
        Body::Echo { reply, .. } => format!("echo {}", if *reply { "reply" } else { "request" }),
        Body::Other { .. } => "other protocol".to_owned(),
        Body::Error(quote) => format!(
            "icmp error {}/{} of {} bytes, {} of options, {:?}",
            quote.kind, quote.code, quote.length, quote.options, quote.wrong
        ),
    };
    let damage = step.damage.map(|damage| format!(" {damage:?}")).unwrap_or_default();
    let cut = if step.cut.is_some() { " in fragments" } else { "" };
    let options = if step.options.is_empty() { "" } else { " with options" };
    let out = |seen: &[Seen]| match seen {
        [] => "nothing".to_owned(),
        seen => {
            let own = |seen: &Seen| if seen.own { " (own)" } else { "" };
            let sides: Vec<_> = seen.iter().map(|seen| format!("{:?}{}", seen.side, own(seen))).collect();
            sides.join("+")
        }
    };
    let overridden = match (step.source, step.destination) {
        (None, None) => "",
        _ => " (other addresses)",
    };
    format!(
        "{:?}: {body}{damage}{cut}{options}{overridden} ttl {}: oracle {}, ours {}",
        step.from,
        step.ttl.min(3),
        out(case.oracle),
        out(case.ours)
    )
}

fn describe(case: &Case<'_>, number: u16) -> String {
    let mut text = format!("datagram {number} of the sequence {}:\n", case.sequence.seed);
    for (arm, seen) in [("oracle", case.oracle), ("ours", case.ours)] {
        if seen.is_empty() {
            _ = writeln!(text, "    {arm:<6} nothing");
        }
        for Seen { side, own, packet, checks, ports } in seen {
            let ports = if ports.is_empty() { String::new() } else { format!(" ports {ports:?}") };
            let checks = show::checks(checks);
            let own = if *own { ", its own" } else { "" };
            _ = writeln!(text, "    {arm:<6} to {side:?}{own}: {}{checks}{ports}", show::packet(packet));
        }
    }
    if let ([oracle], [ours]) = (case.oracle, case.ours)
        && let Some(at) = oracle.packet.iter().zip(&ours.packet).position(|(one, other)| one != other)
    {
        let end = (at + 8).min(oracle.packet.len()).min(ours.packet.len());
        _ = writeln!(
            text,
            "    from byte {at}: {:02x?} {:02x?}",
            &oracle.packet[at..end],
            &ours.packet[at..end]
        );
    }
    text
}

/// Returns `true` if a step can be compared: the packet that it quotes has come out of both routers
/// and its connection is not over, and the port that a server sends to still belongs to its
/// session.
pub(super) fn is_comparable(tracks: &[Track; 2], step: &Step) -> bool {
    if step.from == Side::Server && tracks.iter().any(|track| track.has_lost_its_port(step.session)) {
        return false;
    }
    match &step.body {
        Body::Error(quote) => tracks.iter().all(|track| {
            track
                .forwarded(quote.of, step.from)
                .is_some_and(|packet| step.from == Side::Client || track.is_current(packet))
        }),
        Body::Tcp { .. } | Body::Udp { .. } | Body::Echo { .. } | Body::Other { .. } => true,
    }
}
