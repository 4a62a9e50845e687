//! Packets a second of one core: what is run. How one window is measured is
//! [`forward`](super::forward)'s, and how rounds become a table [`rows`](super::rows)'.

use anyhow::Result;

use super::{
    arms::{Arm, Direction, Traffic, Wires},
    cpu,
    ends::Pacing,
    forward::{Bench, Cores, Load},
    frames::{FRAME, LONG_FRAME, Shape, Transport},
    path::Path,
    rows::{Labelled, Section},
    setup::{Setup, progress},
};

/// The arms that every question is put to.
pub(crate) const MAIN: [Arm; 4] = [Arm::Redirect, Arm::PlsRouter, Arm::Beside, Arm::Nftables];

/// The numbers of sessions of most tables: those that a cache holds, and those of a busy router.
const FEW_AND_MANY: [u32; 2] = [64, 40_000];
const MANY: u32 = 40_000;

/// The packets of a thousand of mixed traffic that open a session.
const FRESH_PER_MILLE: u32 = 50;

/// Brings up these arms, as far as they are there.
pub(crate) fn bring_up(setup: &Setup, arms: &[Arm], wires: Wires) -> Result<Vec<Bench>> {
    // Processes that are started from here on, such as the daemon, keep off the router's CPU, too.
    cpu::stay_on(cpu::GENERATOR)?;
    let mut benches = Vec::new();
    for arm in arms {
        if !setup.has(*arm) {
            continue;
        }
        progress(&format!("setting up: {arm}"));
        let path = Path::up(setup, *arm, Traffic::Packets(wires))?;
        benches.push(if wires == Wires::TwoQueues { Bench::new(path)? } else { Bench::apart(path)? });
    }
    Ok(benches)
}

/// All arms, by numbers of sessions.
pub(crate) fn by_sessions(setup: &Setup) -> Result<Section> {
    let mut benches = bring_up(setup, &Arm::ALL, Wires::Two)?;
    let about = "Packets a second of one core: 64-byte UDP, two NICs.".to_owned();
    let mut section = Section::new(setup, "sessions", about);
    for flows in setup.flows() {
        let load = Load::plain(flows, Pacing::IN_FLIGHT);
        section.measure(setup, &mut benches, &[Labelled { label: flows.to_string(), load }])?;
    }
    Ok(section)
}

/// Measures packets with one NIC.
pub(crate) fn one_nic(setup: &Setup) -> Result<Section> {
    let mut benches = bring_up(setup, &MAIN, Wires::One)?;
    let about = "One NIC: packets leave by the NIC they came in by (XDP_TX), and are counted on the device that they were sent from. The\n\
                 no-op swaps the MAC addresses."
        .to_owned();
    let mut section = Section::new(setup, "sessions", about);
    for flows in FEW_AND_MANY {
        let load = Load::plain(flows, Pacing::IN_FLIGHT);
        section.measure(setup, &mut benches, &[Labelled { label: flows.to_string(), load }])?;
    }
    Ok(section)
}

/// Short and long packets of either protocol, both ways.
pub(crate) fn by_shape(setup: &Setup) -> Result<Section> {
    let mut benches = bring_up(setup, &MAIN, Wires::Two)?;
    let about = "Shapes and directions: frames of 64 bytes and IP packets of 1500, of UDP and of established TCP connections (ACK and\n\
                 data), to the target and from the target. All sessions have the same protocol at a time."
        .to_owned();
    let mut section = Section::new(setup, "packets, sessions", about);
    for transport in [Transport::Udp, Transport::Tcp] {
        // The sessions of the other one are not to be in the way.
        for bench in &mut benches {
            bench.forget_sessions(setup)?;
        }
        for flows in FEW_AND_MANY {
            for (length, name) in [(FRAME, "64"), (LONG_FRAME, "1500")] {
                for direction in [Direction::Forward, Direction::Reply] {
                    // Each of them once, and not with each other.
                    let changed = usize::from(transport == Transport::Tcp)
                        + usize::from(length == LONG_FRAME)
                        + usize::from(direction == Direction::Reply);
                    if setup.quick() && (flows != MANY || changed != 1) {
                        continue;
                    }
                    let way = match direction {
                        Direction::Forward => "to",
                        Direction::Reply => "back",
                    };
                    let label = format!("{transport} {name} {way}, {flows}");
                    let shape = Shape { transport, length };
                    let load = Load { shape, direction, ..Load::plain(flows, Pacing::IN_FLIGHT) };
                    section.measure(setup, &mut benches, &[Labelled { label, load }])?;
                }
            }
        }
    }
    Ok(section)
}

/// Packets that open sessions among others.
pub(crate) fn mixed(setup: &Setup) -> Result<Section> {
    let mut benches = bring_up(setup, &MAIN, Wires::Two)?;
    let about = format!(
        "Mixed: {MANY} sessions are open, and {} % of the packets open another one. Sessions are removed before each round.",
        FRESH_PER_MILLE / 10
    );
    let mut section = Section::new(setup, "sessions", about).afresh();
    let load = Load { fresh_per_mille: FRESH_PER_MILLE, ..Load::plain(MANY, Pacing::IN_FLIGHT) };
    section.measure(setup, &mut benches, &[Labelled { label: format!("{MANY} and new ones"), load }])?;
    Ok(section)
}

/// Two cores beside one.
pub(crate) fn by_cores(setup: &Setup) -> Result<Section> {
    let mut benches = bring_up(setup, &MAIN, Wires::TwoQueues)?;
    let about = format!(
        "Two cores beside one: NICs with two queues, {MANY} sessions of one router. Each core makes, routes and counts its share of the\n\
         packets, batch by batch: every figure includes the cost of the generator and of the sink, and no ring is ever full."
    );
    let mut section = Section::new(setup, "cores", about).with_ratio_to_first("two / one");
    let loads = [(1, "one"), (2, "two")].map(|(cores, name)| Labelled {
        label: name.to_owned(),
        load: Load { cores: Cores::Together(cores), ..Load::plain(MANY, Pacing::Blast) },
    });
    section.measure(setup, &mut benches, &loads)?;
    Ok(section)
}

/// Measures the effect of pacing: the generator sends no more than fits.
pub(crate) fn by_pacing(setup: &Setup) -> Result<Section> {
    let arms = [Arm::Redirect, Arm::PlsRouter, Arm::Nftables, Arm::Kernel];
    let mut benches = bring_up(setup, &arms, Wires::Two)?;
    let about =
        "Pacing of the generator: none (blast), a limit of packets under way before a batch, and a rate at which no\n\
                 router fills its core, so that idle shows the cost of a packet."
            .to_owned();
    let mut section = Section::new(setup, "sessions, pacing", about).with_ratio_to_first("/ blast");
    for flows in FEW_AND_MANY {
        let pacings = [
            (Pacing::Blast, "blast"),
            (Pacing::Window { under_way: 192, batch: 64 }, "192 + 64"),
            (Pacing::Window { under_way: 96, batch: 128 }, "96 + 128"),
            (Pacing::IN_FLIGHT, "128 + 128"),
            (Pacing::Rate(500_000.0), "0.5 M/s"),
        ];
        let loads = pacings.map(|(pacing, name)| Labelled {
            label: format!("{flows}, {name}"),
            load: Load::plain(flows, pacing),
        });
        section.measure(setup, &mut benches, &loads)?;
    }
    Ok(section)
}
