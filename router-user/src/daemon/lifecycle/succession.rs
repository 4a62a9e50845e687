//! Taking the place of another data plane, with its sessions.

use std::fs::File;

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use crate::{
    daemon::{state::Attachments, sync::Locked},
    dataplane::{Dataplane, Moved, Succeeded},
};

/// Has packets reach an instance whose programs take the place of others with another table, and
/// moves the sessions of those. Returns `false` if packets reach the instance already. If the pins
/// are in another directory then, `lock` becomes the one on that.
///
/// # Errors
/// Fails as [`Dataplane::take_the_place`] does: the data plane before goes on.
pub(crate) async fn take_the_place(
    attachments: Locked<Attachments>,
    plane: Locked<Dataplane>,
    lock: &mut Option<File>,
) -> Result<bool> {
    let work = move || {
        let mut attachments = attachments.lock();
        let attached = attachments.attached.iter_mut().map(|attached| &mut attached.attachment);
        plane.lock().take_the_place(attached)
    };
    // Walks through a large table, which must not hold up signals.
    let Some(Succeeded { layout, moved, lock: new }) =
        tokio::task::spawn_blocking(work).await.context("moving sessions has crashed")??
    else {
        return Ok(false);
    };
    if new.is_some() {
        *lock = new;
    }
    if let Some(moved) = moved {
        report_moved(layout, &moved);
    }
    Ok(true)
}

/// Says what became of the sessions of another table.
fn report_moved(layout: u32, moved: &Moved) {
    let Moved { copied, carried_over, ended, opened_late, held, lost, refused, passes, paused, took } =
        *moved;
    info!(
        layout,
        copied,
        carried_over,
        ended,
        opened_late,
        held,
        passes,
        took_ms = took.as_millis(),
        "moved {} sessions to the new flow table; no new session could be opened for {} ms, and {refused} packets \
         that would have opened one were dropped",
        carried_over + opened_late,
        paused.as_millis()
    );
    if lost > 0 {
        warn!("{lost} sessions found no room in the new flow table, and are lost");
    }
}
