//! `pls-router run`

use super::options::{BpfLevel, Global, RunArguments};
use super::{Answer, logging};
use crate::daemon;

pub(super) async fn run(global: &Global, arguments: &RunArguments) -> anyhow::Result<Answer> {
    let bpf_log = arguments.bpf_log.map(level);
    let log = logging::init(arguments.log_format, bpf_log)?;
    let options =
        daemon::Options { config_path: global.config.clone(), bpf_log, take_over: arguments.take_over };
    tokio::select! {
        ended = daemon::run(options) => ended.map(|()| Answer::Good),
        never = log.report_losses() => match never {},
    }
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
