//! One run: part after part.

use std::{cell::RefCell, fs, io::Write as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Router, state::State};

use super::{
    arguments::{Arguments, Part},
    cpu, latency, packets, programs,
    report::Report,
    resources, sessions,
    setup::Setup,
    tcp,
};

/// Measures, and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run this as root or with sudo");
    ensure!(cpu::count()? >= 2, "two CPUs are needed: one is measured, and the other makes the packets");
    let Router::PlsRouter(binary) = Router::find()? else { bail!("there is no pls-router") };
    // A path without a directory would be looked for in $PATH, or in another directory.
    let absolute = |path: &PathBuf| {
        path.canonicalize().with_context(|| format!("there is no pls-router at {}", path.display()))
    };
    let beside = arguments.beside.as_ref().map(absolute).transpose()?;
    // A file that cannot be written is better known before than after.
    let mut json = match &arguments.json {
        Some(path) => {
            let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Some((path, file))
        }
        None => None,
    };
    cpu::allow_interrupts()?;
    let state = State::create("bench")?;
    let iptables = lab::command::run(Command::new("iptables").arg("--version")).ok();
    let iptables = iptables.map(|version| version.trim().to_owned());
    let setup = Setup { arguments, binary, beside, iptables, state, not_measured: RefCell::default() };
    let mut report = Report::begin(&setup)?;
    print!("{}", report.head());
    for part in Part::ALL {
        if !arguments.only.as_ref().map_or_else(|| part.is_default(), |only| only.contains(&part)) {
            continue;
        }
        let table = match part {
            Part::Programs => report.programs.insert(programs::measure(&setup)?).table(),
            Part::Packets => report.section("packets", packets::by_sessions(&setup)?).table(),
            Part::OneNic => report.section("one_nic", packets::one_nic(&setup)?).table(),
            Part::Shapes => report.section("shapes", packets::by_shape(&setup)?).table(),
            Part::Sessions => report.sessions.insert(sessions::measure(&setup)?).table(),
            Part::Mixed => report.section("mixed", packets::mixed(&setup)?).table(),
            Part::Cores => report.section("cores", packets::by_cores(&setup)?).table(),
            Part::Pacing => report.section("pacing", packets::by_pacing(&setup)?).table(),
            Part::Latency => report.latency.insert(latency::measure(&setup)?).table(),
            Part::Resources => report.resources.insert(resources::measure(&setup)?).table(),
            Part::Tcp => report.tcp.insert(tcp::measure(&setup)?).table(),
        };
        print!("{table}");
    }
    report.end(setup.not_measured.take())?;
    print!("{}", report.tail());
    if let Some((path, file)) = &mut json {
        let text = serde_json::to_string_pretty(&report)?;
        writeln!(file, "{text}").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
