//! `pls-router run`

use super::options::{BpfLevel, Global, RunArguments};
use super::{Answer, logging};

pub(super) async fn run(global: &Global, arguments: &RunArguments) -> anyhow::Result<Answer> {
    logging::init(arguments.log_format)?;
    start(global, arguments.bpf_log.map(level)).await?;
    Ok(Answer::Good)
}

/// Hands over to the daemon.
async fn start(global: &Global, bpf_log: Option<log::Level>) -> anyhow::Result<()> {
    let _ = bpf_log;
    anyhow::bail!("this build has no daemon to run with {}", global.config.display())
}

fn level(level: BpfLevel) -> log::Level {
    match level {
        BpfLevel::Error => log::Level::Error,
        BpfLevel::Warn => log::Level::Warn,
        BpfLevel::Info => log::Level::Info,
        BpfLevel::Debug => log::Level::Debug,
        BpfLevel::Trace => log::Level::Trace,
    }
}
