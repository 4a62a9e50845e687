//! Requests to run with another configuration for which another instance is needed.

use anyhow::{Context as _, Result};
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;

/// A request to put another instance in the place of the one that runs.
pub(crate) struct Replacement {
    /// Its configuration.
    pub(crate) config: Box<Config>,
    /// Tells the outcome. After a failure, the instance of before runs on.
    pub(crate) outcome: oneshot::Sender<Result<()>>,
}

/// Asks for replacements. A clone asks the same daemon.
#[derive(Clone)]
pub(crate) struct Replacer(mpsc::UnboundedSender<Replacement>);

impl Replacer {
    /// Returns the asking and the asked end.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Replacement>) {
        let (ask, asked) = mpsc::unbounded_channel();
        (Self(ask), asked)
    }

    /// Puts an instance with this configuration in the place of the one that runs, and returns once
    /// it forwards. All services are other ones then.
    ///
    /// # Errors
    /// Returns an error if the new instance cannot be made. The one of before runs on.
    pub(crate) async fn replace(&self, config: Box<Config>) -> Result<()> {
        const ENDING: &str = "the daemon is ending";
        let (outcome, told) = oneshot::channel();
        self.0.send(Replacement { config, outcome }).ok().context(ENDING)?;
        told.await.context(ENDING)?
    }
}
