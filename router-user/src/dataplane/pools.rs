//! Pools of SNAT ports, from user space: ports are given back here, and pools that are not needed
//! any more.

use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, Map, MapData, MapError};
use router_common::{
    address::Port,
    ports::{POOL_WORDS, Pool, PoolKey},
    tuple::{FlowKey, Protocol},
};
use std::{collections::HashSet, os::fd::AsFd as _};

use super::shared_memory::SharedArray;

/// Returns the number of pools for a table of this many sessions. Half of them are only for targets
/// that are crowded, which takes thousands of sessions each; the others are to spare
/// ([`PoolTable::to_spare`]), which takes some two thousand.
pub(super) fn pools_for(sessions: u32) -> u32 {
    (sessions / 2048).clamp(8, 4096)
}

/// The pools.
pub(super) struct PoolTable {
    keys: HashMap<MapData, PoolKey, u32>,
    pools: SharedArray<Pool>,
    /// Pools that no program finds any more, to be given back when no program can still use them.
    leaving: HashSet<u32>,
    /// The last of [`SHARES`] that was reconciled.
    share: u32,
}

/// include/uapi/linux/bpf.h.
const BPF_NOEXIST: u64 = 1;

/// The number of calls of [`PoolTable::reconcile`] that cover the marks of all pools.
const SHARES: u32 = 16;

impl PoolTable {
    pub(super) fn new(keys: Map, bits: Map) -> Result<Self> {
        let Map::Array(bits) = bits else { bail!("the pools are not an array") };
        let count = bits.info().context("cannot examine the pools")?.max_entries();
        let pools = SharedArray::map(bits.fd().as_fd(), count).context("cannot map the pools")?;
        let mut table = Self { keys: keys.try_into()?, pools, leaving: HashSet::new(), share: 0 };
        table.adopt()?;
        Ok(table)
    }

    /// Gives back pools that an earlier daemon was about to give back.
    fn adopt(&mut self) -> Result<()> {
        // In this order: a pool that a program makes meanwhile is none of them.
        self.leaving =
            (0..self.pools.len()).filter(|index| self.pools.get(*index).is_some_and(Pool::is_used)).collect();
        for (_, index) in self.all()? {
            self.leaving.remove(&index);
        }
        Ok(())
    }

    /// Returns the number of pools that targets may use before ports are crowded. The others are
    /// kept for crowded targets.
    pub(super) fn to_spare(&self) -> u32 {
        self.pools.len() / 2
    }

    fn all(&self) -> Result<Vec<(PoolKey, u32)>> {
        // Only this process removes keys, under a lock: the walk sees every pool that there was
        // when it began.
        self.keys.iter().collect::<Result<_, MapError>>().context("cannot read the pools of ports")
    }

    /// Marks the ports of reply flows as free, where there is a pool that marks them. Only after
    /// the flows are gone from the table: a pool that is made later then finds the ports free.
    pub(super) fn clear(&self, replies: impl IntoIterator<Item = FlowKey>) -> Result<()> {
        let mut replies = replies.into_iter().peekable();
        if replies.peek().is_none() {
            return Ok(());
        }
        let pools: std::collections::HashMap<_, _> = self.all()?.into_iter().collect();
        if pools.is_empty() {
            return Ok(());
        }
        for reply in replies {
            if let Some(pool) = pools.get(&PoolKey::of(&reply)).and_then(|index| self.pools.get(*index)) {
                pool.clear(reply.destination_port.number());
            }
        }
        Ok(())
    }

    /// Makes a pool for a target, unless it has one or none is to spare, and marks the ports of
    /// these reply flows as taken; but not one that is free in the table by then (`is_there`).
    pub(super) fn mark(
        &mut self,
        target: &PoolKey,
        replies: &[FlowKey],
        is_there: impl Fn(&FlowKey) -> bool,
    ) -> Result<()> {
        let index = match self.keys.get(target, 0) {
            Ok(index) => index,
            Err(MapError::KeyNotFound) => {
                let free = |index: &u32| self.pools.get(*index).is_some_and(Pool::claim);
                let Some(index) = (0..self.to_spare()).find(free) else { return Ok(()) };
                if self.keys.insert(target, index, BPF_NOEXIST).is_err() {
                    // A program has made one at the same moment.
                    if let Some(pool) = self.pools.get(index) {
                        pool.unclaim();
                    }
                    return Ok(());
                }
                index
            }
            Err(error) => return Err(error).context("cannot read the pools of ports"),
        };
        let Some(pool) = self.pools.get(index) else { return Ok(()) };
        for reply in replies {
            let port = reply.destination_port.number();
            pool.set(port);
            // Looked at after the mark is there, see `Pool`.
            if !is_there(reply) {
                pool.clear(port);
            }
        }
        Ok(())
    }

    /// Frees the pools of targets that have `few` ports in use (a predicate over the target and the
    /// number of ports that its pool marks). It takes two calls, at least a second apart: the first
    /// removes a pool's key, the second frees the pool, when no program uses it any more.
    pub(super) fn clean(&mut self, few: impl Fn(&PoolKey, u32) -> bool) -> Result<()> {
        let all = self.all()?;
        // One that a program was about to make when it was thought to be leaving has a key since.
        for (_, index) in &all {
            self.leaving.remove(index);
        }
        for index in self.leaving.drain() {
            if let Some(pool) = self.pools.get(index) {
                pool.release();
            }
        }
        for (key, index) in all {
            if self.pools.get(index).is_some_and(|pool| few(&key, pool.taken())) {
                match self.keys.remove(&key) {
                    Ok(()) => {
                        self.leaving.insert(index);
                    }
                    Err(MapError::KeyNotFound) => {}
                    Err(error) => return Err(error).context("cannot remove a pool of ports"),
                }
            }
        }
        Ok(())
    }

    /// Clears marks of ports that no flow has, for a share of the ports. A program also marks the
    /// port of one of this machine's sockets, so as not to try it for every session, and the
    /// socket's end is not seen; and a daemon that is killed gives nothing back. A program that
    /// takes such a port meanwhile marks it once more.
    pub(super) fn reconcile(&mut self, is_there: impl Fn(&FlowKey) -> bool) -> Result<()> {
        let words = POOL_WORDS / SHARES;
        self.share = (self.share + 1) % SHARES;
        for (key, index) in self.all()? {
            let Some(pool) = self.pools.get(index) else { continue };
            for port in pool.taken_in(self.share * words..(self.share + 1) * words) {
                if reply_key(&key, port).is_some_and(|reply| !is_there(&reply)) {
                    pool.clear(port);
                }
            }
        }
        Ok(())
    }

    /// Returns the pools, each with the number of ports that it marks as taken.
    pub(super) fn marked(&self) -> Result<Vec<(PoolKey, u32)>> {
        let taken = |index| self.pools.get(index).map_or(0, Pool::taken);
        Ok(self.all()?.into_iter().map(|(key, index)| (key, taken(index))).collect())
    }

    /// The reply flows that a pool marks ports as taken for, for the checker.
    pub(super) fn taken_by(&self, key: &PoolKey) -> Vec<FlowKey> {
        let Ok(index) = self.keys.get(key, 0) else { return Vec::new() };
        let Some(pool) = self.pools.get(index) else { return Vec::new() };
        pool.taken_in(0..POOL_WORDS).filter_map(|port| reply_key(key, port)).collect()
    }
}

/// The reply flow that a port of a pool is for.
fn reply_key(pool: &PoolKey, port: u16) -> Option<FlowKey> {
    let protocol = Protocol::from_number(pool.protocol)?;
    Some(FlowKey::new(protocol, pool.target, pool.target_port, pool.snat, Port::new(port)))
}
