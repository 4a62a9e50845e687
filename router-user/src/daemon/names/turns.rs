//! Decides when each of several name servers is asked, and which answer counts. No I/O, no clock.
//!
//! The servers of `resolv.conf` are in an order, and only the first may know a private zone, so its
//! answer comes first. But a server that is dead is not to cost its whole timeout with every
//! question, as it does by resolv.conf(5). So the next one is asked soon after, while the first may
//! still answer, and its answer counts a moment later: the patience of RFC 8305, with name servers
//! in place of addresses.

use std::time::{Duration, Instant};

/// The time before the next server is asked as well.
const NEXT: Duration = Duration::from_millis(300);
/// The time for which a server's answer is preferred to that of a later one.
const PREFERRED: Duration = Duration::from_millis(700);

/// The turns of all servers with one question.
pub(super) struct Turns<A> {
    turns: Vec<Turn<A>>,
}

struct Turn<A> {
    /// It did not answer lately: nothing waits for it.
    silent: bool,
    state: State<A>,
}

enum State<A> {
    NotAsked,
    Asked(Instant),
    Failed,
    Answered(A),
}

/// The next step.
#[derive(Debug, PartialEq)]
pub(super) enum Step<A> {
    /// Ask this server, and then look again.
    Ask(usize),
    /// Wait for an answer, until then at most.
    Wait(Option<Instant>),
    /// Take this answer. These servers have been asked and not answered in time.
    Take(A, Vec<usize>),
    /// No server knows.
    Fail,
}

impl<A> Turns<A> {
    /// The turns of servers, of which those that were silent lately are `true`.
    pub(super) fn new(silent: impl IntoIterator<Item = bool>) -> Self {
        Self { turns: silent.into_iter().map(|silent| Turn { silent, state: State::NotAsked }).collect() }
    }

    /// Notes what a server said: an answer, or that it has none to give.
    pub(super) fn said(&mut self, server: usize, answer: Option<A>) {
        if let Some(turn) = self.turns.get_mut(server) {
            turn.state = answer.map_or(State::Failed, State::Answered);
        }
    }

    /// Returns the next step.
    pub(super) fn step(&mut self, now: Instant) -> Step<A> {
        let mut until: Option<Instant> = None;
        let mut earliest = |at: Instant| until = Some(until.map_or(at, |until: Instant| until.min(at)));
        // `true` if an earlier server's answer is still preferred; and the time from which the next
        // one may be asked.
        let (mut is_preferred, mut next) = (false, now);
        let mut waited_for = Vec::new();
        for (server, turn) in self.turns.iter_mut().enumerate() {
            match &turn.state {
                State::Failed => {}
                State::Asked(at) => {
                    let patience = |time| if turn.silent { Duration::ZERO } else { time };
                    next = *at + patience(NEXT);
                    let preferred = *at + patience(PREFERRED);
                    if now < preferred {
                        is_preferred = true;
                        earliest(preferred);
                    }
                    waited_for.push(server);
                }
                State::Answered(_) if is_preferred => return Step::Wait(until),
                State::Answered(_) => {
                    return match std::mem::replace(&mut turn.state, State::Failed) {
                        State::Answered(answer) => Step::Take(answer, waited_for),
                        State::NotAsked | State::Asked(_) | State::Failed => Step::Fail,
                    };
                }
                State::NotAsked if now < next => {
                    earliest(next);
                    return Step::Wait(until);
                }
                State::NotAsked => {
                    turn.state = State::Asked(now);
                    return Step::Ask(server);
                }
            }
        }
        if waited_for.is_empty() { Step::Fail } else { Step::Wait(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn a_server_that_answers_is_the_only_one_asked() {
        let start = Instant::now();
        let mut turns = Turns::new([false, false]);
        assert_eq!(turns.step(start), Step::Ask(0));
        assert_eq!(turns.step(start), Step::Wait(Some(start + NEXT)));
        turns.said(0, Some("yes"));
        assert_eq!(turns.step(start + MOMENT), Step::Take("yes", vec![]));
    }

    #[test]
    fn the_next_one_is_asked_at_once_after_a_failure() {
        let start = Instant::now();
        let mut turns = Turns::new([false, false]);
        assert_eq!(turns.step(start), Step::Ask(0));
        turns.said(0, None);
        assert_eq!(turns.step(start), Step::Ask(1));
        turns.said(1, None::<&str>);
        assert_eq!(turns.step(start), Step::Fail);
    }

    #[test]
    fn a_dead_server_costs_less_than_a_second() {
        let start = Instant::now();
        let mut turns = Turns::new([false, false]);
        assert_eq!(turns.step(start), Step::Ask(0));
        assert_eq!(turns.step(start + NEXT), Step::Ask(1));
        turns.said(1, Some("second"));
        // The first may have a better one until then.
        let preferred = start + PREFERRED;
        assert_eq!(turns.step(start + NEXT + MOMENT), Step::Wait(Some(preferred)));
        assert_eq!(turns.step(preferred), Step::Take("second", vec![0]));
    }

    #[test]
    fn the_first_has_the_say_as_long_as_it_is_preferred() {
        let start = Instant::now();
        let mut turns = Turns::new([false, false]);
        assert_eq!(turns.step(start), Step::Ask(0));
        assert_eq!(turns.step(start + NEXT), Step::Ask(1));
        turns.said(1, Some("second"));
        turns.said(0, Some("first"));
        assert_eq!(turns.step(start + NEXT + MOMENT), Step::Take("first", vec![]));
    }

    #[test]
    fn nothing_waits_for_a_server_that_was_silent() {
        let start = Instant::now();
        let mut turns = Turns::new([true, false, false]);
        assert_eq!(turns.step(start), Step::Ask(0));
        assert_eq!(turns.step(start), Step::Ask(1));
        assert_eq!(turns.step(start), Step::Wait(Some(start + NEXT)));
        turns.said(1, Some("second"));
        assert_eq!(turns.step(start + MOMENT), Step::Take("second", vec![0]));
    }

    #[test]
    fn a_slow_answer_is_waited_for_when_there_is_no_other() {
        let start = Instant::now();
        let mut turns = Turns::new([false, false]);
        assert_eq!(turns.step(start), Step::Ask(0));
        assert_eq!(turns.step(start + NEXT), Step::Ask(1));
        turns.said(1, None);
        let late = start + Duration::from_secs(4);
        assert_eq!(turns.step(late), Step::Wait(None));
        turns.said(0, Some("late"));
        assert_eq!(turns.step(late), Step::Take("late", vec![]));
        assert_eq!(Turns::<&str>::new([]).step(start), Step::Fail);
    }
}
