//! `pls-router check`

use super::Answer;
use super::options::{CheckArguments, Format, Global};
use super::output::{self, BAD, DOUBTFUL, GOOD, STRONG, counted, styled};
use crate::config::{Config, ConfigError, Severity};
use crate::findings;
use crate::model::ListenerAccess;
use crate::preflight::{self, Access, Finding};

pub(super) async fn run(global: &Global, arguments: &CheckArguments) -> anyhow::Result<Answer> {
    let (diagnostics, config) = match Config::load(&global.config) {
        Ok(loaded) => (loaded.warnings, Some(loaded.config)),
        Err(ConfigError::Invalid { diagnostics }) => (diagnostics, None),
        Err(error @ ConfigError::Read { .. }) => return Err(error.into()),
    };
    let (findings, access) = match &config {
        Some(config) if !arguments.config_only => {
            let facts = preflight::inspect(config).await;
            (preflight::findings(config, &facts), preflight::access(config, &facts))
        }
        Some(_) | None => (Vec::new(), Vec::new()),
    };
    let severities = diagnostics
        .iter()
        .map(|diagnostic| diagnostic.severity)
        .chain(findings.iter().map(|finding| finding.severity));
    let (mut errors, mut warnings) = (0_u64, 0_u64);
    for severity in severities {
        match severity {
            Severity::Error => errors += 1,
            Severity::Warning => warnings += 1,
            Severity::Note => {}
        }
    }
    let file = global.config.display();
    match arguments.output.output {
        Format::Json => {
            let of_file = diagnostics.iter().map(findings::of_file);
            let of_machine = findings.iter().map(findings::of_machine);
            let access = access.into_iter().map(listener_access).collect();
            output::json(&findings::check(&global.config, of_file.chain(of_machine).collect(), access))?;
        }
        Format::Text => {
            let good = if arguments.config_only {
                format!("{file} is good")
            } else {
                format!("{file} is good, and this machine can run it")
            };
            let verdict = match (errors, warnings) {
                (0, 0) => styled(GOOD, good),
                (0, _) => format!("{} ({})", styled(GOOD, good), counted(warnings, "warning")),
                (_, 0) => styled(BAD, format!("{file}: {}", counted(errors, "error"))),
                _ => styled(
                    BAD,
                    format!("{file}: {}, {}", counted(errors, "error"), counted(warnings, "warning")),
                ),
            };
            let mut parts: Vec<String> =
                diagnostics.iter().map(|diagnostic| diagnostic.render(true)).collect();
            parts.extend(findings.iter().map(shown));
            if !access.is_empty() {
                parts.push(listed(&access));
            }
            parts.push(verdict);
            output::print(&format!("{}\n", parts.join("\n\n")))?;
        }
    }
    Ok(if errors == 0 { Answer::Good } else { Answer::Bad })
}

fn listener_access(Access { what, listen, who }: Access) -> ListenerAccess {
    ListenerAccess { what: what.to_owned(), listen, who }
}

/// A line for each listener.
fn listed(access: &[Access]) -> String {
    let width = access.iter().map(|one| one.listen.len()).max().unwrap_or_default();
    let line = |Access { what, listen, who }: &Access| format!("{what:<7}  {listen:<width$}  {who}");
    format!("access to the daemon:\n  {}", access.iter().map(line).collect::<Vec<_>>().join("\n  "))
}

fn shown(finding: &Finding) -> String {
    let style = match finding.severity {
        Severity::Error => BAD,
        Severity::Warning => DOUBTFUL,
        Severity::Note => STRONG,
    };
    format!("{}: {}\n  fix: {}", styled(style, finding.severity), finding.text, finding.fix)
}
