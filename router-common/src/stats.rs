//! Counters: one block a CPU, so that counting touches nothing another CPU writes.

use core::mem::size_of;

use crate::{MAX_INTERFACES, MAX_RULES, reason::REASON_SLOTS};

/// Packets and their bytes, Ethernet header included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Counter {
    /// Counts a packet of this many bytes.
    #[inline(always)]
    pub const fn count(&mut self, bytes: u64) {
        self.packets += 1;
        self.bytes += bytes;
    }

    /// Adds what another CPU counted.
    pub const fn merge(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What is counted of an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct InterfaceStats {
    /// Packets that the program was given.
    pub received: Counter,
    /// Packets that the program sent out.
    pub transmitted: Counter,
}

/// What is counted of a rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RuleStats {
    /// Packets from clients to the target.
    pub forward: Counter,
    /// Packets from the target to clients.
    pub reply: Counter,
    /// Sessions opened.
    pub opened: u64,
    /// Packets dropped because their source is not allowed.
    pub denied: u64,
}

/// All counters of one CPU: one map value, so that a packet finds all of them with one lookup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CpuStats {
    /// By the number of the [`Reason`](crate::reason::Reason).
    pub reasons: [Counter; REASON_SLOTS],
    /// By interface slot.
    pub interfaces: [InterfaceStats; MAX_INTERFACES],
    /// By rule number.
    pub rules: [RuleStats; MAX_RULES],
}

/// The kernel's limit for a per-CPU value (`PCPU_MIN_UNIT_SIZE`, include/linux/percpu.h).
const _: () = assert!(size_of::<CpuStats>() <= 32 << 10);
/// The program masks indexes instead of comparing them.
const _: () = assert!(
    REASON_SLOTS.is_power_of_two() && MAX_RULES.is_power_of_two() && MAX_INTERFACES.is_power_of_two()
);

impl CpuStats {
    /// All zero.
    pub const ZERO: Self = Self {
        reasons: [Counter { packets: 0, bytes: 0 }; REASON_SLOTS],
        interfaces: [InterfaceStats {
            received: Counter { packets: 0, bytes: 0 },
            transmitted: Counter { packets: 0, bytes: 0 },
        }; MAX_INTERFACES],
        rules: [RuleStats {
            forward: Counter { packets: 0, bytes: 0 },
            reply: Counter { packets: 0, bytes: 0 },
            opened: 0,
            denied: 0,
        }; MAX_RULES],
    };

    /// Adds what another CPU counted.
    pub fn merge(&mut self, other: &Self) {
        let Self { reasons, interfaces, rules } = self;
        for (sum, cpu) in reasons.iter_mut().zip(&other.reasons) {
            sum.merge(cpu);
        }
        for (sum, cpu) in interfaces.iter_mut().zip(&other.interfaces) {
            sum.received.merge(&cpu.received);
            sum.transmitted.merge(&cpu.transmitted);
        }
        for (sum, cpu) in rules.iter_mut().zip(&other.rules) {
            sum.forward.merge(&cpu.forward);
            sum.reply.merge(&cpu.reply);
            sum.opened += cpu.opened;
            sum.denied += cpu.denied;
        }
    }
}
