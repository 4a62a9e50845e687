//! The command line: `pls-router COMMAND`.

mod audit;
mod capacity;
mod check;
mod counters;
mod detach;
mod drain;
mod flows;
mod import;
mod logging;
mod options;
mod output;
mod reload;
mod rules;
mod run;
mod status;
mod support_bundle;
mod table;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::client::Client;
use crate::config::{self, Config, defaults};
use options::{Command, Global, Options};

/// The result of a command, and its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// 0
    Good,
    /// 1: unhealthy, invalid, would fail.
    Bad,
}

/// Returns the definition of the command line, for its manual pages and completions.
#[must_use]
pub fn definition() -> clap::Command {
    Options::command()
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("cannot start the runtime")),
    };
    match runtime.block_on(command(&options)) {
        Ok(Answer::Good) => ExitCode::SUCCESS,
        Ok(Answer::Bad) => ExitCode::from(1),
        // The reader has closed the pipe (`pls-router flows | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn command(options: &Options) -> anyhow::Result<Answer> {
    let global = &options.global;
    match &options.command {
        Command::Run(arguments) => run::run(global, arguments).await,
        Command::Check(arguments) if arguments.live => audit::run(&client(global)?, arguments).await,
        Command::Check(arguments) => check::run(global, arguments).await,
        Command::Status(arguments) => status::run(global, &client(global)?, arguments).await,
        Command::Counters(arguments) => counters::run(&client(global)?, arguments).await,
        Command::Flows(arguments) => flows::run(&client(global)?, arguments).await,
        Command::Rules(arguments) => rules::run(&client(global)?, arguments).await,
        Command::Capacity(arguments) => capacity::run(global, &client(global)?, arguments).await,
        Command::Import(arguments) => import::run(arguments),
        Command::SupportBundle(arguments) => support_bundle::run(global, &client(global)?, arguments).await,
        Command::Drain(arguments) => drain::drain(&client(global)?, arguments).await,
        Command::Undrain(arguments) => drain::undrain(&client(global)?, arguments).await,
        Command::Reload(arguments) => reload::run(&client(global)?, arguments).await,
        Command::Detach(arguments) => detach::run(global, &client(global)?, arguments).await,
    }
}

/// Returns a client of the daemon at `--socket`, the configuration's socket or the default one.
fn client(global: &Global) -> anyhow::Result<Client> {
    if let Some(socket) = &global.socket {
        return Ok(Client::new(socket));
    }
    let path = &global.config;
    if let Err(error) = std::fs::File::open(path)
        && error.kind() == io::ErrorKind::PermissionDenied
    {
        // A member of the group that may look cannot read the configuration, and can see this.
        let default = Path::new(defaults::SOCKET);
        if default.exists() {
            return Ok(Client::new(default));
        }
        anyhow::bail!(
            "cannot read {}, which names the daemon's socket: {error}\n  fix: run as root, or name the socket \
             with --socket PATH",
            path.display()
        );
    }
    let socket = match Config::load(path) {
        Ok(loaded) => loaded.config.admin.socket,
        // The daemon may still be running on an earlier, good configuration.
        Err(_) => config::socket_in(path).unwrap_or_else(|| PathBuf::from(defaults::SOCKET)),
    };
    Ok(Client::new(&socket))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    output::print_error(&format!("{error:#}"));
    ExitCode::from(1)
}
