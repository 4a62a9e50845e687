//! Packets a second of one core: what is run. How one window is measured is [`forward`](super::forward)'s, and how rounds become a table
//! [`rows`](super::rows)'.

use anyhow::Result;

use super::{
    Setup, cpu,
    ends::Pacing,
    forward::{Bench, Load},
    path::{Arm, Path, Traffic, Wires},
    progress,
    rows::{Labelled, Section},
};

/// Brings up these arms; the one beside the first pls-router only if there is one.
fn bring_up(setup: &Setup, arms: &[Arm], wires: Wires) -> Result<Vec<Bench>> {
    // What is started from here on, the daemon with it, keeps off the router's CPU, too.
    cpu::stay_on(cpu::GENERATOR)?;
    let mut benches = Vec::new();
    for arm in arms {
        if *arm == Arm::Beside && setup.beside.is_none() {
            continue;
        }
        progress(&format!("setting up: {arm}"));
        benches.push(Bench::apart(Path::up(setup, *arm, Traffic::Packets(wires))?)?);
    }
    Ok(benches)
}

/// All arms, by numbers of sessions.
pub(crate) fn by_sessions(setup: &Setup) -> Result<Section> {
    let mut benches = bring_up(setup, &Arm::ALL, Wires::Two)?;
    let about =
        "Packets a second of one core: 64-byte UDP (60 bytes and the frame check sequence), two NICs."
            .to_owned();
    let mut section = Section::new(setup, "sessions", about);
    for flows in &setup.arguments.flows {
        let load = Load::plain(*flows, Pacing::IN_FLIGHT);
        section.measure(setup, &mut benches, &[Labelled { label: flows.to_string(), load }])?;
    }
    Ok(section)
}

/// What it changes that the generator sends no more than fits.
pub(crate) fn by_pacing(setup: &Setup) -> Result<Section> {
    let arms = [Arm::Redirect, Arm::PlsRouter, Arm::Nftables, Arm::Kernel];
    let mut benches = bring_up(setup, &arms, Wires::Two)?;
    let about = "How the generator's pacing changes it: without (blast), and with so many packets under way."
        .to_owned();
    let mut section = Section::new(setup, "sessions, pacing", about).with_ratio_to_first("/ blast");
    for flows in [64, 40_000] {
        let pacings = [Pacing::Blast, Pacing::Window(128), Pacing::Window(192), Pacing::Window(224)];
        let loads = pacings.map(|pacing| {
            let name = match pacing {
                Pacing::Blast => "blast".to_owned(),
                Pacing::Window(packets) => packets.to_string(),
                Pacing::Rate(rate) => format!("{rate}/s"),
            };
            Labelled { label: format!("{flows}, {name}"), load: Load::plain(flows, pacing) }
        });
        section.measure(setup, &mut benches, &loads)?;
    }
    Ok(section)
}
