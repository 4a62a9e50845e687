//! The thread that handles punted packets.

use std::{sync::Arc, thread};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, RingBuf};
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
};

use super::{
    handler::{Channels, serve},
    router::Router,
    tally::Tally,
};
use crate::daemon::kernel::netlink::Kernel;

/// A thread with a runtime for punted packets alone. The network decides how many there are, so the
/// kernel's scheduler shares the CPU between them and the rest of the daemon, which answers the
/// probe.
pub(crate) struct PuntThread {
    orders: mpsc::UnboundedSender<Order>,
}

/// An order to the thread, which takes one at a time.
enum Order {
    /// Handle packets until the receiver of the result is dropped.
    Serve(Access, oneshot::Sender<Result<()>>),
    /// Say that all earlier orders are done.
    Report(oneshot::Sender<()>),
}

/// The parts of the daemon that the thread has access to.
struct Access {
    router: Arc<dyn Router>,
    tally: Arc<Tally>,
    kernel: Kernel,
}

const CRASHED: &str = "the thread for punted packets has crashed";

impl PuntThread {
    /// Starts the thread, which opens its descriptors and waits for [`serve`](Self::serve). Once
    /// the daemon forwards, it may lack descriptors. If there was no daemon for longer than packets
    /// wait (`is_old`), those in the ring are discarded: nobody waits for their answers any more.
    ///
    /// # Errors
    /// Returns an error if the thread or one of its descriptors cannot be had.
    pub(crate) async fn spawn(ring: RingBuf<MapData>, is_old: bool) -> Result<Self> {
        let (orders, taken) = mpsc::unbounded_channel();
        let (ready, is_ready) = oneshot::channel();
        let work = move || {
            let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error.into()))),
            };
            runtime.block_on(async {
                let mut channels = match Channels::open(ring) {
                    Ok(channels) => channels,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                if is_old {
                    channels.discard();
                }
                if ready.send(Ok(())).is_ok() {
                    follow(taken, channels).await;
                }
            });
        };
        thread::Builder::new().name("punts".to_owned()).spawn(work).context("cannot start a thread")?;
        is_ready.await.context(CRASHED)??;
        Ok(Self { orders })
    }

    /// Returns a future that has the thread handle packets, until it is dropped.
    ///
    /// # Errors
    /// The future returns an error if the ring or the kernel's messages cannot be read any more.
    pub(crate) fn serve(
        &self,
        router: Arc<dyn Router>,
        tally: Arc<Tally>,
        kernel: Kernel,
    ) -> impl Future<Output = Result<()>> + use<> {
        let (end, ended) = oneshot::channel();
        let is_taken = self.orders.send(Order::Serve(Access { router, tally, kernel }, end)).is_ok();
        async move {
            ensure!(is_taken, CRASHED);
            ended.await.context(CRASHED)?
        }
    }

    /// Waits until the thread handles no packets any more. The future of [`serve`](Self::serve) has
    /// been dropped.
    pub(crate) async fn rest(&self) {
        let (report, reported) = oneshot::channel();
        if self.orders.send(Order::Report(report)).is_ok() {
            // A thread that has crashed rests as well.
            let _ = reported.await;
        }
    }
}

/// Follows the orders until nobody can give any.
async fn follow(mut orders: mpsc::UnboundedReceiver<Order>, mut channels: Channels) {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Serve(Access { router, tally, kernel }, mut end) => {
                let result = serve(router, tally, kernel, &mut channels, end.closed()).await;
                // Without a receiver, it was to stop.
                drop(end.send(result));
            }
            Order::Report(report) => drop(report.send(())),
        }
    }
}
