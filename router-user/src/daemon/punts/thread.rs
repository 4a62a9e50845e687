//! The thread that handles punted packets.

use std::{sync::Arc, thread};

use anyhow::{Context as _, Result, anyhow};
use aya::maps::{MapData, RingBuf};
use tokio::{runtime, sync::oneshot};

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
    /// Begins the work.
    start: oneshot::Sender<Access>,
    /// The error that the work has ended with.
    ended: oneshot::Receiver<Result<()>>,
}

/// The parts of the daemon that the thread has access to.
struct Access {
    router: Arc<dyn Router>,
    tally: Arc<Tally>,
    kernel: Kernel,
}

impl PuntThread {
    /// Starts the thread, which opens its descriptors and waits for [`serve`](Self::serve). Once
    /// the daemon forwards, it may not open them, or may lack some.
    ///
    /// # Errors
    /// Returns an error if the thread or one of its descriptors cannot be had.
    pub(crate) async fn spawn(ring: RingBuf<MapData>) -> Result<Self> {
        let (start, started) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let work = move || {
            let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error.into()))),
            };
            runtime.block_on(async {
                let channels = match Channels::open(ring) {
                    Ok(channels) => channels,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                let is_wanted = ready.send(Ok(())).is_ok();
                // Without a start, the daemon has not come up.
                if is_wanted && let Ok(access) = started.await {
                    work_until_closed(access, channels, end).await;
                }
            });
        };
        thread::Builder::new().name("punts".to_owned()).spawn(work).context("cannot start a thread")?;
        is_ready.await.context("the thread for punted packets has crashed")??;
        Ok(Self { start, ended })
    }

    /// Has the thread handle packets until the returned future is dropped.
    ///
    /// # Errors
    /// Returns an error if the ring or the kernel's messages cannot be read any more.
    pub(crate) async fn serve(
        self,
        router: Arc<dyn Router>,
        tally: Arc<Tally>,
        kernel: Kernel,
    ) -> Result<()> {
        const CRASHED: &str = "the thread for punted packets has crashed";
        self.start.send(Access { router, tally, kernel }).map_err(|_| anyhow!(CRASHED))?;
        self.ended.await.context(CRASHED)?
    }
}

async fn work_until_closed(access: Access, channels: Channels, mut end: oneshot::Sender<Result<()>>) {
    let Access { router, tally, kernel } = access;
    let result = tokio::select! {
        result = serve(router, tally, kernel, channels) => result,
        () = end.closed() => return,
    };
    // Without a receiver, the daemon ends as well.
    drop(end.send(result));
}
