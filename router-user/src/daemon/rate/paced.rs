//! Work that hosts on the network can cause again and again: it is done soon, but not too often.

use std::{sync::Mutex, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::daemon::sync::lock;

/// Something to do when it has been asked for, and not again before a pause has passed.
#[derive(Debug)]
pub(crate) struct Paced {
    asked: Notify,
    pause: Duration,
    next: Mutex<Option<Instant>>,
}

impl Paced {
    /// Something that begins once in `pause` at most.
    pub(crate) fn new(pause: Duration) -> Self {
        Self { asked: Notify::new(), pause, next: Mutex::default() }
    }

    /// Asks for it. What is asked for several times before its [`turn`](Self::turn) is done once.
    pub(crate) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Waits until it is to be done: it has been asked for since its last turn, and that is long
    /// enough ago. For one task.
    pub(crate) async fn turn(&self) {
        self.asked.notified().await;
        let next = *lock(&self.next);
        if let Some(next) = next {
            sleep_until(next).await;
        }
        *lock(&self.next) = Some(Instant::now() + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::sleep;

    use super::*;

    const PAUSE: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn many_requests_are_met_by_few_turns_and_the_last_one_is_met() {
        let (paced, asked, mut turns) = (Paced::new(PAUSE), Cell::new(0), Vec::new());
        let requests = async {
            for request in 1..=100 {
                asked.set(request);
                paced.ask();
                sleep(Duration::from_millis(1)).await;
            }
        };
        let met = async {
            loop {
                paced.turn().await;
                turns.push(Instant::now());
                if asked.get() == 100 {
                    break;
                }
            }
        };
        tokio::join!(requests, met);
        assert!(turns.len() > 1 && turns.windows(2).all(|pair| pair[1] - pair[0] >= PAUSE), "{turns:?}");
    }
}
