//! The daemon's log: to standard error, as text, for the journal, or as JSON.

use std::convert::Infallible;
use std::fmt;
use std::io::IsTerminal as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::Context as _;
use tracing::{Event, Level, Subscriber, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::options::LogFormat;

/// The variable that sets the level.
const VARIABLE: &str = "PLS_ROUTER_LOG";

/// The most lines that wait to be written; more are lost.
const WAITING: usize = 4096;
/// The interval between checks for lost lines.
const PERIOD: Duration = Duration::from_secs(10);

/// The log. Dropping it writes the lines that wait.
pub(super) struct Log {
    lost: ErrorCounter,
    _writer: WorkerGuard,
}

impl Log {
    /// Logs the number of lines that were lost, whenever some were.
    pub(super) async fn report_losses(&self) -> Infallible {
        let mut known = 0;
        let mut period = tokio::time::interval(PERIOD);
        loop {
            period.tick().await;
            let lost = self.lost.dropped_lines();
            if lost > known {
                warn!(lines = lost - known, "log lines were lost: the reader of the log is too slow");
                known = lost;
            }
        }
    }
}

/// The levels that are logged by default. The library warns of each connection that is closed while
/// the kernel still reports changes on it, which is no fault.
const DEFAULT: &str = "info,netlink_proto=error";

/// Sets up logging for the whole process. The level of the XDP programs' log holds for the daemon's
/// filter too.
///
/// A separate thread writes the lines. Where they are not read (a journal on a disk that hangs, a
/// full pipe), the daemon has to keep running and answer the load balancer's probe.
pub(super) fn init(format: LogFormat, bpf_log: Option<log::Level>) -> anyhow::Result<Log> {
    let filter = std::env::var(VARIABLE).unwrap_or_else(|_| match bpf_log {
        // The programs' crate is their target.
        Some(level) => format!("{DEFAULT},router={level}"),
        None => DEFAULT.to_owned(),
    });
    let filter =
        EnvFilter::try_new(&filter).with_context(|| format!("{VARIABLE}={filter} is not understood"))?;
    let (writer, thread) =
        NonBlockingBuilder::default().buffered_lines_limit(WAITING).lossy(true).finish(std::io::stderr());
    let log = Log { lost: writer.error_counter(), _writer: thread };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // An error about a log that cannot be written, in that log, would end the process.
        .log_internal_errors(false);
    let done = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Human if stderr_is_the_journal() => {
            builder.with_ansi(false).event_format(Journal).try_init()
        }
        LogFormat::Human => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_target(false).with_ansi(colour).try_init()
        }
    };
    done.map_err(|error| anyhow::anyhow!("cannot set up logging: {error}"))?;
    Ok(log)
}

/// Returns `true` if standard error is the journal's socket, which `JOURNAL_STREAM` names
/// (systemd.exec(5)). Programs whose output goes elsewhere inherit the variable, so it is compared
/// with the real socket.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else {
        return false;
    };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}

/// A line for the journal, which knows the time itself and takes the priority from the line's start
/// (sd-daemon(3)).
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write as _};
    use std::sync::{Arc, Mutex, mpsc};

    use super::*;

    /// Takes nothing until its other end is dropped.
    struct Stuck(mpsc::Receiver<()>);

    impl io::Write for Stuck {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Told {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn lost_lines_are_logged() {
        let (release, stuck) = mpsc::channel();
        let builder = NonBlockingBuilder::default().buffered_lines_limit(1).lossy(true);
        let (mut writer, thread) = builder.finish(Stuck(stuck));
        for _ in 0..10 {
            writer.write_all(b"a line\n").unwrap();
        }
        let log = Log { lost: writer.error_counter(), _writer: thread };
        let told = Told::default();
        let writer = told.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _default = tracing::subscriber::set_default(subscriber);
        tokio::time::timeout(Duration::ZERO, log.report_losses()).await.unwrap_err();
        drop(release);
        let text = String::from_utf8(told.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("log lines were lost"), "{text}");
    }
}
