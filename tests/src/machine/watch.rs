//! The probe's answers as the load balancer hears them, one after the other.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{emulated::Machine, prober::Prober};

/// From one probe to the next.
const INTERVAL: Duration = Duration::from_millis(100);

/// An answer to the probe.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Nobody takes the connection, or answers in time.
    None,
    /// A status.
    Status(u16),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no answer"),
            Self::Status(status) => status.fmt(f),
        }
    }
}

/// An answer that differs from the one before it.
#[derive(Clone, Debug)]
pub struct Change {
    /// The time since the watch began.
    pub after: Duration,
    /// The answer.
    pub answer: Answer,
    /// Its text, or what went wrong.
    pub text: String,
}

/// Asks the probe again and again, and keeps each answer that is another than the one before.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<(AtomicBool, Mutex<Vec<Change>>)>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins.
    pub fn start(machine: &Machine) -> Result<Self> {
        let prober = machine.prober()?;
        let shared = Arc::new((AtomicBool::new(false), Mutex::new(Vec::new())));
        let theirs = Arc::clone(&shared);
        let thread = thread::spawn(move || ask_until_end(&prober, &theirs));
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Returns the changes so far.
    pub fn changes(&self) -> Vec<Change> {
        self.shared.1.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it. Returns all changes.
    pub fn finish(mut self) -> Vec<Change> {
        self.stop();
        self.changes()
    }

    fn stop(&mut self) {
        self.shared.0.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic was printed.
            _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

fn ask_until_end(prober: &Prober, (end, changes): &(AtomicBool, Mutex<Vec<Change>>)) {
    let began = Instant::now();
    while !end.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let (answer, text) = match prober.ask("/") {
            Ok((status, text)) => (Answer::Status(status), text.trim().to_owned()),
            Err(error) => (Answer::None, format!("{error:#}")),
        };
        let mut changes = changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.last().is_none_or(|last| last.answer != answer) {
            changes.push(Change { after: began.elapsed(), answer, text });
        }
        drop(changes);
        thread::sleep(INTERVAL.saturating_sub(asked.elapsed()));
    }
}
