//! Ctrl-C and SIGTERM: the labs of this process are removed before it ends.

use std::{
    cell::Cell,
    collections::BTreeMap,
    process,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard},
    thread,
};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// Held for writing once an interrupt is being handled, and then for good.
static GATE: RwLock<()> = RwLock::new(());

/// Removes the lab with this id.
pub(crate) type Remove = fn(&str) -> Result<()>;

/// The labs to remove, by id.
static LABS: Mutex<BTreeMap<String, Remove>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// The number of gates that this thread holds.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// See [`gate`].
pub(crate) struct Gate {
    _outermost: Option<RwLockReadGuard<'static, ()>>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Held while something is created that would have to be removed (a process, a namespace, a mount).
/// Once an interrupt is being handled this never returns, so nothing appears that the removal would
/// miss.
///
/// A thread may hold several, one inside the other: only the outermost takes the lock, since a
/// second read lock after a waiting writer would wait for that writer.
pub(crate) fn gate() -> Gate {
    let outermost = (DEPTH.get() == 0).then(|| GATE.read().unwrap_or_else(PoisonError::into_inner));
    DEPTH.set(DEPTH.get() + 1);
    Gate { _outermost: outermost }
}

fn labs() -> MutexGuard<'static, BTreeMap<String, Remove>> {
    LABS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has an interrupt remove the lab `id` from now on.
pub(crate) fn guard(id: &str, remove: Remove) -> Result<()> {
    static WATCHING: OnceLock<Result<(), String>> = OnceLock::new();
    let watching = WATCHING.get_or_init(|| watch().map_err(|error| format!("{error:#}")));
    watching.clone().map_err(anyhow::Error::msg)?;
    labs().insert(id.to_owned(), remove);
    Ok(())
}

/// Forgets the lab `id`, which is gone or is to stay.
pub(crate) fn release(id: &str) {
    labs().remove(id);
}

fn watch() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch for signals")?;
    thread::Builder::new()
        .name("interrupt".to_owned())
        .spawn(move || {
            let Some(signal) = signals.forever().next() else { return };
            let _closed = GATE.write().unwrap_or_else(PoisonError::into_inner);
            // For this thread, which runs commands to remove things, the gate is open.
            DEPTH.set(1);
            for (id, remove) in labs().iter() {
                complain!("interrupted: removing the lab \"{id}\"");
                if let Err(error) = remove(id) {
                    complain!("{error:#}");
                }
            }
            process::exit(128 + signal);
        })
        .context("cannot start the thread that watches for signals")?;
    Ok(())
}
