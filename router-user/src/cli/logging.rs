//! The daemon's log: to standard error, in the form that suits whoever reads it.

use std::fmt;
use std::io::IsTerminal as _;
use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::options::LogFormat;

/// The variable that says what is logged.
const VARIABLE: &str = "PLS_ROUTER_LOG";

/// So many lines wait for whoever reads the log; what comes then is lost.
const WAITING: usize = 4096;

/// Sets up logging for the whole process, until what is returned is dropped. What the XDP programs log from their own level on is shown without
/// asking twice.
///
/// Lines are written by a thread of their own: where nobody takes them (a journal on a disk that hangs, a pipe that is not read), the daemon has
/// to go on, and answer the load balancer's probe.
pub(super) fn init(format: LogFormat, bpf_log: Option<log::Level>) -> anyhow::Result<WorkerGuard> {
    let filter = std::env::var(VARIABLE).unwrap_or_else(|_| match bpf_log {
        // The programs' crate is their target.
        Some(level) => format!("info,router={level}"),
        None => "info".to_owned(),
    });
    let filter =
        EnvFilter::try_new(&filter).with_context(|| format!("{VARIABLE}={filter} is not understood"))?;
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(WAITING).lossy(true).finish(std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // Complaining about a log that cannot be written, in that log, would end the process.
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
    Ok(guard)
}

/// Whether what we write goes to the journal: `JOURNAL_STREAM` names the socket that it reads (systemd.exec(5)).
/// It is inherited by programs whose output goes elsewhere, so it has to be compared with the real thing.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else {
        return false;
    };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}

/// A line for the journal, which knows the time itself and takes the priority from the line's start (sd-daemon(3)).
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
