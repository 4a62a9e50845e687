//! `pls-router detach`

use std::path::PathBuf;

use super::options::{DetachArguments, Format, Global};
use super::{Answer, output};
use crate::client::{Client, ClientError};
use crate::config::{Config, defaults};
use crate::dataplane;
use crate::model::Detached;

pub(super) async fn run(
    global: &Global,
    client: &Client,
    arguments: &DetachArguments,
) -> anyhow::Result<Answer> {
    if arguments.force {
        match client.stand_down().await {
            Ok(()) | Err(ClientError::NoDaemon { .. }) => {}
            Err(error) => {
                output::remark(&format!(
                    "(a daemon that is still running may attach the programs again: {error})"
                ));
            }
        }
    } else {
        match client.status().await {
            Err(ClientError::NoDaemon { .. }) => {}
            Ok(_) | Err(_) => anyhow::bail!(
                "a pls-router daemon is running, and would be left without its programs\n  \
                 fix: stop it first: systemctl stop pls-router (or use --force)"
            ),
        }
    }
    let pins = match Config::load(&global.config) {
        Ok(loaded) => loaded.config.admin.pins,
        Err(_) => {
            output::remark(&format!(
                "(cannot read the configuration {}; using the default pins, {})",
                global.config.display(),
                defaults::PINS
            ));
            PathBuf::from(defaults::PINS)
        }
    };
    let removed = dataplane::detach(&pins)?;
    let detached = Detached {
        interfaces: removed.interfaces,
        pins: pins.display().to_string(),
        directories: removed.directories.iter().map(|directory| directory.display().to_string()).collect(),
    };
    match arguments.output.output {
        Format::Json => output::json(&detached)?,
        Format::Text => {
            let directories = detached.directories.join(", ");
            let text = match (detached.interfaces.as_slice(), detached.directories.is_empty()) {
                ([], true) => {
                    format!("no program was attached, and no pins are left at {}\n", detached.pins)
                }
                ([], false) => format!("no program was attached; removed the pins at {directories}\n"),
                (interfaces, _) => {
                    let interfaces = interfaces.join(", ");
                    format!("detached from {interfaces}; removed {directories} and all sessions\n")
                }
            };
            output::print(&text)?;
        }
    }
    Ok(Answer::Good)
}
