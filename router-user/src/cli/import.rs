//! `pls-router import`

use std::io::{self, IsTerminal as _, Read as _};
use std::path::Path;

use anyhow::Context as _;

use super::Answer;
use super::options::{ImportArguments, ImportFrom, IptablesSaveArguments};
use super::output::{self, BAD, DOUBTFUL, counted, styled};
use crate::import::{self, Import, Wanted};

pub(super) fn run(arguments: &ImportArguments) -> anyhow::Result<Answer> {
    let ImportFrom::IptablesSave(arguments) = &arguments.from;
    iptables_save(arguments)
}

fn iptables_save(arguments: &IptablesSaveArguments) -> anyhow::Result<Answer> {
    let (from, text) = match arguments.file.as_deref().filter(|file| *file != Path::new("-")) {
        Some(file) => {
            let from = file.display().to_string();
            let text = std::fs::read(file).map_err(|error| {
                anyhow::anyhow!(
                    "cannot read {from}: {error}\n  fix: name a file with the output of `iptables-save`, or pipe that in"
                )
            })?;
            (from, text)
        }
        None => {
            if io::stdin().is_terminal() {
                output::remark(
                    "(reading from standard input; Ctrl-C ends this. Usual: iptables-save | pls-router ...)",
                );
            }
            let mut text = Vec::new();
            io::stdin().lock().read_to_end(&mut text).context("cannot read from standard input")?;
            ("standard input".to_owned(), text)
        }
    };
    let wanted = Wanted {
        pls: arguments.pls.clone(),
        firewall: arguments.firewall.clone(),
        sources: arguments.sources.iter().map(ipnet::Ipv4Net::trunc).collect(),
    };
    let Import { config, rules, left_out, remarks } =
        import::iptables_save(&String::from_utf8_lossy(&text), &from, &wanted);
    for (style, title, list) in [(BAD, "not translated:", &left_out), (DOUBTFUL, "remarks:", &remarks)] {
        if !list.is_empty() {
            output::remark(&format!("{}\n{}", styled(style, title), import::listed(list).trim_end()));
        }
    }
    let Some(config) = config else {
        anyhow::bail!(
            "{from} has no rule that a configuration can have\n  fix: give it what `iptables-save` prints as root, with \
             DNAT, SNAT or MASQUERADE rules in its table nat"
        );
    };
    let rules = counted(u64::try_from(rules).unwrap_or(u64::MAX), "rule");
    output::remark(&format!("{rules} written; next: pls-router check --config-only --config FILE"));
    output::print(&config)?;
    Ok(if left_out.is_empty() { Answer::Good } else { Answer::Bad })
}
