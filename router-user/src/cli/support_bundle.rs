//! `pls-router support-bundle`

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, bail};

use super::Answer;
use super::options::{Format, Global, SupportBundleArguments};
use super::output::{self, GOOD, STRONG, counted, grouped, styled};
use super::table::{Align, Table};
use crate::client::Client;
use crate::model::{SupportBundle, SupportFile, SupportMissing};
use crate::support::{self, Asked};

pub(super) async fn run(
    global: &Global,
    client: &Client,
    arguments: &SupportBundleArguments,
) -> anyhow::Result<Answer> {
    let now = SystemTime::now();
    let time = humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "");
    let name = format!("pls-router-support-{time}");
    let file = arguments.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    if file.exists() {
        bail!("{} is there already\n  fix: remove it, or name another with --file FILE", file.display());
    }
    let gathered = support::gather(Asked { config: &global.config, client }).await;
    let gathered = gathered.cleaned(!arguments.no_addresses);
    let packed = support::pack(&gathered, &name, now).context("cannot pack the bundle")?;
    if let Err(error) = support::write_new(&file, &packed) {
        let kind = error.kind();
        let fix = if kind == ErrorKind::NotFound {
            "make that directory, or name another file with --file FILE"
        } else if kind == ErrorKind::StorageFull {
            "name a file on another file system, with --file FILE"
        } else {
            "name a file that this user may write, with --file FILE"
        };
        bail!("cannot write {}: {error}\n  fix: {fix}", file.display());
    }
    let size = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    let bundle = SupportBundle {
        file: file.display().to_string(),
        bytes: size(packed.len()),
        addresses: !arguments.no_addresses,
        contents: gathered
            .parts
            .iter()
            .map(|part| SupportFile {
                name: part.name.clone(),
                bytes: size(part.text.len()),
                what: part.what.to_owned(),
            })
            .collect(),
        missing: gathered
            .missing
            .into_iter()
            .map(|missing| SupportMissing { name: missing.name, why: missing.why })
            .collect(),
    };
    match arguments.output.output {
        Format::Json => output::json(&bundle)?,
        Format::Text => output::print(&text(&bundle))?,
    }
    Ok(Answer::Good)
}

fn text(bundle: &SupportBundle) -> String {
    let mut table = Table::new(&[("IN IT", Align::Left), ("BYTES", Align::Right), ("WHAT", Align::Left)]);
    for SupportFile { name, bytes, what } in &bundle.contents {
        table.row(vec![name.as_str().into(), grouped(*bytes).into(), what.as_str().into()]);
    }
    let mut text = table.render();
    if !bundle.missing.is_empty() {
        let mut missing = Table::new(&[("NOT IN IT", Align::Left), ("WHY", Align::Left)]);
        for SupportMissing { name, why } in &bundle.missing {
            missing.row(vec![name.as_str().into(), why.as_str().into()]);
        }
        text.push_str(&format!("\n{}", missing.render()));
    }
    let addresses = if bundle.addresses {
        "It has addresses and names of machines: --no-addresses puts others in their place."
    } else {
        "Addresses and names of machines are replaced, each by the same word everywhere."
    };
    text.push_str(&format!(
        "\n{}: {}\nWhat looks like a secret was taken out. Sessions and packets are not in it. {addresses}\n\
         {} it before you send it: tar -xzf {}\n",
        styled(GOOD, &bundle.file),
        counted(bundle.bytes, "byte"),
        styled(STRONG, "Read"),
        bundle.file,
    ));
    text
}
