//! The whole report: the head and the end of the text, and the JSON.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use lab::conntrack;
use serde::Serialize;

use super::{
    latency::Latency,
    programs::Programs,
    resources::Resources,
    rows::Section,
    sessions::Sessions,
    setup::{NotMeasured, Setup},
    spread::line,
    tcp::Tcp,
};

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
    #[serde(skip_serializing_if = "Option::is_none")]
    iptables: Option<String>,
    /// The kernel's limit of tracked sessions, if it tracks any.
    #[serde(skip_serializing_if = "Option::is_none")]
    nf_conntrack_max: Option<u32>,
    quick: bool,
    /// /proc/loadavg before and after.
    pub(crate) load: [String; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) programs: Option<Programs>,
    /// Packets a second, by part.
    #[serde(flatten)]
    sections: BTreeMap<&'static str, Section>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sessions: Option<Sessions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tcp: Option<Tcp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resources: Option<Resources>,
    /// Parts that were requested and could not be measured here.
    pub(crate) not_measured: Vec<NotMeasured>,
}

impl Report {
    pub(crate) fn begin(setup: &Setup) -> Result<Self> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?,
            cpu: model.map_or("an unknown CPU", |(_, model)| model).to_owned(),
            cpus: super::cpu::count()?,
            virtual_machine: cpuinfo
                .lines()
                .any(|line| line.starts_with("flags") && line.split(' ').any(|flag| flag == "hypervisor")),
            pls_router: setup.binary.display().to_string(),
            beside: setup.beside.as_ref().map(|beside| beside.display().to_string()),
            iptables: setup.iptables.clone(),
            nf_conntrack_max: conntrack::limit().ok(),
            quick: setup.quick(),
            load: [read("/proc/loadavg")?, String::new()],
            programs: None,
            sections: BTreeMap::new(),
            sessions: None,
            latency: None,
            tcp: None,
            resources: None,
            not_measured: Vec::new(),
        })
    }

    /// Adds a part and returns it, for its table.
    pub(crate) fn section(&mut self, name: &'static str, section: Section) -> &Section {
        self.sections.entry(name).insert_entry(section).into_mut()
    }

    pub(crate) fn end(&mut self, not_measured: Vec<NotMeasured>) -> Result<()> {
        self.load[1] = read("/proc/loadavg")?;
        self.not_measured = not_measured;
        Ok(())
    }

    /// Returns the description of the machine and of the method.
    pub(crate) fn head(&self) -> String {
        let machine = if self.virtual_machine { ", a virtual machine" } else { "" };
        let mut text = format!("Linux {}, {} x {}{machine}\n", self.kernel, self.cpus, self.cpu);
        line(&mut text, format_args!("pls-router: {}", self.pls_router));
        if let Some(beside) = &self.beside {
            line(&mut text, format_args!("beside:     {beside}"));
        }
        if let Some(iptables) = &self.iptables {
            line(&mut text, format_args!("iptables:   {iptables}"));
        }
        let limit = self.nf_conntrack_max.map_or("unknown".to_owned(), |limit| limit.to_string());
        line(
            &mut text,
            format_args!(
                "nf_conntrack_max: {limit}; connection tracking does not verify checksums, as with a NIC that does"
            ),
        );
        text.push_str(
            "NICs: veth, native XDP; tx checksum, TSO and GSO off; GRO off except for the kernel's routers, whose veths poll only with GRO.\n\
             CPUs: 1 runs the router (a NAPI thread) and the sink (the softirq of that thread), 0 runs the generator and the daemon.\n\
             Pacing: a batch of 128 packets is sent when less than 128 are under way, so the router is never idle and drops nothing.\n\
             Columns: idle: the router's CPU; refused: packets that did not fit into the router's ring; dist.: CPU time that other programs or\n\
             the hypervisor took; lost: packets that the router got and the sink did not. A 64-byte frame has 60 bytes here.\n",
        );
        if self.quick {
            text.push_str(
                "--quick: fewer rounds, shorter windows, and fewer combinations. For a first impression.\n",
            );
        }
        text
    }

    /// Returns the end of the text: parts that were not measured, and the load.
    pub(crate) fn tail(&self) -> String {
        let mut text = String::new();
        if !self.not_measured.is_empty() {
            text.push_str("\nNot measured:\n");
        }
        for NotMeasured { what, why } in &self.not_measured {
            line(&mut text, format_args!("  {what}: {why}"));
        }
        line(&mut text, format_args!("\nload average before and after: {}; {}", self.load[0], self.load[1]));
        text
    }
}

fn read(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().to_owned())
}
