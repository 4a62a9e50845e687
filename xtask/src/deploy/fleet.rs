//! Several hosts: so many at a time, up to the first failure.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::outcome::Outcome;

/// Works on all hosts, on `at_once` of them at a time. When one fails, those that are begun are
/// finished, and no other is begun.
pub(super) fn roll(hosts: &[String], at_once: usize, work: impl Fn(&str) -> Outcome + Sync) -> Vec<Outcome> {
    let failed = AtomicBool::new(false);
    each(hosts, at_once, |host| {
        if failed.load(Ordering::SeqCst) {
            return Outcome::NotReached;
        }
        let outcome = work(host);
        if outcome.is_failure() {
            failed.store(true, Ordering::SeqCst);
        }
        outcome
    })
    .into_iter()
    .map(|outcome| outcome.unwrap_or(Outcome::NotReached))
    .collect()
}

/// Works on all hosts, on `at_once` of them at a time, and returns the results in their order.
pub(super) fn each<T: Send>(
    hosts: &[String],
    at_once: usize,
    work: impl Fn(&str) -> T + Sync,
) -> Vec<Option<T>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<T>>> = Mutex::new(hosts.iter().map(|_| None).collect());
    thread::scope(|scope| {
        for _ in 0..at_once.min(hosts.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let Some(host) = hosts.get(index) else { break };
                    let result = work(host);
                    // A panic of another one ends all of it anyway.
                    if let Ok(mut results) = results.lock() {
                        results[index] = Some(result);
                    }
                }
            });
        }
    });
    results.into_inner().unwrap_or_default()
}

/// The list of all hosts at the end.
pub(super) fn summary(hosts: &[String], outcomes: &[Outcome]) -> String {
    let width = hosts.iter().map(|host| host.chars().count() + 1).max().unwrap_or_default();
    let line = |(host, outcome): (&String, &Outcome)| {
        format!("  {:<width$} {}\n", format!("{host}:"), outcome.words())
    };
    hosts.iter().zip(outcomes).map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::super::outcome::{Failure, State};
    use super::*;

    fn hosts(number: usize) -> Vec<String> {
        (1..=number).map(|number| format!("h{number}")).collect()
    }

    const DONE: Outcome = Outcome::Good(State::Done);
    const FAILED: Outcome = Outcome::Failed(Failure::PutBack);

    #[test]
    fn the_first_failure_ends_it() {
        let outcomes = roll(&hosts(4), 1, |host| if host == "h2" { FAILED } else { DONE });
        assert_eq!(outcomes, [DONE, FAILED, Outcome::NotReached, Outcome::NotReached]);
        assert_eq!(
            summary(&hosts(4), &outcomes),
            "  h1: done\n  h2: FAILED, the previous version is back\n  h3: not touched\n  h4: not touched\n"
        );
    }

    #[test]
    fn those_that_are_begun_are_finished() {
        let together = Barrier::new(2);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let outcomes = roll(&hosts(5), 2, |host| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            if host == "h1" || host == "h2" {
                together.wait();
            }
            now.fetch_sub(1, Ordering::SeqCst);
            if host == "h1" { FAILED } else { DONE }
        });
        assert_eq!(outcomes[..2], [FAILED, DONE]);
        assert!(most.into_inner() <= 2);
    }

    #[test]
    fn results_keep_the_order_of_the_hosts() {
        let lengths = each(&["a".to_owned(), "bcd".to_owned()], 2, str::len);
        assert_eq!(lengths, [Some(1), Some(3)]);
    }
}
