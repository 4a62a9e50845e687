//! What was measured, as tables and as JSON.

use std::{fmt::Write as _, fs, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    forward::Run,
    path::{Arm, Offloads},
};

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    kernel: String,
    cpu: String,
    cpus: usize,
    virtual_machine: bool,
    /// /proc/loadavg before and after.
    pub(crate) load: [String; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) programs: Option<ProgramCost>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) packets: Vec<PacketsRow>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tcp: Vec<TcpRow>,
}

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Result<Self> {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else {
            anyhow::bail!("nothing was measured");
        };
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Ok(Self { median, min: *min, max: *max })
    }
}

/// One arm with one number of flows.
#[derive(Debug, Serialize)]
pub(crate) struct PacketsRow {
    arm: Arm,
    flows: u32,
    packets_per_second: Spread,
    offered_per_second: Spread,
    idle: Spread,
    disturbed: Spread,
    given: u64,
    lost: u64,
    runs: Vec<Run>,
}

impl PacketsRow {
    pub(crate) fn of(arm: Arm, flows: u32, runs: Vec<Run>) -> Result<Self> {
        let spread = |pick: fn(&Run) -> f64| Spread::of(&runs.iter().map(pick).collect::<Vec<_>>());
        Ok(Self {
            arm,
            flows,
            packets_per_second: spread(|run| run.packets_per_second)?,
            offered_per_second: spread(|run| run.offered_per_second)?,
            idle: spread(|run| run.idle)?,
            disturbed: spread(|run| run.disturbed)?,
            given: runs.iter().map(|run| run.books.given).sum(),
            lost: runs.iter().map(|run| run.books.lost()).sum(),
            runs,
        })
    }
}

/// TCP through one arm.
#[derive(Debug, Serialize)]
pub(crate) struct TcpRow {
    pub(crate) arm: Arm,
    pub(crate) offloads: Offloads,
    pub(crate) bits_per_second: Spread,
}

/// Nanoseconds a packet.
#[derive(Debug, Serialize)]
pub(crate) struct ProgramCost {
    pub(crate) root_and_forward: Spread,
    pub(crate) forward: Spread,
    /// The root program and its tail call: the difference of the two, sample by sample.
    pub(crate) root: Spread,
}

impl Report {
    pub(crate) fn begin() -> Result<Self> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?,
            cpu: model.map_or("an unknown CPU", |(_, model)| model).to_owned(),
            cpus: super::cpu::count()?,
            virtual_machine: cpuinfo
                .lines()
                .any(|line| line.starts_with("flags") && line.split(' ').any(|flag| flag == "hypervisor")),
            load: [read("/proc/loadavg")?, String::new()],
            programs: None,
            packets: Vec::new(),
            tcp: Vec::new(),
        })
    }

    pub(crate) fn end(&mut self) -> Result<()> {
        self.load[1] = read("/proc/loadavg")?;
        Ok(())
    }

    /// On what it was measured.
    pub(crate) fn head(&self) -> String {
        let machine = if self.virtual_machine { ", a virtual machine" } else { "" };
        format!("Linux {}, {} x {}{machine}\n", self.kernel, self.cpus, self.cpu)
    }

    pub(crate) fn programs_table(&self) -> String {
        let Some(cost) = &self.programs else { return String::new() };
        let mut text = "\nWhat the programs cost a packet of a known session (BPF_PROG_TEST_RUN, one warm flow, no driver):\n\n".to_owned();
        for (name, spread) in [
            ("pls_router: root, tail call, forward", cost.root_and_forward),
            ("forward alone", cost.forward),
            ("the permanent root and its tail call", cost.root),
        ] {
            let Spread { median, min, max } = spread;
            line(&mut text, format_args!("  {name:<38} {median:6.1} ns  ({min:.1} - {max:.1})"));
        }
        text
    }

    pub(crate) fn packets_table(&self, rounds: u16, window: Duration) -> String {
        let mut text = format!(
            "\n\
             Packets a second of one core: 64-byte UDP (60 bytes and the frame check sequence), two veth NICs, native XDP,\n\
             tx checksum, TSO and GSO off everywhere, GRO off but for the kernel's receiving NIC, which polls only with it.\n\
             CPU 1 is the router (a NAPI thread) and the sink behind it (the softirq of that thread); CPU 0 makes the packets,\n\
             more than the router takes. The daemon runs, on CPU 0. Counted is what the sink received; medians of {rounds}\n\
             interleaved rounds of {} s after warm-up, and (min - max).\n\n\
             \x20 {:>6}  {:<15} {:>6} {:>17} {:>9} {:>9}  {:>7} {:>5} {:>9}  {}\n",
            window.as_secs_f64(),
            "flows",
            "router",
            "Mpps",
            "",
            "/ no-op",
            "/ nft",
            "offered",
            "idle",
            "disturbed",
            "lost"
        );
        for row in &self.packets {
            let Spread { median, min, max } = row.packets_per_second;
            let of = |arm| ratio(median, self.packets_of(arm, row.flows));
            let spread = format!("({:.2} - {:.2})", min / 1e6, max / 1e6);
            line(
                &mut text,
                format_args!(
                    "  {:>6}  {:<15} {:6.2} {spread:>17} {:>9} {:>9}  {:7.2} {:4.0}% {:8.0}%  {}",
                    row.flows,
                    row.arm,
                    median / 1e6,
                    of(Arm::Redirect),
                    of(Arm::Nftables),
                    row.offered_per_second.median / 1e6,
                    row.idle.median * 100.0,
                    row.disturbed.median * 100.0,
                    lost(row)
                ),
            );
        }
        text.push_str(
            "\n  offered: what was made; what does not fit into the router's full receive ring is not sent, and not lost.\n\
             \x20 idle: the router's CPU. disturbed: what programs of others, or the hypervisor, took of either CPU.\n",
        );
        for row in &self.packets {
            for run in &row.runs {
                if let Some(problem) = run.books.problem() {
                    line(&mut text, format_args!("  {} flows, {}: {problem}", row.flows, row.arm));
                }
            }
        }
        text
    }

    fn packets_of(&self, arm: Arm, flows: u32) -> Option<f64> {
        let row = self.packets.iter().find(|row| row.arm == arm && row.flows == flows);
        row.map(|row| row.packets_per_second.median)
    }

    pub(crate) fn tcp_table(&self, rounds: u16, seconds: u16) -> String {
        let mut text = format!(
            "\n\
             TCP, one connection (iperf3), MTU 1500; client, router and server share all {} CPUs. Medians of {rounds} interleaved\n\
             rounds of {seconds} s. With offloads off every packet is one of the wire's, which is how a router sees them. The last line\n\
             is another network: super-frames of up to 64 KiB without checksums, which veth passes on but no wire does.\n\n\
             \x20 {:<15} {:<18} {:>7} {:>17} {:>7}\n",
            self.cpus, "router", "offloads", "Gbit/s", "", "/ nft"
        );
        let nftables = self.tcp.iter().find(|row| row.arm == Arm::Nftables && row.offloads == Offloads::Off);
        for row in &self.tcp {
            let Spread { median, min, max } = row.bits_per_second;
            let offloads = match row.offloads {
                Offloads::Off => "off",
                Offloads::Default => "veth's defaults",
            };
            line(
                &mut text,
                format_args!(
                    "  {:<15} {offloads:<18} {:7.2} {:>17} {:>7}",
                    row.arm,
                    median / 1e9,
                    format!("({:.2} - {:.2})", min / 1e9, max / 1e9),
                    ratio(median, nftables.map(|row| row.bits_per_second.median))
                ),
            );
        }
        text
    }
}

fn lost(row: &PacketsRow) -> String {
    if row.lost == 0 {
        return "0".to_owned();
    }
    format!("{} of {:.1} M", row.lost, row.given as f64 / 1e6)
}

fn ratio(value: f64, of: Option<f64>) -> String {
    of.map_or("-".to_owned(), |of| format!("{:.2}", value / of))
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ok = writeln!(text, "{line}");
}

fn read(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers_of_values() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]).expect("values");
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).expect("values").median, 2.5);
        assert!(Spread::of(&[]).is_err());
    }
}
