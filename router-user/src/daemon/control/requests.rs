//! Requests to look at the rules again.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use crate::daemon::rate::paced::Paced;

/// The time after which the rules are written again at the earliest for what a name server says:
/// its answers may change with every question.
const PAUSE: Duration = Duration::from_secs(1);

/// Requests to look at the rules again. A clone asks for the same.
#[derive(Clone)]
pub(crate) struct Requests(Arc<Inner>);

struct Inner {
    at_once: Notify,
    paced: Paced,
}

impl Requests {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { at_once: Notify::new(), paced: Paced::new(PAUSE) }))
    }

    /// Asks for a look at once.
    pub(crate) fn ask(&self) {
        self.0.at_once.notify_one();
    }

    /// Asks for a look soon, once a second at most: hosts on the network can cause this request.
    pub(crate) fn ask_paced(&self) {
        self.0.paced.ask();
    }

    /// Waits until a look was asked for. For one task.
    pub(super) async fn turn(&self) {
        tokio::select! {
            () = self.0.at_once.notified() => {}
            () = self.0.paced.turn() => {}
        }
    }
}
