//! What all tables and the JSON have in common.

use std::{fmt::Write as _, fs};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::{latency::Latency, packets::Packets, programs::Programs, resources::Resources, tcp::Tcp};

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    kernel: String,
    cpu: String,
    cpus: usize,
    virtual_machine: bool,
    /// The program that is measured, and the one beside it.
    pls_router: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    beside: Option<String>,
    /// /proc/loadavg before and after.
    pub(crate) load: [String; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) programs: Option<Programs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) packets: Option<Packets>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tcp: Option<Tcp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resources: Option<Resources>,
    /// What was asked for and could not be measured here.
    pub(crate) not_measured: Vec<NotMeasured>,
}

/// Something that could not be measured here.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct NotMeasured {
    /// The thing: part, arm and dimension.
    pub(crate) what: String,
    pub(crate) why: String,
}

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
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

    /// The ratios of what was measured in the same rounds: a round has its arms next to each other, so that a machine that is
    /// slower for a while is slower for both.
    pub(crate) fn of_ratios(values: &[f64], to: &[f64]) -> Result<Self> {
        ensure!(values.len() == to.len(), "{} rounds are not {}", values.len(), to.len());
        Self::of(&values.iter().zip(to).map(|(value, to)| value / to).collect::<Vec<_>>())
    }

    /// All of it in another unit.
    pub(crate) fn times(self, factor: f64) -> Self {
        Self { median: self.median * factor, min: self.min * factor, max: self.max * factor }
    }

    /// "median (min - max)" with these numbers of digits.
    pub(crate) fn show(self, width: usize, digits: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:width$.digits$} ({min:.digits$} - {max:.digits$})")
    }
}

/// A ratio as tables show it.
pub(crate) fn ratio(ratio: Option<&Spread>) -> String {
    ratio.map_or("-".to_owned(), |ratio| ratio.show(0, 2))
}

impl Report {
    pub(crate) fn begin(pls_router: String, beside: Option<String>) -> Result<Self> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?,
            cpu: model.map_or("an unknown CPU", |(_, model)| model).to_owned(),
            cpus: super::cpu::count()?,
            virtual_machine: cpuinfo
                .lines()
                .any(|line| line.starts_with("flags") && line.split(' ').any(|flag| flag == "hypervisor")),
            pls_router,
            beside,
            load: [read("/proc/loadavg")?, String::new()],
            programs: None,
            packets: None,
            latency: None,
            tcp: None,
            resources: None,
            not_measured: Vec::new(),
        })
    }

    pub(crate) fn end(&mut self, not_measured: Vec<NotMeasured>) -> Result<()> {
        self.load[1] = read("/proc/loadavg")?;
        self.not_measured = not_measured;
        Ok(())
    }

    /// On what it was measured.
    pub(crate) fn head(&self) -> String {
        let machine = if self.virtual_machine { ", a virtual machine" } else { "" };
        let mut text = format!("Linux {}, {} x {}{machine}\n", self.kernel, self.cpus, self.cpu);
        line(&mut text, format_args!("pls-router: {}", self.pls_router));
        if let Some(beside) = &self.beside {
            line(&mut text, format_args!("beside:     {beside}"));
        }
        text
    }

    /// What came of it, and what did not.
    pub(crate) fn tail(&self) -> String {
        let mut text = String::new();
        if !self.not_measured.is_empty() {
            text.push_str("\nNot measured:\n");
        }
        for NotMeasured { what, why } in &self.not_measured {
            line(&mut text, format_args!("  {what}: {why}"));
        }
        line(&mut text, format_args!("\nload when it began and ended: {}; {}", self.load[0], self.load[1]));
        text
    }
}

/// Adds a line to a text.
pub(crate) fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
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

    #[test]
    fn ratios_are_of_the_values_of_one_round() {
        // A machine that is half as fast in the second round is so for both.
        let spread = Spread::of_ratios(&[8.0, 4.0, 9.0], &[4.0, 2.0, 3.0]).expect("rounds");
        assert_eq!((spread.min, spread.median, spread.max), (2.0, 2.0, 3.0));
        assert!(Spread::of_ratios(&[1.0], &[1.0, 2.0]).is_err());
    }
}
