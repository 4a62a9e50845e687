//! A running daemon: what it is asked for, and how it ends, hands over, or is replaced.

use std::{fs::File, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use super::{
    descriptors::reserve_descriptors,
    hand_over::{Offer, Request},
    instance::{Candidate, Instance, Pause, Services},
    listeners::{self, Listeners},
    loading::Loading,
    replacement::Replacement,
    signals::Signals,
    start::{Started, activate},
};
use crate::{
    config::Config,
    daemon::{drain, parts::Common, serve::http},
    dataplane::Pins,
};

/// The time in which a successor that has failed lets go of the pins.
const RELEASE: Duration = Duration::from_secs(10);

/// A request to a running daemon.
pub(crate) enum Event {
    /// To end.
    Stop,
    /// To hand over.
    Asked(Request),
    /// To run with another configuration.
    Replace(Replacement),
}

/// A running daemon.
pub(crate) struct Running {
    instance: Instance,
    services: Services,
    listeners: Listeners,
    pins: Pins,
    /// The lock on the pins, except during a hand-over.
    lock: Option<File>,
}

impl Running {
    /// Returns a daemon that has just started.
    pub(crate) fn new(started: Started) -> Self {
        let Started { instance, services, listeners, pins, lock } = started;
        Self { instance, services, listeners, pins, lock }
    }

    /// Returns the path of the API's socket.
    pub(crate) fn api(&self) -> &Path {
        self.listeners.api()
    }

    /// Tells the log and the service manager that it forwards.
    pub(crate) fn report(&self) {
        let parts = &self.instance.parts;
        let config = parts.state.config.get();
        info!(
            config = %parts.config_path.display(),
            rules = config.forwards.len() + config.masquerades.len(),
            probe = %config.health.listen,
            "running"
        );
        // Without a service manager there is none to notify.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }

    /// Waits until it is asked for something, or until something that must not end has ended.
    pub(crate) async fn wait(
        &mut self,
        signals: &mut Signals,
        offer: &mut Offer,
        replacements: &mut mpsc::UnboundedReceiver<Replacement>,
    ) -> Result<Event> {
        tokio::select! {
            () = signals.stop() => Ok(Event::Stop),
            request = offer.asked() => Ok(Event::Asked(request)),
            Some(replacement) = replacements.recv() => Ok(Event::Replace(replacement)),
            Some(ended) = self.services.join_next() => {
                ended.context("a part of the daemon has crashed")?.context("a part of the daemon has failed")?;
                bail!("a part of the daemon has ended")
            }
        }
    }

    /// Ends the services.
    async fn pause(&mut self) -> Pause {
        self.instance.pause(std::mem::take(&mut self.services)).await
    }

    /// Ends everything but the data plane.
    pub(crate) async fn stop(mut self) {
        let _paused = self.pause().await;
        let parts = &self.instance.parts;
        let interfaces: Vec<_> = parts.state.config.get().interfaces.names().map(str::to_owned).collect();
        info!(
            sessions = parts.sessions(),
            "stopped; the programs go on forwarding on {} without a daemon, and the next start takes them over \
             (`pls-router detach` takes them off)",
            interfaces.join(", ")
        );
        if !listeners::is_managed() {
            self.listeners.remove();
        }
        http::finish().await;
    }

    /// Hands over to a successor. Returns `true` if that has this daemon's place now, and `false`
    /// if it has failed, and this daemon goes on.
    ///
    /// # Errors
    /// Returns an error if this daemon cannot go on.
    pub(crate) async fn hand_over(&mut self, request: Request, signals: &mut Signals) -> Result<bool> {
        let process = request.process.unwrap_or_default();
        info!(process, version = request.program, "another daemon takes over");
        let pause = self.pause().await;
        self.lock = None;
        let handed_over = async {
            request.grant(&self.listeners).await?;
            request.done().await
        };
        let outcome = tokio::select! {
            outcome = handed_over => outcome,
            // The other one goes on by itself.
            () = signals.stop() => return Ok(true),
        };
        let Err(error) = outcome else {
            info!(process, "handed over");
            http::finish().await;
            return Ok(true);
        };
        warn!(process, "the other daemon has failed, so this one goes on: {error:#}");
        drop(request);
        self.lock = Some(self.lock_again().await?);
        self.services = self.instance.resume(pause, &self.listeners).await?;
        Ok(false)
    }

    /// Prepares an instance with another configuration beside the one that runs, whose pins move to
    /// where that configuration has them.
    ///
    /// # Errors
    /// Returns an error if it cannot be prepared. Nothing has changed then.
    pub(crate) async fn prepare(
        &mut self,
        common: &Common,
        config: Config,
        loading: &Loading,
    ) -> Result<(Candidate, Listeners)> {
        self.move_pins(&config.admin.pins)?;
        let prepared = self.prepare_here(common, config, loading).await;
        if prepared.is_err() {
            self.move_pins_back();
        }
        prepared
    }

    /// Prepares an instance whose pins are where those of the one that runs are.
    async fn prepare_here(
        &self,
        common: &Common,
        config: Config,
        loading: &Loading,
    ) -> Result<(Candidate, Listeners)> {
        reserve_descriptors(&config);
        let known = self.instance.parts.state.names.get();
        let candidate = Candidate::prepare(common, config.clone(), &known, loading).await?;
        let listeners = Listeners::bind(&config, self.listeners.inherit()?)?;
        Ok((candidate, listeners))
    }

    /// Puts an instance in the place of the one that runs. The inner result says if that has
    /// succeeded; if not, the one of before runs on.
    ///
    /// # Errors
    /// Returns an error if neither runs.
    pub(crate) async fn replace(&mut self, candidate: Candidate, listeners: Listeners) -> Result<Result<()>> {
        let pause = self.pause().await;
        let activated = async {
            // Now that nobody can begin or end a drain.
            drain::carry(self.listeners.api(), listeners.api())?;
            activate(candidate, &mut self.lock, &listeners, Some(&self.instance)).await
        };
        match activated.await {
            Ok((instance, services)) => {
                if listeners.api() != self.listeners.api() {
                    self.listeners.remove();
                }
                drain::forget(self.listeners.api(), listeners.api());
                pause.for_good();
                (self.instance, self.services, self.listeners) = (instance, services, listeners);
                self.listeners.store();
                Ok(Ok(()))
            }
            Err(error) => {
                listeners.remove_new();
                drain::forget(listeners.api(), self.listeners.api());
                self.services = self.instance.resume(pause, &self.listeners).await?;
                self.move_pins_back();
                Ok(Err(error))
            }
        }
    }

    /// Moves the pins, unless they are there already.
    fn move_pins(&mut self, root: &Path) -> Result<()> {
        if self.pins.root() == root {
            return Ok(());
        }
        let lock = self.instance.parts.move_pins(root).context("cannot change admin.pins")?;
        info!(from = %self.pins.root().display(), to = %root.display(), "moved the pins");
        (self.pins, self.lock) = (Pins::at(root), Some(lock));
        Ok(())
    }

    /// Moves the pins back to where the configuration in force has them.
    fn move_pins_back(&mut self) {
        let config = self.instance.parts.state.config.get();
        if let Err(error) = self.move_pins(&config.admin.pins) {
            warn!("the pins stay at {}: {error:#}", self.pins.root().display());
        }
    }

    /// Locks the pins again, which the failed successor may hold until it has ended.
    async fn lock_again(&self) -> Result<File> {
        /// The pause between two attempts.
        const RETRY: Duration = Duration::from_millis(20);
        let start = Instant::now();
        loop {
            match self.pins.lock() {
                Ok(lock) => return Ok(lock),
                Err(error) if start.elapsed() > RELEASE => return Err(error),
                Err(_) => sleep(RETRY).await,
            }
        }
    }
}
