//! The counters.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use router_common::maps::stats::CpuStats;

/// The counters of all CPUs. A clone reads the same ones.
#[derive(Clone)]
pub struct CounterTable {
    map: Arc<PerCpuArray<MapData, CpuStats>>,
}

impl CounterTable {
    pub(super) fn new(map: Map) -> Result<Self> {
        Ok(Self { map: Arc::new(map.try_into()?) })
    }

    /// Returns the counters, summed over CPUs.
    ///
    /// # Errors
    /// Returns an error if the map cannot be read.
    pub fn read(&self) -> Result<Box<CpuStats>> {
        let cpus = self.map.get(&0, 0).context("cannot read the counters")?;
        let mut sum = Box::new(CpuStats::ZERO);
        for cpu in cpus.iter() {
            sum.merge(cpu);
        }
        Ok(sum)
    }
}
