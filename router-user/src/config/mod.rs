//! The configuration file: TOML text to a [`Config`] that the rest of the program can trust.
//!
//! One run reports every error of the file that does not depend on the machine. Errors that do,
//! about interfaces and addresses, are [`crate::preflight`]'s.

mod check;
pub mod defaults;
mod local;
mod read;
mod schema;
mod types;
mod values;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use crate::toml_reader::Document;

pub(crate) use crate::toml_reader::closest;
pub use crate::toml_reader::{Diagnostic, Severity};

pub use schema::TABLES;
pub use types::{
    Admin, Answers, Check, CheckKind, Config, Forward, Health, Host, Interfaces, IpProtocol, Limits, Listen,
    Local, LocalAllow, Masquerade, Mode, Mss, Others, Protocol, Refusal, Require, RequiredRules, Snat,
    Target, Timeouts,
};
pub use values::{
    MAX_LOCAL_ALLOW, MAX_MASQUERADE_PAIRS, MAX_PROBERS, MAX_RULES, MAX_SNAT_ADDRESSES, MAX_TARGETS, no_target,
};

/// A good configuration, and its warnings.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The warnings, in the order of the file.
    pub warnings: Vec<Diagnostic>,
}

/// The reason why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {error}{}", remedy(error))]
    Read {
        /// The file.
        path: String,
        /// The system's error. Not a source: its words are part of the text.
        error: io::Error,
    },
    /// The file is wrong. Its errors and warnings, in the order of the file.
    #[error("{}", diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n"))]
    Invalid {
        /// At least one error; warnings may be among them.
        diagnostics: Vec<Diagnostic>,
    },
}

/// Returns the line with the remedy for a file that cannot be read, if there is one.
fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == ErrorKind::NotFound {
        "\n  fix: create it, or name another with --config FILE"
    } else if error.kind() == ErrorKind::PermissionDenied {
        "\n  fix: run this as root (sudo)"
    } else {
        ""
    }
}

/// Returns `socket` of `[admin]` in the file at `path`, whatever else is wrong there; `None` if
/// there is none.
pub(crate) fn socket_in(path: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(path).ok()?;
    let (root, _) = DeTable::parse_recoverable(&text);
    let socket = root.get_ref().get("admin")?.get_ref().as_table()?.get("socket")?.get_ref().as_str()?;
    Some(PathBuf::from(socket)).filter(|socket| socket.is_absolute())
}

impl Config {
    /// Reads and checks the configuration file at `path`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or anything in it is wrong.
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: path.display().to_string(), error })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a configuration file; `path` is for its messages only.
    ///
    /// # Errors
    /// Returns all errors of the text, if there are any.
    pub fn parse(text: &str, path: &Path) -> Result<Loaded, ConfigError> {
        let document = Document::new(text, path, TABLES);
        let config = read::config(&document);
        let diagnostics = document.into_diagnostics();
        match config {
            Some(config) if diagnostics.iter().all(|found| found.severity == Severity::Warning) => {
                Ok(Loaded { config, warnings: diagnostics })
            }
            _ => Err(ConfigError::Invalid { diagnostics }),
        }
    }
}
